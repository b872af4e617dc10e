"""LLVM IR for what Numba cannot express: vectors of fixed width, dot-product instructions, and the requantizing
epilogue.

`TARGETS` describes each instruction set once. The generators in `kernels.operators` and `kernels.codec` read `TARGET`
and contain almost no instructions of their own. To add an instruction set, add it to `kernels.isa` and to `TARGETS`,
and its instructions to `dot`, `rounded` and `_pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NewType, get_type_hints

import numpy as np
from numpy.typing import NDArray

from kernels import isa
from kernels.define import cgutils, intrinsic, ir, types

I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
PTR: Final = I8.as_pointer()
CACHE_LINE: Final = 64  # bytes

#: 1.5 * 2^23: if you add it to |x| < 2^22, the low bits of the sum's bit pattern are x, rounded half to even.
ROUND: Final = 12582912.0
_ROUND_BITS: Final = 0x4B400000  # its bit pattern


@dataclass(frozen=True)
class Target:
    """Properties of an instruction set."""

    name: str
    #: Vector width.
    bits: int
    #: Products that one dot step adds into one int32: 4 of u8 x s8, or 2 of s16 x s16.
    group: int
    #: Register blocking of GEMM: vectors of columns -> rows, largest first.
    tiles: dict[int, tuple[int, ...]]
    #: Groups of K in one turn of GEMM, which share one load of activations. The last span, 1, takes the rest.
    spans: tuple[int, ...] = (1,)
    #: 128 if the dot step is s8 x s8: GEMM subtracts it from the activations, and `correct_bias` adds it back.
    offset: int = 0
    #: Whether the dot step needs the bytes of a vector as pairs: bytes 0 and 1 of every lane's group, then bytes 2 and
    #: 3.
    pairs: bool = False
    #: Whether GEMM has an instruction for [2 rows, 8 of K] x [8 of K, 2 columns].
    matrix: bool = False

    @property
    def lanes(self) -> int:
        """int32 accumulators in one vector."""
        return self.bits // 32

    @property
    def element(self) -> ir.IntType:
        """The type of one operand of the dot step: bytes for groups of 4, words for groups of 2."""
        return I8 if self.group == 4 else I16


TARGETS: Final = {
    # 32 registers: 6 x 4 accumulators, 4 weights, 1 broadcast. Narrow tiles are tall, to keep 2 dot products per cycle
    # in flight.
    "avx512vnni": Target(
        "avx512vnni",
        512,
        4,
        {4: (6, 5, 4, 3, 2, 1), 3: (8, 7, 6, 4, 2, 1), 2: (12, 10, 8, 6, 4, 2, 1), 1: (14, 8, 4, 2, 1)},
    ),
    # 16 registers: 6 x 2 accumulators, 2 weights, 1 broadcast.
    "avxvnni": Target("avxvnni", 256, 4, {2: (6, 5, 4, 3, 2, 1), 1: (12, 10, 8, 6, 4, 2, 1)}),
    # 16 registers: 4 x 2 accumulators, 2 weights, broadcasts, products.
    "avx2": Target("avx2", 256, 2, {2: (4, 3, 2, 1), 1: (6, 4, 3, 2, 1)}),
    "portable": Target("portable", 128, 2, {2: (4, 2, 1), 1: (6, 3, 1)}),
    # 32 registers. usmmla keeps 2 x 2 accumulators in one register. With larger tiles, and on neon with more than 2
    # rows, LLVM spills.
    "i8mm": Target(
        "i8mm", 128, 4, {4: (4, 2, 1), 3: (6, 4, 2, 1), 2: (8, 4, 2, 1), 1: (8, 4, 2, 1)}, (2, 1), matrix=True
    ),
    "dotprod": Target(
        "dotprod", 128, 4, {4: (4, 2, 1), 3: (6, 4, 2, 1), 2: (8, 4, 2, 1), 1: (8, 4, 2, 1)}, (4, 1), 128
    ),
    "neon": Target("neon", 128, 4, {4: (2, 1), 3: (2, 1), 2: (4, 2, 1), 1: (6, 4, 2, 1)}, (4, 1), 128, pairs=True),
}
TARGET: Final = TARGETS[isa.ISA]


@dataclass(frozen=True)
class Bounds:
    """The range of an operator's codes as LLVM values."""

    lo: ir.Value  # uint8
    hi: ir.Value  # uint8
    zero: ir.Value  # zero point, int16
    shifted: ir.Value  # whether the zero point is not 0
    clamped: ir.Value  # whether the range is not 0 .. 255


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """The type of a vector of ``count`` elements."""
    return ir.VectorType(element, count)


def splat(b: ir.IRBuilder, scalar: ir.Value, count: int) -> ir.Value:
    """``scalar`` in all ``count`` lanes."""
    kind = vector(scalar.type, count)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(vector(I32, count), [0] * count))


def shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, mask: Iterable[int]) -> ir.Value:
    """The lanes ``mask`` of x followed by y."""
    indices = list(mask)
    return b.shuffle_vector(x, y, ir.Constant(vector(I32, len(indices)), indices))


def permute(b: ir.IRBuilder, entries: ir.Value, places: ir.Value) -> ir.Value:
    """The entry at each of ``places`` (int32 lanes; only the lowest bits count). x86 from AVX2 on."""
    name = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}[entries.type.count]
    return b.call(_declare(b, name, entries.type, [entries.type, places.type]), [entries, places])


def look_up(b: ir.IRBuilder, table: list[ir.Value], places: ir.Value) -> ir.Value:
    """The byte at each of ``places`` <16 x i8> in a table of 1 to 4 vectors. ARM."""
    name = f"llvm.aarch64.neon.tbl{len(table)}.v16i8"
    return b.call(_declare(b, name, places.type, [places.type] * (len(table) + 1)), [*table, places])


def load(b: ir.IRBuilder, kind: ir.Type, base: ir.Value, offset: ir.Value | int = 0) -> ir.Value:
    """An unaligned load of ``kind`` at ``base`` + ``offset`` bytes."""
    return b.load(b.bitcast(at(b, base, offset), kind.as_pointer()), align=1)


def store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, offset: ir.Value | int = 0) -> None:
    """An unaligned store at ``base`` + ``offset`` bytes."""
    b.store(value, b.bitcast(at(b, base, offset), value.type.as_pointer()), align=1)


def store_first(b: ir.IRBuilder, value: ir.Value, base: ir.Value, count: ir.Value) -> None:
    """Store the first ``count`` bytes of ``value`` <n x i8>, count < n: one masked store if there are byte masks, else
    byte by byte.
    """
    lanes = value.type.count
    if TARGET.bits == 512:
        numbers = ir.Constant(vector(I8, lanes), list(range(lanes)))
        mask = b.icmp_signed("<", numbers, splat(b, b.trunc(count, I8), lanes))
        kind = ir.FunctionType(ir.VoidType(), [value.type, PTR, I32, vector(ir.IntType(1), lanes)])
        store_masked = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{lanes}i8.p0")
        b.call(store_masked, [value, base, I32(1), mask])
        return
    for lane in range(lanes):
        with b.if_then(b.icmp_signed("<", I64(lane), count)):
            store(b, b.extract_element(value, I32(lane)), base, lane)


def prefetch(b: ir.IRBuilder, place: ir.Value, level: int = 1) -> None:
    """Prefetch the cache line at ``place``, which may be any address, into the cache of this level."""
    kind = ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32])
    b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), [place, I32(0), I32(4 - level), I32(1)])


def at(b: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
    """``base`` + ``offset`` bytes."""
    return b.gep(base, [I64(offset) if isinstance(offset, int) else offset])


@contextmanager
def loop(
    b: ir.IRBuilder, count: ir.Value, *carried: ir.Value, unroll: bool = True
) -> Iterator[tuple[ir.Value, list[ir.Value], list[ir.Value]]]:
    """A loop of ``count`` turns.

    Yields the index, the carried values, and a list to which the body appends their next values. After the block that
    list holds the final values.
    """
    head, body, end = (b.append_basic_block(f"loop.{part}") for part in ("head", "body", "end"))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(I64(0), before)
    phis = [b.phi(value.type) for value in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", index, count), body, end)
    b.position_at_end(body)
    following: list[ir.Value] = []
    yield index, list(phis), following
    index.add_incoming(b.add(index, I64(1)), b.block)
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value, b.block)
    again = b.branch(head)
    if not unroll:
        again.set_metadata("llvm.loop", _not_unrolled(b.module))
    b.position_at_end(end)
    following[:] = phis


def _not_unrolled(module: ir.Module) -> Any:
    """Metadata that stops LLVM from unrolling a loop: a node that refers to itself, which `ir.Module.add_metadata`
    cannot make.
    """
    node = ir.values.MDValue(module, [], str(len(module.metadata)))
    node.operands = (node, module.add_metadata(["llvm.loop.unroll.disable"]))
    return node


def correct_bias(bias: NDArray[np.int32], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """``bias`` [OC] plus what `Target.offset` subtracts: offset * sum of w [OC, ...]. Sums wrap around, as in the
    kernels.
    """
    subtracted: NDArray[np.int32] = np.int32(TARGET.offset) * w.reshape(len(w), -1).sum(axis=1, dtype=np.int32)
    return bias + subtracted


def pair_order(data: NDArray[Any]) -> NDArray[Any]:
    """Bytes of whole vectors [..., lanes, group] in the order of the dot step, which differs for `Target.pairs`."""
    if not TARGET.pairs:
        return data
    return np.ascontiguousarray(data.reshape(-1, TARGET.lanes, 2, 2).transpose(0, 2, 1, 3))


def as_operand(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Activation bytes as the dot step needs them: unchanged, or as s8 after `Target.offset` is subtracted."""
    return b.xor(x, ir.Constant(x.type, [TARGET.offset] * x.type.count)) if TARGET.offset else x


def dot(b: ir.IRBuilder, acc: ir.Value, x: Any, w: ir.Value) -> ir.Value:
    """acc[i] + the sum of x * w over group i, without saturation.

    Groups are 4 bytes (u8 x s8, or s8 x s8, see `as_operand`) or 2 words (s16 x s16). With `Target.pairs`, x is two
    half vectors: the pairs of bytes 0 and 1, and those of bytes 2 and 3.
    """
    lanes = acc.type.count
    if isa.ARM and w.type.element == I8:
        return _dot_arm(b, acc, x, w)
    if x.type.element == I8:
        # x and w as <lanes x i32>: LLVM upgrades this older signature if it has a newer one. The name of the AVX-512
        # instruction also stands for the 256-bit instruction of AVX-VNNI: LLVM uses the encoding of the processor.
        kind = vector(I32, lanes)
        name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
        return b.call(_declare(b, name, kind, [kind] * 3), [acc, b.bitcast(x, kind), b.bitcast(w, kind)])
    return b.add(acc, _pair_products(b, x, w, lanes))


def _dot_arm(b: ir.IRBuilder, acc: ir.Value, x: Any, w: ir.Value) -> ir.Value:
    if not TARGET.pairs:  # with operands in this order LLVM uses the by-element form if x is one word in every lane
        name, operands = ("sdot", [w, x]) if TARGET.offset else ("usdot", [x, w])
        kind = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
        return b.call(_declare(b, kind, acc.type, [acc.type, x.type, w.type]), [acc, *operands])
    halves, words = vector(I8, 8), vector(I16, 8)
    multiply = _declare(b, "llvm.aarch64.neon.smull.v8i16", words, [halves, halves])
    low, high = (
        b.call(multiply, [half, shuffle(b, w, w, range(at, at + 8))]) for half, at in zip(x, (0, 8), strict=True)
    )  # 2 products fit s16: 2 x 128 x 127 < 2^15
    add_pairs = _declare(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", acc.type, [words])
    return b.add(acc, b.call(add_pairs, [b.add(low, high)]))


def multiply_matrices(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """acc [2 rows, 2 columns] + x [2 rows, 8] u8 * w [2 columns, 8] s8, transposed (`Target.matrix`)."""
    name = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
    return b.call(_declare(b, name, acc.type, [acc.type, x.type, w.type]), [acc, x, w])


def _pair_products(b: ir.IRBuilder, x: ir.Value, w: ir.Value, lanes: int) -> ir.Value:
    name = {8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}.get(lanes)
    if isa.X86 and name:
        return b.call(_declare(b, name, vector(I32, lanes), [x.type, w.type]), [x, w])
    wide = vector(I32, 2 * lanes)
    products = b.mul(b.sext(x, wide), b.sext(w, wide))
    return b.add(
        shuffle(b, products, products, range(0, 2 * lanes, 2)), shuffle(b, products, products, range(1, 2 * lanes, 2))
    )


def _declare(b: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def requantize(
    b: ir.IRBuilder,
    rows: list[list[ir.Value]],
    factors: list[ir.Value],
    bounds: Bounds,
    interleaved: bool = False,
    branch: bool = True,
) -> list[ir.Value]:
    """`reference.requantize` of acc * factor: rows of 1 to 4 vectors of int32 accumulators to codes, each row as one
    vector of bytes.

    The vectors of a row follow each other. ``interleaved``: the first 128-bit quarter of each vector, then the second,
    as the x86 pack instructions leave them. ``branch``: skip the zero point if it is 0, and the clamp if it is 0 ..
    255. Both are frequent, and GEMM's epilogue is expensive.

    A product with a factor must fit int32; the verifier checks that. Rounding before clamping gives the same codes as
    clamping first.
    """
    together = 4 // len(factors)  # rows of one or two vectors share the packing of four
    groups = [[v for row in rows[at : at + together] for v in row] for at in range(0, len(rows), together)]
    words = [word for group in groups for word in _words(b, group, factors * together)]
    words = _if(b, bounds.shifted, branch, words, lambda word: _add_saturated(b, word, bounds.zero))
    codes = []
    for group in groups:
        own, words = words[: (len(group) + 1) // 2], words[(len(group) + 1) // 2 :]
        codes.append(_in_order(b, own, len(group), interleaved))
    codes = _if(b, bounds.clamped, branch, codes, lambda code: _clamp(b, code, bounds))
    size = len(factors) * factors[0].type.count
    return [shuffle(b, code, code, range(at, at + size)) for code in codes for at in range(0, code.type.count, size)]


def in_order(b: ir.IRBuilder, codes: ir.Value) -> ir.Value:
    """Interleaved codes of 4 vectors, one vector after the other."""
    fours = b.bitcast(codes, vector(I32, codes.type.count // 4))
    order = [q * 4 + v for v in range(4) for q in range(codes.type.count // 16)]
    return b.bitcast(shuffle(b, fours, fours, order), codes.type)


def saturated_bytes(b: ir.IRBuilder, codes: list[ir.Value]) -> ir.Value:
    """4 vectors of int32 to bytes, one vector after the other, saturated to 0 .. 255."""
    first, second, third, fourth = codes
    words = [_pack(b, first, second, signed=True), _pack(b, third, fourth, signed=True)]
    return _in_order(b, words, 4, interleaved=False)


def quantized(b: ir.IRBuilder, real: list[ir.Value], most: ir.Value, bounds: Bounds) -> ir.Value:
    """4 vectors of float32 to codes, one vector after the other; ``most``: the upper bound minus the zero point, in
    every lane.
    """
    first, second, third, fourth = (rounded(b, b.select(b.fcmp_ordered("<", v, most), v, most)) for v in real)
    words = [_pack(b, first, second, signed=True), _pack(b, third, fourth, signed=True)]
    return _clamp(b, _in_order(b, [_add_saturated(b, w, bounds.zero) for w in words], 4, interleaved=False), bounds)


def code_bounds(b: ir.IRBuilder, lo: ir.Value, hi: ir.Value, zero: ir.Value) -> Bounds:
    """`Bounds` from a kernel's arguments: float32 bounds minus the zero point, and the int32 zero point."""
    least, most = (b.trunc(b.add(b.fptosi(bound, I32), zero), I8) for bound in (lo, hi))
    clamped = b.or_(b.icmp_signed("!=", least, I8(0)), b.icmp_signed("!=", most, I8(-1)))
    return Bounds(least, most, b.trunc(zero, I16), b.icmp_signed("!=", zero, I32(0)), clamped)


def _if(
    b: ir.IRBuilder, condition: ir.Value, branch: bool, values: list[ir.Value], change: Callable[[ir.Value], ir.Value]
) -> list[ir.Value]:
    """``values``, changed if the condition holds. Without ``branch`` always changed: ``change`` has no effect if it
    does not hold.
    """
    if not branch:
        return [change(value) for value in values]
    before = b.block
    with b.if_then(condition):
        changed, inside = [change(value) for value in values], b.block
    return merge(b, before, values, inside, changed)


def merge(
    b: ir.IRBuilder, before: ir.Block, old: list[ir.Value], inside: ir.Block, new: list[ir.Value]
) -> list[ir.Value]:
    """The values after an ``if``: ``old`` if control comes from the block ``before`` it, ``new`` if it comes from
    ``inside``.
    """
    merged = [b.phi(value.type) for value in old]
    for phi, was, became in zip(merged, old, new, strict=True):
        phi.add_incoming(was, before)
        phi.add_incoming(became, inside)
    return merged


def _words(b: ir.IRBuilder, row: list[ir.Value], factors: list[ir.Value]) -> list[ir.Value]:
    """1 to 4 vectors of accumulators to rounded int16 in 1 or 2 vectors, quarter by quarter; missing vectors repeat the
    first.
    """
    values = [rounded(b, b.fmul(b.sitofp(v, f.type), f)) for v, f in zip(row, factors, strict=False)]
    values += [values[0]] * (-len(row) % 2 if len(row) < 3 else 4 - len(row))
    return [_pack(b, values[i], values[i + 1], signed=True) for i in range(0, len(values), 2)]


def _in_order(b: ir.IRBuilder, words: list[ir.Value], count: int, interleaved: bool) -> ir.Value:
    """The bytes of the ``words`` that `_words` made of ``count`` vectors."""
    codes = _pack(b, words[0], words[-1], signed=False)
    quarters = codes.type.count // 16
    cells = [(q, v) for v in range(count) for q in range(quarters)]
    in_fours = b.bitcast(codes, vector(I32, codes.type.count // 4))
    order = [q * 4 + v for q, v in (sorted(cells) if interleaved else cells)]
    return b.bitcast(shuffle(b, in_fours, in_fours, order), vector(I8, 4 * len(order)))


def _add_saturated(b: ir.IRBuilder, word: ir.Value, zero: ir.Value) -> ir.Value:
    add = _declare(b, f"llvm.sadd.sat.v{word.type.count}i16", word.type, [word.type] * 2)
    return b.call(add, [word, splat(b, zero, word.type.count)])


def _clamp(b: ir.IRBuilder, codes: ir.Value, bounds: Bounds) -> ir.Value:
    lo, hi = (splat(b, bound, codes.type.count) for bound in (bounds.lo, bounds.hi))
    codes = b.select(b.icmp_unsigned(">", codes, lo), codes, lo)
    return b.select(b.icmp_unsigned("<", codes, hi), codes, hi)


def rounded(b: ir.IRBuilder, real: ir.Value) -> ir.Value:
    """To int32, half to even. NaN and values that do not fit become the minimum of int32 on x86, and other values
    elsewhere.
    """
    lanes = real.type.count
    ints = vector(I32, lanes)
    if isa.X86 and lanes == 16:  # I32(8): round to nearest, independent of the control register
        name, kinds = "llvm.x86.avx512.mask.cvtps2dq.512", [real.type, ints, I16, I32]
        return b.call(_declare(b, name, ints, kinds), [real, ir.Constant(ints, ir.Undefined), I16(-1), I32(8)])
    if isa.X86:
        name = "llvm.x86.avx.cvt.ps2dq.256" if lanes == 8 else "llvm.x86.sse2.cvtps2dq"
        return b.call(_declare(b, name, ints, [real.type]), [real])
    if isa.ARM:
        return b.call(_declare(b, "llvm.aarch64.neon.fcvtns.v4i32.v4f32", ints, [real.type]), [real])
    for relation, bound in ((">", -(2.0**21)), ("<", 2.0**21)):
        limit = ir.Constant(real.type, [bound] * lanes)
        real = b.select(b.fcmp_ordered(relation, real, limit), real, limit)
    shifted = b.fadd(real, ir.Constant(real.type, [ROUND] * lanes))
    return b.sub(b.bitcast(shifted, ints), ir.Constant(ints, [_ROUND_BITS] * lanes))


def _pack(b: ir.IRBuilder, x: ir.Value, y: ir.Value, signed: bool) -> ir.Value:
    """Each quarter of x, then that of y, saturated to half the width: int32 to int16, or (not ``signed``) int16 to
    uint8.
    """
    element, count = (I16 if signed else I8), x.type.count
    result, each = vector(element, 2 * count), 128 // x.type.element.width
    if isa.X86:
        family = {512: "avx512", 256: "avx2", 128: "sse2"}[count * x.type.element.width]
        suffix = {"avx512": ".512", "avx2": "", "sse2": ".128"}[family]
        name = f"llvm.x86.{family}.{'packssdw' if signed else 'packuswb'}{suffix}"
        return b.call(_declare(b, name, result, [x.type] * 2), [x, y])
    if isa.ARM:
        name = f"llvm.aarch64.neon.{'sqxtn.v4i16' if signed else 'sqxtun.v8i8'}"
        first, second = (b.call(_declare(b, name, vector(element, count), [x.type]), [v]) for v in (x, y))
        return shuffle(b, first, second, range(2 * count))
    least, most = (-(2**15), 2**15 - 1) if signed else (0, 255)
    low, high = (ir.Constant(x.type, [bound] * count) for bound in (least, most))

    def saturate(v: ir.Value) -> ir.Value:
        v = b.select(b.icmp_signed(">", v, low), v, low)
        return b.trunc(b.select(b.icmp_signed("<", v, high), v, high), vector(element, count))

    quarters = [(part, q) for q in range(count // each) for part in (0, 1)]
    order = [part * count + q * each + i for part, q in quarters for i in range(each)]
    return shuffle(b, saturate(x), saturate(y), order)


def array_pointer(
    context: Any, b: ir.IRBuilder, kind: Any, value: ir.Value, offset: ir.Value | None = None
) -> ir.Value:
    """A byte pointer to element ``offset`` of a Numba array."""
    data = context.make_array(kind)(context, b, value).data
    return b.bitcast(data if offset is None else b.gep(data, [offset]), PTR)


def private_function(
    b: ir.IRBuilder, name: str, arguments: list[ir.Type], body: Callable[[ir.IRBuilder, list[ir.Value]], None]
) -> ir.Function:
    """The function ``name`` of this module, generated on first use and never inlined, so that it has all registers for
    itself.
    """
    if name in b.module.globals:
        return b.module.globals[name]
    function = ir.Function(b.module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    inner = ir.IRBuilder(function.append_basic_block("entry"))
    body(inner, list(function.args))
    inner.ret_void()
    return function


Body = Callable[[ir.IRBuilder, list[ir.Value]], None]


def choose(
    b: ir.IRBuilder, choice: ir.Value, bodies: dict[int, tuple[str, list[ir.Type], Body]], arguments: list[ir.Value]
) -> None:
    """Call the `private_function` (name, types, body) with the number ``choice``. Does nothing if there is no such
    number.
    """
    done = b.append_basic_block("chosen")
    switch = b.switch(choice, done)
    for number, (name, kinds, body) in bodies.items():
        block = b.append_basic_block(name)
        switch.add_case(I64(number), block)
        b.position_at_end(block)
        b.call(private_function(b, name, kinds, body), arguments)
        b.branch(done)
    b.position_at_end(done)


# --- calls from Numba -------------------------------------------------------------------------------------------------

#: Marks a field of a NamedTuple that is an int64 address in Numba and a pointer in LLVM IR.
Address = NewType("Address", int)

_IR_TYPES: Final = {int: I64, Address: PTR, np.float32: FLOAT, np.int32: I32}


def ir_types(fields: type) -> list[ir.Type]:
    """The LLVM types of the fields of a NamedTuple class."""
    return [_IR_TYPES[kind] for kind in get_type_hints(fields).values()]


def dispatcher(fields: Any, bodies: dict[int, tuple[str, Callable[[ir.IRBuilder, Any], None]]]) -> Any:
    """An intrinsic ``run(arguments, choice)``: calls the body with the number ``choice``, or nothing if there is none.

    ``fields`` is the NamedTuple class of ``arguments``. Each of ``bodies`` is the name of a private function and a
    generator of its IR, which gets the arguments as LLVM values in the same NamedTuple.
    """
    kinds = ir_types(fields)

    def with_fields(generate: Callable[[ir.IRBuilder, Any], None]) -> Body:
        return lambda b, values: generate(b, fields(*values))

    functions = {number: (name, kinds, with_fields(generate)) for number, (name, generate) in bodies.items()}

    @intrinsic
    def run(typingctx: Any, arguments: Any, choice: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, _: Any, values: list[ir.Value]) -> Any:
            fields = cgutils.unpack_tuple(b, values[0], len(kinds))
            pointers = [b.inttoptr(v, PTR) if kind == PTR else v for v, kind in zip(fields, kinds, strict=True)]
            choose(b, values[1], functions, pointers)
            return context.get_dummy_value()

        return types.void(arguments, types.int64), codegen

    return run


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """The address of the first element of ``array``. The caller keeps the array alive while the address is in use."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> Any:
        return b.ptrtoint(array_pointer(context, b, signature.args[0], values[0]), I64)

    return types.int64(array), codegen


def _reader(kind: ir.Type, result: Any) -> Any:
    """An intrinsic that reads one value at an address."""

    @intrinsic
    def read(typingctx: Any, place: Any) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, _: Any, values: list[ir.Value]) -> Any:
            return load(b, kind, b.inttoptr(values[0], PTR))

        return result(types.int64), codegen

    return read


read_int8, read_int32, read_float32 = (
    _reader(kind, result) for kind, result in ((I8, types.int8), (I32, types.int32), (FLOAT, types.float32))
)


@intrinsic
def write_int8(typingctx: Any, place: Any, value: Any) -> Any:
    """Write the byte ``value`` at the address ``place``."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, values: list[ir.Value]) -> Any:
        store(b, values[1], b.inttoptr(values[0], PTR))
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8), codegen
