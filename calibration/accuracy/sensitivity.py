"""Measures the output noise of quantizing one layer, or one cut, in the float network.

Noise is the mean squared difference from the float model's outputs. A layer is measured with the quantizer's actual
weights, starting at the last cut before it. The law E(b) = p x 4^-b is fitted to each layer. The measured values are
stored too, because the fit can be far off below 4 bits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.accuracy import subsampling
from calibration.accuracy.subsampling import interpolated, mean_noises, noisiest, sample_noises
from calibration.bundle.cache import Cache, Part, key, remembered
from calibration.importing import cuts
from calibration.importing.graph import drop_unread, tail_model
from calibration.importing.sessions import session
from calibration.lowering.layers import Network, Weighted
from calibration.parallel import in_order
from calibration.rounding.quantizer import Rounded, nearest
from calibration.rounding.rounder import EVEN, WIDTHS
from calibration.rounding.weight_substitution import substitute_weights, weights
from calibration.samples.samples import Samples, evenly
from calibration.statistics.activations import Progress, Tap, to_onnx
from calibration.statistics.covariance import entry
from splitedge import codec
from splitedge.protocol.messages import Codec

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rounder = Callable[[Weighted, int], Rounded]

#: Share of the greatest noise of a layer below which a width counts as free of noise.
_NO_NOISE: Final = 1e-6
#: Minimum number of output differences (samples x outputs) in a measured noise, and minimum number of samples. `WORK`
#: limits the samples of large networks: it is the maximum of multiply-accumulates in one run over all samples.
ENOUGH: Final = (16_384, 16)
WORK: Final = 64e9
#: Samples per run of a tail: more take 13 % longer, because their activations leave the cache.
BATCH: Final = 4
#: The share of the samples on which grids are measured, and their minimum number. The grid that is measured on all
#: samples, and the width of nearest rounding that identifies the noisiest samples.
SHARE: Final = 0.125
LEAST: Final = 2
REFERENCE: Final = 6
RANKING: Final = 6
#: The widths and even grids of a large network that run through the whole network. The others run to the next cut.
ANCHORS: Final = (2, REFERENCE, EVEN[0], EVEN[-2])


class Sensitivity(msgspec.Struct, frozen=True):
    """The noise of the layer or cut that yields ``tensor``.

    ``noise[i]`` is measured at ``WIDTHS[i]`` bits; the fit is coefficient x 4^-bits. ``error``: root mean square
    distance of the measured noise from the fit, in bits (one bit is a factor of 4).
    """

    tensor: str
    noise: list[float]
    coefficient: float
    error: float

    def at(self, bits: int) -> float:
        """The measured noise."""
        return self.noise[WIDTHS.index(bits)]


def fit(tensor: str, noise: Sequence[float]) -> Sensitivity:
    """The `Sensitivity` of ``noise``, one value per width of `WIDTHS`."""
    return Sensitivity(tensor, list(noise), *law(noise, WIDTHS))


def law(noise: Sequence[float], bits: Sequence[int]) -> tuple[float, float]:
    """The p of the law p x 4^-bits nearest to ``noise`` in logarithms, and its root mean square error in bits.

    Both are 0 if there is no noise. Widths without noise, those on whose grid the weights of an int8 file are, do not
    count.
    """
    found: F64 = np.asarray(noise, np.float64)
    if not found.any():
        return 0.0, 0.0
    counted = found > _NO_NOISE * found.max()
    scaled = np.log2(found[counted]) + 2.0 * np.array(bits)[counted]
    return float(2 ** scaled.mean()), float(scaled.std() / 2)


def enough(network: Network, outputs: int) -> int:
    """The number of samples for a noise over ``outputs`` values per sample."""
    macs = network.macs(network.layers)
    return max(ENOUGH[1], min(-(-ENOUGH[0] // outputs), int(WORK / max(macs, 1))))


def difference(found: F32, outputs: F32) -> float:
    """Mean squared difference: the noise of the outputs ``found`` relative to the float model's ``outputs``."""
    return float(((found.astype(np.float64) - outputs) ** 2).mean())


class Probe:
    """A float model, some of its samples and their logits.

    Samples that rounding used show too little noise (`rounder.UNSEEN`).

    ``cache``: stores measurements by everything that they depend on. ``share``: share of the samples on which the grids
    of a large network are measured (`subsampling`).
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        network: Network,
        samples: Samples,
        count: int,
        cache: Cache | None = None,
        share: float = SHARE,
    ) -> None:
        few = evenly(len(samples), count)
        self.model, self.network = model, network
        self._x: F32 = np.stack([samples[int(i)] for i in few])
        self._batch = BATCH if network.graph.input_of(model).type.tensor_type.shape.dim[0].HasField("dim_param") else 1
        self.logits = self._run(model, to_onnx(self._x))({})
        self._cache, self._chosen = cache, subsampling.enough(len(few), share, network.macs(network.layers), LEAST)
        places = [p.cut.tensor for p in cuts.find(network) if p.offered and p.cut.tensor in network.graph.shapes]
        self._before = {t: {la.out for la in network.needed(t)} | {network.graph.input} for t in places}
        self._about = key("probe", model.SerializeToString(deterministic=True), self._x)

    def layers(
        self, layers: Sequence[Weighted], rounder: Rounder, grids: Sequence[int], progress: Progress
    ) -> list[list[float]]:
        """The noise of rounding each of ``layers`` alone to each of ``grids`` with ``rounder``.

        Reads and writes the cache.
        """
        progress("sensitivity of layers", 0, len(layers))
        chosen = self._noisiest(layers)

        def measured(block: _Block) -> list[list[float]]:
            found = []
            for layer in block.layers:
                rounded = [rounder(layer, grid) for grid in grids]
                parts = [part for r in rounded for part in (r.levels, r.scale, r.bias)]
                measure = functools.partial(self._layer, layer, rounded, grids, block, chosen)
                found.append(self._kept(layer.out, [*parts, chosen], measure))
            return found

        found: list[list[float]] = []
        for noises in in_order(measured, self._blocks(layers), ahead=0):
            found += noises
            progress("sensitivity of layers", len(found), len(layers))
        return found

    def cuts(self, codecs: Mapping[str, Sequence[Codec]], progress: Progress) -> list[list[float]]:
        """The noise of coding the tensor of each cut alone, by each of its ``codecs``. Reads and writes the cache."""
        found = []
        for done, (tensor, made) in enumerate(codecs.items()):
            found.append(self._kept(tensor, [msgspec.json.encode(made)], functools.partial(self._cut, tensor, made)))
            progress("sensitivity of cuts", done + 1, len(codecs))
        return found

    def noise(self, rounded: Mapping[str, Rounded]) -> float:
        """The noise of the network with all these weights, by the layer's output tensor."""
        layers = [layer for layer in self.network.layers if isinstance(layer, Weighted) and layer.out in rounded]
        values: dict[str, F32] = {}
        for layer in layers:
            values |= weights(layer, rounded[layer.out].values(), rounded[layer.out].bias)
        changed = substitute_weights(self.model, self.network, layers, values)
        return difference(self._run(changed, to_onnx(self._x))({}), self.logits)

    def _noisiest(self, layers: Sequence[Weighted]) -> I64:
        """The samples whose outputs change most if all ``layers`` are rounded to the nearest at `RANKING` bits."""
        values: dict[str, F32] = {}
        for layer in layers:
            rounded = nearest(layer.weight, layer.bias, RANKING, np.zeros(len(layer.weight), np.float32))
            values |= weights(layer, rounded.values(), rounded.bias)
        changed = substitute_weights(self.model, self.network, layers, values)
        return noisiest(sample_noises(self._run(changed, to_onnx(self._x))({}), self.logits), self._chosen)

    def _blocks(self, layers: Sequence[Weighted]) -> Iterator[_Block]:
        """``layers`` in blocks between two cuts. The values at a cut are computed from those of the previous one."""
        held, x = self.network.graph.input, to_onnx(self._x)
        for (start, stop), group in itertools.groupby(layers, lambda layer: (self._entry(layer), self._exit(layer))):
            if start != held:
                x = self._between(held, start, x) if held in self._before[start] else self._values(start)
                held = start
            yield _Block(self, list(group), start, stop, x)

    def _between(self, start: str, stop: str, x: F32) -> F32:
        """The tensor ``stop`` of all samples, computed from the values ``x`` of the earlier cut ``start``."""
        return self._batches(session(_ending(self._tail(start), [stop])), start, x, {})

    def _layer(
        self, layer: Weighted, rounded: Sequence[Rounded], grids: Sequence[int], block: _Block, chosen: I64
    ) -> list[float]:
        """The noise of each of ``rounded``; of a large network, of the `ANCHORS` and interpolated for the others."""
        run = block.runner(layer)

        def outputs(place: int, which: I64) -> F32:
            return run(weights(layer, rounded[place].values(), rounded[place].bias), which)

        def noises(place: int, which: I64) -> F64:
            return block.noises(outputs(place, which), which)

        def measured(places: Sequence[int]) -> list[float]:
            reference = max(range(len(places)), key=lambda i: grids[places[i]] == REFERENCE)
            return mean_noises(noises, places, [reference], chosen, len(self._x))

        anchors = [place for place, grid in enumerate(grids) if grid in ANCHORS]
        if len(chosen) == len(self._x) or not anchors:
            return measured(range(len(grids)))
        errors = np.array([sample_noises(outputs(i, chosen), block.exact[chosen]).mean() for i in range(len(grids))])
        found = np.zeros(len(grids))
        found[anchors] = measured(anchors)
        widths = {place for place, grid in enumerate(grids) if grid in WIDTHS}
        for family in filter(None, (sorted(widths), sorted({*range(len(grids))} - widths))):
            known = [place for place in family if place in anchors]
            estimate = interpolated(found[known], errors[known], errors[family])
            found[family] = measured(family) if estimate is None else estimate
        return [float(noise) for noise in found]

    def _cut(self, tensor: str, made: Sequence[Codec]) -> list[float]:
        x = self._values(tensor)
        stored = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
        tail = None if tensor == self.network.graph.output else session(self._tail(tensor))
        found = []
        for one in made:
            coded = np.stack([codec.decode(codec.encode(np.ascontiguousarray(v), one), one, v.shape) for v in stored])
            y = to_onnx(coded)
            found.append(difference(y if tail is None else self._batches(tail, tensor, y, {}), self.logits))
        return found

    def _entry(self, layer: Weighted) -> str:
        """The last cut before ``layer`` and before everything that it reads."""
        reads, best = entry(self.network, layer).tensor, self.network.graph.input
        for tensor, before in self._before.items():
            if layer.out in before or reads in before - {tensor}:
                break
            best = tensor
        return best

    def _exit(self, layer: Weighted) -> str:
        """The first cut behind ``layer``."""
        found = (tensor for tensor, before in self._before.items() if layer.out in before)
        return next(found, self.network.graph.output)

    def _tail(self, tensor: str) -> onnx.ModelProto:
        graph = self.network.graph
        return self.model if tensor == graph.input else tail_model(self.model, tensor, graph.shapes[tensor][1:])

    def _values(self, tensor: str) -> F32:
        """``tensor`` of all samples, ONNX layout."""
        if tensor == self.network.graph.input:
            return to_onnx(self._x)
        return np.concatenate([v[tensor] for v in Tap(self.model, self.network.graph, [tensor]).over(self._x)])

    def _run(self, model: onnx.ModelProto, x: F32) -> Callable[[Mapping[str, F32]], F32]:
        """The outputs of ``model`` for ``x`` and further inputs."""
        made = session(model)
        name = self.network.graph.input_of(model).name
        return lambda more: self._batches(made, name, x, more)

    def _batches(
        self, made: Any, name: str, x: F32, more: Mapping[str, F32], which: I64 | None = None, *, whole: bool = True
    ) -> F32:
        """The first output for the samples ``which`` (None: all) of ``x``.

        The inputs ``more`` are the same for all samples. ``whole``: ``x`` holds all samples, not only ``which``.
        """
        which = np.arange(len(x)) if which is None else which
        ids = self.network.graph.input
        takes_ids = self.network.graph.takes_ids and ids in {i.name for i in made.get_inputs()}
        found = []
        for first in range(0, len(which), self._batch):
            part = which[first : first + self._batch]
            fed: dict[str, NDArray[Any]] = {name: x[part] if whole else x[first : first + self._batch], **more}
            if takes_ids:
                fed[ids] = self._x[part].astype(np.int64)
            found.append(made.run(None, fed)[0])
        return np.concatenate(found)

    def _kept(self, tensor: str, parts: Sequence[Part], measure: Callable[[], list[float]]) -> list[float]:
        return remembered(self._cache, key("noise alone", self._about, tensor, *parts), list[float], measure)


class _Block:
    """``layers`` between the cuts ``start`` and ``stop``, and the values ``x`` at ``start`` (ONNX layout)."""

    def __init__(self, probe: Probe, layers: Sequence[Weighted], start: str, stop: str, x: F32) -> None:
        self.layers, self._probe, self._start, self._stop, self._x = layers, probe, start, stop, x

    @functools.cached_property
    def _inner(self) -> onnx.ModelProto:
        return _ending(self._probe._tail(self._start), [self._stop])

    @functools.cached_property
    def exact(self) -> F32:
        """The float model's values at ``stop``."""
        return self._run(session(self._inner, threads=1), {}, np.arange(len(self._x)))

    def runner(self, layer: Weighted) -> Callable[[Mapping[str, F32], I64], F32]:
        """The values at ``stop`` for other weights of ``layer`` and some samples."""
        made = session(substitute_weights(self._inner, self._probe.network, [layer]), threads=1)
        return functools.partial(self._run, made)

    def _run(self, made: Any, more: Mapping[str, F32], which: I64) -> F32:
        return self._probe._batches(made, self._start, self._x, more, which)

    @functools.cached_property
    def _tail(self) -> Any:
        return session(self._probe._tail(self._stop), threads=1)

    def noises(self, values: F32, which: I64) -> F64:
        """The noise of each of the samples ``which`` if they have ``values`` at ``stop``."""
        if self._stop != self._probe.network.graph.output:
            values = self._probe._batches(self._tail, self._stop, values, {}, which, whole=False)
        return sample_noises(values, self._probe.logits[which])


def _ending(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """``model`` with ``tensors`` as its outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(onnx.helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors)
    drop_unread(made.graph)
    return made
