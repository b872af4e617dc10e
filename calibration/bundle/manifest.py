"""The files of a bundle: names, manifest, and atomic writing."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from calibration.accuracy import metrics
from calibration.accuracy.evaluation import CodecNoise, CutNoise
from calibration.accuracy.sensitivity import Sensitivity
from calibration.accuracy.trials import Trial
from splitedge import errors
from splitedge.protocol.messages import Cut, Output, Preprocess, TokenizerRef

#: 7: up to 6, the even grids of depthwise layers had wrong scales.
FORMAT: Final = 7
MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
STATISTICS: Final = "stats.safetensors"
CODECS: Final = "codecs.json"
TOKENIZER: Final = "tokenizer.json"

#: The accuracy metric, see `calibration.accuracy.metrics`.
Metric = metrics.Name


class Listed(msgspec.Struct):
    """A cut.

    ``reachable``: a head can end there. ``reason``: why the cut is not offered to planners; empty if it is.
    """

    cut: Cut
    reachable: bool
    reason: str


class LayerNoise(msgspec.Struct):
    """A layer with weights.

    - ``weights``: their number.
    - ``noise`` and ``even``: the output noise if only this layer is quantized, at each of `rounder.WIDTHS` and on each
      even grid (`rounder.EVEN`; empty if weights are rounded to the nearest).
    - ``coded_bytes``: size of the weights in a segment, in the order of `noises`.
    """

    name: str
    weights: int
    noise: Sensitivity
    even: list[float]
    coded_bytes: list[int]

    @property
    def noises(self) -> list[float]:
        """The noise on every grid: widths, then even grids."""
        return [*self.noise.noise, *self.even]


class Manifest(msgspec.Struct):
    """The content of ``bundle.json``."""

    format: int
    name: str
    metric: Metric
    labels: list[str]
    samples: int
    preprocess: Preprocess
    cuts: list[Listed]
    unsupported: list[str]
    quantizations: dict[str, tuple[float, int]]
    layers: list[LayerNoise]
    cut_noises: list[CutNoise]
    other_bytes: dict[int, int]  # segment size of each offered cut without its weights
    trials: list[Trial]
    accuracy: metrics.AccuracyModel
    tail_ms: dict[int, float]
    files: dict[str, str]  # SHA-256
    output: Output
    float_top1: float | None = None  # correct answers of the float model, per cent of the samples; None without labels
    tokenizer: TokenizerRef | None = None
    #: Noise of image files at a cut that are not in ``cut_noises``, because older programs do not know them.
    image_noises: dict[int, list[CodecNoise]] = {}

    def noises_at_cuts(self) -> dict[int, CutNoise]:
        """All of ``cut_noises`` and ``image_noises``, by cut."""
        return {
            one.cut: msgspec.structs.replace(one, codecs=[*one.codecs, *self.image_noises.get(one.cut, ())])
            for one in self.cut_noises
        }


def write(path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write ``files`` and ``manifest`` to a temporary folder, then rename it to ``path``.

    Raises `errors.StoreError`.
    """
    manifest.files = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if path.exists():
        raise errors.StoreError(f"{path} already exists; remove it or choose another name", reason="exists")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".bundle-", dir=path.parent))
    except OSError as error:
        raise errors.StoreError(
            f"{path.parent} cannot be written ({error.strerror}); choose another folder", reason="cannot-write"
        ) from error
    try:
        for name, data in files.items():
            (work / name).write_bytes(data)
        (work / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        work.chmod(0o755)
        work.rename(path)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise errors.StoreError(
            f"the bundle {path} cannot be written ({error.strerror}); free space and try again", reason="cannot-write"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
