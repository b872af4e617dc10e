"""LiteRT, with its default XNNPACK."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import F32, Operator, Port
from splitedge.errors import UsageError


class TFLite:
    """An interpreter; see `edge_agent.backends.Loaded`."""

    preprocess = None

    def __init__(self, path: Path, threads: int, runtime: str = "ai_edge_litert.interpreter") -> None:
        made = importlib.import_module(runtime).Interpreter(model_path=str(path), num_threads=threads)
        made.allocate_tensors()
        self._made = made
        self.ports = [_port(entry) for entry in made.get_input_details()]
        self._places = [entry["index"] for entry in made.get_input_details()]
        self._output = _port(made.get_output_details()[0])
        self._at = made.get_output_details()[0]["index"]
        integer = any(entry["dtype"] == np.int8 for entry in made.get_tensor_details())
        self.precision = "int8" if integer else str(self.ports[0].dtype)

    def put(self, values: Sequence[NDArray[Any]]) -> None:
        for place, value in zip(self._places, values, strict=True):
            self._made.set_tensor(place, value)

    def run(self) -> None:
        self._made.invoke()

    def output(self) -> F32:
        return self._output.real(self._made.get_tensor(self._at))

    def operators(self, repeats: int) -> list[Operator]:  # noqa: ARG002
        raise UsageError(
            "the Python interface of LiteRT tells no times of operators; use its benchmark_model", reason="no-operators"
        )


load = TFLite


def _port(entry: dict[str, Any]) -> Port:
    scale, zero_point = entry["quantization"]
    shape = tuple(int(size) for size in entry["shape"])
    return Port(entry["name"], shape, np.dtype(entry["dtype"]), scale or 1.0, zero_point)
