"""The codec's inner loops as LLVM IR: `GROUP` values go from float32 to packed bits, and back, without leaving the registers.

Twins: the plain loops of `kernels.codec`, and `reference.pack_bits`; `kernels.codec` does what is left at the end of a tensor.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels import emit
from kernels.emit import FLOAT, I8, I16, I32, I64, PTR, TARGET

GROUP: Final = 4 * TARGET.lanes  # codes of one step; divides a block of `kernels.codec`
#: Bytes of x that are asked for ahead: a tensor that left the cache is read half as fast again as by the processor's own prefetching.
AHEAD: Final = 4096

#: Widths at which a codebook may stand for equal steps, and what is added to the width to choose it.
CODEBOOKS: Final = (2, 3)
CODEBOOK: Final = 16

_ENCODE_ARGS = [PTR, PTR, PTR, FLOAT, PTR, PTR, I64, PTR]


def _encode_body(bits: int, codebook: bool = False) -> emit.Body:
    """IR: x, lows, invs, top, the codebook's thresholds, out, groups, and one word that is not 0 after a value that is not finite."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        x, lows, invs, top, thresholds, out, groups, finite = args
        lanes = TARGET.lanes
        floats, ints = emit.vector(FLOAT, lanes), emit.vector(I32, lanes)
        most = emit.splat(b, top, lanes)
        limits = _entries(b, thresholds, (1 << bits) - 1) if codebook else []
        with emit.loop(b, groups, ir.Constant(ints, [0] * lanes)) as (index, (bad,), following):
            for line in range(0, GROUP * 4, 64):
                emit.prefetch(b, emit.at(b, x, b.add(b.mul(index, I64(GROUP * 4)), I64(AHEAD + line))))
            codes = []
            for v in range(4):
                place = b.add(b.mul(index, I64(GROUP * 4)), I64(v * lanes * 4))
                value, lo, inv = (emit.load(b, floats, base, place) for base in (x, lows, invs))
                bad = b.or_(bad, b.bitcast(b.fsub(value, value), ints))  # 0 unless it is infinite or no number
                code = b.fmul(b.fsub(value, lo), inv)
                if codebook:
                    codes.append(_rank(b, code, limits))
                else:
                    # Infinity times 0 is no number here and stays none: rounding and saturation make 0 of it on every set.
                    codes.append(b.select(b.fcmp_ordered(">", code, most), most, code))
            following.append(bad)
            _store_bits(b, emit.saturated_bytes(b, codes), bits, emit.at(b, out, b.mul(index, I64(GROUP * bits // 8))))
        for lane in range(lanes):
            word = b.or_(emit.load(b, I32, finite), b.extract_element(following[0], I32(lane)))
            emit.store(b, word, finite)

    return body


def _entries(b: ir.IRBuilder, table: ir.Value, count: int) -> list[ir.Value]:
    """The float32 numbers of ``table``, each in all lanes."""
    return [emit.splat(b, emit.load(b, FLOAT, table, 4 * k), TARGET.lanes) for k in range(count)]


def _rank(b: ir.IRBuilder, value: ir.Value, limits: list[ir.Value]) -> ir.Value:
    """How many of the ascending ``limits`` (one less than a power of two) ``value`` is above, as float32; what is no number is above none."""
    kind, half = value.type, len(limits) // 2
    above = b.fcmp_ordered(">", value, limits[half])
    gained, none = (ir.Constant(kind, [count] * kind.count) for count in (half + 1.0, 0.0))
    if not half:
        return b.select(above, gained, none)
    following = [b.select(above, limits[half + 1 + k], limits[k]) for k in range(half)]
    return b.fadd(b.select(above, gained, none), _rank(b, value, following))


def _entry(b: ir.IRBuilder, places: ir.Value, entries: list[ir.Value]) -> ir.Value:
    """The entry at each of ``places``, by halving their number, a power of two."""
    kind, bit = places.type, 1
    while len(entries) > 1:
        odd = b.icmp_signed(
            "!=", b.and_(places, ir.Constant(kind, [bit] * kind.count)), ir.Constant(kind, [0] * kind.count)
        )
        entries = [b.select(odd, entries[k + 1], entries[k]) for k in range(0, len(entries), 2)]
        bit *= 2
    return entries[0]


def _store_bits(b: ir.IRBuilder, codes: ir.Value, bits: int, out: ir.Value) -> None:
    """`GROUP` codes, each < 2^bits, as `GROUP` * bits / 8 bytes; at 3, 5, 6 and 7 bits the last word is 8 bytes long all the same."""
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
        for i in range(GROUP // 8):
            emit.store(b, b.extract_element(words, I32(i)), out, i * bits)


def _mask(kind: ir.VectorType, width: int) -> ir.Value:
    """The lower half of each 2 * ``width`` bits of 64-bit lanes."""
    half = (1 << width) - 1
    return ir.Constant(kind, [sum(half << at for at in range(0, 64, 2 * width))] * kind.count)


_DECODE_ARGS = [PTR, PTR, PTR, PTR, PTR, I64]


def _decode_body(bits: int, codebook: bool = False) -> emit.Body:
    """IR: data, lows, scales, the codebook's levels, out, groups."""

    def body(b: ir.IRBuilder, args: list[ir.Value]) -> None:
        data, lows, scales, levels, out, groups = args
        lanes = TARGET.lanes
        floats, ints = emit.vector(FLOAT, lanes), emit.vector(I32, lanes)
        entries = _entries(b, levels, 1 << bits) if codebook else []
        with emit.loop(b, groups) as (index, _, _):
            codes = _load_bits(b, bits, emit.at(b, data, b.mul(index, I64(GROUP * bits // 8))))
            for v in range(4):
                place = b.add(b.mul(index, I64(GROUP * 4)), I64(v * lanes * 4))
                own = emit.shuffle(b, codes, codes, range(v * lanes, (v + 1) * lanes))
                places = b.zext(own, ints)
                real = _entry(b, places, entries) if codebook else b.sitofp(places, floats)
                lo, scale = (emit.load(b, floats, base, place) for base in (lows, scales))
                emit.store(b, b.fadd(lo, b.fmul(scale, real)), out, place)

    return body


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
    for width in (4, 2, 1):  # fours, pairs, single codes apart
        low = sum(((1 << width * bits) - 1) << at for at in range(0, 64, 16 * width))
        step = width * (8 - bits)
        first = b.and_(words, ir.Constant(words.type, [low] * (GROUP // 8)))
        second = b.and_(words, ir.Constant(words.type, [low << width * bits] * (GROUP // 8)))
        words = b.or_(first, b.shl(second, ir.Constant(words.type, [step] * (GROUP // 8))))
    return b.bitcast(words, emit.vector(I8, GROUP))


@intrinsic
def encode_groups(typingctx, x, x_at, lows, invs, phase, top, thresholds, bits, out, out_at, groups, finite):
    """``groups`` of `GROUP` values of x[x_at:]; the ranges of the first at lows[phase] and invs[phase]. ``bits`` + `CODEBOOK`: by ``thresholds``."""
    places = types.int64
    signature = types.void(
        x, places, lows, invs, places, types.float32, thresholds, places, out, places, places, finite
    )

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int | None) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], None if offset is None else a[offset])

        bodies = {n: (f"splitedge_encode_{n}", _ENCODE_ARGS, _encode_body(n)) for n in range(2, 9)}
        for n in CODEBOOKS:
            bodies[CODEBOOK + n] = (f"splitedge_encode_book_{n}", _ENCODE_ARGS, _encode_body(n, codebook=True))
        ranges = [pointer(2, 4), pointer(3, 4), a[5], pointer(6, None)]
        emit.choose(b, a[7], bodies, [pointer(0, 1), *ranges, pointer(8, 9), a[10], pointer(11, None)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def decode_groups(typingctx, data, data_at, lows, scales, phase, levels, bits, out, out_at, groups):
    """The inverse of `encode_groups`, but for what rounding took."""
    places = types.int64
    signature = types.void(data, places, lows, scales, places, levels, places, out, places, places)

    def codegen(context, b, sig, a):
        def pointer(array: int, offset: int | None) -> ir.Value:
            return emit.array_pointer(context, b, sig.args[array], a[array], None if offset is None else a[offset])

        bodies = {n: (f"splitedge_decode_{n}", _DECODE_ARGS, _decode_body(n)) for n in range(2, 9)}
        for n in CODEBOOKS:
            bodies[CODEBOOK + n] = (f"splitedge_decode_book_{n}", _DECODE_ARGS, _decode_body(n, codebook=True))
        ranges = [pointer(2, 4), pointer(3, 4), pointer(5, None)]
        emit.choose(b, a[6], bodies, [pointer(0, 1), *ranges, pointer(7, 8), a[9]])
        return context.get_dummy_value()

    return signature, codegen
