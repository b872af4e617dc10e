"""Preprocessing of images: from presets, a file and options, checked before calibration."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from splitedge import errors, limits
from splitedge.protocol.messages import Preprocess

Interpolation = Literal["bilinear", "bicubic"]

#: The default size of the crop, as a share of the resized image's short side.
CROP: Final = 0.875


class Preset(NamedTuple):
    """The preprocessing in the training of a family of models. ``mean`` and ``std`` are in pixel values, 0 to 255."""

    mean: list[float]
    std: list[float]
    interpolation: Interpolation = "bicubic"
    crop: float = CROP


def _of_unit(*values: float) -> list[float]:
    """Values for pixels from 0 to 1, converted to pixel values."""
    return [round(255 * value, 6) for value in values]


#: Sources: torchvision's and timm's transforms, TensorFlow's `preprocess_input`, OpenAI's CLIP, the PyTorch MNIST
#: example.
PRESETS: Final[dict[str, Preset]] = {
    "imagenet": Preset(_of_unit(0.485, 0.456, 0.406), _of_unit(0.229, 0.224, 0.225), "bilinear"),
    "inception": Preset([127.5], [127.5], "bilinear"),  # -1 to 1: MobileNet, Inception and ViT of TensorFlow and timm
    "efficientnet-lite": Preset([127.0], [128.0]),
    "clip": Preset(_of_unit(0.48145466, 0.4578275, 0.40821073), _of_unit(0.26862954, 0.26130258, 0.27577711), crop=1.0),
    "cifar10": Preset(_of_unit(0.4914, 0.4822, 0.4465), _of_unit(0.2470, 0.2435, 0.2616), crop=1.0),
    "mnist": Preset(_of_unit(0.1307), _of_unit(0.3081), "bilinear", 1.0),
    "unit": Preset([0.0], [255.0]),  # 0 to 1
    "raw": Preset([0.0], [1.0]),  # 0 to 255: the model normalizes its input
}


class Spec(msgspec.Struct, forbid_unknown_fields=True):
    """A specification without the shape, which the model has. ``mean`` and ``std`` are in pixel values, 0 to 255."""

    preset: str | None = None  # the default of mean, std, interpolation and crop
    resize: int | None = None  # the short side before the crop; default: the preset's crop or `CROP`
    fit: Literal["crop", "stretch", "pad"] = "crop"
    interpolation: Interpolation = "bicubic"
    mean: list[float] | None = None
    std: list[float] | None = None
    border: int | None = None  # pixel value of the borders of ``pad``


def read(path: Path | None, options: dict[str, Any]) -> Spec:
    """The specification: ``options`` that are not None override ``path`` (JSON or TOML), which overrides the preset.

    Raises `errors.ConfigError`.
    """
    value = _load(path) if path is not None else {}
    value |= {name: option for name, option in options.items() if option is not None}
    if value.get("preset") is not None:
        chosen = _preset(value["preset"])
        value = {"mean": chosen.mean, "std": chosen.std, "interpolation": chosen.interpolation} | value
    try:
        return msgspec.convert(value, Spec)
    except msgspec.ValidationError as error:
        where = f"{path}" if path is not None else "the preprocessing"
        known = ", ".join(Spec.__struct_fields__)
        raise errors.ConfigError(
            f"{where} is invalid ({error}): the settings are {known}", reason="not-a-specification"
        ) from error


def check_stated(spec: Spec) -> None:
    """Raise `errors.ConfigError` if ``spec`` lacks mean or std: a wrong guess costs nearly all accuracy."""
    missing = [f"no --{name}" for name in ("mean", "std") if getattr(spec, name) is None]
    if missing:
        raise errors.ConfigError(
            f"the model file does not record normalization ({' and '.join(missing)}): pass --preset ({', '.join(PRESETS)}), "
            "or --mean and --std as in the model's training",
            reason="no-normalization",
        )


def with_codes(spec: Spec, scale: float, zero_point: int) -> Spec:
    """``spec`` with the mean and std that an 8-bit input implies, if ``spec`` has neither.

    TensorFlow Lite's converters code a pixel value p of 0 to 255 as p, so the float model sees
    ``scale * (p - zero_point)``. The result is that of the preset whose black and white are nearest, at most two pixel
    values away. Farther presets mean a scale that calibration measured: it says nothing, and ``spec`` stays as it is.
    """
    if spec.mean is not None or spec.std is not None:
        return spec

    def apart(one: Preset) -> float:
        (mean,), (std,) = one.mean, one.std
        return max(abs(std * scale * (pixel - zero_point) - (pixel - mean)) for pixel in (0, 255))

    nearest = min((one for one in PRESETS.values() if len(one.mean) == 1), key=apart)
    return msgspec.structs.replace(spec, mean=nearest.mean, std=nearest.std) if apart(nearest) <= 2 else spec


def of_images(spec: Spec, shape: list[int]) -> Preprocess:
    """The preprocessing for a model whose input is an image of ``shape`` [H, W, C].

    Raises `errors.UsageError` for another shape, `errors.ConfigError` for numbers out of range.
    """
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise errors.UsageError(
            f"the model's input {shape} is not an image: pass .npy arrays with --arrays", reason="no-image"
        )
    check_stated(spec)
    mean, std = (_channels(spec, name, shape[2]) for name in ("mean", "std"))
    if min(std) < 1:
        raise errors.ConfigError(
            f"std is {std}, below 1, but pixels range from 0 to 255: multiply mean and std for 0 to 1 by 255",
            reason="small-std",
        )
    short = min(shape[:2])
    crop = CROP if spec.preset is None else _preset(spec.preset).crop
    resize = spec.resize if spec.resize is not None else round(short / crop)
    if not short <= resize <= limits.MAX_RESIZE:
        raise errors.ConfigError(
            f"resize is {resize}: use {short}, the short side of the model's input, to {limits.MAX_RESIZE}",
            reason="resize",
        )
    if spec.border is not None and (spec.fit != "pad" or not 0 <= spec.border <= 255):
        raise errors.ConfigError(
            f"border is {spec.border}: it applies to fit pad, and is a pixel value from 0 to 255", reason="border"
        )
    if spec.fit == "pad":
        return Preprocess("image", shape, resize, "stretch", spec.interpolation, mean, std, spec.border or 0)
    return Preprocess("image", shape, resize, spec.fit, spec.interpolation, mean, std)


def fitting(channels: int) -> dict[str, Preset]:
    """The presets for images with this number of ``channels``."""
    return {name: one for name, one in PRESETS.items() if len(one.mean) in (1, channels)}


def _channels(spec: Spec, name: str, channels: int) -> list[float]:
    values: list[float] = getattr(spec, name)
    if spec.preset is not None and values == getattr(PRESETS[spec.preset], name) and len(values) not in (1, channels):
        raise errors.ConfigError(
            f"the preset {spec.preset} is for {len(values)} channels, but the model takes {channels}: "
            f"choose one of {', '.join(fitting(channels))}",
            reason="preset-channels",
        )
    if len(values) not in (1, channels) or not all(math.isfinite(v) for v in values):
        raise errors.ConfigError(
            f"{name} is {values}: use one number, or {channels}, one for each channel", reason="numbers"
        )
    return values


def _preset(name: object) -> Preset:
    if not isinstance(name, str) or name not in PRESETS:
        raise errors.ConfigError(
            f"no pixel preset is named {name!r}: choose one of {', '.join(PRESETS)}", reason="unknown-preset"
        )
    return PRESETS[name]


def _load(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.ConfigError(
            f"{path} cannot be read ({error.strerror}): check the path", reason="unreadable"
        ) from error
    try:
        text = data.decode("utf-8-sig")
        value = tomllib.loads(text) if path.suffix.lower() == ".toml" else msgspec.json.decode(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.ConfigError(
            f"{path} is neither JSON nor TOML ({error}): correct the file", reason="not-json-or-toml"
        ) from error
    if not isinstance(value, dict):
        raise errors.ConfigError(
            f'{path} holds no settings: write an object such as {{"resize": 256}}', reason="not-a-table"
        )
    return value
