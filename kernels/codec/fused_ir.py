"""The inner loops of the codec as LLVM IR: `GROUP` values go from float32 to packed bits, and back, in registers.

Twins: the plain loops of `kernels.codec.bits` and `kernels.codec.ranges`, and `reference.pack_bits`.
`kernels.codec.fused` handles the rest at the end of a tensor.

Limits, measured on 197 x 768 values in the caches of a Zen 5 with AVX-512:

- Stores alone take 3.8 us, a copy 7.4 to 10.6 us depending on the address of the target.
- Decoding takes 5 to 7 us at 2 bits and 6 to 9 us at other widths. Non-temporal stores take 15 us, or 32 us until the
  values are read. Prefetching lines before they are written gains nothing.
- Ranges that straddle cache lines cost 4 us. Therefore `kernels.codec.fused` aligns them, and decoding holds them in
  registers from row to row.
- Encoding takes 9 us, limited by its arithmetic; holding the ranges in registers gains nothing.
- A Zen 4 needs 14 us to encode 2 bits, as long as for a copy. Repeating the ranges over at most a row leaves the
  nearest cache to x and gains 1 to 2 us. Checking codes only after rounding (`QUICK`) gains as much again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from kernels import emit, isa
from kernels.define import intrinsic, ir, types
from kernels.emit import FLOAT, I8, I16, I32, I64, PTR, TARGET

GROUP: Final = 4 * TARGET.lanes  # codes of one step; divides a block of `kernels.codec.bits`
#: Distance of prefetching in bytes: reads a tensor that is not in the cache 1.5 times as fast as the hardware
#: prefetcher alone.
AHEAD: Final = 4096

#: Whether each lane can be shifted by its own amount, and bytes can move to any lane: not with SSE2.
SHIFTS: Final = isa.ARM or TARGET.bits > 128

#: Whether one instruction can permute all bytes in a vector of `GROUP` codes.
BYTES: Final = TARGET.bits == 512 and "avx512vbmi" in isa.host_features()

#: Bit widths with a codebook instead of equal steps.
CODEBOOKS: Final = (2, 3)
#: Added to the width to choose the loop with a codebook.
CODEBOOK: Final = 16
#: Added to the width to choose the quick encoding loop, which gives up at codes beyond int32. 0 if there is none: only
#: x86 marks such codes when it rounds, and SSE2 has no minimum instruction to find them.
QUICK: Final = 32 if isa.X86 and TARGET.bits > 128 else 0
#: Widths at which the quick loop is faster.
QUICKS: Final = (2, 3, 4, 5, 6, 7)

_ENCODE_ARGS = [PTR, PTR, PTR, FLOAT, PTR, PTR, I64, I64, PTR]


def _encode_body(bits: int, codebook: bool = False, quick: bool = False) -> emit.Body:
    """IR with the arguments x, lows, invs, top, thresholds of the codebook, out, groups in a row, rows, and a word: not
    0 after a value that is not finite.

    ``quick``: the word is also not 0 after a code beyond int32, found by the minimum of the rounded codes. Other codes
    are clamped as bytes.
    """

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, lows, invs, top, thresholds, out, groups, rows, finite = args
        lanes = TARGET.lanes
        floats, ints = emit.vector(FLOAT, lanes), emit.vector(I32, lanes)
        most = emit.splat(b, top, lanes)
        limits = _entries(b, thresholds, (1 << bits) - 1) if codebook else []
        with emit.loop(b, rows, ir.Constant(ints, [0] * lanes)) as (row, (before,), after):
            start = b.mul(row, groups)
            with emit.loop(b, groups, before) as (column, (seen,), following):
                index = b.add(start, column)
                source = emit.at(b, x, b.mul(index, I64(GROUP * 4)))
                for line in range(0, GROUP * 4, 64):
                    emit.prefetch(b, emit.at(b, source, I64(AHEAD + line)))
                codes = []
                for v in range(4):
                    value = emit.load(b, floats, source, v * lanes * 4)
                    place = b.add(b.mul(column, I64(GROUP * 4)), I64(v * lanes * 4))
                    lo, inv = (emit.load(b, floats, base, place) for base in (lows, invs))
                    code = b.fmul(b.fsub(value, lo), inv)
                    if not quick:
                        # value - value is 0, or NaN for an infinity and for NaN.
                        seen = b.or_(seen, b.bitcast(b.fsub(value, value), ints))
                        # Infinity times 0 is NaN and stays NaN: rounding and saturation turn it into 0 on every
                        # instruction set.
                        below = b.select(b.fcmp_ordered(">", code, most), most, code)
                        code = _rank(b, code, limits) if codebook else below
                    codes.append(emit.rounded(b, code))
                cells = emit.saturated_bytes(b, codes)
                if quick:
                    seen = _least(b, [seen, _least(b, codes)])
                    cells = _least(b, [cells, ir.Constant(cells.type, [(1 << bits) - 1] * GROUP)], signed=False)
                following.append(seen)
                _store_bits(b, cells, bits, emit.at(b, out, b.mul(index, I64(GROUP * bits // 8))))
            after.append(following[0])
        for lane in range(lanes):
            word = b.extract_element(after[0], I32(lane))
            if quick:
                word = b.zext(b.icmp_signed("==", word, I32(-(1 << 31))), I32)
            emit.store(b, b.or_(emit.load(b, I32, finite), word), finite)

    return body


def _least(b: ir.IRBuilder, values: list[ir.Value], signed: bool = True) -> ir.Value:
    """The minimum of ``values``, lane by lane."""
    if len(values) == 1:
        return values[0]
    x, y = (_least(b, half, signed) for half in (values[: len(values) // 2], values[len(values) // 2 :]))
    return b.select((b.icmp_signed if signed else b.icmp_unsigned)("<", x, y), x, y)


def _entries(b: ir.IRBuilder, table: ir.Value, count: int) -> list[ir.Value]:
    """``count`` float32 numbers of ``table``, each in all lanes."""
    return [emit.splat(b, emit.load(b, FLOAT, table, 4 * k), TARGET.lanes) for k in range(count)]


def _rank(b: ir.IRBuilder, value: ir.Value, limits: list[ir.Value]) -> ir.Value:
    """How many of the ascending ``limits`` (2^k - 1 of them) are below ``value``, as float32; 0 for NaN."""
    kind, half = value.type, len(limits) // 2
    above = b.fcmp_ordered(">", value, limits[half])
    gained, none = (ir.Constant(kind, [count] * kind.count) for count in (half + 1.0, 0.0))
    if not half:
        return b.select(above, gained, none)
    following = [b.select(above, limits[half + 1 + k], limits[k]) for k in range(half)]
    return b.fadd(b.select(above, gained, none), _rank(b, value, following))


def _store_bits(b: ir.IRBuilder, codes: ir.Value, bits: int, out: ir.Value) -> None:
    """Store `GROUP` codes, each < 2^bits, as `GROUP` * bits / 8 bytes.

    At 3, 5, 6 and 7 bits the last word still stores 8 bytes, except with `BYTES`.
    """
    if bits == 8:
        emit.store(b, codes, out)
    elif bits in (2, 4):
        kind = emit.vector(I32 if bits == 2 else I16, GROUP * bits // 8)
        cells = b.bitcast(codes, kind)
        for shift in (4,) if bits == 4 else (6, 12):
            cells = b.or_(cells, b.lshr(cells, ir.Constant(kind, [shift] * kind.count)))
        emit.store(b, b.trunc(cells, emit.vector(I8, kind.count)), out)
    else:
        words = b.bitcast(codes, emit.vector(I64, GROUP // 8))
        for width, step in ((8, 8 - bits), (16, 2 * (8 - bits)), (32, 4 * (8 - bits))):  # pairs, fours, eights
            low = _mask(words.type, width)
            high = b.and_(words, b.not_(low))
            words = b.or_(b.and_(words, low), b.lshr(high, ir.Constant(words.type, [step] * (GROUP // 8))))
        if BYTES:
            apart = b.bitcast(words, emit.vector(I8, GROUP))
            places = [8 * i + k for i in range(GROUP // 8) for k in range(bits)]
            emit.store(b, emit.shuffle(b, apart, apart, places), out)
            return
        for i in range(GROUP // 8):
            emit.store(b, b.extract_element(words, I32(i)), out, i * bits)


def _mask(kind: ir.VectorType, width: int) -> ir.Value:
    """The lower half of each 2 * ``width`` bits of 64-bit lanes."""
    half = (1 << width) - 1
    return ir.Constant(kind, [sum(half << at for at in range(0, 64, 2 * width))] * kind.count)


_DECODE_ARGS = [PTR, PTR, PTR, PTR, PTR, I64, I64, I64]


def _decode_body(bits: int, codebook: bool = False) -> emit.Body:
    """IR with the arguments data, lows, scales, levels of the codebook, out, groups, rows, values from row to row."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        data, lows, scales, levels, out, groups, rows, step = args
        real = _reader(b, bits, levels if codebook else None)
        with emit.loop(b, groups) as (index, _, _):
            first = b.mul(index, I64(GROUP))
            los, factors = _vectors(b, lows, first), _vectors(b, scales, first)
            with emit.loop(b, rows) as (row, _, _):
                start = b.add(first, b.mul(row, step))  # a multiple of 8: whole bytes of codes
                codes, place = b.mul(b.lshr(start, I64(3)), I64(bits)), b.mul(start, I64(4))
                for v, cell in enumerate(_cells(b, bits, emit.at(b, data, codes))):
                    value = b.fadd(los[v], b.fmul(factors[v], real(cell)))
                    emit.store(b, value, out, b.add(place, I64(4 * v * TARGET.lanes)))

    return body


def _vectors(b: ir.IRBuilder, array: ir.Value, first: ir.Value) -> list[ir.Value]:
    """`GROUP` float32 values from array[first] on."""
    kind, place = emit.vector(FLOAT, TARGET.lanes), b.mul(first, I64(4))
    return [emit.load(b, kind, array, b.add(place, I64(4 * v * TARGET.lanes))) for v in range(4)]


def _cells(b: ir.IRBuilder, bits: int, data: ir.Value) -> list[ir.Value]:
    """`GROUP` codes as 4 vectors of int32, each code in the lowest bits of its lane. Higher bits are undefined."""
    lanes = TARGET.lanes
    ints = emit.vector(I32, lanes)
    if not SHIFTS or bits == 8:
        codes = _load_bits(b, bits, data)
        return [b.zext(emit.shuffle(b, codes, codes, range(v * lanes, (v + 1) * lanes)), ints) for v in range(4)]
    together = 16 if bits == 2 else 8 if bits in (3, 4) else max(lanes, 8)  # codes in one load
    length = together * bits // 8
    word = 1 << (length - 1).bit_length()  # at 3, 5, 6 and 7 bits it reads beyond the group
    loaded, cells = {}, []
    for v in range(4):
        first, inner = divmod(v * lanes, together)
        for part in range(first, first + max(1, lanes // together)):
            if part not in loaded:
                loaded[part] = emit.load(b, I32 if word == 4 else emit.vector(I8, word), data, part * length)
        places = [(inner + lane) % together * bits for lane in range(lanes)]
        if word == 4:
            cell, shifts = emit.splat(b, loaded[first], lanes), places
            if lanes > together:  # two loads, each to all lanes; the upper half takes the second, so that no lane moves
                upper = ir.Constant(emit.vector(ir.IntType(1), lanes), [lane >= together for lane in range(lanes)])
                cell = b.select(upper, emit.splat(b, loaded[first + 1], lanes), cell)
        else:
            near = [min(place // 8 + k, word - 1) for place in places for k in range(4)]
            cell = b.bitcast(emit.shuffle(b, loaded[first], loaded[first], near), ints)
            shifts = [place % 8 for place in places]
        cells.append(b.lshr(cell, ir.Constant(ints, shifts)))
    return cells


def _reader(b: ir.IRBuilder, bits: int, levels: ir.Value | None) -> Callable[[ir.Value], ir.Value]:
    """A function from cells to their codes as float32, or to the ``levels`` of the codes. Tables are loaded here,
    before the loop.
    """
    lanes, count = TARGET.lanes, 1 << bits
    floats, ints = emit.vector(FLOAT, lanes), emit.vector(I32, lanes)
    mask = ir.Constant(ints, [count - 1] * lanes)
    if SHIFTS and isa.X86 and count <= lanes:  # a permutation uses only the lowest bits of a lane
        again = [lane % count for lane in range(lanes)]
        entries = ir.Constant(floats, [float(k) for k in again])
        if levels is not None:
            few = emit.load(b, emit.vector(FLOAT, count), levels)
            entries = emit.shuffle(b, few, few, again)
        return lambda cell: emit.permute(b, entries, cell)
    if levels is None:
        return lambda cell: b.sitofp(b.and_(cell, mask), floats)
    if isa.ARM:
        return partial(
            _level_by_bytes, b, [emit.load(b, emit.vector(I8, 16), levels, at) for at in range(0, 4 * count, 16)], mask
        )
    entries = _entries(b, levels, count)
    return lambda cell: _entry(b, b.and_(cell, mask), entries)


def _level_by_bytes(b: ir.IRBuilder, table: list[ir.Value], mask: ir.Value, cell: ir.Value) -> ir.Value:
    """The levels of 4 cells from a ``table`` of bytes, 4 for each level. ARM."""
    four, own = (ir.Constant(mask.type, [word] * 4) for word in (0x04040404, 0x03020100))
    places = b.add(b.mul(b.and_(cell, mask), four), own)
    return b.bitcast(emit.look_up(b, table, b.bitcast(places, table[0].type)), emit.vector(FLOAT, 4))


def _entry(b: ir.IRBuilder, places: ir.Value, entries: list[ir.Value]) -> ir.Value:
    """The entry at each of ``places``: halves the number of entries, a power of two, at each bit."""
    kind, bit = places.type, 1
    while len(entries) > 1:
        bits, zero = (ir.Constant(kind, [value] * kind.count) for value in (bit, 0))
        odd = b.icmp_signed("!=", b.and_(places, bits), zero)
        entries = [b.select(odd, entries[k + 1], entries[k]) for k in range(0, len(entries), 2)]
        bit *= 2
    return entries[0]


def _load_bits(b: ir.IRBuilder, bits: int, data: ir.Value) -> ir.Value:
    """The inverse of `_store_bits`."""
    if bits == 8:
        return emit.load(b, emit.vector(I8, GROUP), data)
    if bits in (2, 4):
        count = GROUP * bits // 8
        kind = emit.vector(I16 if bits == 4 else I32, count)
        cells = b.zext(emit.load(b, emit.vector(I8, count), data), kind)
        for shift in (4,) if bits == 4 else (12, 6):
            cells = b.or_(cells, b.shl(cells, ir.Constant(kind, [shift] * count)))
        keep = 0x0F0F if bits == 4 else 0x03030303
        return b.bitcast(b.and_(cells, ir.Constant(kind, [keep] * count)), emit.vector(I8, GROUP))
    words = ir.Constant(emit.vector(I64, GROUP // 8), ir.Undefined)
    for i in range(GROUP // 8):
        words = b.insert_element(words, emit.load(b, I64, data, i * bits), I32(i))
    for width in (4, 2, 1):  # separate fours, then pairs, then single codes
        low = sum(((1 << width * bits) - 1) << at for at in range(0, 64, 16 * width))
        step = width * (8 - bits)
        first = b.and_(words, ir.Constant(words.type, [low] * (GROUP // 8)))
        second = b.and_(words, ir.Constant(words.type, [low << width * bits] * (GROUP // 8)))
        words = b.or_(first, b.shl(second, ir.Constant(words.type, [step] * (GROUP // 8))))
    return b.bitcast(words, emit.vector(I8, GROUP))


@intrinsic
def encode_groups(typingctx, x, x_at, lows, invs, phase, top, thresholds, bits, out, out_at, groups, rows, finite):
    """Encode ``rows`` rows of ``groups`` groups of x[x_at:] to out[out_at:].

    The ranges of each row start at lows[phase] and invs[phase]. ``bits``: the width, plus `CODEBOOK` for
    ``thresholds``, or plus `QUICK`.
    """
    places = types.int64
    signature = types.void(
        x, places, lows, invs, places, types.float32, thresholds, places, out, places, places, places, finite
    )

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int | None) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], None if offset is None else a[offset])

        bodies = {n: (f"splitedge_encode_{n}", _ENCODE_ARGS, _encode_body(n)) for n in range(2, 9)}
        for n in CODEBOOKS:
            bodies[CODEBOOK + n] = (f"splitedge_encode_book_{n}", _ENCODE_ARGS, _encode_body(n, codebook=True))
        for n in QUICKS if QUICK else ():
            bodies[QUICK + n] = (f"splitedge_encode_quick_{n}", _ENCODE_ARGS, _encode_body(n, quick=True))
        ranges = [pointer(2, 4), pointer(3, 4), a[5], pointer(6, None)]
        emit.choose(b, a[7], bodies, [pointer(0, 1), *ranges, pointer(8, 9), *a[10:12], pointer(12, None)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def decode_groups(typingctx, data, data_at, lows, scales, phase, levels, bits, out, out_at, groups, rows, step):
    """The inverse of `encode_groups`, except for rounding. ``step``: values from row to row."""
    places = types.int64
    signature = types.void(data, places, lows, scales, places, levels, places, out, places, places, places, places)

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int | None) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], None if offset is None else a[offset])

        bodies = {n: (f"splitedge_decode_{n}", _DECODE_ARGS, _decode_body(n)) for n in range(2, 9)}
        for n in CODEBOOKS:
            bodies[CODEBOOK + n] = (f"splitedge_decode_book_{n}", _DECODE_ARGS, _decode_body(n, codebook=True))
        ranges = [pointer(2, 4), pointer(3, 4), pointer(5, None)]
        emit.choose(b, a[6], bodies, [pointer(0, 1), *ranges, pointer(7, 8), *a[9:12]])
        return context.get_dummy_value()

    return signature, codegen
