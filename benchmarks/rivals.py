"""Who we are measured against: ONNX Runtime, float and int8, and LiteRT. Each gets what makes it fastest at batch 1 on as many threads as we use."""

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
    """``model`` at batch 1 as it is (`FLOAT`) and as QDQ with weights per channel (`INT8`): ONNX files by rival.

    ``samples``: inputs [1, ...] to calibrate on; without them noise, which is enough where only speed counts.
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
    """``model`` as it is, and with activations quantized as it runs: what ONNX Runtime advises for transformers."""
    with _folder() as (plain, target):
        onnx.save(model, plain)
        quantize_dynamic(str(plain), str(target), per_channel=True, weight_type=QuantType.QInt8)
        return {FLOAT: plain.read_bytes(), INT8: target.read_bytes()}


def session(model: bytes, threads: int) -> ort.InferenceSession:
    """ONNX Runtime on the CPU with all graph optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_runtime(model: bytes, threads: int, frame: NDArray[Any]) -> Callable[[], Any]:
    """A call that runs ``frame`` through ``model``."""
    runtime = session(model, threads)
    name = runtime.get_inputs()[0].name
    return lambda: runtime.run(None, {name: frame})


def noise(head: Head) -> tuple[NDArray[Any], NDArray[Any]]:
    """A frame as ``head`` takes it, and one as ONNX Runtime takes it: speed depends on values nowhere but in padding, and there is none."""
    random = np.random.default_rng(0)
    shape = head.input.shape
    if head.input.dtype == "i32":
        ids = random.integers(1, seg.vocabulary(head.header), shape).astype(np.int32)
        return ids, ids[None].astype(np.int64)
    axes = (len(shape) - 1, *range(len(shape) - 1))  # channels first
    return random.integers(0, 256, shape).astype(np.uint8), np.zeros([1, *(shape[axis] for axis in axes)], np.float32)


def litert_missing() -> str:
    """Why LiteRT cannot be measured here, in a sentence for people; or an empty string."""
    if not importlib.util.find_spec("tflite"):
        return "LiteRT is left out: pip install tflite ai-edge-litert"
    if not any(map(importlib.util.find_spec, ("ai_edge_litert", "tflite_runtime"))):
        return "LiteRT is left out: pip install ai-edge-litert"
    return ""


def interpreter(model: bytes, threads: int) -> Any:
    """LiteRT's interpreter of a .tflite file, with XNNPACK as it is by default, ready to run."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    made = Interpreter(model_content=model, num_threads=threads)
    made.allocate_tensors()
    return made


def only_xnnpack(made: Any) -> bool:
    """Whether XNNPACK runs all of the network: one delegate reads the input and writes the output."""
    delegates = [op for op in made._get_ops_details() if op["op_name"] == "DELEGATE"]
    source, target = made.get_input_details()[0]["index"], made.get_output_details()[0]["index"]
    return len(delegates) == 1 and source in delegates[0]["inputs"] and target in delegates[0]["outputs"]


def litert(model: bytes, threads: int) -> Callable[[], Any]:
    """A call that runs one frame of zeros through the .tflite file ``model``; warns where XNNPACK runs less than all of it."""
    made = interpreter(model, threads)
    if not only_xnnpack(made):
        warnings.warn(
            "this LiteRT does not run all of the model in XNNPACK: its time is not its best",
            RuntimeWarning,
            stacklevel=2,
        )
    entry = made.get_input_details()[0]
    made.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    invoke: Callable[[], Any] = made.invoke
    return invoke


@contextmanager
def _folder() -> Iterator[tuple[Path, Path]]:
    """Two paths that vanish; and silence: the quantizer advises to fold the model first, which it is, and ONNX Runtime tells of each constant that it drops."""
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
