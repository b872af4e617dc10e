"""The codec at the cut: clip, quantize and pack the tensor that crosses the link, and back.

    codec = fit(values, "mse", bits=4)             # or fit_channels: a range for each channel of the last axis
    payload = encode(x, codec)                     # bytes, payload_bytes(x.size, 4) of them
    y = decode(payload, codec, x.shape)

A `Codec` is a protocol message: value = lo[c] + scale[c] * code. The arithmetic is fixed in docs/architecture.md, bit for bit. A codec's arrays
and tables are prepared when it is first used and kept: do not change a codec's lists in place, make another.

Every error is `errors.CodecError`. All functions may be called from several threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent import errors, limits
from edge_agent.codec import clip, jpeg
from edge_agent.codec.clip import PERCENTILE, RULES
from edge_agent.protocol.messages import Codec
from kernels import codec as kernels
from kernels import reference

__all__ = [
    "PERCENTILE",
    "RULES",
    "STAGES",
    "Codec",
    "decode",
    "encode",
    "encode_codes",
    "fit",
    "fit_channels",
    "payload_bytes",
    "pixels",
    "squared_error",
    "stages",
    "tables",
    "validate",
]

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Buffer = bytes | bytearray | memoryview

BITS: Final = range(2, 9)
#: What a codec may do to each value beside quantizing and packing it.
STAGES: Final = ("jpeg",)
_KEPT: Final = 32  # prepared codecs: more than the ladder of any plan


def fit(
    values: ArrayLike, rule: str, bits: int, *, weights: ArrayLike | None = None, percentile: float = PERCENTILE
) -> Codec:
    """A codec with one range for the whole tensor, by ``rule`` (one of `RULES`, see `clip`) at ``bits`` 2..8.

    ``values`` of any shape; ``weights`` of the same shape are counts, so a histogram stands for the tensor. A constant has scale 0
    and is reconstructed exactly; an empty tensor is the constant 0. Raises for NaN, infinity, weights that are all 0, an unknown rule or width.
    """
    _check_request(rule, bits, percentile)
    if weights is None and np.size(values) == 0:
        return Codec(rule, bits, [0.0], [0.0])
    return _build(rule, bits, [clip.clip_range(clip.distribution(values, weights), rule, bits, percentile)])


def pixels(mean: Sequence[float], std: Sequence[float], quality: int) -> Codec:
    """The codec of a picture whose values are (pixel - mean[c]) / std[c], as JPEG of ``quality`` 1..100. Raises for statistics that make no range."""
    lo = [float(np.float32(-m / s)) for m, s in zip(mean, std, strict=True)]
    codec = Codec(f"jpeg-{quality}", 8, lo, [float(np.float32(1 / s)) for s in std], jpeg=quality)
    _check(codec)
    return codec


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


def encode(x: F32, codec: Codec) -> bytes:
    """The payload of tensor ``x`` (float32, channels last, any shape): `payload_bytes` bytes, row by row as numpy keeps it, or a JPEG.

    Raises for NaN or infinity, naming how many, for a channel count that is not the codec's, and for another type than float32.
    """
    ready = _prepare(codec)
    flat = _flat(x, np.float32, ready)
    out = np.empty(payload_bytes(flat.size, ready.bits), np.uint8)
    if not kernels.encode(flat, ready.lo, ready.inverse, ready.bits, out):
        clip.refuse_nonfinite(flat, "the input and the model")
    return _packed(out, x.shape, codec)


def encode_codes(codes: U8, scale: float, zero_point: int, codec: Codec) -> bytes:
    """The payload of a tensor held as 8-bit ``codes`` (uint8, channels last): the bytes that `encode` makes of scale * (codes - zero_point)."""
    ready = _prepare(codec)
    flat = _flat(codes, np.uint8, ready)
    out = np.empty(payload_bytes(flat.size, ready.bits), np.uint8)
    kernels.encode_codes(flat, _tables(scale, zero_point, ready).reshape(-1), ready.bits, out)
    return _packed(out, codes.shape, codec)


def decode(data: Buffer, codec: Codec, shape: Sequence[int]) -> F32:
    """The tensor of ``shape`` (channels last) in payload ``data``. Raises if the bytes, the shape and the codec do not agree, before it allocates."""
    ready = _prepare(codec)
    shape = tuple(shape)
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > limits.MAX_ELEMENTS:
        raise errors.CodecError(
            f"a tensor of shape {list(shape)} is not one of at most {limits.MAX_ELEMENTS} values; ask for a new plan"
        )
    _check_channels(shape, count, ready)
    if codec.jpeg:
        data = jpeg.decode(data, shape).reshape(-1).data
    if memoryview(data).nbytes != payload_bytes(count, ready.bits):
        raise errors.CodecError(
            f"a payload of {memoryview(data).nbytes} bytes is not the {payload_bytes(count, ready.bits)} of shape {list(shape)} at {ready.bits} bits; "
            "both sides must use the plan's codec"
        )
    out = np.empty(shape, np.float32)
    kernels.decode(_readonly(np.frombuffer(data, np.uint8)), ready.lo, ready.scale, ready.bits, out.reshape(-1))
    return out


def _packed(out: U8, shape: tuple[int, ...], codec: Codec) -> bytes:
    return jpeg.encode(out.reshape(shape), codec.jpeg) if codec.jpeg else out.tobytes()


def stages(codec: Codec) -> tuple[str, ...]:
    """Of `STAGES` those that ``codec`` has."""
    return ("jpeg",) if codec.jpeg else ()


def payload_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits that are packed."""
    return (count * bits + 7) // 8


def tables(scale: float, zero_point: int, codec: Codec) -> U8:
    """uint8 [C, 256], read-only: the code at the cut of each 8-bit code of each channel; C is 1 for a range per tensor. Kept with the codec."""
    return _tables(scale, zero_point, _prepare(codec))


def validate(codec: Codec) -> None:
    """Raises unless ``codec``, which may come from the network, is one that `encode` and `decode` can use."""
    _prepare(codec)


def squared_error(values: ArrayLike, weights: ArrayLike | None, codec: Codec) -> float:
    """Sum of (value - decoded)^2, times its count where ``weights`` are given; shapes as in `fit` or, for a range per channel, `fit_channels`."""
    ready = _prepare(codec)
    v, w = np.asarray(values), None if weights is None else np.asarray(weights, np.float64)
    if w is not None and ready.lo.size > 1:
        v, w = v[:, None], w.T
    return clip.squared_error(v, w, ready.lo, ready.scale, ready.bits)


@dataclass(slots=True)
class _Ready:
    """A codec that was checked, as arrays [C]. Holds the codec, so that its id stays its own while it is kept."""

    codec: Codec
    lists: tuple[list[float], list[float]]
    bits: int
    lo: F32
    scale: F32
    inverse: F32
    table: tuple[tuple[float, int], U8] | None = None  # for the tensor scale and zero point that were asked for last


_kept: dict[int, _Ready] = {}


def _prepare(codec: Codec) -> _Ready:
    """The codec checked and as arrays: from memory unless it is new or a field was replaced (a plan's codec serves every frame)."""
    ready = _kept.get(id(codec))
    if ready is None or ready.bits != codec.bits or ready.lists[0] is not codec.lo or ready.lists[1] is not codec.scale:
        ready = _check(codec)
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[id(codec)] = ready
    return ready


def _check(codec: Codec) -> _Ready:
    if codec.bits not in BITS:
        raise errors.CodecError(
            f"a codec of {codec.bits} bits is not one of {BITS[0]} to {BITS[-1]}; ask for another plan"
        )
    channels = len(codec.lo)
    if not 1 <= channels <= limits.MAX_CHANNELS or len(codec.scale) != channels:
        raise errors.CodecError(
            f"a codec with {channels} offsets and {len(codec.scale)} scales is not one of 1 to {limits.MAX_CHANNELS} channels; ask for another plan"
        )
    if codec.jpeg and (codec.bits != 8 or codec.jpeg not in jpeg.QUALITIES):
        raise errors.CodecError(
            f"JPEG of quality {codec.jpeg} for codes of {codec.bits} bits is not one of 1 to 100 for 8 bits; ask for another plan"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        lo, scale = (np.array(values, np.float64).astype(np.float32) for values in (codec.lo, codec.scale))
        highest = lo + scale * np.float32((1 << codec.bits) - 1)
    if not (np.isfinite(lo).all() and np.isfinite(highest).all() and (scale >= 0).all()):
        raise errors.CodecError(
            "a codec's range must be finite, in float32, and its scale not negative; scale the tensor or ask for another plan"
        )
    return _Ready(codec, (codec.lo, codec.scale), codec.bits, lo, scale, reference.codec_inverse(scale))


def _tables(scale: float, zero_point: int, ready: _Ready) -> U8:
    kept = ready.table
    if kept is None or kept[0] != (scale, zero_point):
        if not (0 < scale * 255 <= float(np.finfo(np.float32).max) and 0 <= zero_point <= 255):
            raise errors.CodecError(
                f"scale {scale} and zero point {zero_point} are not those of an 8-bit tensor; build the segment again"
            )
        made = reference.codec_tables(scale, zero_point, ready.lo, ready.scale, ready.bits)
        kept = ready.table = ((scale, zero_point), _readonly(made))
    return kept[1]


def _flat(x: NDArray[Any], dtype: type[np.generic], ready: _Ready) -> NDArray[Any]:
    """``x`` as one read-only axis: kernels are compiled once, for aligned, read-only input."""
    if x.dtype != dtype:
        raise errors.CodecError(f"the tensor at the cut is {x.dtype}, not {np.dtype(dtype)}; convert it first")
    _check_channels(x.shape, x.size, ready)
    flat = x.reshape(-1)
    return _readonly(flat if flat.flags.c_contiguous and flat.flags.aligned else flat.copy())


def _readonly(x: NDArray[Any]) -> NDArray[Any]:
    x.flags.writeable = False
    return x


def _check_channels(shape: tuple[int, ...], count: int, ready: _Ready) -> None:
    channels = ready.lo.size
    if channels > 1 and count and (not shape or shape[-1] != channels):
        raise errors.CodecError(
            f"a codec of {channels} channels does not fit a tensor of shape {list(shape)}; use the codec of this cut's plan",
            channels=channels,
        )


def _check_request(rule: str, bits: int, percentile: float) -> None:
    if rule not in RULES:
        raise errors.CodecError(f"there is no clip rule {rule!r}; choose one of {', '.join(RULES)}")
    if bits not in BITS:
        raise errors.CodecError(f"{bits} bits cannot be had at the cut; choose {BITS[0]} to {BITS[-1]}")
    if not 50 < percentile <= 100:
        raise errors.CodecError(f"a percentile of {percentile} leaves no range; choose more than 50 and at most 100")


def _build(rule: str, bits: int, ranges: list[tuple[float, float]]) -> Codec:
    grids = [clip.grid(lo, hi, bits) for lo, hi in ranges]
    codec = Codec(rule, bits, [float(lo) for lo, _ in grids], [float(scale) for _, scale in grids])
    _check(codec)
    return codec
