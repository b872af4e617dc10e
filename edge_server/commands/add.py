"""`edge-server add`: import, calibrate, show the cuts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from calibration import bundle as bundles
from calibration import importer, samples, texts, trials
from calibration.graph import Graph
from calibration.rounding import Rounding
from edge_agent import errors
from edge_agent.explain import output
from edge_agent.head import text
from edge_agent.protocol.messages import OutputKind, Preprocess
from edge_server import preprocessing
from edge_server.catalog import Catalog
from edge_server.planner import Table as Patterns
from edge_server.planning import mean_bits
from edge_server.store import Store, check_name, default_folder
from edge_server.tables import kept_table

#: Points of accuracy that the table of cuts lets them lose.
SHOWN_DROP: Final = 1.0


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


def add(folder: Path | None, request: Request) -> None:
    """Calibrates a model into the store and prints its cuts."""
    name = request.name or _name_of(request.source)
    check_name(name, "model")
    _check_place(request)
    tokenizer = text.read(request.tokenizer) if request.tokenizer is not None else None
    if request.labels is not None and request.metric in ("agreement", "cosine"):
        raise errors.UsageError(f"--metric {request.metric} takes no labels: leave out --labels, or choose top1")
    spec = preprocessing.read(request.preprocess, request.options)
    console = Console(stderr=True)
    with Store(folder or default_folder()) as store:
        with console.status("importing the model"):
            model = importer.load(request.source, _shape(request.input_shape), request.output, request.padding)
            graph = Graph.of(model)
            shape = graph.stored_shape(graph.input)
        reader = None if tokenizer is None else _tokenizer(tokenizer, graph, request.padding)
        found, names = _samples(request, spec, shape, reader)
        former = _former(store, name)
        with store.new_bundle(name) as path, _progress(console) as progress:
            cache = store.folder / "cache"
            bundles.create(
                path, name, model, found, names, progress, request.rounding, cache, request.metric, reader,
                request.output_kind,
            )  # fmt: skip
        bundle = Catalog(store).bundle(name)
        if former and former != bundle.sha256:
            store.forget(former)
        with _progress(console) as progress:
            patterns = kept_table(store, bundle, lambda done, total: progress("patterns", done, total))
    _show(bundle, patterns)


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
    request: Request, spec: preprocessing.Spec, shape: list[int], tokenizer: text.Tokenizer | None
) -> tuple[samples.Samples, list[str]]:
    """What to calibrate on, and the names of the classes."""
    names = samples.read_names(request.class_names) if request.class_names is not None else []
    if request.texts is not None and tokenizer is not None:
        found = texts.find(request.texts, request.labels, names)
        return texts.samples(found, tokenizer, request.most), names or found.names
    place = request.images or request.arrays
    assert place is not None
    return samples.open_samples(place, _preprocess(request, spec, shape), request.labels, request.most), names


def _shape(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = re.split(r"[,x]", text)
    if not all(p.strip().isdigit() and 0 < int(p) < 1 << 20 for p in parts):
        raise errors.UsageError(f"--input-shape {text} is not a shape: give numbers such as 1,3,224,224")
    return [int(p) for p in parts]


def _preprocess(request: Request, spec: preprocessing.Spec, shape: list[int]) -> Preprocess:
    return preprocessing.of_images(spec, shape) if request.images else Preprocess("tensor", shape)


def _former(store: Store, name: str) -> str | None:
    """SHA-256 of the bundle that this one replaces, if there is one that can be read."""
    try:
        return Catalog(store).bundle(name).sha256
    except (errors.UnknownModelError, errors.ModelError):
        return None


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    # elsewhere than on a terminal, the end of a bar is an empty line
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield show


def _show(bundle: bundles.Bundle, patterns: Patterns) -> None:
    console = Console(highlight=False, markup=False)
    console.print(_offered(bundle, patterns))
    for line in _float_top1(bundle):
        console.print(line, soft_wrap=True)
    console.print(f"output: {output(bundle.output)}", soft_wrap=True)
    unseen = " that the rounding of weights has not seen" if bundle.accuracy.samples < bundle.samples else ""
    what = f"bits and bytes are for a {bundle.metric} drop of at most {SHOWN_DROP:g} point, judged on {bundle.accuracy.samples} samples{unseen}"
    console.print(f"{len(bundle.offered)} of {len(bundle.cuts)} cuts are offered; {what}", soft_wrap=True)
    for cut, reason in zip(bundle.cuts, bundle.reasons, strict=True):
        if reason:
            console.print(f"not offered: {cut.index}, after {cut.layer} {_by(cut.shape)}: {reason}", soft_wrap=True)
    if told := trials.additivity(bundle.manifest.trials):
        console.print(told, soft_wrap=True)
    if bundle.unsupported:
        console.print("not in the integer head: " + ", ".join(bundle.unsupported), soft_wrap=True)


def _float_top1(bundle: bundles.Bundle) -> Iterator[str]:
    """What losses are counted from, and a warning where they then mean nothing."""
    top1, output = bundle.manifest.float_top1, bundle.cuts[-1].shape
    if top1 is None:
        return
    yield f"float top-1 on these {bundle.samples} samples: {top1:.1f} %"
    classes = math.prod(output)
    if output and top1 < 100 * hardly_above_chance(classes):
        yield (
            f"warning: with {classes} classes that is hardly better than chance ({100 / classes:.3g} %), so the losses say little; "
            "check --mean, --std, --resize and the order of the labels"
        )


def hardly_above_chance(classes: int) -> float:
    """Share of right answers (0..1) below which a model of so many ``classes`` is suspect: thrice chance; of few, a quarter of the way to 1."""
    chance = 1 / classes
    return min(3 * chance, chance + (1 - chance) / 4)


def _offered(bundle: bundles.Bundle, patterns: Patterns) -> Table:
    table = Table(title=f"{bundle.name}: where it may be cut", title_justify="left", title_style="")
    for heading in ("cut", "after", "tensor", "float kB", "weights", "segment kB", "codec", "frame kB"):
        table.add_column(heading, justify="left" if heading in ("after", "tensor") else "right", overflow="fold")
    for place, index in enumerate(bundle.offered):
        cut = bundle.cuts[index]
        size = f"{math.prod(cut.shape) * 4 / 1000:.2f}"
        table.add_row(str(index), escape(cut.layer), _by(cut.shape), size, *_least(patterns, place))
    return table


def _least(patterns: Patterns, index: int) -> tuple[str, ...]:
    """Bits and bytes of the place's candidate of fewest bytes, segment and frame, that loses at most `SHOWN_DROP`; nothing where none does."""
    level = max((i for i, one in enumerate(patterns.levels) if one.drop_points <= SHOWN_DROP), default=-1)
    rows = np.flatnonzero((patterns.place == index) & (patterns.level <= level))
    if not len(rows):
        return ("over it",) + ("",) * 3
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
