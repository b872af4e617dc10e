"""Rivals: ONNX Runtime float and int8, and LiteRT, with their fastest settings at batch 1 and our number of threads."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from calibration.importing.graph import Graph, with_batch
from splitedge.head import Head
from splitedge.head import segment as seg

FLOAT: Final = "ONNX Runtime float"
INT8: Final = "ONNX Runtime int8"
LITERT: Final = "LiteRT int8"
SAMPLES: Final = 8


def quantized(model: onnx.ModelProto, samples: Iterable[NDArray[np.float32]] = ()) -> dict[str, bytes]:
    """Return ONNX files of ``model`` at batch 1: unchanged (`FLOAT`), and as QDQ with scales per channel (`INT8`).

    ``samples``: inputs [1, ...] for calibration. Noise replaces them if none are given, which is enough to measure
    speed.
    """
    with _folder() as (plain, target):
        onnx.save(with_batch(model, 1), plain)
        quantize_static(
            str(plain),
            str(target),
            _Reader(Graph.of(model), samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return {FLOAT: plain.read_bytes(), INT8: target.read_bytes()}


def dynamic(model: onnx.ModelProto) -> dict[str, bytes]:
    """Return ``model`` unchanged and dynamically quantized, as ONNX Runtime recommends for transformers."""
    with _folder() as (plain, target):
        onnx.save(model, plain)
        quantize_dynamic(str(plain), str(target), per_channel=True, weight_type=QuantType.QInt8)
        return {FLOAT: plain.read_bytes(), INT8: target.read_bytes()}


def session(model: bytes, threads: int) -> ort.InferenceSession:
    """Return a session of ONNX Runtime on the CPU with all graph optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_runtime(model: bytes, threads: int, frame: NDArray[Any]) -> Callable[[], Any]:
    """Return a call that runs ``frame`` through ``model``."""
    runtime = session(model, threads)
    name = runtime.get_inputs()[0].name
    return lambda: runtime.run(None, {name: frame})


def noise(head: Head) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an input of ``head`` and one of ONNX Runtime, without padding, the only values that affect speed."""
    random = np.random.default_rng(0)
    shape = head.input.shape
    if head.input.dtype == "i32":
        ids = random.integers(1, seg.vocabulary(head.header), shape).astype(np.int32)
        return ids, ids[None].astype(np.int64)
    axes = (len(shape) - 1, *range(len(shape) - 1))  # channels first
    return random.integers(0, 256, shape).astype(np.uint8), np.zeros([1, *(shape[axis] for axis in axes)], np.float32)


def litert_missing() -> str:
    """Return the reason why LiteRT cannot be measured here, or an empty string."""
    if not importlib.util.find_spec("tflite"):
        return "LiteRT is left out: pip install tflite ai-edge-litert"
    if not any(map(importlib.util.find_spec, ("ai_edge_litert", "tflite_runtime"))):
        return "LiteRT is left out: pip install ai-edge-litert"
    return ""


def interpreter(model: bytes, threads: int) -> Any:
    """Return LiteRT's interpreter of a .tflite file, ready to run, with its default XNNPACK."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    made = Interpreter(model_content=model, num_threads=threads)
    made.allocate_tensors()
    return made


def only_xnnpack(made: Any) -> bool:
    """Return whether XNNPACK runs the whole network: one delegate reads the input and writes the output."""
    delegates = [op for op in made._get_ops_details() if op["op_name"] == "DELEGATE"]
    source, target = made.get_input_details()[0]["index"], made.get_output_details()[0]["index"]
    return len(delegates) == 1 and source in delegates[0]["inputs"] and target in delegates[0]["outputs"]


def litert(model: bytes, threads: int) -> Callable[[], Any]:
    """Return a call that runs a frame of zeros through the .tflite file ``model``.

    Warns if XNNPACK does not run all of the model.
    """
    made = interpreter(model, threads)
    if not only_xnnpack(made):
        warnings.warn(
            "this LiteRT does not run all of the model in XNNPACK, so its time is not the best possible",
            RuntimeWarning,
            stacklevel=2,
        )
    entry = made.get_input_details()[0]
    made.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    invoke: Callable[[], Any] = made.invoke
    return invoke


@contextmanager
def _folder() -> Iterator[tuple[Path, Path]]:
    """Yield two temporary paths, and silence logs.

    The quantizer recommends folding, which is already done, and ONNX Runtime logs each constant that it drops.
    """
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
    finally:
        logging.disable(logging.NOTSET)
        ort.set_default_logger_severity(2)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, graph: Graph, samples: Iterable[NDArray[np.float32]]) -> None:
        random, shape = np.random.default_rng(1), (1, *graph.shapes[graph.input][1:])
        frames = list(samples) or [random.normal(size=shape).astype(np.float32) for _ in range(SAMPLES)]
        self._frames = iter([{graph.input: frame} for frame in frames])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._frames, None)
