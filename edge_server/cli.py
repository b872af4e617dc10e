"""The `edge-server` command. Only options here: each command imports its work when it is called, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_agent.errors import UsageError

app = typer.Typer(
    help="The remote peer: imports and calibrates models, plans splits, serves the rest of the network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder with models and tokens [SPLITEDGE_STORE or ~/.local/share/splitedge/server]."),
]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"edge-server {version('splitedge')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The remote peer."""


@app.command()
def add(
    model: Annotated[
        str,
        typer.Argument(
            help="An .onnx file, an exported program (.pt2), or package.module:callable.", show_default=False
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="What agents call it [the file's name].")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of calibration images; a labels.csv in it is used.")
    ] = None,
    arrays: Annotated[
        Path | None, typer.Option("--arrays", help="Folder of .npy arrays, channels last, or one .npy of many.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            help="Folder with a folder of .txt files for each class, or of .txt files; a .txt of one text a line; a .csv of texts and class indices.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="The text model's tokenizer.json, or its vocab.txt (BERT, uncased); agents then take texts.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="CSV of file and class index, .npy of indices, or a regular expression."),
    ] = None,
    class_names: Annotated[Path | None, typer.Option("--class-names", help="One a line, or CSV, or JSON.")] = None,
    preprocess: Annotated[
        Path | None, typer.Option("--preprocess", help="JSON or TOML with any of the options below.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Of pixel values 0 to 255, one or three, with commas [0].")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="The same: the input is (pixel - mean) / std [1].")] = None,
    resize: Annotated[int | None, typer.Option("--resize", help="Short side before the crop [size / 0.875].")] = None,
    fit: Annotated[str | None, typer.Option("--fit", help="crop or stretch [crop].")] = None,
    interpolation: Annotated[str | None, typer.Option("--interpolation", help="bicubic or bilinear [bicubic].")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="1,3,224,224: for a torch module or open dimensions.")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", min=1, help="Short for --input-shape 1,3,SIZE,SIZE.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Which of several outputs to keep [the first].")
    ] = None,
    padding: Annotated[
        int,
        typer.Option("--padding", min=0, help="Token id of padding, for a text model that takes an attention mask."),
    ] = 0,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Use at most so many samples.")] = None,
    rounding: Annotated[
        Literal["plain", "nearest", "gptq"],
        typer.Option(
            "--rounding",
            help="Of weights: gptq looks at what it does to the samples, nearest corrects biases only, plain nothing.",
        ),
    ] = "gptq",
    metric: Annotated[
        Literal["auto", "top1", "agreement", "cosine"],
        typer.Option(
            "--metric",
            help="What a drop is of: right answers (top1, with labels), the float model's answers (agreement), or the cosine "
            "to its outputs (embeddings, maps); auto is top1 with labels, else agreement.",
        ),
    ] = "auto",
    output_kind: Annotated[
        Literal["auto", "logits", "probabilities", "scores", "tensor"],
        typer.Option(
            "--output-kind",
            help="What the output holds: logits (a softmax makes probabilities), probabilities, scores (0 to 1 for each class by itself), or "
            "a tensor without classes (an embedding, a map); auto decides by what the float model answers.",
        ),
    ] = "auto",
    store: StoreFolder = None,
) -> None:
    """Import and calibrate a model, and list where it may be cut."""
    from edge_server.commands import add as command

    options = {"mean": _numbers("--mean", mean), "std": _numbers("--std", std), "resize": resize, "fit": fit}
    shape = f"1,3,{size},{size}" if size is not None and input_shape is None else input_shape
    command.add(
        store,
        command.Request(
            model, name, images, arrays, labels, class_names, preprocess, options | {"interpolation": interpolation}, shape, samples, rounding, metric,
            output, padding, texts, tokenizer, output_kind=None if output_kind == "auto" else output_kind,
        ),
    )  # fmt: skip


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    profile: Annotated[Path | None, typer.Option("--profile", help="Measurements of the board, from `edge-agent profile --out FILE`.")] = None,
    board: Annotated[str | None, typer.Option("--board", help="A known board instead of a profile (see `edge-agent profile --known`).")] = None,
    uplink: Annotated[float, typer.Option("--uplink", min=1e-3, help="Uplink of the board in Mbit/s.")] = 20.0,
    downlink: Annotated[float, typer.Option("--downlink", min=1e-3, help="Downlink of the board in Mbit/s.")] = 20.0,
    rtt: Annotated[float, typer.Option("--rtt", min=0, help="Round-trip time in ms.")] = 10.0,
    max_drop: Annotated[float, typer.Option("--max-drop", min=0, max=100, help="Largest accepted loss of accuracy, in points.")] = 1.0,
    keep: Annotated[str, typer.Option("--keep", help="Data that must stay on the board: nothing, input, or the name of a layer (the input and every tensor before that layer's output).")] = "nothing",
    frames: Annotated[float | None, typer.Option("--frames", help="Frames expected during a plan; the download of its segment is spread over them [unlimited].")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw size against accuracy and the best cut at each bandwidth into this .svg or .png file.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer with its bits and its share of the noise.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Compare the noise bound with QPART's, and tell how well the noise model fits.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan and the trade-offs as JSON.")] = False,
    store: StoreFolder = None,
) -> None:  # fmt: skip
    """Show the plan for a board that is not connected. Draws the trade-offs on request."""
    from edge_agent.protocol.messages import Demand, LinkEstimate
    from edge_server.commands import explain as command

    link = LinkEstimate(rtt, uplink, downlink)
    demand = Demand(max_drop_points=max_drop, keep=keep, frames=frames)
    command.explain(
        store, model, command.profile_of(profile, board), link, demand, plot, json=json, layers=layers, verbose=verbose
    )


@app.command()
def models(store: StoreFolder = None) -> None:
    """List the models in the store."""
    from edge_server.commands import models as command

    command.models(store)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Name of the model.")], store: StoreFolder = None) -> None:
    """Remove a model and its segments."""
    from edge_server.commands import models as command

    command.remove(store, name)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What to call it: the board that will use it.")] = "default",
    revoke: Annotated[bool, typer.Option("--revoke", help="Make this token useless.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the tokens' names.")] = False,
    store: StoreFolder = None,
) -> None:
    """Make a bearer token for an agent and print it, once."""
    from edge_server.commands import token as command

    command.token(store, name, revoke=revoke, show=show)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8470,
    store: StoreFolder = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key (PEM).")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no token.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a token or TLS all the same.")
    ] = False,
) -> None:
    """Serve plans, segments and frame streams until told to stop."""
    from edge_server.commands import serve as command

    command.serve(store, host=host, port=port, cert=cert, key=key, auth=not no_auth, insecure=insecure)


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text} is not a list of numbers: give one, or three with commas") from error
