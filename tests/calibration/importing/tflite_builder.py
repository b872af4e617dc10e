"""Small .tflite files with any operator, on the writer of `calibration.export.tflite`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray

from calibration.export.tflite import _ALIGN, _Model

KINDS = {
    np.dtype(np.float32): tflite.TensorType.FLOAT32,
    np.dtype(np.float16): tflite.TensorType.FLOAT16,
    np.dtype(np.int32): tflite.TensorType.INT32,
    np.dtype(np.int64): tflite.TensorType.INT64,
    np.dtype(np.int8): tflite.TensorType.INT8,
}


class Built(_Model):
    """A file in the making. ``real`` and ``fixed`` add tensors, ``op`` an operator."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)
        self.source = self.last = self.real(*shape)

    def real(self, *shape: int, dtype: type = np.float32) -> int:
        """A computed tensor."""
        return self._tensor(list(shape), KINDS[np.dtype(dtype)], 0, None, 0)

    def fixed(self, values: Any, dtype: type = np.float32) -> int:
        """A constant."""
        array = np.asarray(values, dtype)
        data = array.tobytes()
        self._builder.Prep(_ALIGN, len(data))
        self._buffers.append(self._table("Buffer", Data=self._builder.CreateByteVector(data)))
        return self._tensor(list(array.shape), KINDS[array.dtype], len(self._buffers) - 1, None, 0)

    def weight(self, *shape: int) -> int:
        return self.fixed(self.random.normal(size=shape) / 3)

    def ints(self, *values: int) -> int:
        return self.fixed(values, np.int32)

    def op(self, name: str, inputs: list[int], shape: tuple[int, ...], options: str = "", /, **fields: Any) -> int:
        """Append the operator ``name``, whose output of ``shape`` is then the last tensor."""
        self.last = self.real(*shape, dtype=fields.pop("dtype", np.float32))
        self.operator(name, inputs, self.last, options, **fields)
        return self.last

    def operator(self, name: str, inputs: list[int], output: int, options: str, **fields: Any) -> None:
        if options:
            super().operator(name, inputs, output, options, **fields)
            return
        code = self._codes.setdefault(name, len(self._codes))
        ends = {"Inputs": self._numbers(inputs, np.int32), "Outputs": self._numbers([output], np.int32)}
        self._operators.append(self._table("Operator", OpcodeIndex=code, **ends))

    def sparse(self, dense: NDArray[np.float32]) -> int:
        """A constant [rows, columns], columns compressed."""
        rows = [np.flatnonzero(row) for row in dense]
        values = np.concatenate([row[at] for row, at in zip(dense, rows, strict=True)])
        vectors = [
            self._table("Int32Vector", Values=self._numbers(v, np.int32))
            for v in (np.cumsum([0, *map(len, rows)]), np.concatenate(rows))
        ]
        kind = tflite.SparseIndexVector.Int32Vector
        levels = [
            self._table("DimensionMetadata", Format=0, DenseSize=len(dense)),
            self._table(
                "DimensionMetadata",
                Format=1,
                ArraySegmentsType=kind,
                ArraySegments=vectors[0],
                ArrayIndicesType=kind,
                ArrayIndices=vectors[1],
            ),
        ]
        order, places = self._numbers([0, 1], np.int32), self._offsets(levels)
        sparsity = self._table("SparsityParameters", TraversalOrder=order, DimMetadata=places)
        data = values.astype(np.float32).tobytes()
        self._builder.Prep(_ALIGN, len(data))
        self._buffers.append(self._table("Buffer", Data=self._builder.CreateByteVector(data)))
        shape = self._numbers(dense.shape, np.int32)
        self._tensors.append(
            self._table(
                "Tensor",
                Shape=shape,
                Type=KINDS[np.dtype(np.float32)],
                Buffer=len(self._buffers) - 1,
                Sparsity=sparsity,
            )
        )
        self._shapes.append(list(dense.shape))
        self._scales.append(0.0)
        return len(self._tensors) - 1

    def data(self) -> bytes:
        return self.finish(self.source, self.last)
