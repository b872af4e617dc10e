"""The codec at the cut: what happens to the tensor that crosses the link, and back.

    codec = fit(values, "mse", bits=4)             # or fit_channels: a range for each channel of the last axis
    codec = fit_samples(samples, "hadamard", 2)    # or any other of FAMILIES, from tensors [n, ..., C]; FLOAT at 16 bits
    payload = encode(x, codec)                     # about expected_bytes(codec, x.shape) of them, never more than max_bytes
    y = decode(payload, codec, x.shape)
    error(samples, codec)                          # mean squared error of coding them

A `Codec` is a protocol message. The arithmetic is fixed in docs/architecture.md, bit for bit. A codec's arrays and tables are prepared when it is first
used and kept: do not change a codec's lists in place, make another.

Every error is `errors.CodecError`. All functions may be called from several threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels import codec as kernels
from kernels import reference
from splitedge import errors
from splitedge.codec import clip
from splitedge.codec.clip import PERCENTILE, PUBLISHED, RULES
from splitedge.codec.fitting import FAMILIES, FLOAT, fit_samples
from splitedge.codec.payload import (
    as_packed,
    decode,
    encode,
    expected_bytes,
    flattened,
    max_bytes,
    packed_bytes,
    side_bytes,
)
from splitedge.codec.prepared import BITS, FLOATS, Prepared, prepare
from splitedge.protocol.messages import Codec

__all__ = [
    "BITS",
    "FAMILIES",
    "FLOAT",
    "FLOATS",
    "PERCENTILE",
    "PUBLISHED",
    "RULES",
    "STAGES",
    "Codec",
    "decode",
    "encode",
    "encode_codes",
    "error",
    "exact",
    "expected_bytes",
    "fit",
    "fit_channels",
    "fit_samples",
    "max_bytes",
    "packed_bytes",
    "pixels",
    "side_bytes",
    "squared_error",
    "tables",
    "validate",
    "work",
]

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
#: What a codec may do to each value beside quantizing and packing it: a rotation, another basis, ranges of the frame's own, entropy coding, JPEG.
STAGES: Final = ("rotation", "basis", "range", "entropy", "jpeg")


def fit(
    values: ArrayLike, rule: str, bits: int, *, weights: ArrayLike | None = None, percentile: float = PERCENTILE
) -> Codec:
    """A codec with one range for the whole tensor, by ``rule`` (one of `RULES` or `PUBLISHED`, see `clip`) at ``bits`` 2..8.

    ``values`` of any shape; ``weights`` of the same shape are counts, so a histogram stands for the tensor. A constant has scale 0
    and is reconstructed exactly; an empty tensor is the constant 0. Raises for NaN, infinity, weights that are all 0, an unknown rule or width.
    """
    _check_request(rule, bits, percentile)
    if weights is None and np.size(values) == 0:
        return Codec(rule, bits, (0.0,), (0.0,))
    return _build(rule, bits, [clip.clip_range(clip.distribution(values, weights), rule, bits, percentile)])


def pixels(mean: Sequence[float], std: Sequence[float], quality: int) -> Codec:
    """The codec of a picture whose values are (pixel - mean[c]) / std[c], as JPEG of ``quality`` 1..100. Raises for statistics that make no range."""
    lo = tuple(float(np.float32(-m / s)) for m, s in zip(mean, std, strict=True))
    codec = Codec(f"jpeg-{quality}", 8, lo, tuple(float(np.float32(1 / s)) for s in std), jpeg=quality)
    prepare(codec)
    return codec


def exact(scale: float, zero_point: int) -> Codec:
    """The codec whose codes are those of the 8-bit tensor with this scale and zero point."""
    return Codec("exact", 8, (float(-np.float32(scale) * np.float32(zero_point)),), (scale,))


def fit_channels(
    values: ArrayLike, rule: str, bits: int, *, weights: ArrayLike | None = None, percentile: float = PERCENTILE
) -> Codec:
    """A codec with a range for each channel: of ``values`` [..., C], or, with ``weights`` [C, K], of C histograms over the K ``values``.

    Otherwise as `fit`; a channel without a value or count is an error.
    """
    _check_request(rule, bits, percentile)
    v = np.asarray(values)
    if weights is None:
        if v.ndim == 0 or v.size == 0:
            raise errors.CodecError(
                "there is no value to fit a range for each channel to; calibrate with at least one sample"
            )
        parts = [clip.distribution(column) for column in v.reshape(-1, v.shape[-1]).T]
    else:
        counts = np.asarray(weights)
        if v.ndim != 1 or counts.ndim != 2 or counts.shape[0] == 0:
            raise errors.CodecError("histograms must be [channels, values] beside one list of values")
        parts = [clip.distribution(v, row) for row in counts]
    return _build(rule, bits, [clip.clip_range(part, rule, bits, percentile) for part in parts])


def encode_codes(codes: U8, scale: float, zero_point: int, codec: Codec) -> bytes:
    """The payload of a tensor held as 8-bit ``codes`` (uint8, channels last): the bytes that `encode` makes of scale * (codes - zero_point)."""
    prepared = prepare(codec)
    flat = flattened(codes, np.uint8, prepared)
    if not prepared.plain or prepared.coder:
        _check_tensor(scale, zero_point)
        values = np.float32(scale) * (np.arange(256) - zero_point).astype(np.float32)
        return encode(values[codes], codec)
    out = np.empty(packed_bytes(flat.size, prepared.bits), np.uint8)
    kernels.encode_codes(flat, _tables(scale, zero_point, prepared).reshape(-1), prepared.bits, out)
    return as_packed(out, codes.shape, codec)


def work(codec: Codec, shape: Sequence[int]) -> dict[str, float]:
    """Of `STAGES` those that ``codec`` has, and on how many values of a tensor of ``shape``; of a basis, products."""
    count = float(math.prod(shape))
    coded = count if codec.basis is None else count * len(codec.lo) / len(codec.basis.centre)
    each = {
        "rotation": count * bool(codec.rotation),
        "basis": 0.0 if codec.basis is None else count * len(codec.lo),
        "range": count * bool(codec.dynamic),
        "entropy": coded * bool(codec.tables),
        "jpeg": count * bool(codec.jpeg),
    }
    return {stage: amount for stage, amount in each.items() if amount}


def error(samples: ArrayLike, codec: Codec) -> float:
    """Mean squared error of a value when the tensors ``samples`` [n, ..., C] are coded: what to choose a codec by. They should not be those it was fitted to."""
    values = np.asarray(samples, np.float32)
    if not values.size:
        raise errors.CodecError("there is no value to measure an error on; calibrate with at least one sample")
    parts = [((decode(encode(x, codec), codec, x.shape).astype(np.float64) - x) ** 2).sum() for x in values]
    return float(np.sum(parts) / values.size)


def tables(scale: float, zero_point: int, codec: Codec) -> U8:
    """uint8 [C, 256], read-only: the code at the cut of each 8-bit code of each channel; C is 1 for a range per tensor. Kept with the codec.

    Raises for a codec whose codes depend on more than one value: a rotation, or ranges of the tensor's own.
    """
    prepared = prepare(codec)
    if not prepared.plain:
        raise errors.CodecError("the codec's codes depend on more than one value each; decode the tensor first")
    return _tables(scale, zero_point, prepared)


def validate(codec: Codec) -> None:
    """Raises unless ``codec``, which may come from the network, is one that `encode` and `decode` can use."""
    prepare(codec)


def squared_error(values: ArrayLike, weights: ArrayLike | None, codec: Codec) -> float:
    """Sum of (value - decoded)^2, times its count where ``weights`` are given; shapes as in `fit` or, for a range per channel, `fit_channels`."""
    prepared = prepare(codec)
    if not prepared.plain or prepared.coder:
        raise errors.CodecError(
            "the codec's error does not follow from single values; measure it with `error` on samples"
        )
    v, w = np.asarray(values), None if weights is None else np.asarray(weights, np.float64)
    if w is not None and prepared.lo.size > 1:
        v, w = v[:, None], w.T
    return clip.squared_error(
        v, w, prepared.lo, prepared.scale, prepared.bits, prepared.levels if prepared.levels.size else None
    )


def _tables(scale: float, zero_point: int, prepared: Prepared) -> U8:
    kept = prepared.table
    if kept is None or kept[0] != (scale, zero_point):
        _check_tensor(scale, zero_point)
        levels = prepared.levels if prepared.levels.size else None
        made = reference.codec_tables(scale, zero_point, prepared.lo, prepared.scale, prepared.bits, levels)
        made.flags.writeable = False
        kept = prepared.table = ((scale, zero_point), made)
    return kept[1]


def _check_tensor(scale: float, zero_point: int) -> None:
    if not (0 < scale * 255 <= float(np.finfo(np.float32).max) and 0 <= zero_point <= 255):
        raise errors.CodecError(
            f"scale {scale} and zero point {zero_point} are not those of an 8-bit tensor; build the segment again"
        )


def _check_request(rule: str, bits: int, percentile: float) -> None:
    if rule not in RULES + PUBLISHED:
        raise errors.CodecError(f"there is no clip rule {rule!r}; choose one of {', '.join(RULES + PUBLISHED)}")
    if bits not in BITS:
        raise errors.CodecError(f"{bits} bits cannot be had at the cut; choose {BITS[0]} to {BITS[-1]}")
    if not 50 < percentile <= 100:
        raise errors.CodecError(f"a percentile of {percentile} leaves no range; choose more than 50 and at most 100")


def _build(rule: str, bits: int, ranges: list[tuple[float, float]]) -> Codec:
    grids = [clip.grid(lo, hi, bits) for lo, hi in ranges]
    codec = Codec(rule, bits, tuple(float(lo) for lo, _ in grids), tuple(float(scale) for _, scale in grids))
    prepare(codec)
    return codec
