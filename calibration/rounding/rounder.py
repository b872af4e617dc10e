"""Rounding that looks at a layer's inputs: the integer weights whose outputs, not whose values, are nearest to the float ones.

The mean of what rounding does to an output goes into the bias, so with H the covariance of the inputs, e = w - scale x q costs e' H e. For each
output channel and some scales, q comes from successive rounding with error feedback (GPTQ, which is Babai's nearest plane) and is then improved
one integer at a time (coordinate descent), the scale refitted in between. Nearest rounding stands for election too, so the result is never worse
than it on these inputs.

A covariance is that of the float network, so a layer's integers depend on its own bits only: a plan may mix bits as it likes, and the integers
of every width can be made once, at calibration.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.bundle.cache import Cache, Part, key
from calibration.lowering.layers import Conv, Embed, Linear, Network, Weighted
from calibration.lowering.lower import Calibration, Lowered, lower
from calibration.rounding import embedding, packed_weights
from calibration.rounding.quantizer import Rounded, entropy, least_scale, nearest, top_level
from calibration.samples.samples import Samples
from calibration.statistics.activations import Progress
from calibration.statistics.covariance import Moments, Product, collect

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
S8 = NDArray[np.int8]
#: "plain" goes to the nearest and leaves the mean error in the outputs, from whose biases "nearest" takes it; "gptq" looks at the outputs.
Rounding: TypeAlias = Literal["plain", "nearest", "gptq"]

WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8)
#: Bits a weight of the even grids: one step for all of a layer, its levels entropy-coded. For great layers that is the least noise for its bytes.
RATES: Final = (1.25, 1.6, 2.0, 2.4, 2.8, 3.3, 4.0)
#: What names a layer's grid: 2..8 is a width, with a scale for each output; what follows are the `RATES`.
EVEN: Final = tuple(range(9, 9 + len(RATES)))
#: A bundle's samples that rounding sees, and those on which its noise can be measured: on the former the last layers of EfficientNet-Lite0, with
#: one position a sample, show a fifth of the noise that they make on others.
SEEN: Final = slice(0, None, 2)
UNSEEN: Final = slice(1, None, 2)
#: Inputs whose error is fed back at once.
BLOCK: Final = 64
#: Scales that are tried, as shares of the one of least squared weight error. Up to `SHALLOW` inputs, as in depthwise layers, many cost nothing.
SHARES: Final = (0.9, 1.0)
SHALLOW: Final = 32
#: Weights of a layer whose entropy stands for all.
ENTROPY_WEIGHTS: Final = 1 << 20
SHALLOW_SHARES: Final = tuple(float(s) for s in np.geomspace(0.4, 2.0, 24))
#: Weights that are rounded side by side from several scales, at most.
TOGETHER: Final = 1 << 22


@dataclass(frozen=True)
class Options:
    """``damping``: the least share of its variance by which every input is taken to vary alone (few positions demand more by themselves).

    ``order``: inputs of great variance are rounded first. ``sweeps``: passes of the descent from each of the scales.
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
    """The weights of each layer of the head up to ``cut`` at each of ``widths`` and, as `EVEN` grids, ``rates``: what `Calibration.roundings` takes."""
    made = grids(model, network, calibration, cut, samples, progress, widths, rates, options, cache)
    names = (*widths, *EVEN[: len(rates)])
    return {(layer.out, name): grid for layer, each in made for name, grid in zip(names, each, strict=True)}


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

    The rows of an embedding go to the nearest level, on steps as fine as their token is common among ``samples``. ``cache``: rounded layers, of which
    only those are made whose weights or inputs are new.
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
    products = [layer for layer in layers if isinstance(layer, Conv | Linear)]
    leasts = [_least(layer, lowered) for layer in products]
    about = f"{options} {rates} {[*widths]}"
    aliases = [] if cache is None else _aliases(model, samples, products, leasts, about)
    known = None if cache is None else _all_known(cache, aliases, products)
    if known is not None:
        yield from known
        progress("rounding", len(layers), len(layers))
        return
    for done, (layer, moments) in enumerate(collect(model, network, products, samples, progress)):
        make = functools.partial(_product, layer, leasts[done], moments, options, widths, rates)
        inputs: list[Part] = [moments.mean, moments.covariance, f"{moments.count}"]
        yield layer, kept(layer, [leasts[done], *inputs, f"{options} {rates}"], make, aliases[done] if aliases else "")
        progress("rounding", len(tables) + done + 1, len(layers))


def _least(layer: Product, lowered: Lowered) -> F32:
    scale_x = lowered.header.tensors[lowered.index[layer.inputs[0]]].scale
    return least_scale(layer.bias, scale_x) if isinstance(layer, Conv) else np.zeros(len(layer.bias), np.float32)


def _aliases(
    model: onnx.ModelProto, samples: Samples, products: Sequence[Product], leasts: Sequence[F32], about: str
) -> list[str]:
    """For each of ``products`` a name by what its moments are made of: where all of them lead to entries, no moments need to be gathered."""
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
    """Each of ``products`` with its grids, if the cache has all of them: moments of some alone would be those of other samples."""
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
    return [*map(rounder.at, widths), *map(rounder.even, rates)]


def _kept(
    cache: Cache | None,
    names: Sequence[int],
    layer: Weighted,
    parts: Sequence[Part],
    make: Callable[[], list[Rounded]],
    alias: str = "",
) -> list[Rounded]:
    """The weights of ``layer`` on each of its grids, ``names``: from the cache, or made. ``parts``: what they depend on beside the weights and ``names``.
    ``alias``: another name for them."""
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
    """A layer's weights [OC, ...] (the axes behind the first are what one output sums) and bias [OC], ready to be rounded; no scale will be below ``least`` [OC].

    All sizes below: G groups of R outputs, each the sum of K inputs. Arrays are [G, K, R], inputs in the order in which they are rounded.
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
        self._cost = cost[self._rows[:, :, None], order[:, :, None], order[:, None, :]]
        self._feed = _feed(self._cost)
        self._w = self._columns(weight)
        self._floor = np.maximum(least.astype(np.float64), 1e-20).reshape(groups, -1)

    def at(self, bits: int) -> Rounded:
        """The weights at ``bits`` (2..8)."""
        plain = nearest(self._weight, self._bias, bits, self._least)
        start, scale = self._columns(plain.levels), plain.scale.astype(np.float64).reshape(self._floor.shape)
        shares = SHARES if self._w.shape[1] > SHALLOW else SHALLOW_SHARES
        starts = [np.maximum(scale * share, self._floor) for share in shares]
        return self._elect([*self._all_from(starts, bits), (start, scale)])

    def even(self, rate: float) -> Rounded:
        """The weights on one grid for all outputs, as fine as ``rate`` bits a weight pay for where an entropy coder stores them.

        Rare great weights then cost bits only where they are, and channels of small weights cost few: less noise for the same bytes than a grid
        for each channel, which spends as much on each. The levels may need all of 8 bits where they are packed.
        """
        step = even_step(self._weight, rate)
        levels, scale = self._from(np.maximum(np.full_like(self._floor, step), self._floor), 8, refit=False)
        return self._elect([(levels, scale)])

    def _all_from(self, scales: Sequence[F64], bits: int) -> list[tuple[F64, F64]]:
        """As `_from`, of each of ``scales``: side by side, as if they were outputs of their own, as many as memory has room for."""
        together = max(1, TOGETHER // self._w.size)
        found: list[tuple[F64, F64]] = []
        for first in range(0, len(scales), together):
            some = scales[first : first + together]
            levels, ended = self._from(np.concatenate(some, axis=1), bits)
            found += zip(np.split(levels, len(some), axis=2), np.split(ended, len(some), axis=1), strict=True)
        return found

    def _from(self, scale: F64, bits: int, refit: bool = True) -> tuple[F64, F64]:
        """Levels and scale to which the descent leads from ``scale`` [G, R or a multiple of it]; the second is a float32 value."""
        copies = scale.shape[1] // self._w.shape[2]
        w, floor = np.tile(self._w, (1, 1, copies)), np.tile(self._floor, (1, copies))
        scale = scale if refit else scale.astype(np.float32).astype(np.float64)
        levels = _successive(w, self._feed, scale, bits)
        for _ in range(self._options.sweeps):
            scale = _refit(w, levels, self._cost, scale, floor) if refit else scale
            _descend(w, levels, self._cost, scale, bits)
        scale = _refit(w, levels, self._cost, scale, floor) if refit else scale
        return levels, scale.astype(np.float32).astype(np.float64)

    def _elect(self, candidates: Sequence[tuple[F64, F64]]) -> Rounded:
        """For each output the candidate of least squared error on the inputs as they were."""
        back = np.argsort(self._order, axis=1)
        w, covariance = self._w[self._rows, back], self._moments.covariance
        levels = np.stack([one[self._rows, back] for one, _ in candidates])  # [N, G, K, R]
        scales = np.stack([scale for _, scale in candidates])
        wrong = w - levels * scales[:, :, None]
        best = np.einsum("ngkr,ngkr->ngr", wrong, covariance @ wrong).argmin(axis=0)[None]
        chosen = np.take_along_axis(levels, best[:, :, None], axis=0)[0]
        scale = np.take_along_axis(scales, best, axis=0)[0]
        moved = np.einsum("gk,gkr->gr", self._moments.mean, w - chosen * scale[:, None])
        integers = chosen.transpose(0, 2, 1).reshape(self._weight.shape).astype(np.int8)
        return Rounded(
            integers, scale.reshape(-1).astype(np.float32), self._bias.astype(np.float64) + moved.reshape(-1)
        )

    def _columns(self, weight: NDArray[np.generic]) -> F64:
        groups, depth = self._order.shape
        columns: F64 = weight.astype(np.float64).reshape(groups, -1, depth).transpose(0, 2, 1)[self._rows, self._order]
        return columns


def even_step(weight: F32, rate: float) -> float:
    """The step at which the nearest levels of ``weight`` have an entropy of ``rate`` bits; no coarser than its greatest weight, nor finer than 8 bits."""
    peak = max(float(np.abs(weight).max(initial=0.0)), 1e-20)
    weight = weight.reshape(-1)[:: 1 + weight.size // ENTROPY_WEIGHTS]
    fine, coarse = peak / 127, peak
    if entropy(np.rint(weight / np.float32(fine)).astype(np.int64)) <= rate:
        return fine
    for _ in range(24):
        step = math.sqrt(fine * coarse)
        enough = entropy(np.rint(weight / np.float32(step)).astype(np.int64)) <= rate
        fine, coarse = (fine, step) if enough else (step, coarse)
    return coarse


def damped(moments: Moments, damping: float) -> F64:
    """The covariance [G, K, K] drawn to its diagonal: by ``damping``, or by what few positions demand, where that is more.

    The second is oracle approximating shrinkage (Chen et al., IEEE Transactions on Signal Processing 58, 2010).
    """
    h, p = moments.covariance, moments.covariance.shape[1]
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    trace, square = diagonal.sum(axis=1), (h**2).sum(axis=(1, 2))
    spread = (moments.count + 1 - 2 / p) * (square - trace**2 / p)
    wanted = ((1 - 2 / p) * square + trace**2) / np.maximum(spread, 1e-300)
    share = np.clip(wanted, damping, 1.0)[:, None, None]
    alone = diagonal + np.maximum(1e-4 * diagonal.mean(axis=1, keepdims=True), 1e-12)  # inputs that never changed
    made: F64 = (1 - share) * h + share * alone[:, :, None] * np.eye(p)
    return made


def _feed(cost: F64) -> F64:
    """Row k: the share of the error of input k that is taken off the weights of the inputs after it."""
    right = np.linalg.cholesky(cost[:, ::-1, ::-1])[:, ::-1, ::-1]  # upper triangular, right right' = cost
    upper = np.linalg.inv(right)
    made: F64 = upper / np.diagonal(upper, axis1=1, axis2=2)[:, :, None]
    return made


def _snap(x: F64, bits: int) -> F64:
    """The nearest integer weights."""
    top = top_level(bits)
    levels: F64 = np.clip(2 * np.floor(x / 2) + 1 if bits == 2 else np.rint(x), -top, top)
    return levels


def _successive(w: F64, feed: F64, scale: F64, bits: int) -> F64:
    """Levels of ``w``, input by input, the error of each taken off those after it; ``scale`` [G, R]."""
    left, levels = w.copy(), np.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        wrong = np.empty((len(w), stop - start, w.shape[2]))
        for k in range(start, stop):
            levels[:, k] = _snap(left[:, k] / scale, bits)
            wrong[:, k - start] = left[:, k] - levels[:, k] * scale
            left[:, k + 1 : stop] -= feed[:, k, k + 1 : stop, None] * wrong[:, None, k - start]
        left[:, stop:] -= feed[:, start:stop, stop:].transpose(0, 2, 1) @ wrong
    return levels


def _descend(w: F64, levels: F64, cost: F64, scale: F64, bits: int) -> None:
    """Give every level in turn its best value while the others stay, in place."""
    slope = cost @ (w - levels * scale[:, None])
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        moved = np.empty((len(w), stop - start, w.shape[2]))
        for k in range(start, stop):
            best = _snap(levels[:, k] + slope[:, k] / (scale * cost[:, k, k, None]), bits)
            moved[:, k - start] = (best - levels[:, k]) * scale
            levels[:, k] = best
            slope[:, k + 1 : stop] -= cost[:, k + 1 : stop, k, None] * moved[:, None, k - start]
        slope[:, stop:] -= cost[:, stop:, start:stop] @ moved


def _refit(w: F64, levels: F64, cost: F64, scale: F64, floor: F64) -> F64:
    """The best scale [G, R] for given levels; the old one where there is none above 0."""
    through = cost @ levels
    square, along = (levels * through).sum(axis=1), (w * through).sum(axis=1)
    good = (square > 0) & (along > 0)
    return np.maximum(np.where(good, along / np.where(good, square, 1.0), scale), floor)
