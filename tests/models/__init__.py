"""Small models that torch exported, as files: no test needs torch to read them. `tests.models.make` writes them."""

from __future__ import annotations

import atexit
import functools
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "models.zip"
#: The file beside the models that holds their weights.
WEIGHTS = "weights.bin"


def path(name: str) -> str:
    """The file of the model ``name``, a key of `tests.models.make.models`."""
    return str(_folder() / f"{name}.onnx")


def traced_form(opset: int, eager: bool, dynamic: bool) -> str:
    """The end of a traced model's name: the operators' version, attention in single operators or fused, axes open or fixed."""
    return f"{opset}-{'eager' if eager else 'fused'}-{'dynamic' if dynamic else 'fixed'}"


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="splitedge-models-")
    atexit.register(folder.cleanup)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder.name)
    return Path(folder.name)
