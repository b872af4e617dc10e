"""Weight rounding that minimizes the error of a layer's outputs on the samples, not the error of its weights.

The bias absorbs the mean output error. With the covariance H of the inputs and e = w - scale x q, the remaining squared
error is e' H e. For each output channel and a few scales, q comes from rounding with error feedback (GPTQ, which equals
Babai's nearest plane). Coordinate descent then improves one integer at a time, and the scale is fitted again in
between. Nearest rounding is a candidate too, so the result is never worse than it on these inputs.

H belongs to the float network, so the integers of a layer depend on its own grid only. A plan may mix grids freely, and
calibration computes the integers of every grid once.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.bundle.cache import Cache, Part, key
from calibration.lowering.layers import Conv, Embed, Linear, Network, Weighted
from calibration.lowering.lower import Calibration, Lowered, lower
from calibration.parallel import in_order
from calibration.rounding import embedding, packed_weights
from calibration.rounding.quantizer import Rounded, entropy, least_scale, nearest, top_level
from calibration.samples.samples import Samples
from calibration.statistics.activations import Progress
from calibration.statistics.covariance import Moments, Product, collect

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
S8 = NDArray[np.int8]
#: "plain": nearest level; the outputs keep their mean error. "nearest": the bias removes it. "gptq": minimizes the
#: output error.
Rounding: TypeAlias = Literal["plain", "nearest", "gptq"]

WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8)
#: Bits per weight of the even grids: one step for the whole layer, levels entropy-coded. For large layers they have the
#: least noise for their bytes.
RATES: Final = (1.25, 1.6, 2.0, 2.4, 2.8, 3.3, 4.0)
#: Names of the even grids, one for each of `RATES`. The names 2 to 8 are widths, with a scale for each output.
EVEN: Final = tuple(range(9, 9 + len(RATES)))
#: The samples that rounding uses, and the others, on which noise is measured. On the samples used, the last layers of
#: EfficientNet-Lite0, with one position per sample, show a fifth of the noise that they have on others.
SEEN: Final = slice(0, None, 2)
UNSEEN: Final = slice(1, None, 2)
#: Number of inputs whose errors are fed back one at a time, and size of triangles that are inverted as general
#: matrices.
LEAF: Final = 8
BLOCK: Final = 64
#: Bisection steps for the step of an even grid; they find it within 0.1 per cent.
HALVINGS: Final = 12
#: Start scales, as multiples of the scale with the least squared weight error. With at most `SHALLOW` inputs (depthwise
#: layers) many cost little.
SHARES: Final = (0.9, 1.0)
SHALLOW: Final = 32
#: Maximum number of weights from which the entropy of a layer is estimated.
ENTROPY_WEIGHTS: Final = 1 << 18
SHALLOW_SHARES: Final = tuple(float(s) for s in np.geomspace(0.4, 2.0, 24))
#: Layers in memory that wait for a core. The layers with the most work come first, so that no core ends alone.
AHEAD: Final = 16
#: Maximum number of weights that are rounded side by side; of grouped convolutions, of outputs per group (see
#: `covariance.TOGETHER_GROUPED`).
TOGETHER: Final = 1 << 20
TOGETHER_GROUPED: Final = 400


@dataclass(frozen=True)
class Options:
    """Options of the rounding.

    - ``damping``: minimum share of the variance of every input that is treated as independent; few positions raise it
      (`damped`).
    - ``order``: round inputs with a large variance first.
    - ``sweeps``: passes of the descent from each start scale.
    """

    damping: float = 0.01
    order: bool = True
    sweeps: int = 1


DEFAULT: Final = Options()


def round_layers(
    model: onnx.ModelProto,
    network: Network,
    calibration: Calibration,
    cut: str,
    samples: Samples,
    progress: Progress,
    widths: Sequence[int] = WIDTHS,
    options: Options = DEFAULT,
    rates: Sequence[float] = (),
    cache: Cache | None = None,
) -> dict[tuple[str, int], Rounded]:
    """The weights of each layer of the head up to ``cut``, as `Calibration.roundings` takes them.

    They are rounded at each of ``widths`` and, on `EVEN` grids, at each of ``rates``.
    """
    made = grids(model, network, calibration, cut, samples, progress, widths, rates, options, cache)
    found, names = {layer.out: each for layer, each in made}, (*widths, *EVEN[: len(rates)])
    return {
        (layer.out, name): grid
        for layer in network.weighted(cut)
        for name, grid in zip(names, found[layer.out], strict=True)
    }


def grids(
    model: onnx.ModelProto,
    network: Network,
    calibration: Calibration,
    cut: str,
    samples: Samples,
    progress: Progress,
    widths: Sequence[int] = WIDTHS,
    rates: Sequence[float] = (),
    options: Options = DEFAULT,
    cache: Cache | None = None,
) -> Iterator[tuple[Weighted, list[Rounded]]]:
    """Each layer of the head up to ``cut`` with its weights at each of ``widths`` and, on even grids, of ``rates``.

    Embeddings come first, then the layers with the most work.

    The rows of an embedding are rounded to the nearest level, with finer steps for tokens that are common in
    ``samples``. ``cache``: rounded layers; only layers with new weights or inputs are computed.
    """
    lowered = lower(network, calibration, cut, 8)
    layers = network.weighted(cut)
    kept = functools.partial(_kept, cache, [*widths, *range(EVEN[0], EVEN[0] + len(rates))])
    tables = [layer for layer in layers if isinstance(layer, Embed)]
    for done, table in enumerate(tables, 1):
        often = embedding.counts(samples, len(table.weight)) if rates else np.zeros(0, np.int64)
        make = functools.partial(_table, calibration, table, often, widths, rates)
        yield table, kept(table, [often, f"{rates}"], make)
        progress("rounding", done, len(layers))
    products = sorted((layer for layer in layers if isinstance(layer, Conv | Linear)), key=_work, reverse=True)
    leasts = [_least(layer, lowered) for layer in products]
    about = f"{options} {rates} {[*widths]}"
    aliases = [] if cache is None else _aliases(model, samples, products, leasts, about)
    known = None if cache is None else _all_known(cache, aliases, products)
    if known is not None:
        yield from known
        progress("rounding", len(layers), len(layers))
        return

    def made(work: tuple[int, tuple[Product, Moments]]) -> tuple[Weighted, list[Rounded]]:
        place, (layer, moments) = work
        make = functools.partial(_product, layer, leasts[place], moments, options, widths, rates)
        inputs: list[Part] = [moments.mean, moments.covariance, f"{moments.count}"]
        alias = aliases[place] if aliases else ""
        return layer, kept(layer, [leasts[place], *inputs, f"{options} {rates}"], make, alias)

    moments = enumerate(collect(model, network, products, samples, progress))
    for done, each in enumerate(in_order(made, moments, AHEAD), len(tables) + 1):
        yield each
        progress("rounding", done, len(layers))


def _work(layer: Product) -> int:
    """The work of rounding ``layer``: products of its weights with the covariance of its inputs."""
    return layer.weight.size * math.prod(layer.weight.shape[1:])


def _least(layer: Product, lowered: Lowered) -> F32:
    scale_x = lowered.header.tensors[lowered.index[layer.inputs[0]]].scale
    return least_scale(layer.bias, scale_x) if isinstance(layer, Conv) else np.zeros(len(layer.bias), np.float32)


def _aliases(
    model: onnx.ModelProto, samples: Samples, products: Sequence[Product], leasts: Sequence[F32], about: str
) -> list[str]:
    """A cache name for each of ``products``, derived from the sources of its moments.

    If the cache has all of these names, no moments need to be collected.
    """
    seen = hashlib.sha256(model.SerializeToString(deterministic=True))
    for sample in samples:
        seen.update(np.ascontiguousarray(sample).tobytes())
    return [
        key("rounded by samples", seen.digest(), layer.out, least, about)
        for layer, least in zip(products, leasts, strict=True)
    ]


def _all_known(
    cache: Cache, aliases: Sequence[str], products: Sequence[Product]
) -> list[tuple[Weighted, list[Rounded]]] | None:
    """Each of ``products`` with its grids if the cache has all of them; else None.

    Partial use is not possible: the samples of a layer's moments depend on the other layers collected with it.
    """
    found: list[tuple[Weighted, list[Rounded]]] = []
    for alias, layer in zip(aliases, products, strict=True):
        entry = cache.read(alias)
        data = None if entry is None else cache.read(entry.decode())
        if data is None:
            return None
        found.append((layer, [made for _, made in sorted(packed_weights.load(data, layer.weight.shape).items())]))
    return found


def _table(
    calibration: Calibration, table: Embed, often: I64, widths: Sequence[int], rates: Sequence[float]
) -> list[Rounded]:
    evenly = embedding.even(table, rates, often) if rates else []
    return [*(calibration.rounded(table, bits) for bits in widths), *evenly]


def _product(
    layer: Product, least: F32, moments: Moments, options: Options, widths: Sequence[int], rates: Sequence[float]
) -> list[Rounded]:
    rounder = Rounder(layer.weight, layer.bias, least, moments, options)
    return rounder.all(widths, rates)


def _kept(
    cache: Cache | None,
    names: Sequence[int],
    layer: Weighted,
    parts: Sequence[Part],
    make: Callable[[], list[Rounded]],
    alias: str = "",
) -> list[Rounded]:
    """The weights of ``layer`` on each of its grids ``names``, from the cache or from ``make``.

    ``parts``: everything else that they depend on besides the weights and ``names``. ``alias``: another cache name for
    them.
    """
    if cache is None:
        return make()
    entry = key("rounded layer", layer.weight, layer.bias, *parts, f"{names}")
    if alias:
        cache.write(alias, entry.encode())
    known = cache.read(entry)
    if known is None:
        made = make()
        cache.write(entry, packed_weights.save({("", name): grid for name, grid in zip(names, made, strict=True)}))
        return made
    found = packed_weights.load(known, layer.weight.shape)
    return [found["", name] for name in names]


class Rounder:
    """Rounds a layer with weights [OC, ...] and bias [OC]; each output sums over the later axes of the weights.

    No scale is below ``least`` [OC]. Sizes: G groups of R outputs, each a sum of K inputs. Arrays are [G, K, R], with
    the inputs in the order of rounding. Products with the covariance are float32; their error is below a thousandth of
    a level.
    """

    def __init__(self, weight: F32, bias: F32, least: F32, moments: Moments, options: Options = DEFAULT) -> None:
        self._weight, self._bias, self._least, self._moments, self._options = weight, bias, least, moments, options
        groups, depth = moments.mean.shape
        cost = damped(moments, options.damping)
        variance = np.diagonal(cost, axis1=1, axis2=2)
        order = (
            np.argsort(-variance, axis=1, kind="stable") if options.order else np.tile(np.arange(depth), (groups, 1))
        )
        self._order, self._rows = order, np.arange(groups)[:, None]
        places = self._rows[:, :, None], order[:, :, None], order[:, None, :]
        cost = cost[places]
        right = _right(cost)
        self._right, self._feed = right.astype(np.float32), _feed(right).astype(np.float32)
        self._root = np.diagonal(right, axis1=1, axis2=2)[:, :, None].astype(np.float32)
        self._cost = cost.astype(np.float32)
        self._covariance = moments.covariance[places].astype(np.float32)
        self._w = self._columns(weight)
        self._pull = self._cost @ self._w
        self._floor = np.maximum(least, np.float32(1e-20)).reshape(groups, -1)

    def at(self, bits: int) -> Rounded:
        """The weights at ``bits`` (2..8)."""
        return self.all([bits], [])[0]

    def even(self, rate: float) -> Rounded:
        """The weights on one grid for all outputs, which takes ``rate`` bits per weight after entropy coding.

        Large weights cost extra bits only where they occur, and channels with small weights cost few bits. So the noise
        is lower than with a grid for each channel of the same size. Packed levels may need 8 bits.
        """
        return self.all([], [rate])[0]

    def all(self, widths: Sequence[int], rates: Sequence[float]) -> list[Rounded]:
        """`at` each of ``widths``, then `even` at each of ``rates``.

        All candidates are rounded side by side, like further outputs.
        """
        plain = [nearest(self._weight, self._bias, bits, self._least) for bits in widths]
        starts = [self._starts(bits, one.scale) for bits, one in zip(widths, plain, strict=True)]
        each = 1
        if self._w.shape[1] <= SHALLOW:  # little work: every start descends, not only the best one
            each = len(SHALLOW_SHARES)
            starts = [[start] for grid in starts for start in grid]
        ended = self._in_parts(starts)
        steps = [np.maximum(np.full_like(self._floor, step), self._floor) for step in even_steps(self._weight, rates)]
        even = self._in_parts([[_Start(8, step, False)] for step in steps])
        found = []
        for i, one in enumerate(plain):
            scale = one.scale.reshape(self._floor.shape)
            found.append(self._elect([*ended[i * each : (i + 1) * each], (self._columns(one.levels), scale)]))
        return found + [self._elect([one]) for one in even]

    def _starts(self, bits: int, scale: F32) -> list[_Start]:
        shares = SHARES if self._w.shape[1] > SHALLOW else SHALLOW_SHARES
        scale = scale.reshape(self._floor.shape)
        return [_Start(bits, np.maximum(scale * np.float32(share), self._floor), True) for share in shares]

    def _in_parts(self, grids: Sequence[Sequence[_Start]]) -> list[tuple[F32, F32]]:
        """`_descended`, for as many ``grids`` at a time as memory allows."""
        together = max(1, TOGETHER // self._w.size)
        if len(self._w) > 1:
            together = max(1, min(together, TOGETHER_GROUPED // self._w.shape[2]))
        parts = (grids[first : first + together] for first in range(0, len(grids), together))
        return [one for part in parts for one in self._descended(part)]

    def _descended(self, grids: Sequence[Sequence[_Start]]) -> list[tuple[F32, F32]]:
        """The levels [G, K, R] and scale [G, R] of each of ``grids``, each with equally many starts.

        Error feedback runs from every start. The descent continues from the best start of each output. With the
        errors f that were fed back and the factor cost = right right', z = f x diagonal(right) is the remaining error:
        e' cost e = |z|^2, and cost e = right z. So neither needs a product with the cost.
        """
        count = len(grids)
        w, pull, floor = (np.tile(x, count) for x in (self._w, self._pull, self._floor))
        grid = _Grid.of(np.repeat([starts[0].bits for starts in grids], self._w.shape[2]))
        refit = np.repeat([starts[0].refit for starts in grids], self._w.shape[2])
        scale, levels, rest = self._fed_back(w, [start[0] for start in grids], grid)
        least = _squares(rest)
        for place in range(1, len(grids[0])):
            other = self._fed_back(w, [starts[place] for starts in grids], grid)
            error = _squares(other[2])
            better = error < least
            scale, least = np.where(better, other[0], scale), np.minimum(error, least)
            np.copyto(levels, other[1], where=better[:, None])
            np.copyto(rest, other[2], where=better[:, None])
        slope = _upper_product(self._right, rest)
        for sweep in range(self._options.sweeps + 1):
            if sweep:
                _descend(slope, self._cost, scale, grid, levels)
            fitted = np.where(refit, _refit(pull, levels, slope, scale, floor), scale)
            slope = pull + (slope - pull) * (fitted / scale)[:, None]
            scale = fitted
        return list(zip(np.split(levels, count, axis=2), np.split(scale, count, axis=1), strict=True))

    def _fed_back(self, w: F32, starts: Sequence[_Start], grid: _Grid) -> tuple[F32, F32, F32]:
        """Scale, levels, and remaining errors z of error feedback from ``starts``."""
        scale, levels = np.concatenate([start.scale for start in starts], axis=1), np.empty_like(w)
        rest = _successive(w.copy(), self._feed, scale, grid, levels)
        rest *= self._root
        return scale, levels, rest

    def _elect(self, candidates: Sequence[tuple[F32, F32]]) -> Rounded:
        """For each output, the candidate with the least squared error on the inputs."""
        levels, scale = candidates[0]
        least = self._error(levels, scale) if len(candidates) > 1 else np.zeros(0)
        for other, other_scale in candidates[1:]:
            error = self._error(other, other_scale)
            levels = np.where((error < least)[:, None], other, levels)
            scale, least = np.where(error < least, other_scale, scale), np.minimum(error, least)
        wrong = (self._w - levels.astype(np.float64) * scale[:, None])[self._rows, self._back]
        moved = np.einsum("gk,gkr->gr", self._moments.mean, wrong)
        integers = levels[self._rows, self._back].transpose(0, 2, 1).reshape(self._weight.shape).astype(np.int8)
        return Rounded(integers, scale.reshape(-1), self._bias.astype(np.float64) + moved.reshape(-1))

    def _error(self, levels: F32, scale: F32) -> F32:
        """Mean squared error of each output [G, R] without its mean, which the bias absorbs."""
        wrong = self._w - levels * scale[:, None]
        found: F32 = np.einsum("gkr,gkr->gr", wrong, self._covariance @ wrong)
        return found

    @functools.cached_property
    def _back(self) -> I64:
        return np.argsort(self._order, axis=1)

    def _columns(self, weight: NDArray[np.generic]) -> F32:
        groups, depth = self._order.shape
        columns: F32 = weight.astype(np.float32).reshape(groups, -1, depth).transpose(0, 2, 1)[self._rows, self._order]
        return columns


@dataclass(frozen=True)
class _Start:
    """Start of a descent: levels of ``bits`` at ``scale`` [G, R]. ``refit``: fit the scale again to the levels."""

    bits: int
    scale: F32
    refit: bool


@dataclass(frozen=True)
class _Grid:
    """The levels of each output [R]: pitch x n + offset for n from ``least`` to ``greatest``."""

    pitch: F32
    offset: F32
    least: F32
    greatest: F32

    @classmethod
    def of(cls, bits: I64) -> _Grid:
        offset = (bits == 2).astype(np.float32)  # 2 bits have odd levels
        top = np.array([top_level(int(b)) for b in bits], np.float32)
        return cls(1 + offset, offset, (-top - offset) / (1 + offset), (top - offset) / (1 + offset))

    def snap(self, x: F32) -> F32:
        """The levels nearest to pitch x ``x`` + offset."""
        n: F32 = np.clip(np.rint(x), self.least, self.greatest)
        return n * self.pitch + self.offset


def even_steps(weight: F32, rates: Sequence[float]) -> list[float]:
    """The steps at which the nearest levels of ``weight`` have an entropy of ``rates`` bits.

    They lie between the largest weight and the step of 8-bit levels.
    """
    peak = max(float(np.abs(weight).max(initial=0.0)), 1e-20)
    weight = weight.reshape(-1)[:: 1 + weight.size // ENTROPY_WEIGHTS]
    spent = functools.cache(lambda step: entropy(np.rint(weight / np.float32(step)).astype(np.int64)))

    def step_of(rate: float) -> float:
        fine, coarse = peak / 127, peak
        if spent(fine) <= rate:
            return fine
        for _ in range(HALVINGS):
            step = math.sqrt(fine * coarse)
            fine, coarse = (fine, step) if spent(step) <= rate else (step, coarse)
        return coarse

    return [step_of(rate) for rate in rates]


def damped(moments: Moments, damping: float) -> F64:
    """The covariance [G, K, K] shrunk to its diagonal, by the larger of ``damping`` and oracle approximating shrinkage.

    Source: Chen et al., IEEE Transactions on Signal Processing 58, 2010. Few positions give more shrinkage.
    """
    h, p = moments.covariance, moments.covariance.shape[1]
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    trace, square = diagonal.sum(axis=1), (h**2).sum(axis=(1, 2))
    spread = (moments.count + 1 - 2 / p) * (square - trace**2 / p)
    wanted = ((1 - 2 / p) * square + trace**2) / np.maximum(spread, 1e-300)
    share = np.clip(wanted, damping, 1.0)[:, None, None]
    alone = diagonal + np.maximum(1e-4 * diagonal.mean(axis=1, keepdims=True), 1e-12)  # for constant inputs
    made: F64 = (1 - share) * h + share * alone[:, :, None] * np.eye(p)
    return made


def _right(cost: F64) -> F64:
    """The upper triangular factor of ``cost`` [G, K, K] = right right'."""
    made: F64 = np.ascontiguousarray(np.linalg.cholesky(cost[:, ::-1, ::-1])[:, ::-1, ::-1], np.float64)
    return made


def _feed(right: F64) -> F64:
    """Row k: the share of the error of input k that is subtracted from the weights of later inputs."""
    upper = _inverse(right)
    made: F64 = upper / np.diagonal(upper, axis1=1, axis2=2)[:, :, None]
    return made


def _inverse(upper: F64) -> F64:
    """The inverse of upper triangular matrices [G, K, K], by halves: a sixth of the work of a general inverse."""
    depth = upper.shape[1]
    made: F64 = np.zeros_like(upper)
    if depth <= BLOCK:
        made[:] = np.linalg.inv(upper)
        return made
    half = depth // 2
    made[:, :half, :half], made[:, half:, half:] = _inverse(upper[:, :half, :half]), _inverse(upper[:, half:, half:])
    made[:, :half, half:] = -(made[:, :half, :half] @ upper[:, :half, half:]) @ made[:, half:, half:]
    return made


def _successive(left: F32, feed: F32, scale: F32, grid: _Grid, levels: F32) -> F32:
    """Round the weights ``left`` [G, K, R] at ``scale`` [G, R] into ``levels``, input by input.

    Feeds each error back to later inputs. Overwrites ``left`` and returns the errors. Inputs are split into halves down
    to `LEAF`, so nearly all of the work is matrix products.
    """
    depth, wrong = left.shape[1], np.empty_like(left)
    if depth > LEAF:
        half = _half(depth)
        wrong[:, :half] = _successive(left[:, :half], feed[:, :half, :half], scale, grid, levels[:, :half])
        left[:, half:] -= feed[:, :half, half:].transpose(0, 2, 1) @ wrong[:, :half]
        wrong[:, half:] = _successive(left[:, half:], feed[:, half:, half:], scale, grid, levels[:, half:])
        return wrong
    inverse, shift = 1 / (scale * grid.pitch), grid.offset / grid.pitch
    for k in range(depth):
        levels[:, k] = grid.snap(left[:, k] * inverse - shift)
        wrong[:, k] = left[:, k] - levels[:, k] * scale
        left[:, k + 1 :] -= feed[:, k, k + 1 :, None] * wrong[:, None, k]
    return wrong


def _upper_product(upper: F32, x: F32) -> F32:
    """``upper`` @ ``x`` for upper triangular matrices [G, K, K], by halves: half of the work of a general product."""
    depth = upper.shape[1]
    if depth <= BLOCK:
        whole: F32 = upper @ x
        return whole
    half, made = depth // 2, np.empty_like(x)
    made[:, :half] = _upper_product(upper[:, :half, :half], x[:, :half])
    made[:, :half] += upper[:, :half, half:] @ x[:, half:]
    made[:, half:] = _upper_product(upper[:, half:, half:], x[:, half:])
    return made


def _squares(x: F32) -> F32:
    """Sums [G, R] of squares of x [G, K, R]."""
    found: F32 = np.einsum("gkr,gkr->gr", x, x)
    return found


def _descend(slope: F32, cost: F32, scale: F32, grid: _Grid, levels: F32) -> F32:
    """Coordinate descent: set each of the ``levels`` in turn to its best value. Returns the change of the weights.

    ``slope`` [G, K, R] = cost (w - levels x scale) follows the levels. Splits into halves as `_successive`.
    """
    depth, moved = levels.shape[1], np.empty_like(levels)
    if depth > LEAF:
        half = _half(depth)
        moved[:, :half] = _descend(slope[:, :half], cost[:, :half, :half], scale, grid, levels[:, :half])
        slope[:, half:] -= cost[:, half:, :half] @ moved[:, :half]
        moved[:, half:] = _descend(slope[:, half:], cost[:, half:, half:], scale, grid, levels[:, half:])
        slope[:, :half] -= cost[:, :half, half:] @ moved[:, half:]
        return moved
    inverse = 1 / (scale * grid.pitch)
    for k in range(depth):
        step = inverse / cost[:, k, k, None]
        wanted: Any = (levels[:, k] - grid.offset) / grid.pitch + slope[:, k] * step
        best = grid.snap(wanted)
        moved[:, k] = (best - levels[:, k]) * scale
        levels[:, k] = best
        slope -= cost[:, :, k, None] * moved[:, None, k]
    return moved


def _half(depth: int) -> int:
    return -(-depth // (2 * LEAF)) * LEAF


def _refit(pull: F32, levels: F32, slope: F32, scale: F32, floor: F32) -> F32:
    """The best scale [G, R] for given levels; the old scale if the best is not positive.

    ``pull`` = cost w, ``slope`` = cost (w - levels x ``scale``).
    """
    along = np.einsum("gkr,gkr->gr", levels, pull)
    square = (along - np.einsum("gkr,gkr->gr", levels, slope)) / scale
    good = (square > 0) & (along > 0)
    return np.maximum(np.where(good, along / np.where(good, square, 1), scale), floor)
