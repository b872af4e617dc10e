"""Reads the tensors and operators of a .tflite file.

The schema is that of the package `tflite`. Only the first subgraph counts, the others are bodies of loops and branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.importing.sessions import brief
from splitedge import errors, limits

Array = NDArray[Any]

#: Bytes 4 to 8 of a file of version 3 of the format.
MAGIC: Final = b"TFL3"


@dataclass(frozen=True)
class Quantized:
    """real = scale x (code - zero_point), with one scale, or one for each index of ``axis``."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int

    def real(self, codes: Array) -> NDArray[np.float32]:
        shape = [1] * codes.ndim
        if self.scale.size > 1:
            shape[min(self.axis, codes.ndim - 1)] = self.scale.size
        scale, zero = self.scale.astype(np.float64).reshape(shape), self.zero_point.reshape(shape)
        values: NDArray[np.float32] = (scale * (codes.astype(np.int64) - zero)).astype(np.float32)
        return values


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file. ``data``: the codes of a constant, in its ``shape`` and type."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None  # None: strings, resources and other types that are no numbers
    quantized: Quantized | None
    data: Array | None

    def value(self) -> Array | None:
        """A constant as real numbers, float32, or as the whole numbers that it holds; None for another tensor."""
        if self.data is None:
            return None
        if self.quantized is not None and self.data.dtype.kind in "iu":
            return self.quantized.real(self.data)
        return self.data.astype(np.float32) if self.data.dtype == np.float16 else self.data


@dataclass(frozen=True)
class Operator:
    """``kind`` as in the schema, such as CONV_2D. ``inputs``: tensors, -1 for an absent one. ``options``: flatbuffer."""

    kind: str
    inputs: list[int]
    outputs: list[int]
    options: Any


@dataclass(frozen=True)
class File:
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: list[int]
    outputs: list[int]


def read(path: Path) -> File:
    """The first subgraph of the file. Raises `errors.ModelError`."""
    try:
        import tflite
    except ImportError as error:
        raise errors.ModelError(
            "a .tflite file needs the package tflite; install splitedge[server]", reason="no-tflite"
        ) from error
    data = path.read_bytes()
    try:
        if data[4:8] != MAGIC:
            raise ValueError("it does not begin as a .tflite file does")
        model = tflite.Model.GetRootAs(data, 0)
        graph = model.Subgraphs(0)
        codes = [_code(tflite, model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
        names: set[str] = set()
        tensors = [_tensor(tflite, model, graph.Tensors(i), i, names) for i in range(graph.TensorsLength())]
        operators = [_operator(tflite, graph.Operators(i), codes) for i in range(graph.OperatorsLength())]
        entries = [[int(i) for i in _numbers(found)] for found in (graph.InputsAsNumpy(), graph.OutputsAsNumpy())]
        used = [i for one in operators for i in (*one.inputs, *one.outputs)]
        if not all(-1 <= i < len(tensors) for i in (*used, *entries[0], *entries[1])):
            raise ValueError("an operator names a tensor that does not exist")
        return File(tensors, operators, entries[0], entries[1])
    except Exception as error:  # flatbuffers have no checks of their own: struct, index, type and memory errors
        raise errors.ModelError(
            f"{path} is not a readable .tflite file ({brief(error)}); convert the model again", reason="not-tflite"
        ) from error


def _code(tflite: Any, code: Any) -> str:
    number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
    known = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    if number == tflite.BuiltinOperator.CUSTOM:
        return str((code.CustomCode() or b"CUSTOM").decode(errors="replace"))
    return str(known.get(number, f"operator {number}"))


def _operator(tflite: Any, own: Any, codes: list[str]) -> Operator:
    named = {value: name for name, value in vars(tflite.BuiltinOptions).items() if isinstance(value, int)}
    name, table = named.get(own.BuiltinOptionsType(), "NONE"), own.BuiltinOptions()
    options = None
    if table is not None and hasattr(tflite, name):
        options = getattr(tflite, name)()
        options.Init(table.Bytes, table.Pos)
    ends = [[int(i) for i in _numbers(found)] for found in (own.InputsAsNumpy(), own.OutputsAsNumpy())]
    return Operator(codes[own.OpcodeIndex()], ends[0], ends[1], options)


def _tensor(tflite: Any, model: Any, own: Any, index: int, names: set[str]) -> Tensor:
    name = (own.Name() or b"").decode(errors="replace") or f"tensor_{index}"
    name = f"{name}#{index}" if name in names else name
    names.add(name)
    shape = tuple(max(1, int(size)) for size in _numbers(own.ShapeAsNumpy()))
    dtype = _dtype(tflite, own.Type())
    buffer = model.Buffers(own.Buffer()).DataAsNumpy() if own.Buffer() < model.BuffersLength() else 0
    raw = buffer.tobytes() if isinstance(buffer, np.ndarray) else b""
    data = None
    if raw and dtype is not None:
        values = _nibbles(raw) if own.Type() == tflite.TensorType.INT4 else np.frombuffer(raw, dtype)
        if own.Sparsity() is not None:
            values = _dense(tflite, own.Sparsity(), values, shape)
        whole = tuple(int(size) for size in _numbers(own.ShapeAsNumpy()))
        data = values[: math.prod(whole)].reshape(whole) if values.ndim == 1 else values
    return Tensor(name, data.shape if data is not None else shape, dtype, _quantized(own.Quantization()), data)


def _dtype(tflite: Any, kind: int) -> np.dtype[Any] | None:
    known = {
        tflite.TensorType.FLOAT32: np.float32,
        tflite.TensorType.FLOAT16: np.float16,
        tflite.TensorType.FLOAT64: np.float64,
        tflite.TensorType.INT8: np.int8,
        tflite.TensorType.INT4: np.int8,
        tflite.TensorType.UINT8: np.uint8,
        tflite.TensorType.INT16: np.int16,
        tflite.TensorType.UINT16: np.uint16,
        tflite.TensorType.INT32: np.int32,
        tflite.TensorType.UINT32: np.uint32,
        tflite.TensorType.INT64: np.int64,
        tflite.TensorType.UINT64: np.uint64,
        tflite.TensorType.BOOL: np.bool_,
    }
    return np.dtype(known[kind]) if kind in known else None


def _nibbles(raw: bytes) -> NDArray[np.int8]:
    """The 4-bit integers in ``raw``, the lower half of each byte first; an odd count leaves one too many."""
    data = np.frombuffer(raw, np.uint8)
    halves = np.stack([data << 4, data & 0xF0], axis=1).reshape(-1)
    signed: NDArray[np.int8] = halves.view(np.int8) >> 4
    return signed


def _quantized(own: Any) -> Quantized | None:
    scale = _numbers(own.ScaleAsNumpy()) if own is not None else np.zeros(0)
    if not scale.size:
        return None
    zero = _numbers(own.ZeroPointAsNumpy())
    zero = zero if zero.size else np.zeros(scale.size)
    return Quantized(
        scale.astype(np.float32), np.broadcast_to(zero, scale.shape).astype(np.int64), own.QuantizedDimension()
    )


def _numbers(found: Any) -> Array:
    """A vector of a flatbuffer; flatbuffers give 0 for an absent one."""
    return found if isinstance(found, np.ndarray) else np.zeros(0, np.int64)


def _dense(tflite: Any, sparsity: Any, values: Array, shape: Sequence[int]) -> Array:
    """The whole tensor of a sparse one.

    Each level of the tree is dense (every index has a child) or compressed (``segments`` and ``indices``). The levels
    after the tensor's own axes split blocks of the axes in the block map.
    """
    if math.prod(shape) > limits.MAX_MODEL_BYTES:
        raise ValueError("a sparse tensor is too large")
    order, blocks = _numbers(sparsity.TraversalOrderAsNumpy()), _numbers(sparsity.BlockMapAsNumpy())
    places, coordinates = np.zeros(1, np.int64), np.zeros((1, 0), np.int64)
    sizes = []
    for level in range(sparsity.DimMetadataLength()):
        own = sparsity.DimMetadata(level)
        sizes.append(own.DenseSize())
        if own.Format() == 0:
            if len(places) * own.DenseSize() > math.prod(shape):
                raise ValueError("a sparse tensor is larger than its shape")
            index = np.tile(np.arange(own.DenseSize()), len(places))
            coordinates = np.repeat(coordinates, own.DenseSize(), axis=0)
            places = np.repeat(places * own.DenseSize(), own.DenseSize()) + index
        else:
            segments = _vector(tflite, own.ArraySegmentsType(), own.ArraySegments())
            indices = _vector(tflite, own.ArrayIndicesType(), own.ArrayIndices())
            starts, counts = segments[places], segments[places + 1] - segments[places]
            parents = np.repeat(np.arange(len(places)), counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places = np.repeat(starts, counts) + within
            index, coordinates = indices[places], coordinates[parents]
        coordinates = np.concatenate([coordinates, index[:, None]], axis=1)
    along = {int(axis): coordinates[:, level] for level, axis in enumerate(order)}
    size_of = {int(axis): sizes[level] for level, axis in enumerate(order)}
    whole = [along[axis] for axis in range(len(shape))]
    for place, axis in enumerate(blocks):
        whole[axis] = whole[axis] * size_of[len(shape) + place] + along[len(shape) + place]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(whole)] = values[places]
    return dense


def _vector(tflite: Any, kind: int, table: Any) -> NDArray[np.int64]:
    """The numbers of a vector of any width."""
    width = tflite.SparseIndexVector
    cls = {
        width.Int32Vector: tflite.Int32Vector,
        width.Uint16Vector: tflite.Uint16Vector,
        width.Uint8Vector: tflite.Uint8Vector,
    }[kind]
    vector = cls()
    vector.Init(table.Bytes, table.Pos)
    return _numbers(vector.ValuesAsNumpy()).astype(np.int64)
