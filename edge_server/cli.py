"""The `edge-server` command. Only options here: each command imports its work when it is called, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from splitedge.errors import UsageError

app = typer.Typer(
    help="Import models, plan how to split them, and run the parts that boards do not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder for models and tokens [SPLITEDGE_STORE or ~/.local/share/splitedge/server]."),
]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"edge-server {version('splitedge')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The server."""


@app.command()
def add(
    model: Annotated[
        str,
        typer.Argument(
            help="An .onnx file, an exported program (.pt2), or package.module:function that returns a torch module.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model for agents [name of the file].")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of calibration images, with a labels.csv if there is one; or one folder per class.",
        ),
    ] = None,
    arrays: Annotated[
        Path | None,
        typer.Option("--arrays", help="Folder of .npy arrays, channels last, or one .npy file with all samples."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            help="Calibration texts: one folder of .txt files per class, a folder of .txt files, a .txt file with one text per line, or a .csv file of texts and class indices.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="The model's tokenizer.json or vocab.txt (BERT, uncased), so that agents accept texts.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="Classes of the samples: a CSV file of file name, class index or name, and class name; a .npy file of indices; or a regular expression on file names.",
        ),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", help="File of class names: one per line, CSV or JSON.")
    ] = None,
    preset: Annotated[
        Literal["imagenet", "inception", "efficientnet-lite", "clip", "cifar10", "mnist", "unit", "raw"] | None,
        typer.Option(
            "--preset",
            help="How the model expects pixels: imagenet (torchvision, most of timm), inception (-1 to 1: Keras, TensorFlow), efficientnet-lite "
            "((x - 127) / 128), clip, cifar10, mnist, unit (0 to 1), raw (0 to 255). Images need this, or --mean and --std.",
        ),
    ] = None,
    preprocess: Annotated[
        Path | None,
        typer.Option("--preprocess", help="File with the options below, up to --interpolation (JSON or TOML)."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="Mean of the pixels (0 to 255): one number, or three separated by commas."),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option("--std", help="Standard deviation of the pixels, as --mean: the input is (pixel - mean) / std."),
    ] = None,
    resize: Annotated[
        int | None, typer.Option("--resize", help="Resize the short side to this before the crop [input size / 0.875].")
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", help="How an image becomes the input: crop or stretch [crop].")
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option("--interpolation", help="Resize by bicubic or bilinear interpolation [bicubic].")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            help="Shape in the order of the model, such as 1,3,224,224: for a torch module or open dimensions.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", min=1, help="Short for --input-shape 1,3,SIZE,SIZE.")] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Tensor to answer with: an output, or any float32 tensor inside the model [the first output].",
        ),
    ] = None,
    padding: Annotated[
        int,
        typer.Option("--padding", min=0, help="Token id of padding, for a text model with an attention mask."),
    ] = 0,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Maximum number of samples [all].")] = None,
    rounding: Annotated[
        Literal["plain", "nearest", "gptq"],
        typer.Option(
            "--rounding",
            help="Weight rounding: gptq minimizes the output error on the samples; nearest rounds and corrects biases; plain only rounds.",
        ),
    ] = "gptq",
    metric: Annotated[
        Literal["auto", "top1", "agreement", "cosine"],
        typer.Option(
            "--metric",
            help="Accuracy metric: right answers (top1, with labels), agreement with the float model, or the cosine to its output; "
            "auto is cosine for tensors, top1 with labels, else agreement.",
        ),
    ] = "auto",
    output_kind: Annotated[
        Literal["auto", "logits", "probabilities", "scores", "tensor"],
        typer.Option(
            "--output-kind",
            help="Meaning of the output: logits, probabilities, scores (independent, 0 to 1), or tensor (an embedding or a map, returned whole); "
            "auto decides by what the float model answers.",
        ),
    ] = "auto",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the model if the name exists.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also list the cuts that are not offered and the noise of whole heads.")
    ] = False,
    store: StoreFolder = None,
) -> None:
    """Import and calibrate a model, and list where it can be split."""
    from edge_server.commands import add as command

    options: dict[str, Any] = {
        "preset": preset,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "resize": resize,
        "fit": fit,
    }
    shape = f"1,3,{size},{size}" if size is not None and input_shape is None else input_shape
    command.add(
        store,
        command.Request(
            model, name, images, arrays, labels, class_names, preprocess, options | {"interpolation": interpolation}, shape, samples, rounding, metric,
            output, padding, texts, tokenizer, output_kind=None if output_kind == "auto" else output_kind,
            replace=replace, verbose=verbose,
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
    from edge_server.commands import explain as command
    from splitedge.protocol.messages import Demand, LinkEstimate

    link = LinkEstimate(rtt, uplink, downlink)
    demand = Demand(max_drop_points=max_drop, keep=keep, frames=frames)
    command.explain(
        store, model, command.profile_of(profile, board), link, demand, plot, json=json, layers=layers, verbose=verbose
    )


@app.command()
def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, store: StoreFolder = None
) -> None:
    """List the models in the store."""
    from edge_server.commands import models as command

    command.models(store, json=json)


@app.command()
def names(
    model: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File of class names: one per line, CSV or JSON.", show_default=False)],
    store: StoreFolder = None,
) -> None:
    """Set the class names of a model, without calibration."""
    from edge_server.commands import models as command

    command.names(store, model, file)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Name of the model.")], store: StoreFolder = None) -> None:
    """Remove a model and its segments."""
    from edge_server.commands import models as command

    command.remove(store, name)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the token: the board that will use it.")] = "default",
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke this token.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the names of all tokens.")] = False,
    store: StoreFolder = None,
) -> None:
    """Create a token for a board and print it; it is not shown again."""
    from edge_server.commands import token as command

    command.token(store, name, revoke=revoke, show=show)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8470,
    store: StoreFolder = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key (PEM).")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Accept agents without a token.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other machines to connect without a token or TLS.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not log connections and refusals.")] = False,
) -> None:
    """Serve plans, segments and frame streams until stopped."""
    from edge_server.commands import serve as command

    command.serve(store, host=host, port=port, cert=cert, key=key, auth=not no_auth, insecure=insecure, quiet=quiet)


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text} is not a list of numbers: give one, or three with commas") from error
