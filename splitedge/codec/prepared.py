"""A codec of a plan, checked and prepared as arrays for the kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels import reference
from kernels.codec import fused_ir, hadamard, projection
from kernels.rans import static
from splitedge import errors, limits
from splitedge.codec import image_file
from splitedge.protocol.messages import IMAGE_FORMATS, Codec, ImageFormat

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

BITS: Final = range(2, 9)
#: Widths of float values.
FLOATS: Final[dict[int, np.dtype[Any]]] = {16: np.dtype("<f2"), 32: np.dtype("<f4")}
#: Widths that allow a codebook.
CODEBOOKS: Final = fused_ir.CODEBOOKS
ROTATIONS: Final = hadamard.SIZES
FREQUENCIES: Final = 1 << static.SCALE
_NONE: Final = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class EntropyTables:
    """Tables of the entropy stage, in the form of `kernels.rans.static`. ``index`` [C] or [1]: the table of each
    channel.

    For each table: ``sizes`` is its number of codes, ``bits`` the mean bits of a code, ``worst`` the bits of the rarest
    code.
    """

    index: I64
    first: I64
    starts: U32
    reciprocals: U64
    look: U8
    sizes: I64
    bits: NDArray[np.float64]
    worst: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BasisChange:
    """A change of basis: ``forward`` from C channels to K components, and ``back``, as `projection.panels`.

    ``weights`` [K] scale the components.
    """

    centre: F32
    forward: F32
    back: F32
    weights: F32


@dataclass(frozen=True, slots=True)
class Layout:
    """The payload of a tensor of ``size`` values: ``front`` bytes of side information, then the codes of ``rows`` of
    ``inner`` each.

    ``least`` and ``most`` are the bounds of its size in bytes; they differ only with an entropy stage or an image file.
    """

    size: int
    rows: int
    inner: int
    front: int
    least: int
    most: int

    @property
    def codes(self) -> int:
        return self.rows * self.inner


@dataclass(slots=True)
class Prepared:
    """A checked codec, as arrays [C]."""

    codec: Codec
    bits: int
    lo: F32
    scale: F32
    inverse: F32
    levels: F32
    thresholds: F32
    turn: BasisChange | None
    coder: EntropyTables | None
    table: tuple[tuple[float, int], U8] | None = None  # for the last scale and zero point of the tensor
    reach: float = 0.0  # greatest distance of a value from the offset of a dynamic range, in multiples of its size
    layouts: dict[tuple[int, ...], Layout] = field(default_factory=dict)  # by shape

    @property
    def plain(self) -> bool:
        """Whether a code depends only on its value and channel."""
        c = self.codec
        return not (self.bits in FLOATS or c.rotation or self.turn or c.dynamic)

    @property
    def highest(self) -> F32:
        """The greatest code, or level, of each channel."""
        if self.coder is not None:
            return (self.coder.sizes[self.coder.index] - 1).astype(np.float32)
        return self.levels[-1:] if self.levels.size else np.array([(1 << self.bits) - 1], np.float32)


@functools.lru_cache(maxsize=32)  # more than the ladder of any plan
def prepare(codec: Codec) -> Prepared:
    """The codec, checked, as arrays. Raises `errors.CodecError`."""
    if codec.bits not in BITS and codec.bits not in FLOATS:
        raise errors.CodecError(
            f"a codec has {codec.bits} bits; 2 to 8, 16 and 32 are allowed; ask for another plan", reason="codec-bits"
        )
    channels = len(codec.lo)
    if not 1 <= channels <= limits.MAX_CHANNELS or len(codec.scale) != channels:
        raise errors.CodecError(
            f"a codec has {channels} offsets and {len(codec.scale)} scales; it needs one of each for 1 to "
            f"{limits.MAX_CHANNELS} channels; ask for another plan",
            reason="codec-channels",
        )
    coding = codec.levels or codec.rotation or codec.basis or codec.dynamic or codec.tables or codec.table
    image = codec.image
    if codec.bits in FLOATS and (coding or image):
        raise errors.CodecError(
            "a codec of floats must not have levels, tables, a rotation or another stage; ask for another plan",
            reason="codec-floats",
        )
    if image:
        _check_image(codec, *image, alone=not coding)
    levels, turn = _levels(codec), _turn(codec.basis, channels) if codec.basis else None
    if codec.rotation and (
        codec.rotation not in ROTATIONS or codec.basis or channels % codec.rotation * (channels > 1)
    ):
        raise errors.CodecError(
            f"a rotation of {codec.rotation} does not fit {channels} channels; ask for another plan",
            reason="codec-rotation",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        lo, scale = _floats(codec.lo), _floats(codec.scale)
        coder = _coder(codec, channels) if codec.tables else None
        thresholds = reference.codec_thresholds(levels) if levels.size else _NONE
        prepared = Prepared(
            codec, codec.bits, lo, scale, reference.codec_inverse(scale), levels, thresholds, turn, coder
        )
        ends = lo + scale * prepared.highest, lo + scale * levels[0] if levels.size else lo
    prepared.reach = float(np.abs(lo).max()) + float(scale.max()) * max(
        float(np.abs(v).max()) for v in (prepared.highest, levels) if v.size
    )
    if not (all(np.isfinite(end).all() for end in ends) and (scale >= 0).all()):
        raise errors.CodecError(
            "a codec's range must be finite, in float32, and its scale not negative; scale the tensor or ask for "
            "another plan",
            reason="codec-range",
        )
    return prepared


def _check_image(codec: Codec, kind: ImageFormat, quality: int, *, alone: bool) -> None:
    both = codec.jpeg and codec.webp is not msgspec.UNSET
    if quality not in image_file.QUALITIES or codec.bits != 8 or both or not alone:
        raise errors.CodecError(
            f"a codec has {IMAGE_FORMATS[kind]} quality {quality} at {codec.bits} bits; an image file needs a quality of 1 to "
            "100, 8 bits and no other stage; ask for another plan",
            reason=f"codec-{kind}",
        )
    if kind in image_file.NAMED and kind not in image_file.available():
        raise errors.CodecError(
            f"this build of Pillow has no {IMAGE_FORMATS[kind]}; install Pillow from a wheel, then ask for another plan",
            reason="format-missing",
        )


def _floats(values: Sequence[float]) -> F32:
    return np.array(values, np.float64).astype(np.float32)


def _levels(codec: Codec) -> F32:
    if not codec.levels:
        return _NONE
    with np.errstate(over="ignore"):
        levels = _floats(codec.levels)
    wanted = codec.bits in CODEBOOKS and len(levels) == 1 << codec.bits and not codec.tables
    if not wanted or not np.isfinite(levels).all() or (np.diff(levels) < 0).any():
        raise errors.CodecError(
            f"a codec has {len(levels)} levels at {codec.bits} bits; a codebook needs 4 ascending levels at 2 bits, "
            "or 8 at 3 bits; ask for another plan",
            reason="codec-levels",
        )
    return levels


def _turn(basis: Any, channels: int) -> BasisChange:
    ins = len(basis.centre)
    if not 1 <= channels <= ins or len(basis.columns) != 2 * ins * channels or ins * channels > limits.MAX_BASIS:
        raise errors.CodecError(
            f"a change of basis has {len(basis.columns)} bytes, which do not fit {ins} channels and {channels} "
            "components; ask for another plan",
            reason="codec-basis-size",
        )
    with np.errstate(over="ignore"):
        centre = _floats(basis.centre)
    columns = np.frombuffer(basis.columns, "<i2").reshape(ins, channels)
    squares = (columns.astype(np.int64) ** 2).sum(axis=0)
    if not (squares.all() and np.isfinite(centre).all()):
        raise errors.CodecError(
            "a change of basis has a column of zeros or a centre that is not finite; ask for another plan",
            reason="codec-basis-values",
        )
    forward = columns.astype(np.float32)
    ways = projection.panels(forward), projection.panels(forward.T)
    return BasisChange(centre, *ways, np.float32(1) / squares.astype(np.float32))


def _coder(codec: Codec, channels: int) -> EntropyTables:
    sizes = [len(table) for table in codec.tables]
    index = np.array(codec.table, np.int64) if all(0 <= i < len(sizes) for i in codec.table) else np.zeros(0, np.int64)
    sound = len(sizes) <= limits.MAX_TABLES and len(index) in (1, channels) and max(sizes) <= 1 << codec.bits
    if not sound or any(not table or min(table) < 1 or sum(table) != FREQUENCIES for table in codec.tables):
        raise errors.CodecError(
            f"a codec needs 1 to {limits.MAX_TABLES} tables of 1 to {1 << codec.bits} frequencies with the sum "
            f"{FREQUENCIES}, and one of them for each channel; "
            "ask for another plan",
            reason="codec-tables",
        )
    counts = [np.array(table, np.int64) for table in codec.tables]
    parts = [c / FREQUENCIES for c in counts]
    return EntropyTables(
        index,
        np.cumsum([0, *[size + 1 for size in sizes[:-1]]]).astype(np.int64),
        np.concatenate([[0, *np.cumsum(c)] for c in counts]).astype(np.uint32),
        np.concatenate([[*(-(-(1 << 44) // c)), 0] for c in counts]).astype(np.uint64),
        np.concatenate([np.repeat(np.arange(len(c)), c) for c in counts]).astype(np.uint8),
        np.array(sizes, np.int64),
        np.array([float(-(p * np.log2(p)).sum()) for p in parts]),
        np.array([-math.log2(p.min()) for p in parts]),
    )
