"""The definition of each operation in a few plain lines of numpy: slow twins that the fast kernels equal bit for bit.

Activations are uint8 codes, value = scale * (code - zero_point), with channels last and no batch axis. Accumulators are
int32. Float32 overflows to infinity, as in the kernels (`ieee`). Arithmetic on single codes uses Python's int, because
255 + 1 is 0 in uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
S8 = NDArray[np.int8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
Pair = tuple[int, int]  # along the height and the width
Sides = tuple[int, int, int, int]  # above, left, below, right

#: Decorates functions in which float32 may overflow: numpy would warn.
ieee = np.errstate(all="ignore")


def requantize(real: F32, zero_point: int, lo: int, hi: int) -> U8:
    """``real`` (in units of the output scale, float32) to codes: clamp in float, round half to even, add the zero
    point.
    """
    clamped = np.minimum(np.maximum(real, np.float32(lo - zero_point)), np.float32(hi - zero_point))
    return (np.rint(clamped).astype(np.int32) + zero_point).astype(np.uint8)


@ieee
def conv(
    x: U8,
    w: S8,
    bias: I32,
    multiplier: F32,
    stride: Pair,
    dilation: Pair,
    pad: Sides,
    groups: int,
    zero_x: int,
    zero_y: int,
    lo: int,
    hi: int,
) -> U8:
    """x [H, W, C] * w [OC, KH, KW, C / groups] -> [OH, OW, OC]. ``bias`` already holds -zero_x * sum w; padding has the
    code ``zero_x``.
    """
    top, left, bottom, right = pad
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=zero_x).astype(np.int32)
    oc, kh, kw, cg = w.shape
    oh = (padded.shape[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (padded.shape[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    acc = np.broadcast_to(bias, (oh, ow, oc)).astype(np.int32)
    for ky in range(kh):
        for kx in range(kw):
            y0, x0 = ky * dilation[0], kx * dilation[1]
            cells = padded[
                y0 : y0 + (oh - 1) * stride[0] + 1 : stride[0], x0 : x0 + (ow - 1) * stride[1] + 1 : stride[1]
            ]
            for g in range(groups):
                outs = slice(g * oc // groups, (g + 1) * oc // groups)
                acc[:, :, outs] += cells[:, :, g * cg : (g + 1) * cg] @ w[outs, ky, kx].astype(np.int32).T
    return requantize(acc.astype(np.float32) * multiplier, zero_y, lo, hi)


@ieee
def add(a: U8, b: U8, za: int, zb: int, ma: float, mb: float, zero_y: int, lo: int, hi: int) -> U8:
    """Sum of two tensors; ``ma`` and ``mb`` are scale_a / scale_y and scale_b / scale_y (float32)."""
    left = (a.astype(np.float32) - np.float32(za)) * np.float32(ma)
    right = (b.astype(np.float32) - np.float32(zb)) * np.float32(mb)
    return requantize(left + right, zero_y, lo, hi)


@ieee
def mul(a: U8, b: U8, za: int, zb: int, m: float, zero_y: int, lo: int, hi: int) -> U8:
    """Product of two tensors; ``m`` is scale_a * scale_b / scale_y (float32)."""
    product = (a.astype(np.int32) - za) * (b.astype(np.int32) - zb)
    return requantize(product.astype(np.float32) * np.float32(m), zero_y, lo, hi)


def lut(x: U8, table: U8) -> U8:
    """Element-wise function as a 256-entry table."""
    return table[x]


def _windows(
    height: int, width: int, kernel: Pair, stride: Pair, pad: Sides
) -> Iterator[tuple[int, int, slice, slice]]:
    """Row and column of each output pixel, and the rows and columns of its window that lie inside the plane."""
    oh = (height + pad[0] + pad[2] - kernel[0]) // stride[0] + 1
    ow = (width + pad[1] + pad[3] - kernel[1]) // stride[1] + 1
    for oy in range(oh):
        for ox in range(ow):
            y, x = oy * stride[0] - pad[0], ox * stride[1] - pad[1]
            yield oy, ox, slice(max(y, 0), min(y + kernel[0], height)), slice(max(x, 0), min(x + kernel[1], width))


def max_pool(x: U8, kernel: Pair, stride: Pair, pad: Sides) -> U8:
    """x [H, W, C]; padding is never the maximum."""
    cells = {
        (oy, ox): x[ys, xs].max(axis=(0, 1)) for oy, ox, ys, xs in _windows(x.shape[0], x.shape[1], kernel, stride, pad)
    }
    oh, ow = max(cells)
    return np.array([[cells[r, c] for c in range(ow + 1)] for r in range(oh + 1)], np.uint8)


@ieee
def avg_pool(
    x: U8,
    kernel: Pair,
    stride: Pair,
    pad: Sides,
    count_pad: bool,
    zero_x: int,
    multiplier: float,
    zero_y: int,
    lo: int,
    hi: int,
) -> U8:
    """x [H, W, C]; ``count_pad``: whether the divisor counts padding; ``multiplier``: scale_x / scale_y (float32)."""
    cells = {}
    for oy, ox, ys, xs in _windows(x.shape[0], x.shape[1], kernel, stride, pad):
        inside = x[ys, xs].astype(np.int32) - zero_x
        n = kernel[0] * kernel[1] if count_pad else inside.shape[0] * inside.shape[1]
        factor = np.float32(multiplier) / np.float32(n)
        cells[oy, ox] = requantize(inside.sum(axis=(0, 1), dtype=np.int32).astype(np.float32) * factor, zero_y, lo, hi)
    oh, ow = max(cells)
    return np.array([[cells[r, c] for c in range(ow + 1)] for r in range(oh + 1)], np.uint8)


def concat(inputs: list[U8], tables: list[U8 | None]) -> U8:
    """Concatenate along the last axis; each input passes through its table first, if it has one."""
    return np.concatenate([x if t is None else t[x] for x, t in zip(inputs, tables, strict=True)], axis=-1)


def pad2d(x: U8, pad: Sides, value: int) -> U8:
    """Spatial padding of [H, W, C]; ``pad`` = top, left, bottom, right."""
    return np.pad(x, ((pad[0], pad[2]), (pad[1], pad[3]), (0, 0)), constant_values=value)


_LOG2E, _LN2_HI, _LN2_LO = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_EXP = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


@ieee
def exp(x: F32) -> F32:
    """e^x for -87 <= x <= 0 (lower values count as -87): Cody-Waite reduction and the Cephes polynomial, one float32
    operation at a time.
    """
    x = np.maximum(x.astype(np.float32), np.float32(-87.0))
    n = np.rint(x * _LOG2E)
    r = x - n * _LN2_HI
    r = r - n * _LN2_LO
    p = np.full_like(r, _EXP[0])
    for c in _EXP[1:]:
        p = p * r + c
    p = p * (r * r) + r + np.float32(1.0)
    result: F32 = p * ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return result


@ieee
def softmax(x: U8, scale_x: float, scale_y: float, zero_y: int, lo: int, hi: int) -> U8:
    """Over the last axis: e = exp(scale_x * (x - max)); y = e / sum / scale_y.

    The sum has 16 lanes (lane i adds i, i + 16, ...), which are then added one by one.
    """
    top = x.max(axis=-1, keepdims=True).astype(np.float32)
    e = exp((x.astype(np.float32) - top) * np.float32(scale_x))
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    for i in range(x.shape[-1]):
        lanes[..., i % 16] += e[..., i]
    total = lanes[..., 0]
    for lane in range(1, 16):
        total = total + lanes[..., lane]
    return requantize((e / total[..., None] / np.float32(scale_y)).astype(np.float32), zero_y, lo, hi)


# --- transformers: float32 tensors; both operands of every product are quantized --------------------------------------

#: A row with a scale outside these bounds is coded as zeros, because its inverse is not reliable.
SCALES = (np.float32(1e-30), np.float32(1e30))


@ieee
def _inverse(scale: F32) -> tuple[F32, F32]:
    """``scale`` and 1 / scale in float32, both 0 if the scale is outside `SCALES`."""
    usable = (scale >= SCALES[0]) & (scale <= SCALES[1])
    return np.where(usable, scale, np.float32(0)), np.where(usable, np.float32(1) / scale, np.float32(0))


@ieee
def quantize_rows(x: F32) -> tuple[U8, F32, I32]:
    """x [R, K] to codes [R, K], scale [R] and zero point [R]: the range of each row, zero included, over 255 steps.

    code = clamp(rint(x * (1 / scale)) + zero, 0, 255); zero = clamp(rint(-lo * (1 / scale)), 0, 255).
    """
    lo, hi = np.minimum(x.min(axis=-1), np.float32(0)), np.maximum(x.max(axis=-1), np.float32(0))
    scale, inverse = _inverse((hi - lo) / np.float32(255))
    zero = np.clip(np.rint((np.float32(0) - lo) * inverse), np.float32(0), np.float32(255))
    codes = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], np.float32(0), np.float32(255))
    return codes.astype(np.uint8), scale, zero.astype(np.int32)


@ieee
def quantize_signed(x: F32, axis: int) -> tuple[S8, F32]:
    """x to codes -127 .. 127 with one scale for each slice along ``axis`` (the scale's shape has 1 there)."""
    scale, inverse = _inverse(np.abs(x).max(axis=axis, keepdims=True) / np.float32(127))
    return np.clip(np.rint(x * inverse), np.float32(-127), np.float32(127)).astype(np.int8), scale


@ieee
def product(codes: U8, row_scale: F32, row_zero: I32, w: S8, scale: F32, bias: F32) -> F32:
    """codes [R, K] x w [N, K] -> float32 [R, N]: float32(sum (code - zero) * w) * row_scale * scale + bias, each step
    rounded.
    """
    centred = codes.astype(np.float64) - row_zero[:, None]
    acc = centred @ w.astype(np.float64).T  # exact: integers below 2^31
    result: F32 = acc.astype(np.float32) * row_scale[:, None] * scale + bias
    return result


@ieee
def linear(x: F32, w: S8, scale: F32, bias: F32, activation: str = "none", residual: F32 | None = None) -> F32:
    """x [R, K] float32, quantized row by row, times w [N, K] int8 with scale [N]; then bias, GELU, residual."""
    y = product(*quantize_rows(x), w, scale, bias)
    y = gelu(y) if activation == "gelu" else y
    return y if residual is None else y + residual


_SQRT_HALF = np.float32(0.70710678)
# erf(z) = z * top(z^2) / bottom(z^2) for |z| <= 4, the rational function of Eigen; highest power first.
_ERF_TOP = tuple(
    np.float32(c)
    for c in (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    )
)
_ERF_BOTTOM = tuple(
    np.float32(c)
    for c in (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)


def _polynomial(x: F32, coefficients: tuple[np.float32, ...]) -> F32:
    value = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        value = value * x + c
    return value


@ieee
def gelu(x: F32) -> F32:
    """x / 2 * (1 + erf(x / sqrt 2)) as x / 2 + x / 2 * erf, each step one float32 operation."""
    z = np.minimum(np.maximum(x * _SQRT_HALF, np.float32(-4)), np.float32(4))
    square = z * z
    erf = z * _polynomial(square, _ERF_TOP) / _polynomial(square, _ERF_BOTTOM)
    half = x * np.float32(0.5)
    result: F32 = half + half * erf
    return result


@ieee
def lane_sum(x: F32) -> F32:
    """Sum over the last axis in 16 lanes (lane i adds i, i + 16, ...); then lane i adds lane i + 8, then i + 4, i + 2,
    i + 1.
    """
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % 16), np.float32)], axis=-1)
    for i in range(0, padded.shape[-1], 16):
        lanes = lanes + padded[..., i : i + 16]
    for distance in (8, 4, 2, 1):
        lanes = lanes[..., :distance] + lanes[..., distance : 2 * distance]
    result: F32 = lanes[..., 0]
    return result


@ieee
def norm(x: F32, gamma: F32, beta: F32, epsilon: float) -> F32:
    """Layer norm over the last axis: d = x - mean; y = d * (1 / sqrt(mean d^2 + epsilon)) * gamma + beta. Sums by
    `lane_sum`.
    """
    length = np.float32(x.shape[-1])
    d = x - (lane_sum(x) / length)[..., None]
    inverse = np.float32(1) / np.sqrt(lane_sum(d * d) / length + np.float32(epsilon))
    result: F32 = d * inverse[..., None] * gamma + beta
    return result


@ieee
def rms_norm(x: F32, gamma: F32, epsilon: float) -> F32:
    """Norm without a mean over the last axis: y = x * (1 / sqrt(mean x^2 + epsilon)) * gamma. The sum by `lane_sum`."""
    inverse = np.float32(1) / np.sqrt(lane_sum(x * x) / np.float32(x.shape[-1]) + np.float32(epsilon))
    result: F32 = x * inverse[..., None] * gamma
    return result


@ieee
def sigmoid(x: F32) -> F32:
    """1 / (1 + e) for x >= 0 and e * (1 / (1 + e)) below, with e = exp(-|x|)."""
    e = exp(np.float32(0) - np.where(x > 0, x, np.float32(0) - x))
    above = np.float32(1) / (e + np.float32(1))
    return np.where(x < 0, e * above, above)


_QUICK, _SIXTH = np.float32(1.702), np.float32(1 / 6)


@ieee
def function(x: F32, kind: str) -> F32:
    """A `FUNCTIONS` of each element, each step one float32 operation."""
    if kind == "relu":
        return np.where(x > 0, x, np.float32(0))
    if kind == "gelu":
        return gelu(x)
    if kind == "silu":
        return x * sigmoid(x)
    if kind == "quick_gelu":
        return x * sigmoid(x * _QUICK)
    if kind == "sigmoid":
        return sigmoid(x)
    if kind == "tanh":
        return sigmoid(x * np.float32(2)) * np.float32(2) - np.float32(1)
    assert kind == "hard_swish"
    gate = x * _SIXTH + np.float32(0.5)
    gate = np.where(gate > 0, gate, np.float32(0))
    return x * np.where(gate < 1, gate, np.float32(1))


#: The names of `function`, by their number in the table of operators.
FUNCTIONS = ("relu", "gelu", "silu", "quick_gelu", "sigmoid", "tanh", "hard_swish")


@ieee
def gate(x: F32, kind: str) -> F32:
    """x [R, 2 C] to y [R, C]: a `function` of the first half of the columns, times the second half."""
    half = x.shape[-1] // 2
    return function(x[..., :half], kind) * x[..., half:]


@ieee
def rotary(x: F32, heads: int, table: F32) -> F32:
    """Turn pairs of columns of x [R, N], in the first ``heads`` groups of D columns, by an angle for each position.

    ``table`` [T, 2, D]: factors of a column itself and of its partner, D / 2 further on. Row r has the position r mod
    T. y = x * own + partner * other. Columns behind the groups are copied.
    """
    tokens, _, size = table.shape
    own, other = table[np.arange(len(x)) % tokens].swapaxes(0, 1)
    y = x.copy()
    for head in range(heads):
        group = x[:, head * size : (head + 1) * size]
        y[:, head * size : (head + 1) * size] = group * own + np.roll(group, size // 2, axis=1) * other
    return y


@ieee
def softmax_codes(x: F32) -> tuple[U8, F32]:
    """exp(x - max) over the last axis as codes in units of 1/255, and the scale 1 / sum of each row's codes: weights
    with the sum 1.
    """
    codes = np.rint(exp(x - x.max(axis=-1, keepdims=True)) * np.float32(255)).astype(np.uint8)
    return codes, np.float32(1) / codes.sum(axis=-1, dtype=np.int32).astype(np.float32)


@ieee
def attention(
    x: F32, heads: int, factor: float, counted: NDArray[np.bool_] | None = None, added: Sequence[F32] = ()
) -> F32:
    """x [T, 3 C] (queries, keys and values, C = heads * D) to y [T, C]. Only the tokens ``counted`` are keys; without
    any, y is 0.

    For each head: scores = queries (`quantize_rows`) x keys (`quantize_signed` by token) * ``factor``; weights by
    `softmax_codes`; y = weights x values (`quantize_signed` by column over the counted tokens). ``added``: tables
    [heads, T, T] or [T, T] that the scores have added, one after another.
    """
    tokens, channels = x.shape[0], x.shape[1] // 3
    kept = x if counted is None else x[counted]
    y = np.zeros((tokens, channels), np.float32)
    nothing = np.zeros(1, np.float32)
    for number, head in enumerate(np.split(np.arange(channels), heads) if len(kept) else []):
        keys, key_scale = quantize_signed(kept[:, channels + head], axis=1)
        scores = product(*quantize_rows(x[:, head]), keys, key_scale[:, 0] * np.float32(factor), nothing)
        for table in added:
            own = table[number] if table.ndim == 3 else table
            scores = scores + (own if counted is None else own[:, counted])
        codes, row_scale = softmax_codes(scores)
        values, value_scale = quantize_signed(kept[:, 2 * channels + head], axis=0)
        y[:, head] = product(codes, row_scale, np.zeros(tokens, np.int32), values.T, value_scale[0], nothing)
    return y


@ieee
def window_attention(
    x: F32,
    heads: int,
    factor: float,
    windows: int,
    counted: NDArray[np.bool_] | None = None,
    bias: F32 | None = None,
    mask: F32 | None = None,
) -> F32:
    """`attention` within each of ``windows`` groups of T consecutive rows of x [windows * T, 3 C].

    The float32 scores have ``bias`` [heads, T, T] added, then ``mask`` [windows, T, T].
    """
    found = []
    for window, rows in enumerate(np.split(x, windows)):
        added = [table for table in (bias, None if mask is None else mask[window]) if table is not None]
        found.append(attention(rows, heads, factor, counted, added))
    return np.concatenate(found)


def view(x: F32, start: int, sizes: list[int], steps: list[int]) -> F32:
    """The elements of x at ``start`` + i . ``steps`` for each index i below ``sizes``, in order."""
    flat = x.reshape(-1)
    return np.array([flat[start + sum(i * s for i, s in zip(at, steps, strict=True))] for at in np.ndindex(*sizes)])


def gather(x: F32, rows: I32) -> F32:
    """Rows of x [N, C] by their numbers; -1: a row of zeros."""
    return np.concatenate([x, np.zeros_like(x[:1])])[rows]


@ieee
def quantize(x: F32, scale: float, zero_point: int) -> U8:
    """Values to codes: x * (1 / scale), the inverse in float32, then `requantize`. NaN counts as the least code."""
    real = x * (np.float32(1) / np.float32(scale))
    return requantize(np.where(np.isnan(real), -np.float32(zero_point), real), zero_point, 0, 255)


@ieee
def dequantize(x: U8, scale: float, zero_point: int) -> F32:
    """Codes to values: scale * (code - zero_point)."""
    return (x.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


@ieee
def embed(ids: I32, w: S8, scale: F32, position: F32) -> F32:
    """Row ids[t] of w [V, C] times its scale [V], plus position[t]; ids are clamped to 0 .. V - 1."""
    row = np.clip(ids, 0, len(w) - 1)
    result: F32 = w[row].astype(np.float32) * scale[row][:, None] + position[: len(ids)]
    return result


def patches(x: F32, size: int) -> F32:
    """The squares of ``size`` x ``size`` pixels of x [H, W, C], row by row: [H / size * W / size, size * size * C]."""
    height, width, channels = x.shape
    cut = x.reshape(height // size, size, width // size, size * channels).transpose(0, 2, 1, 3)
    return cut.reshape(-1, size * size * channels)


@ieee
def position(x: F32, table: F32) -> F32:
    """The first R - T rows of ``table`` [R, C], then x [T, C] + its last T rows."""
    first = len(table) - len(x)
    return np.concatenate([table[:first], table[first:] + x])


@ieee
def mean(x: F32) -> F32:
    """The mean of the rows of x [N, C]: the sum, row by row, over N."""
    total: F32 = x[0]
    for row in x[1:]:
        total = total + row
    result: F32 = total / np.float32(len(x))
    return result


@ieee
def normalize(
    x: U8, rows: int, groups: int, gamma: F32, beta: F32, epsilon: float, zero_y: int, lo: int, hi: int
) -> U8:
    """x [R, C] in blocks of ``rows`` rows and ``groups`` groups of channels, each with mean 0 and variance 1, then
    times ``gamma`` [C] plus ``beta`` [C], in units of y's scale.

    With the exact integers S = sum q and V = n * sum q^2 - S^2 over the n codes q of a block's group:
    y = (n * q - S) * (1 / sqrt(V + epsilon)) * gamma + beta.
    """
    q = x.astype(np.int64).reshape(len(x) // rows, rows, groups, -1)
    n = rows * q.shape[3]
    total = q.sum(axis=(1, 3), keepdims=True)
    spread = n * (q * q).sum(axis=(1, 3), keepdims=True) - total * total
    inverse = np.float32(1) / np.sqrt(spread.astype(np.float32) + np.float32(epsilon))
    scaled = ((n * q - total).astype(np.float32) * inverse).reshape(x.shape)
    return requantize(scaled * gamma + beta, zero_y, lo, hi)


@ieee
def resample(x: U8, rows: I32, row_weights: F32, columns: I32, column_weights: F32) -> U8:
    """x [H, W, C] to [OH, OW, C]: between the rows ``rows[i]`` and the next, and the columns alike, by their weights.

    A weight is the share of the next row or column; behind the last one it is the last itself.
    """
    codes = x.astype(np.float32)
    next_rows, next_columns = np.minimum(rows + 1, len(x) - 1), np.minimum(columns + 1, x.shape[1] - 1)
    u, v = column_weights[None, :, None], row_weights[:, None, None]
    above = codes[rows][:, columns] + (codes[rows][:, next_columns] - codes[rows][:, columns]) * u
    left, right = codes[next_rows][:, columns], codes[next_rows][:, next_columns]
    below = left + (right - left) * u
    return np.rint(above + (below - above) * v).astype(np.uint8)


# --- weights: b-bit codes, packed tightly, least significant bit first ------------------------------------------------


def weight_levels(bits: int) -> NDArray[np.int8]:
    """The integer weight of each code 0 .. 2^bits - 1 (2 bits: -3 -1 1 3; else code - (2^(bits-1) - 1), the last code
    unused).
    """
    if bits == 2:
        return np.array([-3, -1, 1, 3], np.int8)
    return (np.arange(1 << bits) - ((1 << (bits - 1)) - 1)).astype(np.int16).clip(-127, 127).astype(np.int8)


def pack_bits(codes: U8, bits: int) -> U8:
    """Codes (each < 2^bits) to a tight bit stream: code i starts at bit i * bits, least significant bit first; zeros
    fill the last byte.
    """
    each = (codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(each.reshape(-1), bitorder="little")


def unpack_bits(packed: U8, bits: int, count: int) -> U8:
    """The ``count`` codes in ``packed``."""
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes: U8 = (each << np.arange(bits, dtype=np.uint8)).sum(axis=1).astype(np.uint8)
    return codes


# --- the codec at the cut: value = lo + scale * code, float32 throughout ----------------------------------------------


@ieee
def codec_inverse(scale: F32) -> F32:
    """1 / scale in float32, or 0 if the scale is 0 (a constant: every code is 0)."""
    return np.where(scale > 0, np.float32(1) / scale, np.float32(0))


@ieee
def codec_quantize(x: F32, lo: F32, scale: F32, bits: int, levels: F32 | None = None) -> U8:
    """x [..., C] to codes; ``lo`` and ``scale`` [1] or [C]. NaN becomes 0 here; encoders reject it earlier.

    With a codebook of ``levels`` [2^bits], the code is the number of thresholds below the value: the nearest level, the
    lower one in a tie.
    """
    v = (x - lo) * codec_inverse(scale)
    if levels is not None:
        codes: U8 = (v[..., None] > codec_thresholds(levels)).sum(axis=-1).astype(np.uint8)
        return codes
    return codec_round(v, np.float32((1 << bits) - 1))


def codec_round(v: F32, top: F32 | np.float32) -> U8:
    """The nearest of 0 .. ``top``, half to even; 0 for NaN."""
    v = np.where(v > 0, v, np.float32(0))
    return np.rint(np.where(v < top, v, top)).astype(np.uint8)


@ieee
def codec_thresholds(levels: F32) -> F32:
    """The means of neighbouring levels."""
    return (levels[1:] + levels[:-1]) * np.float32(0.5)


@ieee
def codec_dequantize(codes: U8, lo: F32, scale: F32, levels: F32 | None = None) -> F32:
    """Codes [..., C] to values: one product and one sum."""
    return lo + scale * (codes.astype(np.float32) if levels is None else levels[codes])


@ieee
def codec_rotate(x: F32, size: int, factor: float = 1.0) -> F32:
    """Blocks of ``size`` of the last axis times a Hadamard matrix: sums and differences over the distances 1, 2, 4,
    ..., then one product.

    Applied again with the factor 1 / size it is the inverse.
    """
    y = x.reshape(*x.shape[:-1], -1, size)
    for power in range(size.bit_length() - 1):
        pairs = y.reshape(*y.shape[:-1], -1, 2, 1 << power)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack((a + b, a - b), axis=-2).reshape(y.shape)
    return (y * np.float32(factor)).reshape(x.shape)


@ieee
def codec_side(x: F32, by_range: bool) -> F32:
    """Offset and size [..., 2] of each row x [..., n]: see `kernels.codec.measure`."""
    if by_range:
        offset = -_up(-x.min(axis=-1))
        return np.stack((offset, _up(x.max(axis=-1) - offset)), axis=-1)
    size = _up(lane_sum(np.abs(x)) / np.float32(x.shape[-1]))
    return np.stack((np.zeros_like(size), size), axis=-1)


def _up(value: F32) -> F32:
    """``value`` rounded up to the upper 16 bits of a float32."""
    word = value.astype(np.float32).view(np.uint32)
    word = np.where((word >> 31 == 0) & (word & 0xFFFF != 0), word + np.uint32(0x10000), word)
    return (word & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


@ieee
def codec_stretched(lo: F32, scale: F32, side: F32) -> tuple[F32, F32]:
    """The ranges [..., C] of rows with offset and size ``side`` [..., 2]."""
    offset, size = side[..., :1], side[..., 1:]
    return offset + size * lo, size * scale


@ieee
def codec_project(x: F32, centre: F32, matrix: F32) -> F32:
    """(x [..., C] - centre) times ``matrix`` [C, K]; sums over c in order, without fused multiply-add."""
    total = np.zeros((*x.shape[:-1], matrix.shape[1]), np.float32)
    for c in range(len(matrix)):
        total = total + (x[..., c : c + 1] - centre[c]) * matrix[c]
    return total


def static_rans_encode(codes: U8, tables: list[list[int]], lanes: int) -> tuple[list[int], list[int]]:
    """Encode ``codes`` [n, C]: final states, and 16-bit words in reading order; ``tables`` [C] of frequencies with the
    sum 2^12.
    """
    states, words, flat = [1 << 15] * lanes, [], codes.reshape(-1)
    for i in range(len(flat) - 1, -1, -1):
        table, code, lane = tables[i % len(tables)], int(flat[i]), i % lanes
        f, x = table[code], states[lane]
        if x >= f << 19:
            words.append(x & 0xFFFF)
            x >>= 16
        states[lane] = (x // f << 12) + x % f + sum(table[:code])
    return states, words[::-1]


def static_rans_decode(states: list[int], words: list[int], tables: list[list[int]], count: int) -> U8:
    """Decode ``count`` codes (flat). Raises ValueError unless all words are used and the states end with their initial
    values.
    """
    held, left, codes = list(states), list(words), np.zeros(count, np.uint8)
    for i in range(count):
        table, lane = tables[i % len(tables)], i % len(states)
        slot = held[lane] & 4095
        code = next(s for s in range(len(table)) if sum(table[: s + 1]) > slot)
        x = table[code] * (held[lane] >> 12) + slot - sum(table[:code])
        held[lane] = x if x >= 1 << 15 else x << 16 | left.pop(0)
        codes[i] = code
    if left or held != [1 << 15] * len(states):
        raise ValueError("the words do not end with the codes")
    return codes


@ieee
def codec_tables(scale_x: float, zero_x: int, lo: F32, scale: F32, bits: int, levels: F32 | None = None) -> U8:
    """[C, 256]: for each channel the code at the cut of each 8-bit code x with the value scale_x * (x - zero_x)."""
    values = np.float32(scale_x) * (np.arange(256) - zero_x).astype(np.float32)
    return codec_quantize(values[None, :], lo[:, None], scale[:, None], bits, levels)


# --- adaptive rANS, for the constants of a segment file ---------------------------------------------------------------


def adaptive_rans_sums(counts: NDArray[np.int64]) -> list[int]:
    """Cumulative frequencies, 0 to 2^16, in proportion to ``counts`` [symbols] and at least 1 each; the most frequent
    gets the remainder.
    """
    spare = (1 << 16) - len(counts)
    shares = [1 + int(n) * spare // int(counts.sum()) for n in counts]
    shares[int(np.argmax(counts))] += (1 << 16) - sum(shares)
    return [sum(shares[:s]) for s in range(len(shares) + 1)]


def adaptive_rans_epochs(count: int) -> list[range]:
    """The epochs of ``count`` symbols, within which frequencies are constant: 16 symbols, then a quarter of those
    before, at least 16.
    """
    parts: list[range] = []
    while count > (begin := parts[-1].stop if parts else 0):
        parts.append(range(begin, min(count, begin + max(16, begin // 4))))
    return parts


def adaptive_rans_encode(arrays: list[tuple[U8, U8, NDArray[np.int64]]]) -> tuple[int, list[int]]:
    """Encode ``arrays`` of (codes, contexts, initial counts) to the final state and 32-bit words in reading order."""
    steps: list[tuple[int, int]] = []
    for codes, contexts, start in arrays:
        counts, where = start.copy(), np.broadcast_to(contexts, codes.shape)
        for part in adaptive_rans_epochs(len(codes)):
            sums = [adaptive_rans_sums(row) for row in counts]
            rows = [(sums[where[i]], int(codes[i])) for i in part]
            steps += [(row[code], row[code + 1]) for row, code in rows]
            np.add.at(counts, (where[part.start : part.stop], codes[part.start : part.stop]), 32)
    x, words = 1 << 31, []
    for low, high in reversed(steps):
        if x >= (high - low) << 47:
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x // (high - low) << 16) + x % (high - low) + low
    return x, words[::-1]


def adaptive_rans_decode(x: int, words: list[int], arrays: list[tuple[int, U8, NDArray[np.int64]]]) -> list[U8]:
    """Decode the codes of each of ``arrays`` of (number of codes, contexts, initial counts)."""
    left, found = list(words), []
    for count, contexts, start in arrays:
        counts, where, codes = start.copy(), np.broadcast_to(contexts, count), np.zeros(count, np.uint8)
        for part in adaptive_rans_epochs(count):
            sums = [adaptive_rans_sums(row) for row in counts]
            for i in part:
                mine, slot = sums[where[i]], x & 0xFFFF
                codes[i] = code = max(s for s in range(len(mine) - 1) if mine[s] <= slot)
                x = (mine[code + 1] - mine[code]) * (x >> 16) + slot - mine[code]
                if x < 1 << 31:
                    x = x << 32 | (left.pop(0) if left else 0)
            np.add.at(counts, (where[part.start : part.stop], codes[part.start : part.stop]), 32)
        found.append(codes)
    return found
