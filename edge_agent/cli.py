"""The `edge-agent` command: arguments and options only.

Each command imports its implementation when it is called, so that ``--help`` is fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import edge_agent
from edge_agent.config import Settings, load
from splitedge import limits as bounds
from splitedge import options
from splitedge.errors import UsageError
from splitedge.options import Given, Json, Layers, Pace, Plot

app = typer.Typer(
    help="Run the first part of a neural network on this board and the rest on an edge-server.", **options.APP
)
config_app = typer.Typer(help="Show, check, create or change the configuration.", **options.APP)
app.add_typer(config_app, name="config")
service_app = typer.Typer(help="Install, remove or check the agent as a systemd service.", **options.APP)
app.add_typer(service_app, name="service")
bench_app = typer.Typer(
    cls=options.Group,
    help="Measure models on this board: our kernels beside ONNX Runtime and LiteRT.",
    invoke_without_command=True,
    **options.APP,
)
app.add_typer(bench_app, name="bench")


class _ProfileGroup(options.Group):
    """A name that is no command is that of a known board: `profile --known pi5`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["known", *args])


profile_app = typer.Typer(
    cls=_ProfileGroup,
    help="Measure this machine; show, compare and export profiles.",
    invoke_without_command=True,
    **options.APP | {"no_args_is_help": False},
)
app.add_typer(profile_app, name="profile")

_Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (TOML). [default: the one in use]", show_default=False),
]
_Counts = Annotated[
    str,
    typer.Option(
        "-t", "--threads", metavar="COUNTS", help="Such as 1,2,4. [default: 1 and all cores]", show_default=False
    ),
]
_Old = Annotated[Path, typer.Argument(metavar="OLD.json", show_default=False)]
_New = Annotated[Path, typer.Argument(metavar="NEW.json", show_default=False)]
_Least = Annotated[float, typer.Option("--least", min=0, max=1000, help="The least change in per cent that counts.")]
_Key = Annotated[str, typer.Argument(metavar="KEY", help="Name of the setting, such as api.port.", show_default=False)]


#: The groups of settings that `run` takes: all.
ALL = ("server", "model", "output", "board", "demand", "link", "reuse", "chain", "stage", "api")


def _takes(*groups: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return options.takes(Settings, *groups, file=True)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-agent {edge_agent.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run the first part of a neural network on this board and the rest on an edge-server."""


@app.command(cls=options.Command)
@_takes("server", "model")
def doctor(
    given: Given,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="First fix what is safe: the cache folder, modes of files, kernels that are not compiled."
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            help="Write the report, the settings without tokens, versions and the journal to this new .zip or .tar.gz "
            "file.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check this machine and the server, and suggest fixes.

    Exit status: 0 no check failed, 1 a check failed.
    """
    from edge_agent.commands import doctor as command

    raise typer.Exit(command.doctor(given.file, given.options, json=json, fix=fix, archive=bundle))


@profile_app.callback()
def profile(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="5 s instead of 20: fewer runs, no load, no backends.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the profile to this file (JSON).", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Use it from now on for plans and `doctor`.")] = False,
    watts: Annotated[
        float | None,
        typer.Option("--watts", min=0.01, help="Power of the board under load in watts, if it has no sensor."),
    ] = None,
    sustained: Annotated[
        str,
        typer.Option(
            "--sustained",
            metavar="TIME",
            help="Load the board so long, such as 10m, to see throttling.",
            show_default=False,
        ),
    ] = "",
    known: Annotated[
        bool,
        typer.Option("--known", help="Do not measure: list the known boards, or print the one named after it."),
    ] = False,
    config: _Config = None,
    json: Json = False,
) -> None:
    """Measure this machine; show, compare and export profiles.

    Without a command, measures: kernels on one thread up to all, memory, load, power, and other backends.
    """
    if context.invoked_subcommand is not None:
        return
    from edge_agent.commands import profile as command

    if known:
        command.known_boards(None, asked=True, json=json)
        return
    asked = command.Options(quick=quick, out=out, keep=keep, json=json, watts=watts, sustained=sustained)
    command.profile(load(config, {}) if keep else Settings(), asked)


_ProfileFile = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="A profile. [default: the one in use]", show_default=False),
]


@profile_app.command("show", cls=options.Command)
def show_profile(file: _ProfileFile = None, config: _Config = None, json: Json = False) -> None:
    """Show a profile as tables."""
    settings = load(config, {}) if file is None else Settings()
    from edge_agent.commands import profile as command

    command.show(file, settings, json=json)


@profile_app.command("compare", cls=options.Command)
def compare_profiles(
    first: _Old,
    second: _New,
    least: _Least = 5.0,
    json: Json = False,
) -> None:
    """Show which kernels changed between two profiles, beyond noise.

    Exit status: 0 nothing is slower, 1 a kernel is slower.
    """
    from edge_agent.commands import profile as command

    raise typer.Exit(command.compare(first, second, least=least, json=json))


@profile_app.command(cls=options.Command)
def export(
    file: _ProfileFile = None,
    output: Annotated[
        Literal["md", "csv", "json"], typer.Option("-o", "--output", help="Format of the output.")
    ] = "md",
    config: _Config = None,
) -> None:
    """Print an anonymous profile, to share.

    It has the board and the figures, without times of day, paths and texts of errors.
    """
    settings = load(config, {}) if file is None else Settings()
    from edge_agent.commands import profile as command

    command.export(file, settings, output)


@profile_app.command(cls=options.Command)
@_takes("server", "demand")
def roofline(
    given: Given,
    file: _ProfileFile = None,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="Also its operators: a .segment file, or a model of the server.",
            show_default=False,
        ),
    ] = "",
    threads: Annotated[
        int | None,
        typer.Option("-t", "--threads", min=1, help="Number of threads. [default: that of heads]", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it to this .svg or .png file.", show_default=False)
    ] = None,
) -> None:
    """Show what bounds each kernel: products or memory.

    The operators of a model are measured if the profile is this board's, else predicted.
    """
    settings = load(*given)
    from edge_agent.commands import profile as command

    command.roofs(settings, command.Roofs(file, model, threads, plot))


@profile_app.command("known", hidden=True)
def known_board(
    context: typer.Context,
    board: Annotated[str, typer.Argument(metavar="BOARD", show_default=False)],
    known: Annotated[bool, typer.Option("--known")] = False,
    json: Json = False,
) -> None:
    """Print the profile of a known board."""
    from edge_agent.commands import profile as command

    before = context.parent.params if context.parent is not None else {}
    command.known_boards(board, asked=known or bool(before.get("known")), json=json or bool(before.get("json")))


@bench_app.callback()
@_takes("server", "demand")
def bench(
    context: typer.Context,
    given: Given,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="A .onnx, .tflite or .segment file, or the name of a model on the server; may be repeated.",
            show_default=False,
        ),
    ] = None,
    backends: Annotated[
        str,
        typer.Option(
            "-b",
            "--backends",
            metavar="NAMES",
            help="native,onnxruntime,litert,tflite ... [default: all that run here]",
        ),
    ] = "",
    threads: _Counts = "",
    repeats: Annotated[int, typer.Option("-r", "--repeats", min=1, max=1_000_000, help="Runs of a row.")] = 160,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, help="Processes of a row, which share its runs.")
    ] = 8,
    warmup: Annotated[int, typer.Option("--warmup", min=0, max=10_000, help="Untimed runs of a process.")] = 3,
    delay: Annotated[float, typer.Option("--delay", min=0, max=3600, help="Seconds between two turns.")] = 0.003,
    single_stream: Annotated[
        bool, typer.Option("--single-stream", help="As MLPerf's single stream: 1,024 queries or 60 s of a row.")
    ] = False,
    output: Annotated[
        Literal["table", "md", "csv", "json", "jsonl"], typer.Option("-o", "--output", help="Format of the output.")
    ] = "table",
    shape: Annotated[
        str,
        typer.Option("--shape", metavar="SIZES", help="Shape of the input, such as 1,3,224,224.", show_default=False),
    ] = "",
    images: Annotated[
        str,
        typer.Option(
            "--images",
            metavar="FOLDER",
            help="Pictures: compare the answers with those of the float model.",
            show_default=False,
        ),
    ] = "",
    mean: Annotated[
        str,
        typer.Option(
            "--mean",
            metavar="PIXELS",
            help="With --images: mean of the pixels. [default: ImageNet's]",
            show_default=False,
        ),
    ] = "",
    std: Annotated[
        str,
        typer.Option(
            "--std", metavar="PIXELS", help="With --images: their deviation. [default: ImageNet's]", show_default=False
        ),
    ] = "",
    operators: Annotated[bool, typer.Option("--per-op", help="Also time every operator.")] = False,
    power: Annotated[bool, typer.Option("--power", help="Also measure watts, and joules of a run.")] = False,
    sustained: Annotated[
        str,
        typer.Option("--sustained", metavar="TIME", help="Also run each row so long, such as 10m.", show_default=False),
    ] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw --sustained to this .svg or .png file.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write an anonymous result to this file, to contribute.", show_default=False),
    ] = None,
) -> None:
    """Measure models on this board: our kernels beside ONNX Runtime and LiteRT.

    Rows of a model take turns in processes of their own. From a .onnx file, bench makes the int8 files of all backends
    if the server extra is installed. Exit status: 0, or 1 if every row failed.
    """
    if context.invoked_subcommand is not None:
        return
    if not model:
        raise UsageError("bench needs a model; give -m FILE, or the name of a model on the server", reason="no-model")
    settings = load(*given)
    from edge_agent.commands import bench as command

    asked = command.Options(
        models=model,
        backends=backends,
        threads=threads,
        repeats=repeats,
        rounds=rounds,
        warmup=warmup,
        delay=delay,
        single_stream=single_stream,
        output=output,
        shape=shape,
        images=images,
        mean=mean,
        std=std,
        operators=operators,
        power=power,
        sustained=sustained,
        plot=plot,
        report=report,
    )
    raise typer.Exit(command.bench(settings, asked))


@bench_app.command("compare", cls=options.Command)
def compare_results(
    first: _Old,
    second: _New,
    least: _Least = 2.0,
    json: Json = False,
) -> None:
    """Show what changed between two results of `bench -o json`, beyond noise.

    Exit status: 0 nothing is slower, 1 a row is slower.
    """
    from edge_agent.commands import bench as command

    raise typer.Exit(command.compare(first, second, least=least, json=json))


@bench_app.command(cls=options.Command)
def kernels(
    threads: _Counts = "",
    output: Annotated[
        Literal["table", "md", "csv", "json"], typer.Option("-o", "--output", help="Format of the output.")
    ] = "table",
) -> None:
    """Measure the integer kernels: time, GOPS, share of the peak, GB/s."""
    from edge_agent.commands import bench, profile

    profile.kernels(bench.thread_counts(threads), output)


@bench_app.command(cls=options.Command)
@_takes("server")
def link(
    given: Given,
    times: Annotated[int, typer.Option("--times", min=1, max=100, help="How often to measure.")] = 5,
    json: Json = False,
) -> None:
    """Measure round trip and rates of the way to the server."""
    settings = load(*given)
    from edge_agent.commands import bench as command

    asyncio.run(command.link(settings, times=times, json=json))


@app.command(cls=options.Command)
def warm() -> None:
    """Compile all kernels now. Later starts of this version are then fast."""
    from edge_agent.commands import warm as command

    command.warm()


@app.command(cls=options.Command)
@_takes("server")
def models(given: Given, json: Json = False) -> None:
    """List the models on the server."""
    settings = load(*given)
    from edge_agent.commands import plan as command

    asyncio.run(command.models(settings, json=json))


@app.command(cls=options.Command)
@_takes("server", "model", "board", "demand", "chain")
def plan(
    given: Given,
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            help="What if: plan for this known board (see `edge-agent profile --known`). [default: this machine]",
        ),
    ] = None,
    uplink: Annotated[
        float | None, typer.Option("--uplink", min=1e-3, help="What if: uplink in Mbit/s. [default: measured]")
    ] = None,
    downlink: Annotated[
        float | None, typer.Option("--downlink", min=1e-3, help="What if: downlink in Mbit/s. [default: measured]")
    ] = None,
    rtt: Annotated[
        float | None, typer.Option("--rtt", min=0, help="What if: round-trip time in ms. [default: measured]")
    ] = None,
    pace: Pace = "slow",
    plot: Plot = None,
    layers: Layers = False,
    json: Json = False,
) -> None:
    """Show where the model would be split, and why. Runs no frame."""
    settings = load(*given)
    from edge_agent.commands import first

    first.plan(settings, board, plot)
    from edge_agent.commands import plan as command

    link = {"uplink_mbps": uplink, "downlink_mbps": downlink, "rtt_ms": rtt}
    assumed = {name: value for name, value in link.items() if value is not None}
    asyncio.run(command.plan(settings, json=json, layers=layers, board=board, pace=pace, assumed=assumed, plot=plot))


@app.command(cls=options.Command)
@_takes("server", "model", "output", "board", "demand", "link", "reuse", "chain")
def infer(
    given: Given,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES",
            help="Images, texts or .npy arrays: files, folders, glob patterns, or - for standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text to classify; may be repeated.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write the complete output for each input to a .npy file in this folder.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            help="Write each image with its boxes, or its map, drawn over it to this folder.",
            show_default=False,
        ),
    ] = None,
    own: Annotated[
        bool, typer.Option("--own", help="Start an agent for this command, even if one runs with the same settings.")
    ] = False,
    json: Json = False,
) -> None:
    """Run the model on files or texts, and show where the time goes.

    An agent that already runs on this machine with the same settings answers. Without one, this command starts its own.
    """
    settings = load(*given)
    from edge_agent.commands import first

    frames = first.frames(files or [], text or [], out, save)
    settings = first.with_outputs(settings, out)
    running = first.answering(settings, own=own)
    from edge_agent.commands import infer as command

    raise typer.Exit(asyncio.run(command.infer(settings, frames, running, json=json, out=out, save=save)))


@app.command(cls=options.Command)
@_takes(*ALL)
def run(given: Given) -> None:
    """Run the agent with its local HTTP API. With --stage-port, serve as a later board of a chain."""
    settings = load(*given)
    from edge_agent.commands import run as command

    asyncio.run(command.run(settings))


@app.command("version", cls=options.Command)
def show_version(json: Json = False) -> None:
    """Print the versions of splitedge, Python and its libraries, and where the kernels come from."""
    from splitedge import versions

    versions.show("edge-agent", as_json=json)


@config_app.command(cls=options.Command)
@_takes(*ALL)
def show(given: Given, json: Json = False) -> None:
    """Show every setting, its value and its source."""
    from edge_agent.commands import config as command

    command.show(*given, json=json)


@config_app.command(cls=options.Command)
@_takes(*ALL)
def check(given: Given) -> None:
    """Check the settings and the files that they name. Does not contact the server.

    Exit status: 0 without problems, else 2.
    """
    from edge_agent.commands import config as command

    raise typer.Exit(command.check(*given))


@config_app.command(cls=options.Command)
@options.takes(Settings, *ALL, file=False)
def init(
    given: Given,
    file: Annotated[
        Path | None,
        typer.Option("--config", help="File to write. [default: ~/.config/splitedge/agent.toml]", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that exist.")] = False,
) -> None:
    """Write a configuration file with these options and a comment for every setting.

    On a terminal, asks for server, certificate authority, token and model. A token is written to a file of its own.
    """
    from edge_agent.commands import config as command

    command.init(file, given.options, replace=replace)


@config_app.command("set", cls=options.Command)
def set_key(
    key: _Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The new value.", show_default=False)],
    config: _Config = None,
) -> None:
    """Change one setting in the configuration file. Comments and order stay."""
    from edge_agent.commands import config as command

    command.change(config, key, value)


@config_app.command("unset", cls=options.Command)
def unset_key(key: _Key, config: _Config = None) -> None:
    """Comment out one setting in the configuration file, so that its default applies."""
    from edge_agent.commands import config as command

    command.change(config, key, None)


@service_app.command(cls=options.Command)
def install(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration file of the service. [default: /etc/splitedge/agent.toml]"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="File that contains the token. [default: token_file, else /etc/splitedge/token]"
        ),
    ] = None,
    camera: Annotated[
        bool | None, typer.Option("--camera/--no-camera", help="Let the service use cameras. [default: as before]")
    ] = None,
    limits: Annotated[
        bool | None,
        typer.Option(
            "--limits/--no-limits",
            help="Limit the service to `threads` cores and 75 % of the memory. [default: as before]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit file without installing it.")] = False,
) -> None:
    """Check the settings, install and start the service, and wait until it is ready or waits for the server."""
    from edge_agent.commands import service as command

    command.install(config, token_file, camera=camera, limits=limits, dry_run=dry_run)


@service_app.command(cls=options.Command)
def uninstall(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove its configuration, token, state and compiled kernels.")
    ] = False,
) -> None:
    """Stop and remove the service, and list the files that remain."""
    from edge_agent.commands import service as command

    command.uninstall(purge=purge)


@service_app.command(cls=options.Command)
def upgrade(
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION|FILE]", help="Version, or file of a release archive. [default: the newest version]"
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, max=3600, metavar="<s>", help="Time until the new version must be ready, in seconds."
        ),
    ] = bounds.UPGRADE_READY,
) -> None:
    """Upgrade the service. If the new version does not get ready, the old one serves again.

    The archive is where install-agent found the installed version. Its signature is checked before anything in it runs.
    """
    from edge_agent.commands import service as command

    command.upgrade(version, limit_s=limit)


@service_app.command(hidden=True)
def settle() -> None:
    """End an upgrade that is under way; a unit of systemd runs this."""
    from edge_agent.commands import service as command

    command.settle()


@service_app.command("auto-upgrade", cls=options.Command)
def auto_upgrade(
    state: Annotated[Literal["on", "off"], typer.Argument(help="Whether to look for a new version once a day.")],
) -> None:
    """Upgrade the service to new versions automatically, or stop doing so."""
    from edge_agent.commands import service as command

    command.auto_upgrade(on=state == "on")


@service_app.command(cls=options.Command)
def status() -> None:
    """Show the state of the service and its last error.

    Exit status: 0 ready, 1 running but not ready, 2 not installed, 3 not running.
    """
    from edge_agent.commands import service as command

    raise typer.Exit(command.status())


@service_app.command("test", cls=options.Command)
def try_frame(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration file of the service. [default: /etc/splitedge/agent.toml]"),
    ] = None,
) -> None:
    """Let the running agent answer a frame of noise, to test the way to the server and back."""
    from edge_agent.commands import try_frame as command

    command.try_frame(config)


@service_app.command(cls=options.Command)
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new lines until interrupted.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="<integer>", help="Number of lines.")] = 50,
) -> None:
    """Show the messages of the service in the journal of systemd."""
    from edge_agent.commands import service as command

    command.logs(lines=lines, follow=follow)
