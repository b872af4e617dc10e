"""ONNX files with int8 weights, made by ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from calibration.importing.graph import Graph, with_batch

_SAMPLES = 8


def static(model: onnx.ModelProto, samples: Iterable[NDArray[np.float32]] = ()) -> bytes:
    """``model`` at batch 1 as QDQ with scales per channel, as ONNX Runtime recommends for convolutions.

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
        return target.read_bytes()


def dynamic(model: onnx.ModelProto) -> bytes:
    """``model`` with int8 weights and ranges found at run time, as ONNX Runtime recommends for transformers."""
    with _folder() as (plain, target):
        onnx.save(model, plain)
        quantize_dynamic(str(plain), str(target), per_channel=True, weight_type=QuantType.QInt8)
        return target.read_bytes()


@contextmanager
def _folder() -> Iterator[tuple[Path, Path]]:
    """Two temporary paths; logs are silent.

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
        frames = list(samples) or [random.normal(size=shape).astype(np.float32) for _ in range(_SAMPLES)]
        self._frames = iter([{graph.input: frame} for frame in frames])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._frames, None)
