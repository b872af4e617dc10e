"""All files of one network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.bundle import creation
from calibration.export import int8_onnx
from calibration.importing import cuts
from calibration.importing.graph import Graph, with_batch
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from splitedge.errors import ModelError, PlatformError, SplitEdgeError
from splitedge.protocol.messages import Preprocess

F32 = NDArray[np.float32]

FLOAT_ONNX, INT8_ONNX, SEGMENT, TFLITE = "float32.onnx", "int8.onnx", "int8.segment", "int8.tflite"
WEIGHT_BITS: Final = 8
_SAMPLES: Final = 8


def make(model: onnx.ModelProto, samples: Samples | None = None) -> dict[str, bytes | SplitEdgeError]:
    """The files of ``model`` (imported by `importer.load`) by name, or why one cannot be made.

    ``samples``: for calibration; noise if None, which is enough to measure speed.
    """
    graph = Graph.of(model)
    network = layers.build(graph)
    static = network.source == "u8"
    if samples is None and static:
        samples = noise(graph.stored_shape(graph.input))
    inputs = [] if samples is None else [_in_onnx(frame) for frame in samples]
    found: dict[str, bytes | SplitEdgeError] = {}
    found[FLOAT_ONNX] = with_batch(model, 1).SerializeToString()
    found[INT8_ONNX] = _tried(lambda: int8_onnx.static(model, inputs) if static else int8_onnx.dynamic(model))
    found[SEGMENT] = made = _tried(lambda: segment(model, network, samples))
    found[TFLITE] = made if isinstance(made, SplitEdgeError) else _tried(lambda: _tflite(made))
    return found


def segment(
    model: onnx.ModelProto, network: layers.Network, samples: Samples | None = None, weight_bits: int = WEIGHT_BITS
) -> bytes:
    """The whole ``network`` of ``model`` as one segment file.

    ``samples``: for the calibration of a convolutional network; a transformer needs none. Raises `ModelError` if the
    integer head ends before the output.
    """
    last = cuts.find(network)[-1]
    if not last.offered:
        raise ModelError(f"the integer head ends before the output: {last.reason}", reason="head-ends")
    calibration = creation.calibrate(model, network, samples or noise([1]))
    return lower(network, calibration, network.graph.output, weight_bits).segment()


def noise(shape: list[int]) -> Samples:
    """Samples of noise. ``shape``: of a frame, channels last."""
    random = np.random.default_rng(1)
    frames = [random.normal(size=shape).astype(np.float32) for _ in range(_SAMPLES)]
    return Samples(Preprocess("tensor", shape), frames)


def _in_onnx(x: F32) -> F32:
    """A frame with channels last as ONNX takes it: channels first, with a batch axis."""
    return (np.moveaxis(x, -1, 0) if x.ndim == 3 else x)[None]


def _tflite(data: bytes) -> bytes:
    if importlib.util.find_spec("tflite") is None:
        raise PlatformError("a .tflite file needs the package tflite; run `pip install tflite`", reason="no-tflite")
    from calibration.export import tflite

    return tflite.network(data)


def _tried(work: Callable[[], bytes]) -> bytes | SplitEdgeError:
    try:
        return work()
    except SplitEdgeError as error:
        return error
    except Exception as error:  # onnx, ONNX Runtime and its quantizer raise many types of errors
        return ModelError(f"it cannot be quantized ({str(error).strip().splitlines()[-1][:200]})", reason="quantizer")
