"""The codec at the cut: encodes the tensor that crosses the link, and decodes it.

    codec = fit(values, "mse", bits=4)             # one range for the tensor; fit_channels: one for each channel of the last axis
    codec = fit_samples(samples, "hadamard", 2)    # any of FAMILIES, from tensors [n, ..., C]; FLOAT at 16 or 32 bits
    payload = encode(x, codec)                     # about expected_bytes(codec, x.shape), at most max_bytes
    y = decode(payload, codec, x.shape)
    error(samples, codec)                          # mean squared error on samples

A `Codec` is an immutable protocol message. Its arrays and tables are prepared at first use and cached. The numerics
reference defines the arithmetic bit for bit.

To add a clip rule, extend `clip`. To add a family, extend `fitting`. A new coding step also needs a field of `Codec`,
its check in `prepared` and its code in `payload`.

Every error is `errors.CodecError`. All functions are thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
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
from splitedge.protocol.messages import Codec, ImageFormat

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
#: Optional steps of a codec beside quantization and packing: rotation, change of basis, dynamic range, entropy coding,
#: image files.
STAGES: Final = ("rotation", "basis", "range", "entropy", "jpeg", "webp")


def fit(
    values: ArrayLike, rule: str, bits: int, *, weights: ArrayLike | None = None, percentile: float = PERCENTILE
) -> Codec:
    """A codec with one range for the whole tensor, by ``rule`` (one of `RULES` or `PUBLISHED`, see `clip`) at ``bits``
    2..8.

    ``values``: any shape. ``weights``: counts of the same shape, so a histogram can replace the tensor. A constant gets
    scale 0 and is reconstructed
    exactly; an empty tensor is the constant 0. Raises for NaN, infinity, weights that are all 0, an unknown rule or
    width.
    """
    _check_request(rule, bits, percentile)
    if weights is None and np.size(values) == 0:
        return Codec(rule, bits, (0.0,), (0.0,))
    return _build(rule, bits, [clip.clip_range(clip.distribution(values, weights), rule, bits, percentile)])


def pixels(mean: Sequence[float], std: Sequence[float], quality: int, kind: ImageFormat = "jpeg") -> Codec:
    """The codec of image files of ``kind`` and ``quality`` 1..100 for values (pixel - mean[c]) / std[c].

    Raises if these give no finite range.
    """
    lo = tuple(float(np.float32(-m / s)) for m, s in zip(mean, std, strict=True))
    scale = tuple(float(np.float32(1 / s)) for s in std)
    codec = msgspec.structs.replace(Codec(f"{kind}-{quality}", 8, lo, scale), **{kind: quality})
    prepare(codec)
    return codec


def exact(scale: float, zero_point: int) -> Codec:
    """The lossless codec of an 8-bit tensor with this scale and zero point."""
    return Codec("exact", 8, (float(-np.float32(scale) * np.float32(zero_point)),), (scale,))


def fit_channels(
    values: ArrayLike, rule: str, bits: int, *, weights: ArrayLike | None = None, percentile: float = PERCENTILE
) -> Codec:
    """A codec with a range for each channel of ``values`` [..., C], or of C histograms ``weights`` [C, K] over the K
    ``values``.

    Otherwise as `fit`. A channel without a value or count is an error.
    """
    _check_request(rule, bits, percentile)
    v = np.asarray(values)
    if weights is None:
        if v.ndim == 0 or v.size == 0:
            raise errors.CodecError(
                "no value to fit a range to; calibrate with at least one sample",
                reason="no-values",
            )
        parts = [clip.distribution(column) for column in v.reshape(-1, v.shape[-1]).T]
    else:
        counts = np.asarray(weights)
        if v.ndim != 1 or counts.ndim != 2 or counts.shape[0] == 0:
            raise errors.CodecError(
                "histograms must have the shape [channels, values], with one list of values", reason="histogram-shape"
            )
        parts = [clip.distribution(v, row) for row in counts]
    return _build(rule, bits, [clip.clip_range(part, rule, bits, percentile) for part in parts])


def encode_codes(codes: U8, scale: float, zero_point: int, codec: Codec) -> bytes:
    """The payload of an 8-bit tensor of ``codes`` (uint8, channels last): the same bytes as `encode` of scale *
    (codes - zero_point).
    """
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
    """The `STAGES` of ``codec``, each with its number of values for a tensor of ``shape`` (for a basis, of
    products).
    """
    count = float(math.prod(shape))
    coded = count if codec.basis is None else count * len(codec.lo) / len(codec.basis.centre)
    each = {
        "rotation": count * bool(codec.rotation),
        "basis": 0.0 if codec.basis is None else count * len(codec.lo),
        "range": count * bool(codec.dynamic),
        "entropy": coded * bool(codec.tables),
    }
    if image := codec.image:
        each[image[0]] = count
    return {stage: amount for stage, amount in each.items() if amount}


def error(samples: ArrayLike, codec: Codec) -> float:
    """Mean squared error of coding the tensors ``samples`` [n, ..., C], to compare codecs.

    Do not use the samples of the fit.
    """
    values = np.asarray(samples, np.float32)
    if not values.size:
        raise errors.CodecError(
            "no value to measure an error on; calibrate with at least one sample", reason="no-values"
        )
    parts = [((decode(encode(x, codec), codec, x.shape).astype(np.float64) - x) ** 2).sum() for x in values]
    return float(np.sum(parts) / values.size)


def tables(scale: float, zero_point: int, codec: Codec) -> U8:
    """The code at the cut of each 8-bit code of each channel: uint8 [C, 256], read-only, cached. C is 1 for a range per
    tensor.

    Raises for a codec whose codes depend on several values: a rotation, a change of basis, a dynamic range.
    """
    prepared = prepare(codec)
    if not prepared.plain:
        raise errors.CodecError(
            "the codes of this codec depend on several values; decode the tensor first", reason="codes-share-values"
        )
    return _tables(scale, zero_point, prepared)


def validate(codec: Codec) -> None:
    """Raise unless `encode` and `decode` can use ``codec``, which may come from the network."""
    prepare(codec)


def squared_error(values: ArrayLike, weights: ArrayLike | None, codec: Codec) -> float:
    """Sum of (value - decoded)^2, weighted by ``weights``.

    Shapes as in `fit`, or as in `fit_channels` for a range per channel.
    """
    prepared = prepare(codec)
    if not prepared.plain or prepared.coder:
        raise errors.CodecError(
            "the error of this codec depends on several values; measure it with `error` on samples",
            reason="error-of-tensors",
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
            f"scale {scale} and zero point {zero_point} are not valid for an 8-bit tensor; build the segment again",
            reason="not-8-bit",
        )


def _check_request(rule: str, bits: int, percentile: float) -> None:
    if rule not in RULES + PUBLISHED:
        raise errors.CodecError(
            f"unknown clip rule {rule!r}; choose one of {', '.join(RULES + PUBLISHED)}",
            reason="unknown-clip-rule",
            rule=rule,
        )
    if bits not in BITS:
        raise errors.CodecError(
            f"{bits} bits are not supported at the cut; choose {BITS[0]} to {BITS[-1]}", reason="bits", bits=bits
        )
    if not 50 < percentile <= 100:
        raise errors.CodecError(
            f"percentile {percentile} is out of range; choose more than 50 and at most 100",
            reason="percentile",
            percentile=percentile,
        )


def _build(rule: str, bits: int, ranges: list[tuple[float, float]]) -> Codec:
    grids = [clip.grid(lo, hi, bits) for lo, hi in ranges]
    codec = Codec(rule, bits, tuple(float(lo) for lo, _ in grids), tuple(float(scale) for _, scale in grids))
    prepare(codec)
    return codec
