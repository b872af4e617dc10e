"""The `edge-agent` command. Only options here: each command imports its work when it is called, so that `--help` is quick."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

import edge_agent
from edge_agent.config import Settings, load

app = typer.Typer(
    help="The program on the board: runs the integer head of a split network and streams the cut to an edge-server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
service_app = typer.Typer(help="The agent as a systemd service.", no_args_is_help=True)
app.add_typer(service_app, name="service")

Config = Annotated[
    Path | None, typer.Option("--config", help="TOML file with any of these settings.", show_default=False)
]
Server = Annotated[str | None, typer.Option("--server", help="URL of the edge-server.")]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Bearer token; better in SPLITEDGE_TOKEN or a file."),
]
TokenFile = Annotated[str | None, typer.Option("--token-file", help="File that holds the token.")]
Model = Annotated[str | None, typer.Option("--model", help="Name of the model on the server.")]
Ca = Annotated[str | None, typer.Option("--ca", help="Certificate authority to trust (PEM).")]
Insecure = Annotated[
    bool | None,
    typer.Option(
        "--allow-insecure",
        help="Send the token over plain HTTP beyond this machine.",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", help="Profile written by `edge-agent profile --out`."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", help="Accuracy that may be lost, in points [1.0]."),
]
MaxLatency = Annotated[float | None, typer.Option("--max-latency", help="Greatest latency wanted, in ms.")]
MinRate = Annotated[float | None, typer.Option("--min-rate", help="Frames a second wanted.")]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        help="What must not leave: nothing, input, or everything before a named layer.",
    ),
]
Frames = Annotated[float | None, typer.Option("--frames", help="How many the plan is expected to serve.")]
WeightTime = Annotated[float | None, typer.Option("--weight-time", help="Weight of a second [1].")]
WeightEnergy = Annotated[float | None, typer.Option("--weight-energy", help="Weight of a joule [0].")]
WeightCost = Annotated[float | None, typer.Option("--weight-cost", help="Weight of a server second [0].")]
Next = Annotated[
    str | None, typer.Option("--next", help="Share the model with the board at this URL and those behind it.")
]
MaxAway = Annotated[float | None, typer.Option("--max-away", help="Seconds the server may be away [10].")]
Controller = Annotated[
    str | None,
    typer.Option("--controller", help="What chooses codecs: adaptive, quantpipe, pipeedge or fixed [adaptive]."),
]
LinkBits = Annotated[
    int | None, typer.Option("--bits", help="Begin with the codec of at most so many bits [as the plan says].")
]
MaxAge = Annotated[
    float | None, typer.Option("--max-age", help="Milliseconds after which an unsent frame is dropped [never].")
]
Reuse = Annotated[
    float | None,
    typer.Option(
        "--reuse",
        help="Give frames that differ less than this from an answered one its answer, and send nothing [0: never].",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-agent {edge_agent.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The program on the board."""


@app.command()
def doctor(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, json: Json = False,
) -> None:  # fmt: skip
    """Check this machine, the installation and the way to the server, and say what to do about what is not right."""
    given = locals()
    from edge_agent.commands import doctor as command

    raise typer.Exit(asyncio.run(command.doctor(config, _options(given), json=json)))


@app.command()
def profile(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and repetitions.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the profile (JSON) here.", show_default=False)
    ] = None,
    watts: Annotated[float | None, typer.Option("--watts", min=0.01, help="Power under load, if you know it.")] = None,
    known: Annotated[bool, typer.Option("--known", help="Measure nothing: list the known boards, or print BOARD.")] = False,
    board: Annotated[str | None, typer.Argument(help="A known board, with --known.", show_default=False)] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure this machine and print what it can do, or show what is known of other boards."""
    from edge_agent.commands import profile as command

    if known or board:
        command.known_boards(board, asked=known, json=json)
    else:
        command.profile(quick=quick, out=out, json=json, watts=watts)


@app.command()
def warm() -> None:
    """Compile every kernel that a service may need, once for this version, so that no start has to."""
    from edge_agent.commands import warm as command

    command.warm()


@app.command()
def models(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, json: Json = False,
) -> None:  # fmt: skip
    """List the models of the server."""
    settings = _settings(locals())
    from edge_agent.commands import plan as command

    asyncio.run(command.models(settings, json=json))


@app.command()
def plan(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, profile: Profile = None, max_drop: MaxDrop = None,
    max_latency: MaxLatency = None, min_rate: MinRate = None, keep: Keep = None, frames: Frames = None,
    weight_time: WeightTime = None, weight_energy: WeightEnergy = None, weight_cost: WeightCost = None, max_away: MaxAway = None,
    next: Next = None,
    board: Annotated[str | None, typer.Option("--board", help="What if: plan for this known board, which nobody measured.")] = None,
    uplink: Annotated[float | None, typer.Option("--uplink", min=1e-3, help="What if: Mbit/s to the server.")] = None,
    downlink: Annotated[float | None, typer.Option("--downlink", min=1e-3, help="What if: Mbit/s from the server.")] = None,
    rtt: Annotated[float | None, typer.Option("--rtt", min=0, help="What if: round trip, in ms.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Have the server draw the trade-offs into this .svg or .png.")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Ask the server for a plan and explain it; with --board or a link's values, for what is not here."""
    settings = _settings(locals())
    from edge_agent.commands import plan as command

    link = {"uplink_mbps": uplink, "downlink_mbps": downlink, "rtt_ms": rtt}
    given = {name: value for name, value in link.items() if value is not None}
    asyncio.run(command.plan(settings, json=json, board=board, given=given, plot=plot))


@app.command()
def infer(
    images: Annotated[list[str] | None, typer.Argument(help="Files (images, texts, .npy), folders, globs, or - for standard input.", show_default=False)] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Some words to classify; may be given again.", show_default=False)] = None,
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, profile: Profile = None, max_drop: MaxDrop = None,
    max_latency: MaxLatency = None, min_rate: MinRate = None, keep: Keep = None, frames: Frames = None,
    weight_time: WeightTime = None,
    weight_energy: WeightEnergy = None, weight_cost: WeightCost = None, max_away: MaxAway = None, next: Next = None,
    topk: Annotated[int | None, typer.Option("--topk", help="Classes in an answer; 0: the model's whole output too [5].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the model's whole output for each input as .npy into this folder.", show_default=False)] = None,
    controller: Controller = None, bits: LinkBits = None, max_age: MaxAge = None, reuse: Reuse = None, json: Json = False,
) -> None:  # fmt: skip
    """Classify images or texts and say where the time went."""
    settings = _settings(locals())
    from edge_agent.commands import infer as command

    raise typer.Exit(asyncio.run(command.infer(settings, images or [], text or [], json=json, out=out)))


@app.command()
def run(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, profile: Profile = None,
    host: Annotated[str | None, typer.Option("--host", help="Address of the local API [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port of the local API [8471].")] = None,
    controller: Controller = None, bits: LinkBits = None, max_age: MaxAge = None, reuse: Reuse = None,
    next: Next = None,
    stage_host: Annotated[str | None, typer.Option("--stage-host", help="Address for boards before this one [127.0.0.1].")] = None,
    stage_port: Annotated[int | None, typer.Option("--stage-port", help="Serve as a later stage of a chain on this port.")] = None,
) -> None:  # fmt: skip
    """Run the agent with its local HTTP API until it is told to stop; with --stage-port as a later stage of a chain of boards."""
    settings = _settings(locals())
    from edge_agent.commands import run as command

    asyncio.run(command.run(settings))


@service_app.command()
def install(
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration of the service [/etc/splitedge/agent.toml].")
    ] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds the token.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit and change nothing.")] = False,
) -> None:
    """Check the settings, write the systemd unit, start it, and wait until it is ready or waits for the server."""
    from edge_agent.commands import service as command

    command.install(config, token_file, dry_run=dry_run)


@service_app.command()
def uninstall(
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also remove its configuration, token, state and compiled kernels."),
    ] = False,
) -> None:
    """Stop and remove the service, and list what stays."""
    from edge_agent.commands import service as command

    command.uninstall(purge=purge)


@service_app.command()
def status() -> None:
    """Show the state of the service and its last error. Exit status: 0 ready, 1 running and not ready, 3 not running."""
    from edge_agent.commands import service as command

    raise typer.Exit(command.status())


def _settings(given: dict[str, Any]) -> Settings:
    """The settings in force; ``given`` maps parameter names of a command to their values, None where an option was not given."""
    return load(given["config"], _options(given))


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Values by the keys of the settings, None where an option was not given."""
    return {_KEYS.get(name, name): value for name, value in given.items() if name not in _NOT_SETTINGS}


_NOT_SETTINGS = {"config", "json", "plot", "out", "images", "text", "board", "uplink", "downlink", "rtt"}
_KEYS = {
    "host": "api.host", "port": "api.port", "next": "chain.next", "stage_host": "stage.host", "stage_port": "stage.port", "max_drop": "demand.max_drop_points", "max_latency": "demand.max_latency_ms",
    "min_rate": "demand.min_rate_fps", "keep": "demand.keep", "frames": "demand.frames", "max_away": "demand.max_away_s",
    "controller": "link.controller", "bits": "link.bits", "max_age": "link.max_age_ms", "reuse": "reuse.threshold",
    "weight_time": "demand.weights.time", "weight_energy": "demand.weights.energy", "weight_cost": "demand.weights.cost",
}  # fmt: skip
