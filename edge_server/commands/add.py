"""`edge-server add`: import, calibrate, show the cuts."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from calibration.accuracy import trials
from calibration.bundle import bundle as bundles
from calibration.importing import importer
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.rounding.rounder import Rounding
from calibration.samples import samples, texts
from calibration.samples.labels import read_names
from edge_server.commands.progress import Phases, stopped_in_order
from edge_server.importing import preprocessing
from edge_server.importing.first_look import FirstLook
from edge_server.planner import Table as Patterns
from edge_server.planning.device_plan import mean_bits
from edge_server.planning.pattern_tables import kept_table
from edge_server.store.catalog import Catalog
from edge_server.store.store import Store, check_name, default_folder
from splitedge import errors
from splitedge.head import text
from splitedge.protocol.messages import OutputKind, Preprocess
from splitedge.report import output

#: Points of accuracy that the table of cuts lets them lose.
SHOWN_DROP: Final = 1.0
#: In the table, of a cut that loses more.
OVER: Final = f"over {SHOWN_DROP:g} pt"


@dataclass(frozen=True, slots=True)
class Request:
    """What `edge-server add` was told."""

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
    metric: bundles.Metric = "auto"
    output: str | None = None
    padding: int = 0
    texts: Path | None = None
    tokenizer: Path | None = None
    output_kind: OutputKind | None = None
    replace: bool = False
    verbose: bool = False


def add(folder: Path | None, request: Request) -> None:
    """Calibrates a model into the store and prints its cuts."""
    name = request.name or _name_of(request.source)
    spec = _checked(name, request)
    tokenizer = text.read(request.tokenizer) if request.tokenizer is not None else None
    place = folder or default_folder()
    console = Console(stderr=True)
    with stopped_in_order(), Store(place) as store:
        store.check_free(name, replace=request.replace)
        known_names = read_names(request.class_names) if request.class_names is not None else []
        with Phases(console) as progress:
            progress("importing the model", 0, 0)
            model = importer.load(request.source, _shape(request.input_shape), request.output, request.padding)
            graph = Graph.of(model)
            shape = graph.stored_shape(graph.input)
            reader = None if tokenizer is None else _tokenizer(tokenizer, graph, request.padding)
            outputs = math.prod(graph.shapes[graph.output]) if graph.output in graph.shapes else None
            found = _samples(request, spec, shape, reader, known_names, outputs)
            names = found.labels.names if found.labels is not None and not known_names else known_names
            if graph.takes_ids:
                bundles.check_ids(layers.build(graph), found)
            warning = _look(progress, model, found, request)
            former = _former(store, name)
            set_names = [] if known_names or former is None else former.names_set
            with store.new_bundle(name, replace=request.replace) as path:
                cache = store.folder / "cache"
                bundle = bundles.create(
                    path, name, model, found, names, progress, request.rounding, cache, request.metric, reader,
                    request.output_kind,
                )  # fmt: skip
                patterns = kept_table(store, bundle, lambda done, total: progress("patterns", done, total))
            if set_names and len(set_names) == outputs:
                store.set_names(name, set_names)
                progress.say("the class names that `edge-server names` set are kept")
            if former and former.sha256 != bundle.sha256:
                store.forget(former.sha256)
        tokens = bool(store.tokens())
    _show(bundle, patterns, verbose=request.verbose)
    if warning:
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    _show_next(folder, tokens=tokens)


def _checked(name: str, request: Request) -> preprocessing.Spec:
    """What can be told wrong before any work; returns the preprocessing."""
    check_name(name, "model")
    _check_place(request)
    if request.labels is not None and request.metric in ("agreement", "cosine"):
        raise errors.UsageError(f"--metric {request.metric} takes no labels: leave out --labels, or choose top1")
    _shape(request.input_shape)
    given = [option for option, value in request.options.items() if value is not None]
    if request.images is None and (given or request.preprocess):
        raise errors.UsageError(
            f"--{given[0] if given else 'preprocess'} is for images: leave it out, or give the samples with --images"
        )
    spec = preprocessing.read(request.preprocess, request.options)
    if request.images is not None:
        preprocessing.check_stated(spec)
    return spec


def _look(progress: Phases, model: onnx.ModelProto, found: samples.Samples, request: Request) -> str:
    """Says what the float model answers to a few samples. Returns a warning, which it says too, where a preset fits clearly better; else nothing."""
    progress("first look", 0, 0)
    seen = FirstLook(model, found, request.output_kind, request.metric)
    if seen.look is None:
        return ""
    progress.say(seen.look.words())
    better = seen.better()
    if better is not None:
        progress.say(better.words())
        return better.words()
    if seen.look.right is not None and seen.look.right < seen.look.samples * hardly_above_chance(seen.look.outputs):
        progress.say(f"warning: {_chance(seen.look.outputs)}")
    return ""


def _name_of(source: str) -> str:
    stem = source.rpartition(":")[2] if ":" in source else Path(source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def _check_place(request: Request) -> None:
    if sum(place is not None for place in (request.images, request.arrays, request.texts)) != 1:
        raise errors.UsageError("give calibration samples: --images DIR, --arrays DIR, or --texts DIR with --tokenizer")
    if request.texts is not None and request.tokenizer is None:
        raise errors.UsageError("--texts needs --tokenizer: give the model's tokenizer.json, or its vocab.txt")


def _tokenizer(data: bytes, graph: Graph, padding: int) -> text.Tokenizer:
    """The tokenizer in ``data`` for the model's ids. Raises `errors.UsageError` where it does not fit the model."""
    shape = graph.stored_shape(graph.input)
    if not graph.takes_ids or len(shape) != 1:
        raise errors.UsageError(f"the model takes {shape}, which is no row of token ids: leave out --tokenizer")
    made = text.Tokenizer(data, shape[0], padding)
    named = made.named_padding()
    if named not in (None, padding):
        raise errors.UsageError(f"the tokenizer's padding has the id {named}, not {padding}: give --padding {named}")
    return made


def _samples(
    request: Request,
    spec: preprocessing.Spec,
    shape: list[int],
    tokenizer: text.Tokenizer | None,
    names: list[str],
    outputs: int | None,
) -> samples.Samples:
    """What to calibrate on."""
    if request.texts is not None and tokenizer is not None:
        return texts.samples(texts.find(request.texts, request.labels, names, outputs), tokenizer, request.most)
    place = request.images or request.arrays
    assert place is not None
    preprocess = _preprocess(request, spec, shape)
    unlabelled = request.metric in ("agreement", "cosine")
    return samples.open_samples(
        place, preprocess, request.labels, request.most, names, outputs, labelled=not unlabelled
    )


def _shape(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = re.split(r"[,x]", text)
    if not all(p.strip().isdigit() and 0 < int(p) < 1 << 20 for p in parts):
        raise errors.UsageError(f"--input-shape {text} is not a shape: give numbers such as 1,3,224,224")
    return [int(p) for p in parts]


def _preprocess(request: Request, spec: preprocessing.Spec, shape: list[int]) -> Preprocess:
    return preprocessing.of_images(spec, shape) if request.images else Preprocess("tensor", shape)


def _former(store: Store, name: str) -> bundles.Bundle | None:
    """The bundle that this one replaces, if there is one that can be read."""
    try:
        return Catalog(store).bundle(name)
    except (errors.UnknownModelError, errors.ModelError):
        return None


def _show(bundle: bundles.Bundle, patterns: Patterns, *, verbose: bool) -> None:
    console = Console(highlight=False, markup=False)
    table = _offered(bundle, patterns)
    whole = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(table, width=whole, crop=False, no_wrap=True, overflow="ignore")
    for line in _float_top1(bundle):
        console.print(line, soft_wrap=True)
    console.print(f"output: {output(bundle.output)}", soft_wrap=True)
    unseen = " that the rounding of weights has not seen" if bundle.accuracy.samples < bundle.samples else ""
    what = f"bits and bytes are for a drop of at most {SHOWN_DROP:g} point ({bundle.metric}), judged on {bundle.accuracy.samples} samples{unseen}"
    console.print(f"{len(bundle.offered)} of {len(bundle.cuts)} cuts are offered; {what}", soft_wrap=True)
    rows = [_least(patterns, place)[0] for place in range(len(bundle.offered))]
    if over := rows.count(OVER):
        console.print(
            f"{over} of them may lose more than that: the fewer samples, the wider the bound; add samples, or let boards ask for a greater --max-drop",
            soft_wrap=True,
        )
    if bundle.unsupported:
        console.print("not in the integer head: " + ", ".join(bundle.unsupported), soft_wrap=True)
    if not verbose:
        return
    for cut, reason in zip(bundle.cuts, bundle.reasons, strict=True):
        if reason:
            console.print(f"not offered: {cut.index}, after {cut.layer} {_by(cut.shape)}: {reason}", soft_wrap=True)
    if told := trials.additivity(bundle.manifest.trials):
        console.print(told, soft_wrap=True)


def _show_next(folder: Path | None, *, tokens: bool) -> None:
    """The commands that come after `add`."""
    console = Console(highlight=False, markup=False)
    store = "" if folder is None else f" --store {shlex.quote(str(folder))}"
    console.print("next:")
    if not tokens:
        console.print(f"  edge-server token BOARD{store}    makes the token of a board", soft_wrap=True)
    console.print(
        f"  edge-server serve{store}    serves the model; a server that runs already does so now", soft_wrap=True
    )


def _float_top1(bundle: bundles.Bundle) -> Iterator[str]:
    """What losses are counted from, and a warning where they then mean nothing."""
    top1, output = bundle.manifest.float_top1, bundle.cuts[-1].shape
    if top1 is None:
        return
    yield f"float top-1 on these {bundle.samples} samples: {top1:.1f} %"
    classes = math.prod(output)
    if output and top1 < 100 * hardly_above_chance(classes):
        yield f"warning: {_chance(classes)}; the losses say little"


def _chance(classes: int) -> str:
    return (
        f"with {classes} classes that is hardly better than chance ({100 / classes:.3g} %): "
        "check the preprocessing, the order of the classes and the labels"
    )


def hardly_above_chance(classes: int) -> float:
    """Share of right answers (0..1) below which a model of so many ``classes`` is suspect: thrice chance; of few, a quarter of the way to 1."""
    chance = 1 / classes
    return min(3 * chance, chance + (1 - chance) / 4)


def _offered(bundle: bundles.Bundle, patterns: Patterns) -> Table:
    title = f"{bundle.name}: where it can be split"
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in ("cut", "tensor", "weights", "segment kB", "codec", "frame kB", "after"):
        table.add_column(heading, justify="left" if heading in ("after", "tensor") else "right", no_wrap=True)
    for place, index in enumerate(bundle.offered):
        cut = bundle.cuts[index]
        table.add_row(str(index), _by(cut.shape), *_least(patterns, place), escape(cut.layer))
    return table


def _least(patterns: Patterns, index: int) -> tuple[str, ...]:
    """Bits and bytes of the place's candidate of fewest bytes, segment and frame, that loses at most `SHOWN_DROP`; nothing where none does."""
    level = max((i for i, one in enumerate(patterns.levels) if one.drop_points <= SHOWN_DROP), default=-1)
    rows = np.flatnonzero((patterns.place == index) & (patterns.level <= level))
    if not len(rows):
        return (OVER,) + ("",) * 3
    best = rows[(patterns.segment_bytes + patterns.frame_bytes)[rows].argmin()]
    place, pattern = patterns.places[index], patterns.patterns[patterns.pattern[best]]
    bits = mean_bits(place.layers, pattern.bits)
    segment = (f"{bits:.1f} bits", f"{pattern.segment_bytes / 1000:.1f}") if place.layers else ("", "")
    if (codec := patterns.codec[best]) < 0:
        return *segment, "", ""
    made = place.codecs[codec]
    coded = made.rule if {"jpeg", "entropy"} & made.work.keys() else f"{made.bits} bits"
    return *segment, coded, f"{patterns.frame_bytes[best] / 1000:.2f}"


def _by(shape: list[int]) -> str:
    return "x".join(map(str, shape))
