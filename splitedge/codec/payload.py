"""Converts a tensor to the payload of a frame, and back.

A payload has side information and codes, all little-endian. The side information holds the numbers of a dynamic range,
each as the upper 16 bits of a float32. The codes are packed, or, with an entropy stage, the final states (32 bits) and
the words (16 bits) of rANS. An empty tensor has an empty payload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels import codec as kernels
from kernels import reference
from kernels.codec import projection
from kernels.rans import static
from splitedge import errors, limits
from splitedge.codec import clip, image_file
from splitedge.codec.prepared import FLOATS, EntropyTables, Layout, Prepared, prepare
from splitedge.protocol.messages import Codec

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
F32 = NDArray[np.float32]
Buffer = bytes | bytearray | memoryview

#: Offset 0 and size 1: the codec's own range.
_OWN = np.array([[0, 1]], np.float32)
_NONE = np.empty((0, 2), np.float32)
_SLACK = 1.001  # upper bound of rANS over the entropy of its frequencies
_FAR: Final = 1e38  # magnitudes below this stay finite after rounding
_SHAPES: Final = 16  # cached layouts of a codec: computing one takes longer than decoding a small tensor


def encode(x: F32, codec: Codec) -> bytes:
    """The payload of tensor ``x`` (float32, channels last, any shape).

    Raises for NaN or infinity, with their number, for a wrong number of channels, and for another type than float32.
    """
    prepared = prepare(codec)
    flat = flattened(x, np.float32, prepared)
    if not flat.size:
        return b""
    if prepared.bits in FLOATS:
        return _floats(flat, FLOATS[prepared.bits])
    if not (prepared.turn or codec.dynamic or prepared.coder):
        return as_packed(_packed(flat, prepared, prepared.lo, prepared.inverse, codec.rotation), x.shape, codec)
    turned = _turned(flat.reshape(-1, x.shape[-1] if x.ndim else 1), prepared)
    side = _measured(turned, prepared) if codec.dynamic else _OWN
    if not np.isfinite(side).all():
        refuse_values(flat)
    front = _side_words(side, prepared).tobytes()
    if prepared.coder or codec.dynamic == "token":
        codes = _quantized(turned, prepared, side, flat)
        return front + (
            _entropy_coded(codes, prepared.coder, turned.shape[1]) if prepared.coder else _pack(codes, prepared.bits)
        )
    lo, scale = reference.codec_stretched(prepared.lo, prepared.scale, side[0])
    return front + _packed(_readonly(turned.reshape(-1)), prepared, lo, reference.codec_inverse(scale), 0).tobytes()


def as_packed(out: U8, shape: tuple[int, ...], codec: Codec) -> bytes:
    """Packed codes as a payload: as an image file if they are the pixels of a tensor of ``shape``."""
    image = codec.image
    if image is None:
        return out.tobytes()
    kind, quality = image
    return image_file.encode(out.reshape(shape), quality, kind)


def decode(data: Buffer, codec: Codec, shape: Sequence[int]) -> F32:
    """The tensor of ``shape`` (channels last) in payload ``data``.

    Raises before it allocates if bytes, shape and codec do not match.
    """
    prepared, shape = prepare(codec), tuple(shape)
    layout = _layout(shape, prepared)
    image = codec.image
    if image and layout.size:
        data = image_file.decode(data, shape, image[0]).reshape(-1).data
    else:
        _check_length(memoryview(data).nbytes, layout, shape, prepared)
    if not layout.size:
        return np.empty(shape, np.float32)
    bytes_ = np.frombuffer(data, np.uint8)
    if prepared.bits in FLOATS:
        return _from_floats(bytes_, FLOATS[prepared.bits], shape)
    side = _side_of(bytes_[: layout.front], prepared) if codec.dynamic else _OWN
    body = _readonly(bytes_[layout.front :] if layout.front else bytes_)
    if not (prepared.turn or prepared.coder or (len(side) > 1 and layout.inner * prepared.bits % 8)):
        out, spans = np.empty(shape, np.float32), side if codec.dynamic else _NONE
        kernels.decode(
            body, prepared.lo, prepared.scale, prepared.levels, spans, codec.rotation, prepared.bits, out.reshape(-1)
        )
        return out
    codes = np.empty(layout.codes, np.uint8)
    if prepared.coder:
        _entropy_decoded(body, prepared.coder, layout.inner, codes)
    else:
        kernels.unpack(body.copy(), prepared.bits, codes)
    return _restored(codes, prepared, side, (layout.rows, layout.inner)).reshape(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits, without an entropy stage or side information."""
    return (count * bits + 7) // 8


def side_bytes(codec: Codec, shape: Sequence[int]) -> int:
    """Bytes of side information in the payload of a tensor of ``shape``: its own ranges, at the front."""
    return _layout(tuple(shape), prepare(codec)).front


def expected_bytes(codec: Codec, shape: Sequence[int]) -> int:
    """Bytes of the payload of a tensor of ``shape``, with side information: exact without an entropy stage, else
    expected from the tables.

    The size of an image file is unknown before it is encoded; the result is one bit a value, as for a photo of medium quality.
    """
    prepared = prepare(codec)
    layout = _layout(tuple(shape), prepared)
    if codec.image:
        return packed_bytes(layout.size, 1)
    if prepared.coder is None or not layout.size:
        return layout.most
    return layout.least + 2 * math.ceil(_coded_bits(layout, prepared.coder, prepared.coder.bits) / 16)


def max_bytes(codec: Codec, shape: Sequence[int]) -> int:
    """Most bytes of a payload of ``shape``."""
    return _layout(tuple(shape), prepare(codec)).most


def lanes(count: int) -> int:
    """Number of rANS states for ``count`` codes."""
    return static.LANES if count >= static.FEW else 1


def flattened(x: NDArray[Any], dtype: type[np.generic], prepared: Prepared) -> NDArray[Any]:
    """``x`` as one read-only axis. Kernels are compiled for aligned, read-only input only."""
    if x.dtype != dtype:
        raise errors.CodecError(
            f"the tensor at the cut has type {x.dtype}, not {np.dtype(dtype)}; convert it first", reason="dtype"
        )
    _layout(x.shape, prepared)
    flat = x.reshape(-1)  # a new array object
    flags = flat.flags
    if not (flags.c_contiguous and flags.aligned):
        flat = flat.copy()
    flat.setflags(write=False)
    return flat


def refuse_values(x: NDArray[Any]) -> None:
    """Raise for ``x``: it has NaN or infinity, or values whose sums or differences exceed float32."""
    clip.refuse_nonfinite(x, "the input and the model")
    raise errors.CodecError(
        "the values of the tensor are too large for its codec; check the input and the model",
        reason="too-large-for-codec",
    )


# --- the tensor -----------------------------------------------------------------------------------------------------


def _layout(shape: tuple[int, ...], prepared: Prepared) -> Layout:
    """The layout of a payload of ``shape``, cached for each codec. Raises unless codec and shape match."""
    layout = prepared.layouts.get(shape)
    if layout is None:
        layout = _laid_out(shape, prepared)
        if len(prepared.layouts) >= _SHAPES:
            prepared.layouts.clear()
        prepared.layouts[shape] = layout
    return layout


def _laid_out(shape: tuple[int, ...], prepared: Prepared) -> Layout:
    size, codec = math.prod(shape), prepared.codec
    if min(shape, default=0) < 0 or size > limits.MAX_ELEMENTS:
        raise errors.CodecError(
            f"a tensor of shape {list(shape)} has a negative size or more than {limits.MAX_ELEMENTS} values; request "
            "a new plan",
            reason="too-many-values",
        )
    _check_channels(shape, size, prepared)
    channels = max(shape[-1], 1) if shape else 1
    rows, inner = size // channels, prepared.lo.size if prepared.turn else channels
    spans = 0 if not codec.dynamic or not size else 1 if codec.dynamic == "tensor" else rows
    front = spans * (4 if codec.span == "range" else 2)
    packed = front + packed_bytes(rows * inner, prepared.bits)
    most = image_file.most_bytes(size) if size and codec.image else packed
    layout = Layout(size, rows, inner, front, packed, most)
    if prepared.coder is None or not size:
        return layout
    least = front + 4 * lanes(layout.codes)
    words = math.ceil(_coded_bits(layout, prepared.coder, prepared.coder.worst) * _SLACK / 16) + lanes(layout.codes)
    return replace(layout, least=least, most=least + 2 * words)


def _coded_bits(layout: Layout, coder: EntropyTables, each: NDArray[np.float64]) -> float:
    """Bits of all codes, if a code of table t takes each[t]."""
    bits = each[coder.index]
    return layout.rows * float(bits.sum()) * (layout.inner if len(bits) == 1 else 1)


def _check_channels(shape: tuple[int, ...], count: int, prepared: Prepared) -> None:
    channels = prepared.turn.centre.size if prepared.turn else prepared.lo.size
    own = shape[-1] if shape else 1
    if count and (
        ((channels > 1 or prepared.turn) and own != channels)
        or (prepared.codec.rotation and own % prepared.codec.rotation)
    ):
        raise errors.CodecError(
            f"a codec of {channels} channels{f', rotated by {n},' if (n := prepared.codec.rotation) else ''} does "
            f"not fit a tensor of shape {list(shape)}; "
            "use the codec of this cut's plan",
            channels=channels,
            reason="channels-differ",
        )


def _check_length(length: int, layout: Layout, shape: tuple[int, ...], prepared: Prepared) -> None:
    if layout.least <= length <= layout.most and not (prepared.coder and (length - layout.least) % 2):
        return
    wanted = f"{layout.most}" if layout.least == layout.most else f"{layout.least} to {layout.most}"
    raise errors.CodecError(
        f"a payload of {length} bytes is not the {wanted} of shape {list(shape)} at {prepared.bits} bits; both sides "
        "must use the plan's codec",
        reason="payload-bytes",
        bytes=length,
    )


def _turned(rows: F32, prepared: Prepared) -> F32:
    """``rows`` [n, C] in the basis of the codec, [n, K]."""
    if prepared.turn:
        out = np.empty((len(rows), prepared.lo.size), np.float32)
        projection.project(rows, prepared.turn.centre, prepared.turn.forward, out)
        return out
    if not prepared.codec.rotation:
        return rows
    out = np.empty_like(rows)
    kernels.rotate(_readonly(rows.reshape(-1)), prepared.codec.rotation, np.float32(1), out.reshape(-1))
    return out


def _restored(codes: U8, prepared: Prepared, side: F32, shape: tuple[int, int]) -> F32:
    """The values [n, C] of ``codes`` of ``shape`` [n, K]."""
    out = np.empty(shape, np.float32)
    lo, scale, _ = _by_channel(prepared, shape[1])
    kernels.dequantize(codes, lo, scale, prepared.levels, side, codes.size // len(side), out.reshape(-1))
    if prepared.codec.rotation:
        size = prepared.codec.rotation
        kernels.rotate(_readonly(out.reshape(-1)), size, np.float32(1) / np.float32(size), out.reshape(-1))
    if prepared.turn is None:
        return out
    values = np.empty((shape[0], prepared.turn.centre.size), np.float32)
    projection.project(
        _readonly(out * prepared.turn.weights), np.zeros(shape[1], np.float32), prepared.turn.back, values
    )
    values += prepared.turn.centre
    return values


# --- side information -------------------------------------------------------------------------------------------------


def _measured(turned: F32, prepared: Prepared) -> F32:
    """Offset and size of the tensor [1, 2], or of each row [n, 2]."""
    rows = turned if prepared.codec.dynamic == "token" else turned.reshape(1, -1)
    side = np.empty((len(rows), 2), np.float32)
    kernels.measure(_readonly(rows), prepared.codec.span == "range", side)
    return side


def _side_words(side: F32, prepared: Prepared) -> U16:
    """The upper halves of ``side``, which are sent; the lower halves are 0."""
    if not prepared.codec.dynamic:
        return np.empty(0, "<u2")
    words = (side.view(np.uint32) >> 16).astype("<u2")
    return np.ascontiguousarray(words if prepared.codec.span == "range" else words[:, 1])


def _side_of(data: U8, prepared: Prepared) -> F32:
    """The inverse of `_side_words`, for a codec with a dynamic range. Raises for impossible ranges."""
    words = np.frombuffer(data.tobytes(), "<u2").astype(np.uint32) << 16
    numbers = words.view(np.float32).reshape(-1, 2 if prepared.codec.span == "range" else 1)
    side = np.zeros((len(numbers), 2), np.float32)
    side[:, 2 - numbers.shape[1] :] = numbers
    offset, size = float(np.abs(side[:, 0]).max()), float(side[:, 1].max())
    if side[:, 1].min() >= 0 and offset + size * prepared.reach <= _FAR:
        return side
    with np.errstate(over="ignore", invalid="ignore"):
        lo, scale = reference.codec_stretched(prepared.lo, prepared.scale, side)
        ends = (
            lo + scale * prepared.highest,
            lo + scale * (prepared.levels[0] if prepared.levels.size else np.float32(0)),
        )
    if not ((side[:, 1] >= 0).all() and all(np.isfinite(end).all() for end in (side, *ends))):
        raise errors.CodecError(
            "the ranges of the frame are negative or not finite; both sides must use the plan's codec",
            reason="frame-ranges",
        )
    return side


# --- codes ------------------------------------------------------------------------------------------------------------


def _packed(flat: F32, prepared: Prepared, lo: F32, inverse: F32, rotation: int) -> U8:
    out = np.empty(packed_bytes(flat.size, prepared.bits), np.uint8)
    if not kernels.encode(flat, lo, inverse, prepared.thresholds, rotation, prepared.bits, out):
        refuse_values(flat)
    return out


def _quantized(turned: F32, prepared: Prepared, side: F32, flat: F32) -> U8:
    """The codes of ``turned`` [n, K], flat. ``flat`` is the caller's input, for the error message."""
    lo, scale, top = _by_channel(prepared, turned.shape[1])
    codes = np.empty(turned.size, np.uint8)
    values = _readonly(turned.reshape(-1))
    if not kernels.quantize(values, lo, scale, top, prepared.thresholds, side, codes.size // len(side), codes):
        refuse_values(flat)
    return codes


def _by_channel(prepared: Prepared, channels: int) -> tuple[F32, F32, F32]:
    """lo, scale and greatest code, each [C]."""
    lo, scale, top = (np.broadcast_to(v, channels).copy() for v in (prepared.lo, prepared.scale, prepared.highest))
    return lo, scale, top


def _pack(codes: U8, bits: int) -> bytes:
    out = np.empty(packed_bytes(codes.size, bits), np.uint8)
    kernels.pack(codes, bits, out)
    return out.tobytes()


def _entropy_coded(codes: U8, coder: EntropyTables, channels: int) -> bytes:
    states = np.empty(lanes(codes.size), np.uint32)
    words = np.empty(codes.size + 1, np.uint16)
    base = np.broadcast_to(coder.first[coder.index], channels).copy()
    used = static.encode(codes, base, coder.starts, coder.reciprocals, states, words)
    return states.astype("<u4").tobytes() + words[words.size - used :].astype("<u2").tobytes()


def _entropy_decoded(body: U8, coder: EntropyTables, channels: int, codes: U8) -> None:
    front = 4 * lanes(codes.size)
    states = np.frombuffer(body[:front].tobytes(), "<u4").astype(np.uint32)
    words = np.frombuffer(body[front:].tobytes() + bytes(2), "<u2").astype(np.uint16)
    base, rows = (
        np.broadcast_to(v[coder.index], channels).copy()
        for v in (coder.first, np.arange(len(coder.sizes)) << static.SCALE)
    )
    if not static.decode(states, words, base, coder.starts, rows, coder.look, codes):
        raise errors.CodecError(
            "the codes of the frame do not end with its bytes; both sides must use the plan's codec", reason="codes-end"
        )


def _floats(flat: F32, kind: np.dtype[Any]) -> bytes:
    """``flat`` as bytes of ``kind``. Values beyond its range are clipped."""
    clip.refuse_nonfinite(flat, "the input and the model")
    top = np.float32(np.finfo(kind).max)
    return np.clip(flat, -top, top).astype(kind).tobytes()


def _from_floats(data: U8, kind: np.dtype[Any], shape: tuple[int, ...]) -> F32:
    values = np.frombuffer(data.tobytes(), kind).astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise errors.CodecError(
            "the frame contains NaN or infinity; check the peer's model and input", reason="not-finite"
        )
    return values


def _readonly(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` as a read-only view. Kernels are compiled for read-only input only."""
    if not x.flags.writeable:
        return x
    view = x.view()
    view.flags.writeable = False
    return view
