"""Upgrades: the difference from a segment on the board to another segment of the same layers.

    offset  0   8 bytes   magic b"SPLITUPG"
            8   u32       version (1), little-endian as everything here
           12   u32       length of the frame
           16   frame     the wanted file up to its constants
            .   constants see `splitedge.head.compression`

Layers match by the name of their operator, arrays by their size. Weights at a few bits predict those at more bits
within a few levels: the prediction is (held level) x (held scale) / (wanted scale). The entropy coder codes the
difference in a context of where the prediction falls between two levels, and of whether the held level is the last on
its side. Biases and scales depend on the bits, so they help only at equal bits.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.reference import weight_levels
from splitedge import errors
from splitedge.head import compression
from splitedge.head import segment as seg

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

MAGIC: Final = b"SPLITUPG"
VERSION: Final = 1
_PHASES: Final = 4
_CONTEXTS: Final = 3 * _PHASES
_BLOCK: Final = 1 << 18  # weights in one step: their indices take eight bytes each


def make(held: bytes, wanted: bytes) -> bytes:
    """The upgrade from the segment file ``held`` to ``wanted``. Raises `errors.SegmentError` for an invalid file."""
    segment, (_, start) = seg.parse(wanted), seg.parse_header(wanted)
    known = _Held(seg.parse(held), segment.header)
    data = compression.encode(segment.blob, seg.parts(segment.header), known)
    return MAGIC + VERSION.to_bytes(4, "little") + start.to_bytes(4, "little") + wanted[:start] + data


def apply(held: bytes, patch: bytes, sha256: str) -> bytes:
    """The segment file with the hash ``sha256`` from ``held`` and ``patch``.

    Raises `errors.SegmentError` if the result is another file.
    """
    if len(patch) < 16 or patch[:8] != MAGIC or int.from_bytes(patch[8:12], "little") != VERSION:
        raise errors.SegmentError(
            "the upgrade has an unknown format; download the whole segment", reason="not-an-upgrade"
        )
    start = 16 + int.from_bytes(patch[12:16], "little")
    header, end = seg.parse_header(patch[16:start])
    if 16 + end != start:
        raise errors.SegmentError(
            "the header of the upgrade is damaged; download the whole segment", reason="upgrade-header"
        )
    seg.check_inflation(header, len(held) + len(patch))
    known, parts = _Held(seg.parse(held), header), seg.parts(header)
    made = patch[16:start] + compression.encode(
        compression.decode(patch[start:], parts, header.blob_bytes, known), parts
    )
    if hashlib.sha256(made).hexdigest() != sha256:
        raise errors.SegmentError(
            "the upgrade does not yield the requested segment; download the whole segment", reason="other-segment"
        )
    return made


class _Held(compression.Known):
    """Predictions of the arrays of the wanted segment from the held one."""

    def __init__(self, held: seg.Segment, wanted: seg.Header) -> None:
        self._blob, self._wanted = held.blob, seg.constants(wanted)
        self._by_key = {_key(constant): constant for constant in seg.constants(held.header)}

    def words(self, index: int) -> compression.U32 | None:
        wanted = self._wanted[index]
        held = self._by_key.get(_key(wanted))
        if held is None or getattr(held.op, "bits", 0) != getattr(wanted.op, "bits", 0):
            return None
        words: compression.U32 = held.part().of(self._blob).view("<u4")
        return words

    def guess(self, index: int, blob: U8) -> compression.Guess | None:
        wanted = self._wanted[index]
        held = self._by_key.get(_key(wanted))
        if held is None:
            return None
        ratio = _scales(held, self._blob) / _scales(wanted, blob)
        near, where = _expected(ratio, held.bits, wanted.bits)
        codes = compression.unpack(self._blob, held.part()).reshape(held.rows, -1)
        found = compression.Guess(
            np.empty(codes.size, np.uint8), np.empty(codes.size, np.uint8), _CONTEXTS, held.bits == wanted.bits
        )
        rows = max(1, _BLOCK // max(1, codes.shape[1]))
        for start in range(0, held.rows, rows):
            some = codes[start : start + rows]
            place = slice(start * codes.shape[1], start * codes.shape[1] + some.size)
            for table, out in ((near, found.codes), (where, found.where)):
                out[place] = np.take_along_axis(table[start : start + rows], some.astype(np.intp), axis=1).reshape(-1)
        return found


def _key(constant: seg.Constant) -> tuple[str, str, str, int, int, int]:
    return constant.op.name, constant.field, constant.kind, constant.size, constant.rows, constant.entry


def _scales(constant: seg.Constant, blob: U8) -> F64:
    """The scale of each row of weights, or a value proportional to it; 1 if it is not a number."""
    op = constant.op
    place = op.multiplier if isinstance(op, seg.Conv) else op.scales  # type: ignore[union-attr]
    with np.errstate(invalid="ignore"):  # a hostile file may hold any kind of NaN
        scales = blob[place : place + 4 * constant.rows].view("<f4").astype(np.float64)
    return np.where(np.isfinite(scales) & (scales > 0), scales, 1.0)


def _expected(ratio: F64, held: int, wanted: int) -> tuple[U8, U8]:
    """For each row and each code of ``held`` bits, the nearest code of ``wanted`` bits and the context of its
    difference, [rows, 2^held].
    """
    levels = weight_levels(held).astype(np.float64)
    exact = (ratio[:, None] * levels + _top(wanted)) / (2 if wanted == 2 else 1)
    near = np.rint(np.clip(exact, 0, (1 << wanted) - 1))
    phase = np.clip(np.floor((exact - near + 0.5) * _PHASES), 0, _PHASES - 1)
    side = np.where(levels >= _top(held), 1, np.where(levels <= -_top(held), 2, 0))
    return near.astype(np.uint8), (3 * phase + side).astype(np.uint8)


def _top(bits: int) -> int:
    """The greatest integer weight."""
    return 3 if bits == 2 else 2 ** (bits - 1) - 1
