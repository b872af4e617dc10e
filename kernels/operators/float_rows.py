"""Operations on rows of float32 between the products of a transformer: quantization, layer norm, GELU, softmax, sums.

Each is LLVM IR over 16 lanes. This fixes the order of all sums and all roundings, independent of a vectorizer; LLVM
divides the 16 lanes into vectors of the machine. Arguments are addresses, counts of elements, and float32 numbers. The
last, partial block of a row is read whole (the arena has that slack), and its idle lanes are replaced. Twins: the
transformers' part of `kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kernels import emit, reference
from kernels.define import cgutils, inline, intrinsic, ir, types
from kernels.emit import FLOAT, I8, I32, I64, PTR

WIDE: Final = 16  # lanes of every sum, on every instruction set
_FLOATS, _INTS = emit.vector(FLOAT, WIDE), emit.vector(I32, WIDE)


class Lanes:
    """A <16 x float> value. Each Python operator emits one IEEE operation; scalars are copied to all lanes."""

    def __init__(self, b: ir.IRBuilder, value: ir.Value) -> None:
        self.b, self.value = b, value

    def _other(self, other: Any) -> ir.Value:
        if isinstance(other, Lanes):
            return other.value
        if isinstance(other, ir.Value):
            return emit.splat(self.b, other, WIDE)
        return ir.Constant(_FLOATS, [float(other)] * WIDE)

    def __add__(self, other: Any) -> Lanes:
        return Lanes(self.b, self.b.fadd(self.value, self._other(other)))

    def __sub__(self, other: Any) -> Lanes:
        return Lanes(self.b, self.b.fsub(self.value, self._other(other)))

    def __mul__(self, other: Any) -> Lanes:
        return Lanes(self.b, self.b.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Any) -> Lanes:
        return Lanes(self.b, self.b.fdiv(self.value, self._other(other)))

    def above(self, other: Any) -> Lanes:
        """The maximum of both; ``other`` if self is NaN."""
        return self._choose(">", self._other(other))

    def below(self, other: Any) -> Lanes:
        """The minimum of both; ``other`` if self is NaN."""
        return self._choose("<", self._other(other))

    def _choose(self, relation: str, other: ir.Value) -> Lanes:
        return Lanes(self.b, self.b.select(self.b.fcmp_ordered(relation, self.value, other), self.value, other))

    def rounded(self) -> Lanes:
        """To the nearest integer, half to even; |self| < 2^22."""
        return (self + emit.ROUND) - emit.ROUND

    def integers(self) -> ir.Value:
        """<16 x i32> of integral values."""
        return self.b.fptosi(self.value, _INTS)

    def bits(self) -> ir.Value:
        """The same bits as integers."""
        return self.b.bitcast(self.value, _INTS)

    def kept(self, mask: ir.Value | None, fill: float) -> Lanes:
        """self, with ``fill`` in the lanes beyond the row."""
        if mask is None:
            return self
        return Lanes(self.b, self.b.select(mask, self.value, self._other(fill)))

    def store(self, place: ir.Value, mask_count: ir.Value | None) -> None:
        if mask_count is None:
            emit.store(self.b, self.value, place)
        else:
            data = self.b.bitcast(self.value, emit.vector(I8, 4 * WIDE))
            emit.store_first(self.b, data, place, self.b.mul(mask_count, I64(4)))


class Block:
    """16 elements of a row from ``start`` on; ``count``: how many there are in a partial block."""

    def __init__(self, b: ir.IRBuilder, start: ir.Value, count: ir.Value | None) -> None:
        self.b, self.start, self.count = b, start, count
        self.mask = None
        if count is not None:
            lanes = ir.Constant(emit.vector(I64, WIDE), list(range(WIDE)))
            self.mask = b.icmp_signed("<", lanes, emit.splat(b, count, WIDE))

    def load(self, row: ir.Value) -> Lanes:
        return Lanes(self.b, emit.load(self.b, _FLOATS, row, self.b.mul(self.start, I64(4))))

    def load_bytes(self, row: ir.Value, signed: bool = True) -> Lanes:
        """Bytes as floats."""
        small = emit.load(self.b, emit.vector(I8, WIDE), row, self.start)
        wide = self.b.sext(small, _INTS) if signed else self.b.zext(small, _INTS)
        return Lanes(self.b, self.b.sitofp(wide, _FLOATS))

    def store(self, value: Lanes, row: ir.Value) -> None:
        """Store only elements of the row."""
        value.store(emit.at(self.b, row, self.b.mul(self.start, I64(4))), self.count)

    def store_bytes(self, codes: ir.Value, row: ir.Value) -> None:
        """Store all 16: rows of codes are padded to a multiple of 16."""
        emit.store(self.b, self.b.trunc(codes, emit.vector(I8, WIDE)), row, self.start)


def _sweep(b: ir.IRBuilder, n: ir.Value, body: Callable[..., list[ir.Value]], *carried: ir.Value) -> list[ir.Value]:
    """Call ``body``(block, carried values) -> next values for each block of a row of ``n`` elements; return the last
    values.
    """
    full = b.ashr(n, I64(4))
    with emit.loop(b, full, *carried) as (index, before, following):
        following += body(Block(b, b.shl(index, I64(4)), None), *before)
    values, entry, rest = list(following), b.block, b.and_(n, I64(15))
    with b.if_then(b.icmp_signed("!=", rest, I64(0))):
        changed = body(Block(b, b.shl(full, I64(4)), rest), *values)
        inside = b.block
    for i, value in enumerate(values):
        phi = b.phi(value.type)
        phi.add_incoming(value, entry)
        phi.add_incoming(changed[i], inside)
        values[i] = phi
    return values


def _halves(b: ir.IRBuilder, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """Combine all lanes: lane i with i + 8, then i + 4, i + 2, i + 1."""
    for distance in (8, 4, 2, 1):
        turned = emit.shuffle(b, value, value, [(i + distance) % WIDE for i in range(WIDE)])
        value = combine(value, turned)
    return b.extract_element(value, I32(0))


def _extreme(b: ir.IRBuilder, value: ir.Value, relation: str) -> ir.Value:
    return _halves(b, value, lambda x, y: b.select(b.fcmp_ordered(relation, x, y), x, y))


def _zeros(kind: ir.Type = _FLOATS) -> ir.Value:
    return ir.Constant(kind, [0] * WIDE)


def _usable(b: ir.IRBuilder, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``scale`` and 1 / scale, or 0 and 0 if it is outside `reference.SCALES`."""
    least, most = (FLOAT(float(bound)) for bound in reference.SCALES)
    usable = b.and_(b.fcmp_ordered(">=", scale, least), b.fcmp_ordered("<=", scale, most))
    zero = FLOAT(0.0)
    return b.select(usable, scale, zero), b.select(usable, b.fdiv(FLOAT(1.0), scale), zero)


def _exp(x: Lanes) -> Lanes:
    """`reference.exp`."""
    b = x.b
    x = x.above(-87.0)
    shifted = x * float(reference._LOG2E) + emit.ROUND  # the low bits are the integer n
    n = shifted - emit.ROUND
    r = x - n * float(reference._LN2_HI)
    r = r - n * float(reference._LN2_LO)
    p = r * float(reference._EXP[0]) + float(reference._EXP[1])
    for c in reference._EXP[2:]:
        p = p * r + float(c)
    p = p * (r * r) + r + 1.0
    power = b.shl(b.add(shifted.bits(), _copies(127)), _copies(23))
    return p * Lanes(b, b.bitcast(power, _FLOATS))


def _copies(value: int) -> ir.Value:
    return ir.Constant(_INTS, [value] * WIDE)


def _polynomial(x: Lanes, coefficients: Any) -> Lanes:
    value = x * float(coefficients[0]) + float(coefficients[1])
    for c in coefficients[2:]:
        value = value * x + float(c)
    return value


# --- calls from Numba -------------------------------------------------------------------------------------------------


def call(name: str, body: Callable[..., None], *arguments: Any) -> Any:
    """The return value of an intrinsic that calls the private function ``name``; ``body`` gets int64 and float32
    values.
    """
    kinds = [types.float32 if isinstance(a, types.Float) else types.int64 for a in arguments]

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> Any:
        ours = [FLOAT if kind == types.float32 else I64 for kind in kinds]
        b.call(emit.private_function(b, f"splitedge_{name}", ours, lambda inner, a: body(inner, *a)), values)
        return context.get_dummy_value()

    return types.void(*kinds), codegen


def pointer(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.inttoptr(address, PTR)


# --- the kernels ------------------------------------------------------------------------------------------------------


@intrinsic
def quantize_rows(typingctx, x, step, count, n, codes, codes_step, scale, zero):
    """`reference.quantize_rows` of ``count`` rows of x float32 [n], ``step`` bytes apart.

    Writes uint8 codes [n, padded to 16], a float32 scale and an int32 zero point for each row.
    """

    def body(b, x, step, count, n, codes, codes_step, scale, zero):
        x, codes, scale, zero = (pointer(b, p) for p in (x, codes, scale, zero))
        with emit.loop(b, count) as (r, _, _):
            place = b.mul(r, I64(4))
            row = emit.at(b, x, b.mul(r, step)), n, emit.at(b, codes, b.mul(r, codes_step))
            _quantize_row(b, *row, emit.at(b, scale, place), emit.at(b, zero, place))

    return call("quantize_rows", body, x, step, count, n, codes, codes_step, scale, zero)


def _quantize_row(b: ir.IRBuilder, x: ir.Value, n: ir.Value, codes: ir.Value, scale: ir.Value, zero: ir.Value) -> None:
    def widen(block: Block, lo: ir.Value, hi: ir.Value) -> list[ir.Value]:
        value = block.load(x).kept(block.mask, 0.0)
        return [value.below(Lanes(b, lo)).value, value.above(Lanes(b, hi)).value]

    lo, hi = _sweep(b, n, widen, _zeros(), _zeros())
    lo, hi = _extreme(b, lo, "<"), _extreme(b, hi, ">")
    step, inverse = _usable(b, b.fdiv(b.fsub(hi, lo), FLOAT(255.0)))
    offset = Lanes(b, emit.splat(b, b.fmul(b.fsub(FLOAT(0.0), lo), inverse), WIDE)).rounded().above(0.0).below(255.0)

    def code(block: Block) -> list[ir.Value]:
        value = (block.load(x) * inverse).rounded() + offset
        block.store_bytes(value.above(0.0).below(255.0).kept(block.mask, 0.0).integers(), codes)
        return []

    _sweep(b, n, code)
    emit.store(b, step, scale)
    emit.store(b, b.extract_element(offset.integers(), I32(0)), zero)


@intrinsic
def quantize_keys(typingctx, x, step, tokens, count, n, factor, codes, codes_step, scale, total):
    """`reference.quantize_signed` of the rows ``tokens`` (int32 [count]) of x float32 [n], ``step`` bytes apart.

    Writes int8 codes [n, padded to 16], the scale times ``factor``, and the int32 sum of the codes for each row.
    """

    def body(b, x, step, tokens, count, n, factor, codes, codes_step, scale, total):
        x, tokens, codes, scale, total = (pointer(b, p) for p in (x, tokens, codes, scale, total))
        with emit.loop(b, count) as (r, _, _):
            place = b.mul(r, I64(4))
            token = b.zext(emit.load(b, I32, tokens, place), I64)
            row = emit.at(b, x, b.mul(token, step)), n, factor, emit.at(b, codes, b.mul(r, codes_step))
            _quantize_key(b, *row, emit.at(b, scale, place), emit.at(b, total, place))

    return call("quantize_keys", body, x, step, tokens, count, n, factor, codes, codes_step, scale, total)


def _quantize_key(
    b: ir.IRBuilder, x: ir.Value, n: ir.Value, factor: ir.Value, codes: ir.Value, scale: ir.Value, total: ir.Value
) -> None:
    def widen(block: Block, top: ir.Value) -> list[ir.Value]:
        return [_magnitude(block.load(x).kept(block.mask, 0.0)).above(Lanes(b, top)).value]

    top = _extreme(b, _sweep(b, n, widen, _zeros())[0], ">")
    step, inverse = _usable(b, b.fdiv(top, FLOAT(127.0)))

    def code(block: Block, sums: ir.Value) -> list[ir.Value]:
        value = _signed_code(block.load(x) * inverse).kept(block.mask, 0.0).integers()
        block.store_bytes(value, codes)
        return [b.add(sums, value)]

    sums = _sweep(b, n, code, _zeros(_INTS))[0]
    emit.store(b, b.fmul(step, factor), scale)
    emit.store(b, _halves(b, sums, b.add), total)


def _magnitude(value: Lanes) -> Lanes:
    return value.above(Lanes(value.b, _zeros()) - value)


def _signed_code(value: Lanes) -> Lanes:
    return value.rounded().above(-127.0).below(127.0)


@intrinsic
def widen_columns(typingctx, x, n, tops):
    """tops[i] = max(tops[i], |x[i]|); ``tops`` is padded to a multiple of 16."""

    def body(b, x, n, tops):
        x, tops = pointer(b, x), pointer(b, tops)

        def step(block):
            _magnitude(block.load(x)).above(block.load(tops)).store(emit.at(b, tops, b.mul(block.start, I64(4))), None)
            return []

        _sweep(b, n, step)

    return call("widen_columns", body, x, n, tops)


@intrinsic
def column_scales(typingctx, tops, n, inverses):
    """Replace tops [n] by the scales tops / 127 and write their inverses: `reference.quantize_signed`. Both are padded
    to 16.
    """

    def body(b, tops, n, inverses):
        tops, inverses = pointer(b, tops), pointer(b, inverses)
        least, most = (float(bound) for bound in reference.SCALES)

        def step(block):
            scale = block.load(tops) / 127.0
            usable = b.and_(
                b.fcmp_ordered(">=", scale.value, scale._other(least)),
                b.fcmp_ordered("<=", scale.value, scale._other(most)),
            )
            inverse = Lanes(b, scale._other(1.0)) / scale
            place = b.mul(block.start, I64(4))
            inverse.kept(usable, 0.0).store(emit.at(b, inverses, place), None)
            scale.kept(usable, 0.0).store(emit.at(b, tops, place), None)
            return []

        _sweep(b, n, step)

    return call("column_scales", body, tops, n, inverses)


@intrinsic
def quantize_value(typingctx, x, n, inverses, codes, totals):
    """Quantize x float32 [n] to int8 codes [n, padded to 16] by the inverse scale of each column; add the codes to the
    int32 ``totals``.
    """

    def body(b, x, n, inverses, codes, totals):
        x, inverses, codes, totals = (pointer(b, p) for p in (x, inverses, codes, totals))

        def step(block):
            value = _signed_code(block.load(x) * block.load(inverses)).integers()
            block.store_bytes(value, codes)
            place = emit.at(b, totals, b.mul(block.start, I64(4)))
            emit.store(b, b.add(emit.load(b, _INTS, place), value), place)
            return []

        _sweep(b, n, step)

    return call("quantize_value", body, x, n, inverses, codes, totals)


@intrinsic
def softmax_rows(typingctx, x, step, count, n, codes, codes_step, scale):
    """`reference.softmax_codes` of ``count`` rows of x float32 [n], ``step`` bytes apart.

    Writes uint8 codes in units of 1/255 [n, padded to 16] and the scale 1 / sum for each row. A first pass computes all
    maxima, so that the exponentials of a row do not wait for its maximum.
    """

    def body(b, x, step, count, n, codes, codes_step, scale):
        x, codes, scale = (pointer(b, p) for p in (x, codes, scale))
        with emit.loop(b, count) as (r, _, _):
            emit.store(b, _greatest(b, emit.at(b, x, b.mul(r, step)), n), emit.at(b, scale, b.mul(r, I64(4))))
        with emit.loop(b, count) as (r, _, _):
            row = emit.at(b, x, b.mul(r, step)), n, emit.at(b, codes, b.mul(r, codes_step))
            _softmax_row(b, *row, emit.at(b, scale, b.mul(r, I64(4))))

    return call("softmax_rows", body, x, step, count, n, codes, codes_step, scale)


def _greatest(b: ir.IRBuilder, x: ir.Value, n: ir.Value) -> ir.Value:
    low = float("-inf")

    def widen(block: Block, top: ir.Value) -> list[ir.Value]:
        return [block.load(x).kept(block.mask, low).above(Lanes(b, top)).value]

    return _extreme(b, _sweep(b, n, widen, ir.Constant(_FLOATS, [low] * WIDE))[0], ">")


def _softmax_row(b: ir.IRBuilder, x: ir.Value, n: ir.Value, codes: ir.Value, scale: ir.Value) -> None:
    """``scale`` holds the maximum of x before, and 1 / the sum of the codes after."""
    top = emit.load(b, FLOAT, scale)

    def code(block: Block, sums: ir.Value) -> list[ir.Value]:
        e = _exp(block.load(x).kept(block.mask, float("-inf")) - top)
        bits = (e * 255.0 + emit.ROUND).bits()  # e is 0 to 1 for any x, so the low byte is the code
        block.store_bytes(bits, codes)
        return [b.add(sums, b.and_(bits, _copies(255)))]

    total = _halves(b, _sweep(b, n, code, _zeros(_INTS))[0], b.add)
    emit.store(b, b.fdiv(FLOAT(1.0), b.sitofp(total, FLOAT)), scale)


@intrinsic
def add_row(typingctx, y, x, n):
    """y = y + x."""

    def body(b, y, x, n):
        y, x = pointer(b, y), pointer(b, x)

        def step(block):
            block.store(block.load(y) + block.load(x), y)
            return []

        _sweep(b, n, step)

    return call("add_row", body, y, x, n)


@intrinsic
def norm_row(typingctx, x, n, gamma, beta, epsilon, y):
    """Layer norm of x [n]: `reference.norm`. y may be x."""

    def body(b, x, n, gamma, beta, epsilon, y):
        x, gamma, beta, y = (pointer(b, p) for p in (x, gamma, beta, y))
        length = b.sitofp(n, FLOAT)

        def total(block, sums):
            return [(Lanes(b, sums) + block.load(x).kept(block.mask, 0.0)).value]

        mean = b.fdiv(_halves(b, _sweep(b, n, total, _zeros())[0], b.fadd), length)

        def squares(block, sums):
            d = block.load(x) - mean
            return [(Lanes(b, sums) + (d * d).kept(block.mask, 0.0)).value]

        variance = b.fdiv(_halves(b, _sweep(b, n, squares, _zeros())[0], b.fadd), length)
        sqrt = cgutils.get_or_insert_function(b.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32")
        inverse = b.fdiv(FLOAT(1.0), b.call(sqrt, [b.fadd(variance, epsilon)]))

        def step(block):
            block.store((block.load(x) - mean) * inverse * block.load(gamma) + block.load(beta), y)
            return []

        _sweep(b, n, step)

    return call("norm_row", body, x, n, gamma, beta, epsilon, y)


@intrinsic
def embed_row(typingctx, w, n, scale, position, y):
    """y = w * scale + position, w int8 [n]: `reference.embed`."""

    def body(b, w, n, scale, position, y):
        w, position, y = (pointer(b, p) for p in (w, position, y))

        def step(block):
            block.store(block.load_bytes(w) * scale + block.load(position), y)
            return []

        _sweep(b, n, step)

    return call("embed_row", body, w, n, scale, position, y)


# --- functions of single elements -------------------------------------------------------------------------------------


def _sigmoid(x: Lanes) -> Lanes:
    """`reference.sigmoid`."""
    b = x.b
    zero = Lanes(b, _zeros())
    size = Lanes(b, b.select(b.fcmp_ordered(">", x.value, zero.value), x.value, (zero - x).value))
    e = _exp(zero - size)
    above = Lanes(b, e._other(1.0)) / (e + 1.0)
    return Lanes(b, b.select(b.fcmp_ordered("<", x.value, zero.value), (e * above).value, above.value))


def _gelu(x: Lanes) -> Lanes:
    """`reference.gelu`."""
    z = (x * float(reference._SQRT_HALF)).above(-4.0).below(4.0)
    square = z * z
    erf = z * _polynomial(square, reference._ERF_TOP) / _polynomial(square, reference._ERF_BOTTOM)
    half = x * 0.5
    return half + half * erf


def _hard_swish(x: Lanes) -> Lanes:
    return x * (x * float(reference._SIXTH) + 0.5).above(0.0).below(1.0)


def _rows(name: str, compute: Callable[..., Lanes]) -> Any:
    """An intrinsic (x, n, y): y = ``compute``(x) for float32 rows of n elements; y may be x."""

    @intrinsic
    def row(typingctx: Any, x: Any, n: Any, y: Any) -> Any:
        def body(b: ir.IRBuilder, x: ir.Value, n: ir.Value, y: ir.Value) -> None:
            x, y = pointer(b, x), pointer(b, y)

            def step(block: Block) -> list[ir.Value]:
                block.store(compute(block.load(x)), y)
                return []

            _sweep(b, n, step)

        return call(name, body, x, n, y)

    return row


_relu_row = _rows("relu_row", lambda x: x.above(0.0))
gelu_row = _rows("gelu_row", _gelu)
_silu_row = _rows("silu_row", lambda x: x * _sigmoid(x))
_quick_gelu_row = _rows("quick_gelu_row", lambda x: x * _sigmoid(x * float(reference._QUICK)))
_sigmoid_row = _rows("sigmoid_row", _sigmoid)
_tanh_row = _rows("tanh_row", lambda x: _sigmoid(x * 2.0) * 2.0 - 1.0)
_hard_swish_row = _rows("hard_swish_row", _hard_swish)


@inline
def function_row(kind, x, n, y):
    """y = the function ``kind`` of `reference.FUNCTIONS` of x [n]; y may be x."""
    if kind == 0:
        _relu_row(x, n, y)
    elif kind == 1:
        gelu_row(x, n, y)
    elif kind == 2:
        _silu_row(x, n, y)
    elif kind == 3:
        _quick_gelu_row(x, n, y)
    elif kind == 4:
        _sigmoid_row(x, n, y)
    elif kind == 5:
        _tanh_row(x, n, y)
    else:
        _hard_swish_row(x, n, y)


# --- pairs of rows ----------------------------------------------------------------------------------------------------


@intrinsic
def mul_row(typingctx, y, x, n):
    """y = y * x."""

    def body(b, y, x, n):
        y, x = pointer(b, y), pointer(b, x)

        def step(block):
            block.store(block.load(y) * block.load(x), y)
            return []

        _sweep(b, n, step)

    return call("mul_row", body, y, x, n)


@intrinsic
def sum_row(typingctx, a, x, n, y):
    """y = a + x."""

    def body(b, a, x, n, y):
        a, x, y = (pointer(b, p) for p in (a, x, y))

        def step(block):
            block.store(block.load(a) + block.load(x), y)
            return []

        _sweep(b, n, step)

    return call("sum_row", body, a, x, n, y)


@intrinsic
def turn_row(typingctx, x, partner, n, own, other, y):
    """y = x * own + partner * other: one half of a group of `reference.rotary`."""

    def body(b, x, partner, n, own, other, y):
        x, partner, own, other, y = (pointer(b, p) for p in (x, partner, own, other, y))

        def step(block):
            block.store(block.load(x) * block.load(own) + block.load(partner) * block.load(other), y)
            return []

        _sweep(b, n, step)

    return call("turn_row", body, x, partner, n, own, other, y)


@intrinsic
def rms_row(typingctx, x, n, gamma, epsilon, y):
    """`reference.rms_norm` of x [n]. y may be x."""

    def body(b, x, n, gamma, epsilon, y):
        x, gamma, y = (pointer(b, p) for p in (x, gamma, y))

        def squares(block, sums):
            value = block.load(x)
            return [(Lanes(b, sums) + (value * value).kept(block.mask, 0.0)).value]

        mean = b.fdiv(_halves(b, _sweep(b, n, squares, _zeros())[0], b.fadd), b.sitofp(n, FLOAT))
        sqrt = cgutils.get_or_insert_function(b.module, ir.FunctionType(FLOAT, [FLOAT]), "llvm.sqrt.f32")
        inverse = b.fdiv(FLOAT(1.0), b.call(sqrt, [b.fadd(mean, epsilon)]))

        def step(block):
            block.store(block.load(x) * inverse * block.load(gamma), y)
            return []

        _sweep(b, n, step)

    return call("rms_row", body, x, n, gamma, epsilon, y)


# --- codes ------------------------------------------------------------------------------------------------------------


@intrinsic
def codes_row(typingctx, x, n, inverse, zero, y):
    """`reference.quantize` of x float32 [n] to uint8 codes y [n]. Writes only codes of the row."""

    def body(b, x, n, inverse, zero, y):
        x, y = pointer(b, x), pointer(b, y)

        def step(block):
            real = (block.load(x) * inverse).above(Lanes(b, emit.splat(b, b.fsub(FLOAT(0.0), zero), WIDE)))
            real = real.below(Lanes(b, emit.splat(b, b.fsub(FLOAT(255.0), zero), WIDE)))
            codes = b.trunc((real.rounded() + zero).integers(), emit.vector(I8, WIDE))
            place = emit.at(b, y, block.start)
            if block.count is None:
                emit.store(b, codes, place)
            else:
                emit.store_first(b, codes, place, block.count)
            return []

        _sweep(b, n, step)

    return call("codes_row", body, x, n, inverse, zero, y)


@intrinsic
def values_row(typingctx, x, n, scale, zero, y):
    """`reference.dequantize` of uint8 codes x [n] to float32 y [n]."""

    def body(b, x, n, scale, zero, y):
        x, y = pointer(b, x), pointer(b, y)

        def step(block):
            block.store((block.load_bytes(x, signed=False) - zero) * scale, y)
            return []

        _sweep(b, n, step)

    return call("values_row", body, x, n, scale, zero, y)
