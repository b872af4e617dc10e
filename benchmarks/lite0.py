"""EfficientNet-Lite0 with its ImageNet weights, as a file in the user's cache folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from benchmarks import cache
from edge_server.presets import catalog, lite0, torch_weights
from kernels.cache import cache_base

PRESET: Final = catalog.PRESETS["lite0"]
PACKAGE: Final = PRESET.packages[0].module
SHAPE: Final = lite0.SHAPE


def file() -> str:
    """Return the path of the ONNX file in the user's cache folder; write it once. Raises `errors.ModelError`."""
    name = "lite0.onnx"
    sources = [Path(module.__file__ or "").read_bytes() for module in (lite0, torch_weights)]
    made_by = hashlib.sha256(b"".join(sources) + PRESET.sha256.encode()).hexdigest()[:16]
    PRESET.path()
    cache.kept("lite0", lambda: {name: PRESET.read()}, made_by)
    return str(cache_base() / "benchmarks" / f"lite0-{made_by}" / name)


def weights_path() -> Path:
    """Return the weights file of the installed package without importing it. Raises `errors.ModelError`."""
    return PRESET.path()
