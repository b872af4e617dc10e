"""Tuning of rounded weights all together: the integers, scales and biases of one head at given bits, so that the answers are the float model's.

`calibration.rounding` looks at one layer at a time. Where few bits are left the layers' errors can make up for each other: from the rounded weights
on, gradients of the distance between both models' answers (Kullback-Leibler, on calibration samples without their labels) move each weight from
one level to the next, through the rounding as if it were not there. Made for one allocation of bits; wants PyTorch. What the codec does to the
tensor at the cut, and the head's 8-bit activations, take part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.layers import Conv, Network
from calibration.lower import Calibration
from calibration.observe import Progress, to_onnx
from calibration.quantize import Rounded, least_scale, top_level
from calibration.reweigh import reweigh
from calibration.torched import Torched
from edge_agent import errors
from edge_agent.protocol.messages import Codec

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """``rate``: greatest step of a weight, in levels; ``scale_rate``: of the logarithm of a scale, and of a bias as a share of its outputs' size.

    ``lean``: how far from its level, at most, a weight begins on the side of its float value.
    """

    epochs: int = 8
    batch: int = 64
    rate: float = 0.005
    scale_rate: float = 1e-3
    lean: float = 0.45


DEFAULT: Final = Options()


def tune(
    model: onnx.ModelProto,
    network: Network,
    calibration: Calibration,
    cut: str,
    rounded: Mapping[str, tuple[int, Rounded]],
    x: F32,
    progress: Progress,
    codec: Codec | None = None,
    options: Options = DEFAULT,
) -> dict[str, Rounded]:
    """``rounded`` (bits and weights of each layer of the head up to ``cut``, by the tensor that it yields) tuned on the samples ``x`` [n, ...], stored
    layout. ``codec``: what is sent of the cut's tensor. The same input gives the same weights on the same machine; PyTorch promises no more.

    Raises `errors.ModelError` without PyTorch, or for a network with operators that it is not taught.
    """
    torch = _torch()
    layers = [layer for layer in network.weighted(cut) if isinstance(layer, Conv)]
    if len(layers) < len(network.weighted(cut)):
        raise errors.ModelError("transformers cannot be tuned yet; round their weights without tuning")
    run = Torched(torch, reweigh(model, network, layers))
    float_run, name = Torched(torch, model), network.graph.input_of(model).name
    data = torch.from_numpy(to_onnx(x))
    with torch.no_grad():
        answers = torch.cat([float_run({name: part}).log_softmax(1) for part in data.split(256)])
    states = [_State(torch, la, *rounded[la.out], _least(calibration, la), options) for la in layers]
    changed = _changed(torch, network, calibration, cut, codec)
    groups = [
        {"params": [s.u for s in states], "lr": options.rate},
        {"params": [p for s in states for p in (s.log_scale, s.shift)], "lr": options.scale_rate},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    steps = options.epochs * math.ceil(len(data) / options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, done = torch.Generator().manual_seed(0), 0
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(data), generator=generator).split(options.batch):
            feeds = {name: data[chosen]}
            for state in states:
                feeds |= state.feeds()
            made = run(feeds, changed).log_softmax(1)
            loss = (answers[chosen].exp() * (answers[chosen] - made)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress("tuning", done, steps)
    return {state.layer.out: state.rounded() for state in states}


class _State:
    """The parameters of one layer: weights ``u`` in units of their scale, the scale's logarithm, and the bias in units of the outputs' size."""

    def __init__(self, torch: Any, layer: Conv, bits: int, rounded: Rounded, least: F32, options: Options) -> None:
        self._torch, self.layer, self._bits = torch, layer, bits
        scale = rounded.scale.astype(np.float64)[:, None, None, None]
        lean = options.lean * (2 if bits == 2 else 1)
        u = rounded.levels + np.clip(layer.weight / scale - rounded.levels, -lean, lean)
        self.u = torch.tensor(u.astype(np.float32), requires_grad=True)
        self.log_scale = torch.tensor(np.log(rounded.scale), requires_grad=True)
        self._bias = torch.tensor(rounded.bias.astype(np.float32))
        self._size = float(np.abs(layer.bias).mean() + np.sqrt((layer.weight**2).sum(axis=(1, 2, 3)).mean()))
        self.shift = torch.zeros(len(layer.bias), requires_grad=True)
        self._floor = torch.from_numpy(np.log(np.maximum(least, 1e-20)))

    def _levels(self) -> Any:
        top = top_level(self._bits)
        u = 2 * (self.u / 2).floor() + 1 if self._bits == 2 else self.u.round()
        return u.clamp(-top, top)

    def _scale(self) -> Any:
        return self._torch.maximum(self.log_scale, self._floor).exp()

    def feeds(self) -> dict[str, Any]:
        """Weight and bias as the reweighed model takes them."""
        top = top_level(self._bits)
        inside = self.u.clamp(-top, top)
        levels = inside + (self._levels() - inside).detach()
        weight = levels * self._scale()[:, None, None, None]
        layer = self.layer
        bias = self._bias + self._size * self.shift
        if layer.view is None:
            weight = weight.permute(0, 3, 1, 2)
        elif layer.groups == 1:
            weight = weight.reshape(len(weight), -1).T
        else:
            weight = weight.reshape(len(weight))
        return {f"{layer.out}@weight": weight, f"{layer.out}@bias": bias}

    def rounded(self) -> Rounded:
        with self._torch.no_grad():
            levels, scale = self._levels().numpy().astype(np.int8), self._scale().numpy().astype(np.float32)
            bias = (self._bias + self._size * self.shift).numpy().astype(np.float64)
        return Rounded(levels, scale, bias)


def _least(calibration: Calibration, layer: Conv) -> F32:
    return (
        least_scale(layer.bias, calibration.quantizations[layer.inputs[0]].scale)
        if layer.inputs[0] in calibration.quantizations
        else np.zeros(len(layer.bias), np.float32)
    )


def _changed(
    torch: Any, network: Network, calibration: Calibration, cut: str, codec: Codec | None
) -> dict[str, Callable[[Any], Any]]:
    """By tensor: what 8-bit codes, or at the cut the codec, leave of it."""
    found: dict[str, Callable[[Any], Any]] = {}
    for layer in network.needed(cut):
        quantization = calibration.quantizations.get(layer.out)
        if isinstance(layer, Conv) and quantization is not None:
            lo = -quantization.scale * quantization.zero_point
            found[layer.out] = _coded(torch, torch.tensor(lo), torch.tensor(quantization.scale), 255)
    if codec is not None:
        rank = len(network.graph.shapes[cut])
        shape = (1, -1, 1, 1) if rank == 4 else (1,) * (rank - 1) + (-1,)
        lo, scale = (torch.tensor(v, dtype=torch.float32).reshape(shape) for v in (codec.lo, codec.scale))
        found[cut] = _coded(torch, lo, scale, 2**codec.bits - 1)
    return found


def _coded(torch: Any, lo: Any, scale: Any, top: int) -> Callable[[Any], Any]:
    def coded(x: Any) -> Any:
        inside = torch.minimum(torch.maximum(x, lo), lo + top * scale)
        code = ((inside - lo) / scale.clamp_min(1e-20)).round()
        return inside + (lo + code * scale - inside).detach()

    return coded


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise errors.ModelError(
            "tuning weights needs PyTorch; install splitedge[torch] or calibrate without"
        ) from error
    return torch
