"""Whole networks, batch 1, one thread: our integer head against ONNX Runtime float and int8 (QDQ, per channel), and LiteRT, in turn.

    python -m benchmarks.heads [--tflite FILE] [--json OUT] [--quick]

Speed does not depend on the values, so calibration runs on noise. Peers get the options that make them fastest for batch 1: all graph
optimisations, sequential execution, no spinning threads beside ours.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks import models
from benchmarks.report import in_turn, parser, ratio, report, spread
from calibration import bundle, importer, layers
from calibration.graph import Graph, with_batch
from calibration.lower import lower
from calibration.samples import Samples
from edge_agent.head import Head
from edge_agent.head import segment as seg
from edge_agent.protocol.messages import Preprocess

SAMPLES = 8


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--tflite", type=Path, help="a .tflite model to time in LiteRT beside the others")
    options.add_argument("--repeats", type=int, help="frames of each, taken in turn", default=200)
    arguments = options.parse_args()
    repeats = min(arguments.repeats, 60) if arguments.quick else arguments.repeats

    model = importer.load(models.LITE0, models.LITE0_SHAPE)
    head = our_head(model, models.LITE0_PREPROCESS.shape)
    codes = np.random.default_rng(0).integers(0, 256, head.input.shape).astype(np.uint8)
    frame = np.zeros(models.LITE0_SHAPE, np.float32)
    calls: dict[str, Callable[[], Any]] = {"splitedge int8": lambda: head.run(codes)}
    calls |= onnx_runtime_peers(model, frame)
    if arguments.tflite:
        calls["LiteRT"] = litert(arguments.tflite)
    times = in_turn(calls, repeats)
    ours = times["splitedge int8"]
    rows = [
        {
            "network": "EfficientNet-Lite0",
            "runtime": name,
            "ms (mean ± sd)": spread(taken),
            "median ms": statistics.median(taken),
            "ours is faster by": ratio(ours, taken),
        }
        for name, taken in times.items()
    ]
    summary = {
        "lite0.ms_1t": statistics.median(ours),
        "lite0.ratio_ort_int8_1t": ratio(ours, times["ONNX Runtime int8"]),
        "lite0.ratio_ort_float_1t": ratio(ours, times["ONNX Runtime float"]),
        "lite0.arena_mib": head.arena_bytes / 2**20,
        "lite0.constants_mib": head.constant_bytes / 2**20,
    }
    if arguments.tflite:
        summary["lite0.ratio_litert_1t"] = ratio(ours, times["LiteRT"])
    report("Whole heads, batch 1, one thread", rows, summary, arguments.json)
    by_kind = time_by_kind(head, codes, repeats)
    report("EfficientNet-Lite0, ours, by kind of operator", by_kind, {})


def our_head(model: onnx.ModelProto, shape: list[int]) -> Head:
    """The whole network as one integer head with 8-bit weights; ``shape`` of a frame, channels last."""
    network = layers.build(Graph.of(model))
    random = np.random.default_rng(1)
    noise = [random.normal(size=shape).astype(np.float32) for _ in range(SAMPLES)]
    calibration = bundle.calibrate(model, network, Samples(Preprocess("tensor", shape), noise))
    return Head(seg.parse(lower(network, calibration, network.graph.output, 8).segment()))


def onnx_runtime_peers(model: onnx.ModelProto, frame: NDArray[np.float32]) -> dict[str, Callable[[], Any]]:
    """The float model and its QDQ per-channel int8 form, each on one thread."""
    name = Graph.of(model).input
    single = with_batch(model, 1)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = str(Path(folder) / "float.onnx"), str(Path(folder) / "int8.onnx")
        onnx.save(single, plain)
        quantize_static(
            plain,
            quantized,
            _Noise(name, frame.shape),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        sessions = {"ONNX Runtime float": _session(plain), "ONNX Runtime int8": _session(quantized)}
    return {runtime: _runner(session, name, frame) for runtime, session in sessions.items()}


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(1)
        self._frames = iter([{name: random.normal(size=shape).astype(np.float32)} for _ in range(SAMPLES)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._frames, None)


def _session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _runner(session: ort.InferenceSession, name: str, frame: NDArray[np.float32]) -> Callable[[], Any]:
    return lambda: session.run(None, {name: frame})


def litert(path: Path) -> Callable[[], Any]:
    """One frame of zeros through the .tflite model at ``path``, on one thread."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


def time_by_kind(head: Head, codes: NDArray[np.uint8], repeats: int) -> list[dict[str, Any]]:
    """Where the time of a frame goes: operators of one kind together."""
    us: dict[str, float] = defaultdict(float)
    macs: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for timing in head.profile(codes, max(10, repeats // 4)):
        us[timing.kind] += timing.us
        macs[timing.kind] += timing.macs
        count[timing.kind] += 1
    total = sum(us.values())
    return [
        {
            "operator": kind,
            "count": count[kind],
            "us": us[kind],
            "share %": 100 * us[kind] / total,
            "GOPS": 2 * macs[kind] / us[kind] / 1e3,
        }
        for kind in sorted(us, key=lambda k: -us[k])
    ]


if __name__ == "__main__":
    main()
