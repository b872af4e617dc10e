"""tflite-runtime, the older package of LiteRT, for systems where only that installs."""

from __future__ import annotations

from pathlib import Path

from edge_agent.backends.tflite import TFLite


def load(path: Path, threads: int) -> TFLite:
    """As `edge_agent.backends.Backend.load`."""
    return TFLite(path, threads, "tflite_runtime.interpreter")
