"""What runs a whole model on this board: our integer kernels, ONNX Runtime, LiteRT, tflite-runtime.

A backend imports its runtime only when it loads a model. Plans use our kernels (`native`); the others are for
comparison. To add one: a `Backend` in `BACKENDS`, and a module with a function that loads a model.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import splitedge
from splitedge.errors import UsageError
from splitedge.protocol.messages import Preprocess

F32 = NDArray[np.float32]


OPEN: Final = -1
CPU: Final = "CPUExecutionProvider"


class Port(NamedTuple):
    """An input or output: its name, shape (`OPEN`: any size) and dtype. The value of a code is ``scale * (code - zero_point)``."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float = 1.0
    zero_point: int = 0

    def real(self, codes: NDArray[Any]) -> F32:
        """The values of ``codes``, flat."""
        values: F32 = np.float32(self.scale) * (codes.reshape(-1).astype(np.float32) - np.float32(self.zero_point))
        return values


class Operator(NamedTuple):
    """An operator of a loaded model: its name, its kind, and its median microseconds."""

    name: str
    kind: str
    us: float


class Loaded(Protocol):
    """A model that a backend loaded, with space for one input."""

    ports: Sequence[Port]
    precision: str  # "float32", "int8" ...
    preprocess: Preprocess | None  # that the file prescribes for pictures

    def put(self, values: Sequence[NDArray[Any]]) -> None:
        """Set all inputs: arrays of the shape and dtype of ``ports``."""

    def run(self) -> None:
        """Compute the output of the input."""

    def output(self) -> F32:
        """The real values of the first output, flat."""

    def operators(self, repeats: int) -> list[Operator]:
        """The time of each operator, over ``repeats`` runs. Raises `UsageError` if the runtime does not tell."""


@dataclass(frozen=True)
class Backend:
    """A way to run a model. ``module``: in this package; its function ``load`` has the arguments of `load`."""

    name: str
    title: str
    module: str
    runtime: str  # the Python package that must be installed; empty for our own kernels
    package: str  # its name for pip
    suffixes: tuple[str, ...]  # of the files that it reads
    provider: str = ""  # of ONNX Runtime

    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        if self.runtime and importlib.util.find_spec(self.runtime) is None:
            return f"{self.title} is not installed; run `pip install {self.package}`"
        if self.provider and self.provider != CPU:
            found = importlib.import_module(self.runtime).get_available_providers()
            if self.provider not in found:
                return f"the installed ONNX Runtime has no {self.provider}, only {', '.join(found)}"
        return ""

    def version(self) -> str:
        """The version of the runtime; an empty string without it."""
        try:
            return importlib.metadata.version(self.package) if self.runtime else splitedge.__version__
        except importlib.metadata.PackageNotFoundError:
            return ""

    def prepare(self) -> None:
        """Import the runtime."""
        importlib.import_module(f"{__name__}.{self.module}")
        if self.runtime:
            importlib.import_module(self.runtime)

    def load(self, path: Path, threads: int) -> Loaded:
        """The model in the file ``path`` on ``threads`` threads. Raises `UsageError` or what the runtime raises."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        loaded: Loaded = module.load(path, threads, *([self.provider] if self.provider else []))
        return loaded


SEGMENT: Final = ".segment"

BACKENDS: Final = {
    one.name: one
    for one in (
        Backend("native", "splitedge", "native", "", "", (SEGMENT,)),
        Backend("onnxruntime", "ONNX Runtime", "onnx", "onnxruntime", "onnxruntime", (".onnx",), CPU),
        Backend(
            "onnxruntime-cuda", "ONNX Runtime", "onnx", "onnxruntime", "onnxruntime-gpu", (".onnx",),
            "CUDAExecutionProvider",
        ),
        Backend(
            "onnxruntime-tensorrt", "ONNX Runtime", "onnx", "onnxruntime", "onnxruntime-gpu", (".onnx",),
            "TensorrtExecutionProvider",
        ),
        Backend("litert", "LiteRT", "tflite", "ai_edge_litert", "ai-edge-litert", (".tflite",)),
        Backend("tflite", "tflite-runtime", "tflite_runtime", "tflite_runtime", "tflite-runtime", (".tflite",)),
    )
}  # fmt: skip


def find(name: str) -> Backend:
    """The backend ``name``. Raises `UsageError`."""
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name[:40]!r}; name some of {', '.join(BACKENDS)}", reason="no-backend")
    return BACKENDS[name]


def here() -> list[Backend]:
    """The backends that can run here."""
    return [one for one in BACKENDS.values() if not one.missing()]
