"""How an image becomes a model's input, from a file or from options; checked before hours of calibration trust it."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent import errors, limits
from edge_agent.protocol.messages import Preprocess


class Spec(msgspec.Struct, forbid_unknown_fields=True):
    """A specification without the shape, which the model gives. Mean and standard deviation count in pixel values, 0 to 255."""

    resize: int | None = None  # the short side before the crop; by default the crop takes 87.5 % of it
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: list[float] = msgspec.field(default_factory=lambda: [0.0])
    std: list[float] = msgspec.field(default_factory=lambda: [1.0])


def read(path: Path | None, options: dict[str, Any]) -> Spec:
    """The specification in ``path`` (JSON or TOML), changed by ``options`` that are not None. Raises `errors.ConfigError`."""
    value = _load(path) if path is not None else {}
    value |= {name: option for name, option in options.items() if option is not None}
    try:
        return msgspec.convert(value, Spec)
    except msgspec.ValidationError as error:
        where = f"{path}" if path is not None else "the preprocessing"
        known = ", ".join(Spec.__struct_fields__)
        raise errors.ConfigError(f"{where} is not a specification ({error}): it may set {known}") from error


def of_images(spec: Spec, shape: list[int]) -> Preprocess:
    """``spec`` for a model whose input is an image of ``shape`` [H, W, C]. Raises `errors.ConfigError` for numbers that make no sense."""
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise errors.UsageError(f"the model takes {shape}, which is no image: give .npy arrays with --arrays")
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if len(values) not in (1, shape[2]) or not all(math.isfinite(v) for v in values):
            raise errors.ConfigError(f"{name} is {values}: give one number, or one for each of {shape[2]} channels")
    if min(spec.std) < 1:
        raise errors.ConfigError(
            f"std is {spec.std}, but pixels go from 0 to 255 here: multiply mean and std by 255 if they are for 0 to 1"
        )
    short = min(shape[:2])
    resize = spec.resize if spec.resize is not None else round(short / 0.875)
    if not short <= resize <= limits.MAX_RESIZE:
        raise errors.ConfigError(
            f"resize is {resize}: give at least {short}, the short side of what the model sees, and at most {limits.MAX_RESIZE}"
        )
    return Preprocess("image", shape, resize, spec.fit, spec.interpolation, spec.mean, spec.std)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.ConfigError(f"{path} cannot be read ({error.strerror}): check the path") from error
    try:
        value = tomllib.loads(data.decode()) if path.suffix == ".toml" else msgspec.json.decode(data)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ConfigError(f"{path} is neither JSON nor TOML ({error}): correct it") from error
    if not isinstance(value, dict):
        raise errors.ConfigError(f'{path} is not a table of settings: write one, such as {{"resize": 256}}')
    return value
