"""The `edge-server` command: arguments and options only.

Each command imports its implementation when it is called, so that ``--help`` is fast.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import splitedge
from edge_server.config import Settings, load
from splitedge import options
from splitedge.errors import UsageError
from splitedge.options import Given, Json, Layers, Pace, Plot

app = typer.Typer(help="Import models, plan how to split them, and run the parts that boards do not.", **options.APP)
service_app = typer.Typer(help="Install, remove or check the server as a systemd service.", **options.APP)
app.add_typer(service_app, name="service")
preset_app = typer.Typer(help="Models that Python packages carry, for `edge-server add`.", **options.APP)
app.add_typer(preset_app, name="preset")

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)]
NamesFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="File of class names: one per line, CSV or JSON.", show_default=False)
]

# Options of `add`, by the heading in its help.
_sample = partial(typer.Option, rich_help_panel="Samples")
_pixels = partial(typer.Option, rich_help_panel="Preprocessing of images")
_text = partial(typer.Option, rich_help_panel="Text models")
_tensors = partial(typer.Option, rich_help_panel="Input and output")
_tasks = partial(typer.Option, rich_help_panel="Tasks: what the answers are")
_calibration = partial(typer.Option, rich_help_panel="Calibration")


def _takes(*groups: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return options.takes(Settings, *groups, file=False)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edge-server {splitedge.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Import models, plan how to split them, and run the parts that boards do not."""


@app.command(cls=options.Command)
@_takes("store")
def add(
    given: Given,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An .onnx or .tflite file, an exported program (.pt2), package.module:function that returns a torch module, or a preset (see `edge-server preset list`).",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model for agents. [default: the name of the file]")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the model if the name exists.")] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Also list the cuts that are not offered, and the noise of complete heads."),
    ] = False,
    images: Annotated[
        Path | None,
        _sample(
            "--images", help="Folder of calibration images: with or without a labels.csv, or with one folder per class."
        ),
    ] = None,
    arrays: Annotated[
        Path | None,
        _sample("--arrays", help="Folder of .npy arrays, channels last, or one .npy file with all samples."),
    ] = None,
    texts: Annotated[
        Path | None,
        _sample(
            "--texts",
            help="Calibration texts: one folder of .txt files per class, a folder of .txt files, a .txt file with one text per line, or a .csv file of texts and class indices.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        _sample("--samples", min=1, help="Maximum number of samples. [default: all]"),
    ] = None,
    labels: Annotated[
        str | None,
        _sample(
            "--labels",
            help="Classes of the samples: a CSV file of file name, class index or name, and class name; a .npy file of indices; or a regular expression on file names.",
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        _sample("--class-names", help="File of class names: one per line, CSV or JSON."),
    ] = None,
    preset: Annotated[
        Literal["imagenet", "inception", "efficientnet-lite", "clip", "cifar10", "mnist", "unit", "raw"] | None,
        _pixels(
            "--preset",
            help="Normalization of pixels: imagenet (torchvision, most of timm), inception (-1 to 1: Keras, TensorFlow), efficientnet-lite "
            "((x - 127) / 128), clip, cifar10, mnist, unit (0 to 1), raw (0 to 255). Images require this, or --mean "
            "and --std.",
        ),
    ] = None,
    preprocess: Annotated[
        Path | None,
        _pixels("--preprocess", help="File with the other options of this section (JSON or TOML)."),
    ] = None,
    mean: Annotated[
        str | None,
        _pixels("--mean", help="Mean of the pixels (0 to 255): one number, or three separated by commas."),
    ] = None,
    std: Annotated[
        str | None,
        _pixels("--std", help="Standard deviation of the pixels, as --mean: the input is (pixel - mean) / std."),
    ] = None,
    resize: Annotated[
        int | None,
        _pixels("--resize", help="Resize the short side to this before the crop. [default: input size / 0.875]"),
    ] = None,
    fit: Annotated[
        str | None,
        _pixels(
            "--fit", help="Method that fits an image to the input: crop, stretch, or pad (borders). [default: crop]"
        ),
    ] = None,
    border: Annotated[
        int | None,
        _pixels("--border", min=0, max=255, help="Pixel value of the borders of --fit pad. [default: 0]"),
    ] = None,
    interpolation: Annotated[
        str | None,
        _pixels(
            "--interpolation", help="Interpolation: bicubic or bilinear. [default: that of the preset, else bicubic]"
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        _text(
            "--tokenizer", help="The model's tokenizer.json or vocab.txt (BERT, uncased), so that agents accept texts."
        ),
    ] = None,
    padding: Annotated[
        int,
        _text("--padding", min=0, help="Token id of padding, for a text model with an attention mask."),
    ] = 0,
    input_shape: Annotated[
        str | None,
        _tensors(
            "--input-shape",
            help="Input shape in the order of the model, such as 1,3,224,224. Required for a torch module and for open dimensions.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        _tensors("--size", min=1, help="Short for --input-shape 1,3,SIZE,SIZE."),
    ] = None,
    constant: Annotated[
        list[str] | None,
        _tensors(
            "--constant",
            metavar="NAME=VALUE",
            help="Constant value of a further input of the model, such as sr=16000; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        _tensors(
            "--output",
            help="Tensor to answer with: an output, or any tensor of numbers inside the model; several are separated by commas. "
            "[default: the first output; all of a detector]",
        ),
    ] = None,
    output_kind: Annotated[
        Literal["auto", "logits", "probabilities", "scores", "tensor"],
        _tensors(
            "--output-kind",
            help="Meaning of the output: logits, probabilities, scores (independent, 0 to 1), or tensor (an embedding or a map, returned whole); "
            "auto derives it from the answers of the float model.",
        ),
    ] = "auto",
    task: Annotated[
        Literal["auto", "detection", "segmentation"],
        _tasks(
            "--task",
            help="What the answers are: boxes (detection), a class for each pixel (segmentation), or classes and tensors (auto).",
        ),
    ] = "auto",
    boxes: Annotated[
        Literal["yolov8", "yolov5", "yolov10", "detr", "rt-detr", "tf-ssd", "blazeface"] | None,
        _tasks(
            "--boxes",
            help="Format of a detector's outputs: yolov8 (also YOLOv9, YOLO11), yolov5 (also YOLOv7), yolov10 (corners, score, class), detr, rt-detr, "
            "tf-ssd (TensorFlow, after its non-maximum suppression), blazeface (MediaPipe's face detectors).",
        ),
    ] = None,
    score: Annotated[
        float | None,
        _tasks("--score", min=0, max=1, help="Least score of a box in an answer. [default: that of the format]"),
    ] = None,
    iou: Annotated[
        float | None,
        _tasks("--iou", min=0, max=1, help="Largest overlap of two boxes of a class. [default: that of the format]"),
    ] = None,
    threshold: Annotated[
        float | None,
        _tasks("--threshold", help="For a map with one value for each pixel: class 1 is above this. [default: 0.5]"),
    ] = None,
    effort: Annotated[
        Literal["quick", "normal", "best"],
        _calibration(
            "--effort",
            help="How much calibration measures: quick uses at most 100 samples; best measures every variant on all of its samples. "
            "Less effort means more bytes for the same accuracy bound.",
        ),
    ] = "normal",
    rounding: Annotated[
        Literal["plain", "nearest", "gptq"],
        _calibration(
            "--rounding",
            help="Weight rounding: gptq minimizes the output error on the samples; nearest rounds and corrects biases; plain only rounds.",
        ),
    ] = "gptq",
    metric: Annotated[
        Literal["auto", "top1", "agreement", "cosine"],
        _calibration(
            "--metric",
            help="Accuracy metric: right answers (top1, with labels), agreement with the float model, or the cosine to its output; "
            "auto is cosine for tensors, top1 with labels, else agreement.",
        ),
    ] = "auto",
) -> None:
    """Import and calibrate a model, and list where it can be split."""
    folder = load(given.options).folder()
    pixels: dict[str, Any] = {
        "preset": preset,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "resize": resize,
        "fit": fit,
        "interpolation": interpolation,
        "border": border,
    }
    from edge_server.commands import add as command
    from edge_server.importing.task import TaskOptions

    request = command.Request(
        source=model,
        name=name,
        images=images,
        arrays=arrays,
        texts=texts,
        labels=labels,
        class_names=class_names,
        preprocess=preprocess,
        options=pixels,
        input_shape=f"1,3,{size},{size}" if size is not None and input_shape is None else input_shape,
        most=samples,
        effort=effort,
        rounding=rounding,
        metric=metric,
        output=output,
        padding=padding,
        constants=tuple(constant or ()),
        tokenizer=tokenizer,
        output_kind=None if output_kind == "auto" else output_kind,
        task=TaskOptions(task, boxes, score, iou, threshold),
        replace=replace,
        verbose=verbose,
    )
    command.add(folder, request)


@app.command(cls=options.Command)
@_takes("store", "demand")
def explain(
    given: Given,
    model: Name,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Measurements of the board, from `edge-agent profile --out FILE`."),
    ] = None,
    board: Annotated[
        list[str] | None,
        typer.Option(
            "--board",
            help="A known board instead of a profile (see `edge-agent profile --known`). Several, or none: where it pays to split the model.",
        ),
    ] = None,
    uplink: Annotated[
        float | None,
        typer.Option(
            "--uplink", min=1e-3, help="Uplink of the board in Mbit/s. [default: 20; without one board, 1 to 256]"
        ),
    ] = None,
    downlink: Annotated[
        float | None,
        typer.Option("--downlink", min=1e-3, help="Downlink of the board in Mbit/s. [default: the uplink]"),
    ] = None,
    rtt: Annotated[
        float | None,
        typer.Option("--rtt", min=0, help="Round-trip time in ms. [default: 10; without one board, 20]"),
    ] = None,
    pace: Pace = "slow",
    plot: Plot = None,
    layers: Layers = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Compare the noise bound with that of QPART, and show how well the noise model fits."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan and the trade-offs as JSON.")] = False,
) -> None:
    """Show the plan for a board that is not connected or, for several boards, where it pays to split the model."""
    from edge_server.commands import explain as command

    settings, boards = load(given.options), board or []
    if len(boards) != 1 and (profile is None or boards):
        from edge_server.commands import survey
        from edge_server.planning.survey import ROUND_TRIP, UPLINKS

        found = command.profiles_of(profile, boards, pace)
        links = command.links_of(uplink, downlink, rtt, UPLINKS, ROUND_TRIP)
        survey.explain(settings.folder(), model, found, links, settings.demand, plot, json=json)
        return
    command.explain(
        settings.folder(),
        model,
        command.profile_of(profile, boards[0] if boards else None, pace),
        command.links_of(uplink, downlink, rtt, [20.0], 10.0)[0],
        settings.demand,
        plot,
        json=json,
        layers=layers,
        verbose=verbose,
    )


@app.command(cls=options.Command)
@_takes("store")
def models(given: Given, json: Json = False) -> None:
    """List the models in the store."""
    from edge_server.commands import models as command

    command.models(load(given.options).folder(), json=json)


@app.command(cls=options.Command)
@_takes("store")
def names(given: Given, model: Name, file: NamesFile) -> None:
    """Set the class names of a model, without calibration."""
    from edge_server.commands import models as command

    command.names(load(given.options).folder(), model, file)


@app.command(cls=options.Command)
@_takes("store")
def remove(given: Given, name: Name) -> None:
    """Remove a model and its segments."""
    from edge_server.commands import models as command

    command.remove(load(given.options).folder(), name)


@app.command(cls=options.Command)
@_takes("store")
def token(
    given: Given,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the token: the board that will use it.")
    ] = "default",
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke this token.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the names of all tokens.")] = False,
) -> None:
    """Create a token for a board and print it once."""
    from edge_server.commands import token as command

    command.token(load(given.options).folder(), name, revoke=revoke, show=show)


@app.command(cls=options.Command)
@_takes("store")
def init(
    given: Given,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="Another host name or address by which boards reach this machine; may be repeated.",
            show_default=False,
        ),
    ] = None,
    token: Annotated[str, typer.Option("--token", help="Name of the first token.")] = "board",  # noqa: S107
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", help="Folder for server.pem and server.key. [default: ~/.config/splitedge]", show_default=False
        ),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new certificate. Every board needs a copy of it.")
    ] = False,
) -> None:
    """Make a certificate and a token, and show what to copy to a board and how to serve.

    Changes nothing that is there.
    """
    from edge_server import certificate
    from edge_server.commands import init as command

    settings = load(given.options)
    place = folder.expanduser().absolute() if folder else certificate.default_folder()
    command.init(
        settings.folder(), place, names or [], token, renew=renew, port=settings.serve.port, store_option=_store(given)
    )


@app.command(cls=options.Command)
@_takes("store", "serve")
def serve(given: Given) -> None:
    """Serve plans, segments and frame streams until stopped."""
    from edge_server.commands import serve as command

    settings = load(given.options)
    command.serve(settings.folder(), settings.serve)


@app.command("version", cls=options.Command)
def show_version(json: Json = False) -> None:
    """Print the versions of splitedge, Python and its libraries, and where the kernels come from."""
    from splitedge import versions

    versions.show("edge-server", as_json=json)


@preset_app.command("list", cls=options.Command)
def list_presets(json: Json = False) -> None:
    """List the models that `edge-server add` knows by name, their packages, and how to install them."""
    from edge_server.commands import preset

    preset.show(json=json)


@service_app.command(cls=options.Command)
@_takes("store", "serve")
def install(
    given: Given,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Folder of the certificate that `edge-server init` made. [default: ~/.config/splitedge]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit file without installing it.")] = False,
) -> None:
    """Check the options, install and start the service, and wait until its port is open.

    Without --store, the service has a user and a store of its own. With --store, it runs as the owner of that store.
    """
    from edge_server.commands import service as command

    settings = load(given.options)
    store = settings.folder() if settings.store else None
    command.install(settings.serve, store, folder.expanduser().absolute() if folder else None, dry_run=dry_run)


@service_app.command(cls=options.Command)
def uninstall(
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also remove the service's own store, its cache and the changes of `systemctl edit`."
        ),
    ] = False,
) -> None:
    """Stop and remove the service, and list the files that remain."""
    from edge_server.commands import service as command

    command.uninstall(purge=purge)


@service_app.command(cls=options.Command)
def status() -> None:
    """Show the state of the service and its last error.

    Exit status: 0 ready, 1 running but not ready, 2 not installed, 3 not running.
    """
    from edge_server.commands import service as command

    raise typer.Exit(command.status())


def _store(given: Given) -> str:
    """The option ``--store`` of this command line, for commands to show."""
    store = given.options["store"]
    return f" --store {shlex.quote(str(store))}" if store else ""


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{option} {text} is not a list of numbers; give one number, or three separated by commas",
            reason="not-numbers",
        ) from error
