"""Rivals: ONNX Runtime float and int8, and LiteRT, with their fastest settings at batch 1 and our number of threads."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.export import int8_onnx
from calibration.importing.graph import with_batch
from edge_agent.backends import onnx as onnx_backend
from splitedge.head import Head
from splitedge.head import segment as seg

FLOAT: Final = "ONNX Runtime float"
INT8: Final = "ONNX Runtime int8"
LITERT: Final = "LiteRT int8"


def quantized(model: onnx.ModelProto) -> dict[str, bytes]:
    """Return a convolutional network at batch 1 as ONNX files, unchanged (`FLOAT`) and quantized (`INT8`)."""
    return {FLOAT: with_batch(model, 1).SerializeToString(), INT8: int8_onnx.static(model)}


def onnx_runtime(model: bytes, threads: int, frame: NDArray[Any]) -> Callable[[], Any]:
    """Return a call that runs ``frame`` through ``model``."""
    runtime = onnx_backend.session(model, threads)
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
