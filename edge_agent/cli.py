"""The `edge-agent` command. Only options here: each command imports its work when it is called, so that `--help` is quick."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

import edge_agent
from edge_agent.config import Settings, load

app = typer.Typer(
    help="Run the first part of a neural network on this board and the rest on an edge-server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
service_app = typer.Typer(help="Install, remove or check the agent as a systemd service.", no_args_is_help=True)
app.add_typer(service_app, name="service")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (TOML); options given here override it.", show_default=False),
]
Server = Annotated[str | None, typer.Option("--server", help="URL of the edge-server [http://127.0.0.1:8470].")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", help="Token for the server. Other users can see options: prefer SPLITEDGE_TOKEN or --token-file."
    ),
]
TokenFile = Annotated[str | None, typer.Option("--token-file", help="File that contains the token.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Model to run, by its name on the server (see `edge-agent models`).")
]
Ca = Annotated[
    str | None,
    typer.Option(
        "--ca", help="Certificate authority that signed the server's certificate (PEM) [those of the system]."
    ),
]
Insecure = Annotated[
    bool | None,
    typer.Option(
        "--allow-insecure",
        help="Allow unencrypted HTTP to another machine, which exposes the token.",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Measurements of this board, from `edge-agent profile --out FILE` [measured at the first start].",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", help="Largest accepted loss of accuracy, in points [1.0]."),
]
MaxLatency = Annotated[
    float | None, typer.Option("--max-latency", help="Largest accepted time per frame, in ms [any].")
]
MinRate = Annotated[
    float | None, typer.Option("--min-rate", help="Smallest accepted rate, in frames per second [any].")
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        help="Data that must stay on this board: nothing, input, or the name of a layer (the input and every tensor before that layer's output) [nothing].",
    ),
]
Frames = Annotated[
    float | None,
    typer.Option(
        "--frames", help="Frames expected during a plan; the download of its segment is spread over them [unlimited]."
    ),
]
WeightTime = Annotated[
    float | None, typer.Option("--weight-time", help="Cost of one second per frame, when plans are compared [1].")
]
WeightEnergy = Annotated[float | None, typer.Option("--weight-energy", help="Cost of one joule on this board [0].")]
WeightCost = Annotated[float | None, typer.Option("--weight-cost", help="Cost of one second of server time [0].")]
Next = Annotated[
    str | None, typer.Option("--next", help="URL of the next board, to share the model among several boards.")
]
MaxAway = Annotated[
    float | None,
    typer.Option(
        "--max-away", help="Time in seconds that a frame waits for an unreachable server before it fails [10]."
    ),
]
Controller = Annotated[
    str | None,
    typer.Option(
        "--controller",
        help="Method that adapts the codec to the link: adaptive, quantpipe, pipeedge or fixed [adaptive].",
    ),
]
LinkBits = Annotated[int | None, typer.Option("--bits", help="Maximum bits of the initial codec [from the plan].")]
MaxAge = Annotated[
    float | None,
    typer.Option("--max-age", help="Drop frames that wait longer than this before they are sent, in ms [never]."),
]
Reuse = Annotated[
    float | None,
    typer.Option(
        "--reuse",
        help="Reuse the answer of an earlier frame if the new frame differs less than this (0 to 1); 0 turns this off [0].",
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The program on the board."""


@app.command()
def doctor(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, json: Json = False,
) -> None:  # fmt: skip
    """Check this machine and the server, and suggest fixes."""
    given = locals()
    from edge_agent.commands import doctor as command

    raise typer.Exit(asyncio.run(command.doctor(config, _options(given), json=json)))


@app.command()
def profile(
    quick: Annotated[bool, typer.Option("--quick", help="Measure fewer shapes, fewer times.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the profile to this file (JSON).", show_default=False)
    ] = None,
    watts: Annotated[float | None, typer.Option("--watts", min=0.01, help="Power of the board under load in watts, if it has no sensor.")] = None,
    known: Annotated[bool, typer.Option("--known", help="Do not measure: list the known boards, or print the profile of BOARD.")] = False,
    board: Annotated[str | None, typer.Argument(help="Name of a known board, with --known.", show_default=False)] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure this machine, or show the profile of a known board."""
    from edge_agent.commands import profile as command

    if known or board:
        command.known_boards(board, asked=known, json=json)
    else:
        command.profile(quick=quick, out=out, json=json, watts=watts)


@app.command()
def warm() -> None:
    """Compile all kernels now. Later starts of this version are then fast."""
    from edge_agent.commands import warm as command

    command.warm()


@app.command()
def models(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, json: Json = False,
) -> None:  # fmt: skip
    """List the models on the server."""
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
    board: Annotated[str | None, typer.Option("--board", help="What if: plan for this known board instead of this machine (see `edge-agent profile --known`).")] = None,
    uplink: Annotated[float | None, typer.Option("--uplink", min=1e-3, help="What if: uplink to the server in Mbit/s [measured].")] = None,
    downlink: Annotated[float | None, typer.Option("--downlink", min=1e-3, help="What if: downlink from the server in Mbit/s [measured].")] = None,
    rtt: Annotated[float | None, typer.Option("--rtt", min=0, help="What if: round-trip time in ms [measured].")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw size against accuracy and the best cut at each bandwidth into this .svg or .png file.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer with its bits and its share of the noise.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Show where the model would be split, and why. Nothing is run."""
    settings = _settings(locals())
    from edge_agent.commands import first

    first.plan(settings, board, plot)
    from edge_agent.commands import plan as command

    link = {"uplink_mbps": uplink, "downlink_mbps": downlink, "rtt_ms": rtt}
    given = {name: value for name, value in link.items() if value is not None}
    asyncio.run(command.plan(settings, json=json, layers=layers, board=board, given=given, plot=plot))


@app.command()
def infer(
    images: Annotated[list[str] | None, typer.Argument(help="Images, texts or .npy arrays: files, folders, glob patterns, or - for standard input.", show_default=False)] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to classify; may be repeated.", show_default=False)] = None,
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, profile: Profile = None, max_drop: MaxDrop = None,
    max_latency: MaxLatency = None, min_rate: MinRate = None, keep: Keep = None, frames: Frames = None,
    weight_time: WeightTime = None,
    weight_energy: WeightEnergy = None, weight_cost: WeightCost = None, max_away: MaxAway = None, next: Next = None,
    topk: Annotated[int | None, typer.Option("--topk", help="Number of classes per answer; 0: the whole output of the model too [5].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the whole output of the model for each input into this folder, as .npy.", show_default=False)] = None,
    controller: Controller = None, bits: LinkBits = None, max_age: MaxAge = None, reuse: Reuse = None, json: Json = False,
) -> None:  # fmt: skip
    """Run the model on files or texts. Shows where the time of each goes."""
    settings = _settings(locals())
    from edge_agent.commands import first

    given = first.frames(images or [], text or [], out)
    first.server(settings)
    from edge_agent.commands import infer as command

    raise typer.Exit(asyncio.run(command.infer(settings, given, json=json, out=out)))


@app.command()
def run(
    config: Config = None, server: Server = None, token: Token = None, token_file: TokenFile = None, ca: Ca = None,
    allow_insecure: Insecure = None, model: Model = None, profile: Profile = None,
    host: Annotated[str | None, typer.Option("--host", help="Address on which the local HTTP API listens [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port of the local HTTP API [8471].")] = None,
    max_drop: MaxDrop = None, max_latency: MaxLatency = None, min_rate: MinRate = None, keep: Keep = None, frames: Frames = None,
    weight_time: WeightTime = None, weight_energy: WeightEnergy = None, weight_cost: WeightCost = None, max_away: MaxAway = None,
    controller: Controller = None, bits: LinkBits = None, max_age: MaxAge = None, reuse: Reuse = None,
    next: Next = None,
    stage_host: Annotated[str | None, typer.Option("--stage-host", help="Address on which a later stage listens for the board before it [127.0.0.1].")] = None,
    stage_port: Annotated[int | None, typer.Option("--stage-port", help="Serve as a later stage of a chain of boards, on this port.")] = None,
) -> None:  # fmt: skip
    """Run the agent with its local HTTP API. With --stage-port it serves as a later stage of a chain of boards."""
    settings = _settings(locals())
    from edge_agent.commands import run as command

    asyncio.run(command.run(settings))


@service_app.command()
def install(
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file of the service [/etc/splitedge/agent.toml].")
    ] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that contains the token.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit file without installing it.")] = False,
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


_NOT_SETTINGS = {"config", "json", "layers", "plot", "out", "images", "text", "board", "uplink", "downlink", "rtt"}
_KEYS = {
    "host": "api.host", "port": "api.port", "next": "chain.next", "stage_host": "stage.host", "stage_port": "stage.port", "max_drop": "demand.max_drop_points", "max_latency": "demand.max_latency_ms",
    "min_rate": "demand.min_rate_fps", "keep": "demand.keep", "frames": "demand.frames", "max_away": "demand.max_away_s",
    "controller": "link.controller", "bits": "link.bits", "max_age": "link.max_age_ms", "reuse": "reuse.threshold",
    "weight_time": "demand.weights.time", "weight_energy": "demand.weights.energy", "weight_cost": "demand.weights.cost",
}  # fmt: skip
