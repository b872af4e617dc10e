"""Our integer kernels: a whole head in a segment file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import F32, Operator, Port
from splitedge.head import load as load_head
from splitedge.head import segment as seg


class Native:
    """A head; see `edge_agent.backends.Loaded`."""

    def __init__(self, path: Path, threads: int) -> None:
        self._head = load_head(path.read_bytes(), threads)
        entry, header = self._head.input, self._head.header
        dtype = np.dtype(seg.DTYPES[entry.dtype])
        self.ports = [Port("input", tuple(entry.shape), dtype, entry.scale, entry.zero_point)]
        self.preprocess = header.preprocess if header.preprocess.kind == "image" else None
        self.precision = f"int{header.weight_bits}"
        self._input: NDArray[Any] = np.zeros(entry.shape, dtype)
        self._output: NDArray[Any] = np.zeros(0, np.float32)

    def put(self, values: Sequence[NDArray[Any]]) -> None:
        (self._input,) = values

    def run(self) -> None:
        self._output = self._head.run(self._input)

    def output(self) -> F32:
        codes, tensor = self._output, self._head.output
        if tensor.dtype == "f32":
            return codes.reshape(-1)
        return (tensor.scale * (codes.reshape(-1).astype(np.float32) - tensor.zero_point)).astype(np.float32)

    def operators(self, repeats: int) -> list[Operator]:
        return [Operator(one.name, one.kind, one.us) for one in self._head.profile(self._input, repeats)]


load = Native
