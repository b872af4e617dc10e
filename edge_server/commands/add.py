"""`edge-server add`: import and calibrate a model, and list its cuts."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from rich.console import Console, RenderableType
from rich.text import Text

from calibration.accuracy import trials
from calibration.bundle import creation, estimate, requirements
from calibration.bundle.bundle import Bundle
from calibration.effort import EFFORTS, Level
from calibration.importing import importer, joining, quantized
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.rounding.rounder import Rounding
from calibration.samples import samples, texts
from calibration.samples.labels import read_names
from edge_server import config
from edge_server.commands.progress import Phases, duration, stopped_in_order
from edge_server.importing import preprocessing
from edge_server.importing.first_look import FirstLook
from edge_server.importing.task import TaskOptions
from edge_server.planner import Table as Patterns
from edge_server.planning.catalog import Catalog
from edge_server.planning.pattern_tables import load_or_build_table
from edge_server.planning.plan_message import mean_bits
from edge_server.presets.catalog import Preset, find
from edge_server.store.names import check_name
from edge_server.store.store import Store
from splitedge import errors, terminal
from splitedge.head import text
from splitedge.protocol.messages import IMAGE_FORMATS, OutputKind, Preprocess, Task
from splitedge.report import output
from splitedge.terminal import Column, plain

#: Accuracy drop in points for which the table lists bits and bytes.
SHOWN_DROP: Final = 1.0
#: In the table, for a cut with a larger drop.
OVER: Final = f"over {SHOWN_DROP:g} pt"


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `edge-server add`."""

    source: str
    name: str | None
    images: Path | None
    arrays: Path | None
    labels: str | None
    class_names: Path | None
    preprocess: Path | None
    options: dict[str, Any]  # fields of `preprocessing.Spec`, None where not given
    input_shape: str | None
    most: int | None
    rounding: Rounding = "gptq"
    metric: requirements.MetricChoice = "auto"
    output: str | None = None
    padding: int = 0
    constants: tuple[str, ...] = ()
    texts: Path | None = None
    tokenizer: Path | None = None
    output_kind: OutputKind | None = None
    effort: Level = "normal"
    replace: bool = False
    verbose: bool = False
    task: TaskOptions = field(default_factory=TaskOptions)


def add(folder: Path, request: Request) -> None:
    """Import and calibrate a model into the store in ``folder``, and print its cuts."""
    preset = find(request.source)
    if preset is None:
        _add(folder, request)
    else:
        _check_samples(request, preset)
        with preset.model_file() as path:
            _add(folder, of_preset(request, preset, path))


def _check_samples(request: Request, preset: Preset) -> None:
    """Raise `errors.UsageError` unless the samples are of the kind that ``preset`` takes, or arrays."""
    given = [kind for kind in ("images", "texts", "arrays") if getattr(request, kind) is not None]
    if given not in ([preset.samples], ["arrays"]):
        raise errors.UsageError(
            f"the preset {preset.name} needs calibration samples like its inputs; give --{preset.samples} DIR",
            reason="preset-samples",
        )


def of_preset(request: Request, preset: Preset, path: Path) -> Request:
    """``request`` for the model file ``path`` of ``preset``, which fills what the request leaves open."""
    pixels = preset.pixels if request.images is not None and request.preprocess is None else {}
    given = {name: value for name, value in request.options.items() if value is not None}
    places: dict[str, Any] = {
        name: preset.place(name)
        for name in preset.places
        if getattr(request, name) is None and (name != "tokenizer" or request.texts is not None)
    }
    return dataclasses.replace(
        request,
        source=str(path),
        options={**pixels, **given},
        task=preset.task.overridden(request.task),
        output_kind=request.output_kind or preset.output_kind,
        **places,
    )


def _add(folder: Path, request: Request) -> None:
    name = request.name or _name_of(request.source)
    spec = _checked(name, request)
    tokenizer = text.read(request.tokenizer) if request.tokenizer is not None else None
    console = Console(stderr=True)
    with stopped_in_order(), Store(folder) as store:
        store.bundles.check_free(name, replace=request.replace)
        known_names = read_names(request.class_names) if request.class_names is not None else []
        with Phases(console) as progress:
            progress("importing the model", 0, 0)
            model = importer.load(
                request.source,
                _shape(request.input_shape),
                _outputs(request),
                request.padding,
                _constants(request.constants),
            )
            graph = Graph.of(model)
            shape = graph.stored_shape(graph.input)
            reader = None if tokenizer is None else _tokenizer(tokenizer, graph, request.padding)
            code = quantized.codes(model).get(graph.input)
            if code is not None and request.images is not None:
                spec = preprocessing.with_codes(spec, *code)
            task = _task(request, model, graph)
            outputs = math.prod(graph.shapes[graph.output]) if graph.output in graph.shapes and task is None else None
            found = _samples(request, spec, shape, reader, known_names, outputs)
            names = found.labels.names if found.labels is not None and not known_names else known_names
            if graph.takes_ids:
                requirements.check_ids(layers.build(graph), found)
            progress("first look", 0, 0)
            seen = FirstLook(model, found, request.output_kind, request.metric, task)
            warning = _look(progress, seen)
            _expect(progress, graph, found, outputs or 1, seen, request.effort)
            former = _former(store, name)
            set_names = [] if known_names or former is None else former.names_set
            with store.bundles.create(name, replace=request.replace) as path:
                cache = store.folder / "cache"
                bundle = creation.create(
                    path,
                    name,
                    model,
                    found,
                    names,
                    progress,
                    request.rounding,
                    cache,
                    request.metric,
                    reader,
                    request.output_kind,
                    task,
                    request.effort,
                )
                patterns = load_or_build_table(store, bundle, lambda done, total: progress("patterns", done, total))
            if set_names and len(set_names) == outputs:
                store.bundles.set_class_names(name, set_names)
                progress.say("kept the class names that `edge-server names` set")
            if former and former.sha256 != bundle.sha256:
                store.forget(former.sha256)
        tokens = bool(store.tokens.all())
    _show(bundle, patterns, verbose=request.verbose)
    if warning:
        console.print("\n".join(terminal.wrap(warning, console.width)), markup=False, highlight=False, soft_wrap=True)
    _show_next(folder, tokens=tokens)


def _checked(name: str, request: Request) -> preprocessing.Spec:
    """Check the arguments before any work; returns the preprocessing."""
    check_name(name, "model")
    _check_place(request)
    request.task.check()
    if request.labels is not None and request.metric in ("agreement", "cosine"):
        raise errors.UsageError(
            f"--metric {request.metric} takes no labels; omit --labels, or use --metric top1",
            reason="metric-without-labels",
        )
    _shape(request.input_shape)
    _constants(request.constants)
    given = [option for option, value in request.options.items() if value is not None]
    if request.images is None and (given or request.preprocess):
        raise errors.UsageError(
            f"--{given[0] if given else 'preprocess'} applies to images; omit it, or give the samples with --images",
            reason="only-for-images",
        )
    spec = preprocessing.read(request.preprocess, request.options)
    if request.images is not None and not request.source.endswith(".tflite"):  # whose input may imply it
        preprocessing.check_stated(spec)
    return spec


def _expect(
    progress: Phases, graph: Graph, found: samples.Samples, outputs: int, seen: FirstLook, effort: Level
) -> None:
    """Announce the phases with their estimated times."""
    network, chosen = layers.build(graph), EFFORTS[effort]
    times = estimate.seconds(network, len(found), outputs, seen.sample_s(), chosen)
    progress.expect(times)
    used = min(len(found), chosen.samples)
    progress.say(f"effort {effort}: {used} of {len(found)} samples, about {duration(sum(times.values()))}")


def _look(progress: Phases, seen: FirstLook) -> str:
    """Report how the float model answers a few samples.

    Returns a warning if a preset fits clearly better, else an empty string.
    """
    if words := seen.words():
        progress.say(words)
    if seen.look is None:
        return ""
    better = seen.better()
    if better is not None:
        progress.say(better.words())
        return better.words()
    if seen.look.right is not None and seen.look.right < seen.look.samples * hardly_above_chance(seen.look.outputs):
        progress.say(f"warning: {_chance(seen.look.outputs)}")
    return ""


def _outputs(request: Request) -> str | list[str] | None:
    """The outputs to import: those named, else all of a detector and the first of any other model."""
    names = [name for name in (request.output or "").split(",") if name]
    if request.task.task == "detection" or len(names) > 1:
        return names
    return names[0] if names else None


def _task(request: Request, model: onnx.ModelProto, graph: Graph) -> Task | None:
    """The task of the model. Raises `errors.ModelError` if its outputs do not fit."""
    shapes = [part.shape for part in joining.joined(model)] or [list(graph.shapes.get(graph.output, ())[1:])]
    height, width = [*graph.stored_shape(graph.input), 1][:2]
    return request.task.task_of(shapes, (width, height))


def _name_of(source: str) -> str:
    stem = source.rpartition(":")[2] if ":" in source else Path(source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def _check_place(request: Request) -> None:
    if sum(place is not None for place in (request.images, request.arrays, request.texts)) != 1:
        raise errors.UsageError(
            "add needs calibration samples; give one of --images DIR, --arrays DIR, or --texts DIR with --tokenizer",
            reason="no-samples",
        )
    if request.texts is not None and request.tokenizer is None:
        raise errors.UsageError(
            "--texts needs --tokenizer; give the model's tokenizer.json or vocab.txt", reason="no-tokenizer"
        )


def _tokenizer(data: bytes, graph: Graph, padding: int) -> text.Tokenizer:
    """The tokenizer in ``data``. Raises `errors.UsageError` if it does not fit the model."""
    shape = graph.stored_shape(graph.input)
    if not graph.takes_ids or len(shape) != 1:
        raise errors.UsageError(
            f"the model takes an input of shape {shape}, not a row of token ids; omit --tokenizer",
            reason="no-token-ids",
        )
    made = text.Tokenizer(data, shape[0], padding)
    named = made.named_padding()
    if named not in (None, padding):
        raise errors.UsageError(
            f"the padding token of the tokenizer has the id {named}, not {padding}; give --padding {named}",
            reason="other-padding",
        )
    return made


def _samples(
    request: Request,
    spec: preprocessing.Spec,
    shape: list[int],
    tokenizer: text.Tokenizer | None,
    names: list[str],
    outputs: int | None,
) -> samples.Samples:
    """The calibration samples."""
    if request.texts is not None and tokenizer is not None:
        return texts.samples(texts.find(request.texts, request.labels, names, outputs), tokenizer, request.most)
    place = request.images or request.arrays
    assert place is not None
    preprocess = _preprocess(request, spec, shape)
    unlabelled = request.metric in ("agreement", "cosine") or request.task.task != "auto"
    return samples.open_samples(
        place, preprocess, request.labels, request.most, names, outputs, labelled=not unlabelled
    )


def _shape(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = re.split(r"[,x]", text)
    if not all(p.strip().isdigit() and 0 < int(p) < 1 << 20 for p in parts):
        raise errors.UsageError(
            f"--input-shape {text} is not a shape; give sizes such as 1,3,224,224", reason="not-a-shape"
        )
    return [int(p) for p in parts]


def _constants(given: Sequence[str]) -> dict[str, float]:
    """The values in ``given``, each NAME=VALUE. Names may hold "="."""
    found = {}
    for text_ in given:
        name, equals, value = text_.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise errors.UsageError(
                f"--constant {text_} is not a value; give the name of an input and a number, such as sr=16000",
                reason="not-a-constant",
            )
    return found


def _preprocess(request: Request, spec: preprocessing.Spec, shape: list[int]) -> Preprocess:
    return preprocessing.of_images(spec, shape) if request.images else Preprocess("tensor", shape)


def _former(store: Store, name: str) -> Bundle | None:
    """The bundle that this one replaces, if it exists and is readable."""
    try:
        return Catalog(store).bundle(name)
    except (errors.UnknownModelError, errors.ModelError):
        return None


def _show(bundle: Bundle, patterns: Patterns, *, verbose: bool) -> None:
    """Print the offered cuts and the meaning of the figures."""
    rows = [_row(bundle, patterns, place) for place in range(len(bundle.offered))]
    title = Text(f"{plain(bundle.name)}: where it can be split", style="bold")
    terminal.show(title, offered(rows, terminal.width()), "", *_notes(bundle, [row[3] for row in rows].count(OVER)))
    if verbose:
        terminal.show(*_details(bundle))


def _notes(bundle: Bundle, over: int) -> Iterator[str]:
    """The accuracy of the float model, the output, and the conditions of the table.

    ``over``: cuts with a larger drop than `SHOWN_DROP`.
    """
    yield from _float_top1(bundle)
    yield f"output: {output(bundle.output)}"
    unseen = " that weight rounding did not use" if bundle.accuracy.samples < bundle.samples else ""
    yield (
        f"{len(bundle.offered)} of {len(bundle.cuts)} cuts are offered; bits and bytes are for a drop of at most "
        f"{SHOWN_DROP:g} point ({bundle.metric}), measured on {bundle.accuracy.samples} samples{unseen}"
    )
    if over:
        yield (
            f"{over} of them may lose more: with few samples the accuracy bound is loose. "
            "Add samples, or let boards request a larger --max-drop."
        )
    if bundle.unsupported:
        yield "not in the integer head: " + ", ".join(map(plain, bundle.unsupported))


def _details(bundle: Bundle) -> Iterator[str]:
    """The cuts that are not offered, and how well noises add up."""
    for cut, reason in zip(bundle.cuts, bundle.reasons, strict=True):
        if reason:
            yield f"not offered: {cut.index}, after {plain(cut.layer)} {_by(cut.shape)}: {reason}"
    if found := trials.additivity(bundle.manifest.trials):
        yield found


def _show_next(folder: Path, *, tokens: bool) -> None:
    """The commands that follow `add`."""
    default = config.load().folder() == folder
    store = "" if default else f" --store {shlex.quote(str(folder))}"
    terminal.show("", "Next, serve the model; a running server serves it already:")
    print(f"  edge-server serve{store}")
    if not tokens:
        terminal.show("Create a token for each board:")
        print(f"  edge-server token BOARD{store}")


def _float_top1(bundle: Bundle) -> Iterator[str]:
    """The accuracy of the float model, and a warning if it is close to chance."""
    top1, shape = bundle.manifest.float_top1, bundle.cuts[-1].shape
    if top1 is None:
        return
    yield f"float top-1 on these {bundle.samples} samples: {top1:.1f} %"
    classes = math.prod(shape)
    if shape and top1 < 100 * hardly_above_chance(classes):
        yield f"warning: {_chance(classes)}; the drops mean little"


def _chance(classes: int) -> str:
    return (
        f"with {classes} classes this is close to chance ({100 / classes:.3g} %): "
        "check the preprocessing, the order of the classes and the labels"
    )


def hardly_above_chance(classes: int) -> float:
    """The share of right answers (0 to 1) below which a model is suspect: 3 x chance or, with few classes, chance +
    (1 - chance) / 4.
    """
    chance = 1 / classes
    return min(3 * chance, chance + (1 - chance) / 4)


def offered(rows: list[list[str]], width: int) -> RenderableType:
    """The table of cuts in ``width`` columns; ``rows`` as `_row` makes them."""
    columns = [
        Column("after", alone=True),
        Column("cut", right=True),
        Column("tensor", optional=True),
        Column("weights", right=True),
        Column("segment kB", right=True),
        Column("codec", right=True),
        Column("frame kB", right=True),
    ]
    return terminal.table(columns, rows, width)


def _row(bundle: Bundle, patterns: Patterns, place: int) -> list[str]:
    """Layer, index, tensor, and the smallest plan of an offered cut."""
    cut = bundle.cuts[bundle.offered[place]]
    return [plain(cut.layer), str(cut.index), _by(cut.shape), *_least(patterns, place)]


def _least(patterns: Patterns, index: int) -> tuple[str, ...]:
    """Bits and bytes of the cut's candidate with the fewest bytes (segment plus frame) and a drop of at most
    `SHOWN_DROP`; `OVER` without one.
    """
    level = max((i for i, one in enumerate(patterns.levels) if one.drop_points <= SHOWN_DROP), default=-1)
    rows = np.flatnonzero((patterns.option == index) & (patterns.level <= level))
    if not len(rows):
        return (OVER,) + ("",) * 3
    best = rows[(patterns.segment_bytes + patterns.frame_bytes)[rows].argmin()]
    option, pattern = patterns.options[index], patterns.patterns[patterns.pattern[best]]
    bits = mean_bits(option.layers, pattern.bits)
    segment = (f"{bits:.1f} bits", f"{pattern.segment_bytes / 1000:.1f}") if option.layers else ("", "")
    if (codec := patterns.codec[best]) < 0:
        return *segment, "", ""
    made = option.codecs[codec]
    coded = made.rule if {*IMAGE_FORMATS, "entropy"} & made.work.keys() else f"{made.bits} bits"
    return *segment, coded, f"{patterns.frame_bytes[best] / 1000:.2f}"


def _by(shape: list[int]) -> str:
    return "x".join(map(str, shape))
