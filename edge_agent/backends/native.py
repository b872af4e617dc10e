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
        header = self._head.header
        self.ports = [_port("input", self._head.input)]
        self.preprocess = header.preprocess if header.preprocess.kind == "image" else None
        self.precision = f"int{header.weight_bits}"
        self._input: NDArray[Any] = np.zeros(self.ports[0].shape, self.ports[0].dtype)
        self._output: NDArray[Any] = np.zeros(0, np.float32)

    def put(self, values: Sequence[NDArray[Any]]) -> None:
        (self._input,) = values

    def run(self) -> None:
        self._output = self._head.run(self._input)

    def output(self) -> F32:
        return _port("output", self._head.output).real(self._output)

    def operators(self, repeats: int) -> list[Operator]:
        return [Operator(one.name, one.kind, one.us) for one in self._head.profile(self._input, repeats)]


load = Native


def _port(name: str, tensor: seg.Tensor) -> Port:
    return Port(name, tuple(tensor.shape), np.dtype(seg.DTYPES[tensor.dtype]), tensor.scale, tensor.zero_point)
