"""ONNX Runtime, with the settings that are fastest at batch 1."""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import CPU, F32, OPEN, Operator, Port
from splitedge.errors import UsageError

_TYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
#: Operators of quantized models, in the bytes of the file.
_QUANTIZED: Final = (b"QuantizeLinear", b"QLinearConv", b"MatMulInteger", b"QLinearMatMul")


class OnnxRuntime:
    """A session; see `edge_agent.backends.Loaded`. Raises `UsageError` for an input of an unknown type."""

    preprocess = None

    def __init__(self, path: Path, threads: int, provider: str) -> None:
        self._profiled = partial(session, str(path), threads, provider)
        self._session = session(str(path), threads, provider)
        self.ports = [_port(entry) for entry in self._session.get_inputs()]
        self.precision = _precision(path.read_bytes(), self.ports)
        self._feed: dict[str, NDArray[Any]] = {}
        self._output: NDArray[Any] = np.zeros(0, np.float32)
        self._first = [self._session.get_outputs()[0].name]

    def put(self, values: Sequence[NDArray[Any]]) -> None:
        self._feed = {port.name: value for port, value in zip(self.ports, values, strict=True)}

    def run(self) -> None:
        (self._output,) = self._session.run(self._first, self._feed)

    def output(self) -> F32:
        return np.asarray(self._output, np.float32).reshape(-1)

    def operators(self, repeats: int) -> list[Operator]:
        """The times of its own profiler, from a second session."""
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            profiled = self._profiled(f"{folder}/profile")
            for _ in range(repeats):
                profiled.run(self._first, self._feed)
            events = json.loads(Path(profiled.end_profiling()).read_text("utf-8"))
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times[name, event["args"].get("op_name", "")].append(float(event["dur"]))
        return [Operator(name, kind, statistics.median(taken)) for (name, kind), taken in times.items()]


load = OnnxRuntime


def session(model: str | bytes, threads: int, provider: str = CPU, profile: str = "") -> Any:
    """A session with all graph optimizations. ``model``: a path, or the file. ``profile``: where its profiler writes."""
    runtime = importlib.import_module("onnxruntime")  # an optional dependency, which the agent never loads
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return runtime.InferenceSession(model, options, providers=[provider])


def _port(entry: Any) -> Port:
    """An input of a session; an open first dimension is a batch of 1, and any other is `OPEN`."""
    if entry.type not in _TYPES:
        raise UsageError(
            f"the input {entry.name[:60]} has the type {entry.type}, which bench cannot make", reason="input-type"
        )
    fixed = [size if isinstance(size, int) and size > 0 else OPEN for size in entry.shape]
    shape = (1 if fixed[0] == OPEN else fixed[0], *fixed[1:]) if fixed else ()
    return Port(entry.name, shape, np.dtype(_TYPES[entry.type]))


def _precision(data: bytes, ports: Sequence[Port]) -> str:
    if any(name in data for name in _QUANTIZED):
        return "int8"
    return "float16" if any(port.dtype == np.float16 for port in ports) else "float32"
