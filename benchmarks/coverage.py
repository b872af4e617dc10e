"""Which networks go in, and how deep the integer head goes: networks of torchvision and timm with random weights.

    python benchmarks/coverage_models.py          # once, in an environment with torch, torchvision and timm
    python -m benchmarks.coverage [--models DIR] [--only NAME ...] [--quick] [--json OUT]

Each network is imported and calibrated in a process of its own, with weights of 8 bits rounded to the nearest. Reach is
the greatest share of the network's multiply-accumulates before a reachable cut; those of the products of two
activations count too. "stopped by" is the first operator that the head does not take, or the import's error. The
cosines compare answers with the float model's on inputs that calibration did not see, and are means: of a network
wholly on the device ("device"), and of the deepest cut before its output with a float tail ("split"). Seconds are those
of import and calibration, and memory is the most that the process had.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import parser, report, write
from calibration.accuracy.tail_runs import runner, tail_runner
from calibration.bundle import creation
from calibration.importing import cuts, importer
from calibration.importing.graph import Graph, Node
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from calibration.statistics.activations import to_onnx
from splitedge import errors
from splitedge.head.executor import Head
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess

F32 = NDArray[np.float32]

FOLDER: Final = Path.home() / ".cache/splitedge/coverage"
SAMPLES, QUICK_SAMPLES = 16, 4  # for calibration
HELD_OUT, QUICK_HELD_OUT = 8, 2
#: Networks of `--quick`: each has something that the others lack.
QUICK: Final = ("mobilenetv2", "shufflenetv2", "squeezenet", "resnet18", "yolov8_like", "unet", "decoder", "audio_1d")
SECONDS: Final = 1800.0  # for one network
#: Reach from which a network counts as fully reached, in per cent: a table of boxes or a mask may stay behind.
FULL: Final = 99.9


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--models", type=Path, default=FOLDER, help="folder of ONNX files")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these networks")
    options.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # a child process: one row as JSON
    given = options.parse_args(arguments)
    if given.one:
        print(json.dumps(measure(given.one, quick=given.quick)))
        return
    rows = []
    for path in chosen(given.models, given.only or (QUICK if given.quick else None)):
        print(f"{path.stem} ...", end="\r", file=sys.stderr, flush=True)
        rows.append(in_child(path, quick=given.quick))
    title, found = "Coverage: how deep the integer head goes", summary(rows)
    report(title, [shown(row) for row in rows], found, None, NOTES, width=80)
    if given.json:
        write(given.json, title, rows, found, NOTES)


NOTES: Final = [
    "reach: multiply-accumulates before the deepest cut; device and split: cosine to the float model",
    "random weights, 8 bits, rounded to the nearest; inputs are smooth noise",
]


def chosen(folder: Path, names: Sequence[str] | None) -> list[Path]:
    """The files of these networks in ``folder``, or all. Raises `errors.UsageError` for missing ones."""
    found = sorted(folder.glob("*.onnx"), key=lambda path: path.stem)
    missing = set(names or ()) - {path.stem for path in found}
    if missing or not found:
        raise errors.UsageError(
            f"{folder} has no network {min(missing, default='')}; make it with "
            "`python benchmarks/coverage_models.py` in an environment with torch, torchvision and timm",
            reason="missing-network",
        )
    return [path for path in found if not names or path.stem in names]


def shown(row: dict[str, Any]) -> dict[str, str]:
    """``row`` as text."""
    cells = {name: row[name] for name in ("network", "reach %", "device", "split", "s", "MB", "stopped by")}
    numbers = {"reach %": ".1f", "device": ".3f", "split": ".3f", "s": ".0f"}
    return {
        name: "-" if value is None else format(value, numbers.get(name, "")) if row["imported"] else str(value)
        for name, value in cells.items()
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    device = [row["device"] for row in rows if row["device"] is not None]
    split = [row["split"] for row in rows if row["split"] is not None]
    return {
        "coverage.networks": float(len(rows)),
        "coverage.imported_percent": 100.0 * sum(row["imported"] for row in rows) / len(rows),
        "coverage.mean_reach_percent": sum(row["reach %"] for row in rows) / len(rows),
        "coverage.full_reach": float(sum(row["reach %"] >= FULL for row in rows)),
        "coverage.worst_device_cosine": min(device, default=math.nan),
        "coverage.worst_split_cosine": min(split, default=math.nan),
    }


def in_child(path: Path, *, quick: bool) -> dict[str, Any]:
    """The row of the network in ``path``, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", str(path), *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _row(path, stopped=f"not finished within {SECONDS:.0f} s")
    if done.returncode:
        return _row(path, stopped=(done.stderr.strip().splitlines() or ["the process died"])[-1])
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(path: Path, *, quick: bool = False) -> dict[str, Any]:
    """The row of the network in ``path``."""
    start = time.perf_counter()
    try:
        model = importer.load(str(path))
    except errors.SplitEdgeError as error:
        return _row(path, stopped=str(error))
    graph = Graph.of(model)
    network = layers.build(graph)
    places = [place for place in cuts.find(network) if place.reachable and place.cut.kind != "input"]
    if not places:
        return _row(path, imported=True, stopped=stopped(network), seconds=time.perf_counter() - start)
    total = sum(products(graph, node) for node in graph.nodes) or 1
    macs = {place.cut.tensor: sum(products(graph, n) for n in graph.behind(place.cut.tensor)) for place in places}
    deepest = max(places, key=lambda place: (macs[place.cut.tensor], place.cut.index))
    inside = [place for place in places if place.cut.kind == "inside"]
    count, held_out = (QUICK_SAMPLES, QUICK_HELD_OUT) if quick else (SAMPLES, HELD_OUT)
    shape, random = graph.stored_shape(graph.input), np.random.default_rng(0)
    samples = Samples(Preprocess("tensor", shape), [smooth(shape, random) for _ in range(count)])
    calibration = creation.calibrate(model, network, samples)
    others = np.stack([smooth(shape, random) for _ in range(held_out)])
    wanted = runner(model)(others, None)

    def cosine_at(place: cuts.Place) -> float:
        head = lower(network, calibration, place.cut.tensor, 8).head()
        values = np.stack([_real(head, x) for x in others])
        inner = place.cut.kind == "inside"
        found = tail_runner(model, graph, place.cut.tensor)(values, None) if inner else to_onnx(values)
        return mean_cosine(wanted, found)

    device = cosine_at(places[-1]) if places[-1].cut.kind == "output" else None
    split = cosine_at(max(inside, key=lambda place: (macs[place.cut.tensor], place.cut.index))) if inside else None
    return _row(
        path,
        imported=True,
        reach=100.0 * macs[deepest.cut.tensor] / total,
        stopped=stopped(network) if device is None else "",
        device=device,
        split=split,
        seconds=time.perf_counter() - start,
    )


def _row(
    path: Path,
    *,
    imported: bool = False,
    reach: float = 0.0,
    stopped: str = "",
    device: float | None = None,
    split: float | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    row = {"network": path.stem, "imported": imported, "reach %": round(reach, 1), "stopped by": stopped}
    return row | {"device": device, "split": split, "s": round(seconds, 1), "MB": memory}


def stopped(network: layers.Network) -> str:
    """The first operator that the head does not take, with the reason."""
    return next((f"{node.op}: {why}" for node, why in network.unsupported), "no cut of one tensor")


def products(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of ``node``, also of products of two activations; 0 for unknown shapes."""

    def size(tensor: str) -> int:
        values = graph.constants.get(tensor)
        return int(values.size) if values is not None else math.prod(graph.shapes.get(tensor, (0,)))

    count: dict[str, Callable[[], int]] = {
        "Conv": lambda: size(node.outputs[0]) * size(node.inputs[1]) // max(1, graph.shapes[node.outputs[0]][1]),
        "ConvTranspose": lambda: size(node.inputs[0]) * size(node.inputs[1]) // graph.shapes[node.inputs[0]][1],
        "Gemm": lambda: size(node.outputs[0]) * graph.shapes[node.inputs[0]][-1],
        "MatMul": lambda: size(node.outputs[0]) * graph.shapes[node.inputs[0]][-1],
        "LSTM": lambda: graph.shapes[node.inputs[0]][0] * (size(node.inputs[1]) + size(node.inputs[2])),
        "GRU": lambda: graph.shapes[node.inputs[0]][0] * (size(node.inputs[1]) + size(node.inputs[2])),
    }
    known = node.outputs[0] in graph.shapes and node.inputs[0] in graph.shapes
    return count[node.op]() if node.op in count and known else 0


def smooth(shape: Sequence[int], random: np.random.Generator) -> F32:
    """A smooth random input of ``shape`` (channels last, or [C, L]): noise of three scales, most of it coarse."""
    axes = (0, 1) if len(shape) == 3 else (len(shape) - 1,)
    total: NDArray[np.float64] = np.zeros(shape)
    for scale in (1, 4, 16):
        size = [max(2, n // scale) if axis in axes else n for axis, n in enumerate(shape)]
        noise = random.normal(size=size)
        for axis in axes:
            noise = np.apply_along_axis(_stretched, axis, noise, shape[axis])
        total += noise
    return (0.6 * total).astype(np.float32)


def _stretched(row: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.interp((np.arange(size) + 0.5) * len(row) / size - 0.5, np.arange(len(row)), row)


def _real(head: Head, x: F32) -> F32:
    """The head's output for the sample ``x``, in real numbers."""
    y = head.run(quantize_tensor(x, head.input) if head.input.dtype == "u8" else x)
    if head.output.dtype != "u8":
        return y.astype(np.float32)
    real: F32 = (np.float32(head.output.scale) * (y.astype(np.float32) - head.output.zero_point)).astype(np.float32)
    return real


def mean_cosine(a: F32, b: F32) -> float:
    """The mean cosine of the rows of ``a`` and ``b`` [n, ...]."""
    x, y = (values.reshape(len(values), -1).astype(np.float64) for values in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(axis=1) / np.maximum(norms, 1e-30)).mean())


if __name__ == "__main__":
    main()
