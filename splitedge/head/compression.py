"""Entropy coding of a segment's constants: one run of the coder (`kernels.rans.adaptive`) over all arrays of a blob.

    u16     a bit for each array of bytes in the order below: set if the array is coded with equal frequencies
    u64     the coder's state, then its words, u32; all numbers are little-endian

    bytes   all int32 arrays as four byte planes, the most significant first; all float32 arrays in the same way; all tables, each byte less the one
            before
    codes   weights, array by array; a table whose rows have few distinct scales is split by scale, the least first

The context of a byte in a lower plane is the byte above it: 0, 255, or another. Each array of weights is coded
independently, so `coded_bytes` gives its share of a file. If the receiver has similar arrays (`Known`), differences are
coded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels import codec
from kernels.rans import adaptive
from splitedge import errors

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Kind: TypeAlias = Literal["i32", "f32", "table", "codes"]

TABLE: Final = 256  # bytes
HEAD: Final = 10  # bytes before the words
SCALES: Final = 64  # most distinct scales for which the rows of a table are coded separately
_WEIGHT: Final = 2048  # total of the initial counts of an adaptive model, as much as 64 symbols
_ALL: Final[U8] = np.zeros(1, np.uint8)  # one context for every symbol
_FLAT: Final[I64] = np.full((1, 256), 1 << 40)


class Part(NamedTuple):
    """An array in a blob at byte ``offset``: ``size`` values of ``kind``. Codes are packed at ``bits`` bits; a table
    has 256 bytes.

    Codes in ``rows``, with a float32 scale for each row at byte ``scales``, are coded by the scale of their row.
    """

    kind: Kind
    offset: int
    size: int
    bits: int = 8
    rows: int = 1
    scales: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes in the blob."""
        return (
            -(-self.size * self.bits // 8) if self.kind == "codes" else self.size * (1 if self.kind == "table" else 4)
        )

    def of(self, blob: U8) -> U8:
        """Its bytes in ``blob``."""
        return blob[self.offset : self.offset + self.nbytes]


class Guess(NamedTuple):
    """The receiver's prediction of an array of codes: ``codes`` [size], each with a context 0 .. ``contexts`` - 1 in
    ``where`` [size].

    ``sure``: whether most predictions are likely to be exact.
    """

    codes: U8
    where: U8
    contexts: int
    sure: bool


class Known(Protocol):
    """The receiver's predictions of arrays, by their index in ``parts``; None without one."""

    def words(self, index: int) -> U32 | None:
        """The prediction of an int32 or float32 array."""

    def guess(self, index: int, blob: U8) -> Guess | None:
        """The prediction of an array of codes. ``blob`` already has all other arrays."""


def coded_bytes(codes: U8, bits: int, scales: F32 | None = None) -> int:
    """Bytes of an array of weight codes, each < 2^``bits``, in a segment file, exact to one byte. Takes about 0.03 s
    for a million codes.

    ``scales``: the scales of a table's rows (see `Part`); ``codes`` is then [rows, width].
    """
    table = np.ascontiguousarray(codes).reshape(1 if scales is None else len(scales), -1)
    runs = [slice(None)] if scales is None else alike(scales)
    words, x = _encode([(table[rows].reshape(-1), _ALL, _codes_start(bits)) for rows in runs])
    return -(-(32 * len(words) + x.bit_length() - adaptive.SEED.bit_length()) // 8)


def encode(blob: U8, parts: Sequence[Part], known: Known | None = None) -> bytes:
    """The arrays ``parts`` of ``blob``, coded. Every machine yields the same bytes."""
    arrays, flat = [], 0
    for place, (codes, where) in enumerate(_byte_arrays(blob, parts, known)):
        usual = (codes, where, _bytes_start(where))
        if 4 * len(_encode([usual])[0]) >= len(codes):
            flat |= 1 << place
            usual = (codes, _ALL, _FLAT)
        arrays.append(usual)
    for index, part in enumerate(parts):
        if part.kind == "codes":
            codes, guess = unpack(blob, part), known.guess(index, blob) if known else None
            if guess is None:
                table = _table(codes, part)
                arrays += [(table[rows].reshape(-1), _ALL, _codes_start(part.bits)) for rows in _runs(blob, part)]
            else:
                codes = (codes - guess.codes) & np.uint8((1 << part.bits) - 1)
                arrays.append((codes, guess.where, _differences_start(part.bits, guess)))
    words, x = _encode(arrays)
    return flat.to_bytes(2, "little") + x.to_bytes(8, "little") + words.astype("<u4").tobytes()


def decode(data: bytes, parts: Sequence[Part], size: int, known: Known | None = None) -> U8:
    """The blob of ``size`` bytes with the ``parts`` (all within it) coded in ``data``. Bytes between them are 0.

    Needs memory for the blob, one array and a copy of ``data``. Raises `errors.SegmentError` if ``data`` is damaged.
    """
    reader, blob = _Reader(data), np.zeros(size, np.uint8)
    place = 0
    for kind in ("i32", "f32"):
        chosen = [i for i, part in enumerate(parts) if part.kind == kind]
        count = sum(parts[i].size for i in chosen)
        planes, above = np.zeros((count, 4), np.uint8), _ALL
        for plane in (3, 2, 1, 0):
            planes[:, plane] = above = reader.bytes(count, above, place)
            above, place = _where(above), place + 1
        _scatter(blob, parts, chosen, planes.view("<u4").reshape(-1), known)
    tables = [part for part in parts if part.kind == "table"]
    steps = reader.bytes(TABLE * len(tables), _ALL, place).reshape(-1, TABLE)
    for part, step in zip(tables, steps, strict=True):
        part.of(blob)[:] = np.cumsum(step, dtype=np.uint8)
    for index, part in enumerate(parts):
        if part.kind == "codes":
            pack(reader.codes(part, blob, known.guess(index, blob) if known else None), blob, part)
    reader.close()
    return blob


class _Reader:
    def __init__(self, data: bytes) -> None:
        if len(data) < HEAD or len(data) % 4 != HEAD % 4:
            raise _damaged()
        self._flat, x = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:HEAD], "little")
        if self._flat >> 9 or not adaptive.SEED <= x < 1 << 63:
            raise _damaged()
        self._words = np.frombuffer(data, "<u4", offset=HEAD).astype(np.uint32)
        self._state = np.array([x, 0], np.int64)

    def bytes(self, count: int, where: U8, place: int) -> U8:
        flat = self._flat >> place & 1
        return self._take(count, _ALL if flat else where, _FLAT if flat else _bytes_start(where))

    def codes(self, part: Part, blob: U8, guess: Guess | None) -> U8:
        if guess is None:
            table = _table(np.empty(part.size, np.uint8), part)
            for rows in _runs(blob, part):
                shape = table[rows].shape
                table[rows] = self._take(math.prod(shape), _ALL, _codes_start(part.bits)).reshape(shape)
            return table.reshape(-1)
        steps = self._take(part.size, guess.where, _differences_start(part.bits, guess))
        found: U8 = (steps + guess.codes) & np.uint8((1 << part.bits) - 1)
        return found

    def _take(self, count: int, where: U8, start: I64) -> U8:
        if self._state[1] > len(self._words):
            raise _damaged()
        codes = np.empty(count, np.uint8)
        adaptive.decode(self._words, where, start, self._state, codes)
        return codes

    def close(self) -> None:
        if self._state.tolist() != [adaptive.SEED, len(self._words)]:
            raise _damaged()


def _table(codes: U8, part: Part) -> U8:
    return codes.reshape(part.rows, part.size // max(1, part.rows))


def _runs(blob: U8, part: Part) -> Sequence[slice | NDArray[np.intp]]:
    """The groups of rows of a part that are coded together."""
    if part.scales < 0:
        return [slice(None)]
    return alike(blob[part.scales : part.scales + 4 * part.rows].view("<f4"))


def alike(scales: F32) -> Sequence[slice | NDArray[np.intp]]:
    """The rows of each distinct scale, the least first; one group if there are too many scales."""
    values, which = np.unique(scales.view("<u4"), return_inverse=True)
    if not 1 < len(values) <= SCALES:
        return [slice(None)]
    return [np.flatnonzero(which == i) for i in range(len(values))]


def _damaged() -> errors.SegmentError:
    return errors.SegmentError(
        "the constants of the segment are damaged; download it again", reason="damaged-constants"
    )


def _encode(arrays: Sequence[tuple[U8, U8, I64]]) -> tuple[U32, int]:
    """Words and state of the coder after ``arrays`` of codes, contexts and initial counts."""
    words = np.empty(sum(len(codes) // 2 + 1 for codes, _, _ in arrays), np.uint32)
    state = np.array([adaptive.SEED, len(words)], np.int64)
    for codes, where, start in reversed(arrays):
        adaptive.encode(codes, where, start, state, words)
    return words[state[1] :], int(state[0])


def _byte_arrays(blob: U8, parts: Sequence[Part], known: Known | None) -> list[tuple[U8, U8]]:
    """The nine arrays of bytes, with their contexts."""
    found = []
    for kind in ("i32", "f32"):
        planes = _gather(blob, parts, kind, known).astype("<u4").view(np.uint8).reshape(-1, 4)
        where = _ALL
        for plane in (3, 2, 1, 0):
            codes = np.ascontiguousarray(planes[:, plane])
            found.append((codes, where))
            where = _where(codes)
    tables = [part.of(blob) for part in parts if part.kind == "table"]
    steps = [np.diff(table, prepend=np.uint8(0)) for table in tables]
    return [*found, (np.concatenate([np.zeros(0, np.uint8), *steps]), _ALL)]


def _gather(blob: U8, parts: Sequence[Part], kind: Kind, known: Known | None) -> U32:
    found = [np.zeros(0, np.uint32)]
    for index, part in enumerate(parts):
        if part.kind == kind:
            words, old = (
                part.of(blob).view("<u4"),
                known.words(index) if known else None,
            )
            found.append(words if old is None else words - old)
    return np.concatenate(found)


def _scatter(blob: U8, parts: Sequence[Part], chosen: Sequence[int], words: U32, known: Known | None) -> None:
    start = 0
    for index in chosen:
        part, old = parts[index], known.words(index) if known else None
        mine = words[start : start + part.size]
        part.of(blob).view("<u4")[:] = mine if old is None else mine + old
        start += part.size


def _where(above: U8) -> U8:
    """Contexts of the plane below: 0 under a 0, 1 under a 255, else 2; one context for an empty plane."""
    if not len(above):
        return _ALL
    return np.where(above == 0, 0, np.where(above == 255, 1, 2)).astype(np.uint8)


def _bytes_start(where: U8) -> I64:
    return np.full((1 if where is _ALL else 3, 256), _WEIGHT // 256)


def _codes_start(bits: int) -> I64:
    """Initial counts of weights: fewer far from 0."""
    symbols = np.arange(1 << bits)
    weight = 1 + np.minimum(symbols, symbols[::-1])
    start: I64 = np.maximum(weight * _WEIGHT // weight.sum(), 1)[None]
    return start


def _differences_start(bits: int, guess: Guess) -> I64:
    """Initial counts of differences modulo 2^bits: fewer far from 0 in both directions."""
    symbols = np.arange(1 << bits)
    far = np.minimum(symbols, (1 << bits) - symbols)
    weight = 1 + (_WEIGHT >> np.minimum(far * (12 if guess.sure else 2), 13))
    return np.tile(np.maximum(weight * _WEIGHT // weight.sum(), 1), (guess.contexts, 1))


def unpack(blob: U8, part: Part) -> U8:
    """The codes of a part, one byte each."""
    codes = np.empty(part.size, np.uint8)
    codec.unpack(part.of(blob).copy(), part.bits, codes)
    return codes


def pack(codes: U8, blob: U8, part: Part) -> None:
    """The inverse of `unpack`."""
    codec.pack(codes, part.bits, part.of(blob))
