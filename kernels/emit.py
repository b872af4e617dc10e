"""LLVM IR that Numba cannot say: vectors of a fixed width, the dot-product instructions, and the requantizing epilogue.

`Target` describes an instruction set once; the generators in gemm.py and depthwise.py read it and hold no instruction of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from kernels import isa

I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
PTR: Final = I8.as_pointer()

#: 1.5 * 2^23: added to |x| < 2^22 it leaves x, rounded half to even, in the low bits of the float's pattern.
ROUND: Final = 12582912.0


@dataclass(frozen=True)
class Target:
    """An instruction set as the generators see it.

    ``bits``: vector width. ``group``: products that one dot step adds into one int32 (4 bytes of u8 x s8, or 2 words of s16 x s16).
    ``tiles``: register blocking of GEMM: vectors of columns -> rows, largest first. ``spans``: groups of K that GEMM takes in one turn, so that one
    load of activations serves them all; the last span, 1, takes what is left.

    ``offset``: 128 where the dot step takes s8 x s8: activations are turned into s8 by subtracting it, and `correct_bias` gives it back.
    ``pairs``: the dot step wants the bytes of a vector as pairs: those 0, 1 of every lane's group, then those 2, 3.
    ``matrix``: GEMM has an instruction for 2 rows x 8 of K by 8 of K x 2 columns.
    """

    name: str
    bits: int
    group: int
    tiles: dict[int, tuple[int, ...]]
    spans: tuple[int, ...] = (1,)
    offset: int = 0
    pairs: bool = False
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
    # 32 registers: 6 x 4 accumulators, 4 weights, 1 broadcast; narrow tiles are tall to keep 2 dot products a cycle in flight.
    "avx512vnni": Target("avx512vnni", 512, 4, {4: (6, 4, 2, 1), 3: (8, 4, 2, 1), 2: (12, 6, 2, 1), 1: (14, 7, 2, 1)}),
    # 16 registers: 4 x 2 accumulators, 2 weights, broadcasts, products.
    "avx2": Target("avx2", 256, 2, {2: (4, 2, 1), 1: (6, 3, 1)}),
    "portable": Target("portable", 128, 2, {2: (4, 2, 1), 1: (6, 3, 1)}),
    # 32 registers. usmmla keeps 2 x 2 accumulators in one. Larger tiles, and on neon more than 2 rows, made LLVM spill.
    "i8mm": Target(
        "i8mm", 128, 4, {4: (4, 2, 1), 3: (6, 4, 2, 1), 2: (8, 4, 2, 1), 1: (8, 4, 2, 1)}, (2, 1), matrix=True
    ),
    "dotprod": Target(
        "dotprod", 128, 4, {4: (4, 2, 1), 3: (6, 4, 2, 1), 2: (8, 4, 2, 1), 1: (8, 4, 2, 1)}, (4, 1), 128
    ),
    "neon": Target("neon", 128, 4, {4: (2, 1), 3: (2, 1), 2: (4, 2, 1), 1: (6, 4, 2, 1)}, (4, 1), 128, pairs=True),
}
TARGET: Final = TARGETS[isa.ISA]


def vector(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


def splat(b: ir.IRBuilder, scalar: ir.Value, count: int) -> ir.Value:
    """``scalar`` in all ``count`` lanes."""
    kind = vector(scalar.type, count)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(vector(I32, count), [0] * count))


def shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, mask: Iterable[int]) -> ir.Value:
    """Lanes of x followed by y, chosen by ``mask``."""
    indices = list(mask)
    return b.shuffle_vector(x, y, ir.Constant(vector(I32, len(indices)), indices))


def load(b: ir.IRBuilder, kind: ir.Type, base: ir.Value, offset: ir.Value | int = 0) -> ir.Value:
    """An unaligned load of ``kind`` at ``base`` + ``offset`` bytes."""
    return b.load(b.bitcast(at(b, base, offset), kind.as_pointer()), align=1)


def store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, offset: ir.Value | int = 0) -> None:
    """An unaligned store at ``base`` + ``offset`` bytes."""
    b.store(value, b.bitcast(at(b, base, offset), value.type.as_pointer()), align=1)


def store_first(b: ir.IRBuilder, value: ir.Value, base: ir.Value, count: ir.Value) -> None:
    """Store the first ``count`` bytes of ``value`` <n x i8>, count < n: one masked store where there are byte masks, else byte by byte."""
    lanes = value.type.count
    if TARGET.bits == 512:
        wanted = b.icmp_signed(
            "<", ir.Constant(vector(I8, lanes), list(range(lanes))), splat(b, b.trunc(count, I8), lanes)
        )
        kind = ir.FunctionType(ir.VoidType(), [value.type, PTR, I32, vector(ir.IntType(1), lanes)])
        store_masked = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{lanes}i8.p0")
        b.call(store_masked, [value, base, I32(1), wanted])
        return
    for lane in range(lanes):
        with b.if_then(b.icmp_signed("<", I64(lane), count)):
            store(b, b.extract_element(value, I32(lane)), base, lane)


def at(b: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
    return b.gep(base, [I64(offset) if isinstance(offset, int) else offset])


@contextmanager
def loop(
    b: ir.IRBuilder, count: ir.Value, *carried: ir.Value
) -> Iterator[tuple[ir.Value, list[ir.Value], list[ir.Value]]]:
    """``count`` turns. Yields (index, carried values, a list to which the body appends their next values); after the block that list
    holds the final values."""
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
    b.branch(head)
    b.position_at_end(end)
    following[:] = phis


def correct_bias(bias: NDArray[np.int32], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """``bias`` [OC] and what `Target.offset` takes away: offset * sum of w [OC, ...]. Sums wrap as those of the kernels do."""
    taken: NDArray[np.int32] = np.int32(TARGET.offset) * w.reshape(len(w), -1).sum(axis=1, dtype=np.int32)
    return bias + taken


def pair_order(data: NDArray[Any]) -> NDArray[Any]:
    """Bytes of whole vectors in natural order [..., lanes, group] to the order of the dot step, where that is another (`Target.pairs`)."""
    if not TARGET.pairs:
        return data
    return np.ascontiguousarray(data.reshape(-1, TARGET.lanes, 2, 2).transpose(0, 2, 1, 3))


def as_operand(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Activation bytes as the dot step takes them: as they are, or less `Target.offset` and then s8."""
    return b.xor(x, ir.Constant(x.type, [TARGET.offset] * x.type.count)) if TARGET.offset else x


def dot(b: ir.IRBuilder, acc: ir.Value, x: Any, w: ir.Value) -> ir.Value:
    """acc[i] + the sum of x * w over group i: groups of 4 bytes (u8 x s8, or s8 x s8, see `as_operand`), or of 2 s16 x s16. No saturation anywhere.

    With `Target.pairs` x is two half vectors: the pairs of bytes 0, 1 and those of bytes 2, 3.
    """
    lanes = acc.type.count
    if isa.ARM and w.type.element == I8:
        return _dot_arm(b, acc, x, w)
    if x.type.element == I8:  # x and w as <lanes x i32>: LLVM upgrades this older signature where it has a newer one
        kind = vector(I32, lanes)
        name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
        return b.call(_declare(b, name, kind, [kind] * 3), [acc, b.bitcast(x, kind), b.bitcast(w, kind)])
    return b.add(acc, _pair_products(b, x, w, lanes))


def _dot_arm(b: ir.IRBuilder, acc: ir.Value, x: Any, w: ir.Value) -> ir.Value:
    if not TARGET.pairs:  # in this order LLVM takes x by element, where it is one word in every lane
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
    b: ir.IRBuilder, acc: ir.Value, multiplier: ir.Value, lo: ir.Value, hi: ir.Value, zero: ir.Value
) -> ir.Value:
    """<n x i32> accumulators to <n x i32> whose low bytes are the codes, as `reference.requantize`; ``lo``, ``hi``, ``zero`` are vectors."""
    real = b.fmul(b.sitofp(acc, multiplier.type), multiplier)
    real = b.select(b.fcmp_ordered(">", real, lo), real, lo)
    real = b.select(b.fcmp_ordered("<", real, hi), real, hi)
    rounded = b.fadd(real, ir.Constant(real.type, [ROUND] * acc.type.count))
    return b.add(b.bitcast(rounded, acc.type), zero)


def array_pointer(
    context: Any, b: ir.IRBuilder, kind: Any, value: ir.Value, offset: ir.Value | None = None
) -> ir.Value:
    """Byte pointer to element ``offset`` of a Numba array."""
    data = context.make_array(kind)(context, b, value).data
    return b.bitcast(data if offset is None else b.gep(data, [offset]), PTR)


def private_function(
    b: ir.IRBuilder, name: str, arguments: list[ir.Type], body: Callable[[ir.IRBuilder, list[ir.Value]], None]
) -> ir.Function:
    """The function ``name`` of this module, generated on first use; never inlined, so that its registers are its own."""
    if name in b.module.globals:
        return b.module.globals[name]
    function = ir.Function(b.module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    inner = ir.IRBuilder(function.append_basic_block("entry"))
    body(inner, list(function.args))
    inner.ret_void()
    return function
