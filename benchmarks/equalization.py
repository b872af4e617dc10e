"""Cross-layer equalization (Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019), as a rival.

Of two layers one behind the other, with nothing, a ReLU, pooling or flattening between them, the first is divided and the second multiplied by a positive
scale for each channel between: in floats the network stays what it was. The scale that the paper gives makes the greatest weights of both alike
in each channel. It is not exact through a ReLU6, nor where something else reads the tensor. Biases are not absorbed, for their means are corrected anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.lowering.layers import OPEN, Conv, Layer, Pad, Pool, Reshape
from calibration.rounding.weight_substitution import substitute_weights, weights

F32 = NDArray[np.float32]

#: What a positive factor passes.
HOMOGENEOUS: Final = (OPEN, (0.0, math.inf))
#: Until the scales of a round are all so near to 1, and rounds at most: a layer between two others is in two pairs.
NEAR, ROUNDS = 1e-3, 100


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, layers.Network, int]:
    """``model`` with its layers equalized, what it is made of, and how many pairs there were. Tensors keep their names."""
    network = layers.build(Graph.of(model))
    found = pairs(network)
    for _ in range(ROUNDS):
        if max([_equalize(*pair) for pair in found], default=0.0) < NEAR:
            break
    changed = list({id(layer): layer for pair in found for layer in pair}.values())
    values: dict[str, F32] = {}
    for layer in changed:
        values |= weights(layer, layer.weight, layer.bias)
    return _reweighed(model, network, changed, values), network, len(found)


def _reweighed(
    model: onnx.ModelProto, network: layers.Network, changed: Sequence[Conv], values: dict[str, F32]
) -> onnx.ModelProto:
    """`substitute_weights`, but every layer's tensor is still there to be observed, if only as something that nobody reads."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=layer.out) for layer in network.layers)
    made = substitute_weights(whole, network, changed, values)
    del made.graph.output[len(model.graph.output) :]
    return made


def pairs(network: layers.Network) -> list[tuple[Conv, Conv]]:
    """The layers that can be scaled against each other, in order."""
    alive = network.needed(network.graph.output)
    readers: dict[str, list[Layer]] = {}
    for layer in alive:
        for tensor in layer.inputs:
            readers.setdefault(tensor, []).append(layer)
    seconds = [(layer, _second(layer, readers)) for layer in alive if isinstance(layer, Conv)]
    return [(first, second) for first, second in seconds if second is not None]


def _second(first: Conv, readers: dict[str, list[Layer]]) -> Conv | None:
    """The layer that alone reads what ``first`` yields, if a positive factor passes on the way to it."""
    at: Layer = first
    while not isinstance(at, Conv | Pool) or at.clamp in HOMOGENEOUS:
        read_by = readers.get(at.out, [])
        if len(read_by) != 1 or not isinstance(read_by[0], Conv | Pool | Reshape | Pad):
            return None
        at = read_by[0]
        if isinstance(at, Conv):
            return at if _inputs(at) % len(first.weight) == 0 else None
    return None


def _inputs(layer: Conv) -> int:
    return layer.groups * int(layer.weight.shape[3])


def _equalize(first: Conv, second: Conv) -> float:
    """Scales both; the greatest logarithm of a scale. A plane that was flattened repeats its channels."""
    channels, (outs, high, wide, depth) = len(first.weight), second.weight.shape
    grouped = second.weight.reshape(second.groups, -1, high, wide, depth)
    peaks = np.abs(first.weight).reshape(channels, -1).max(axis=1)
    read = np.abs(grouped).max(axis=(1, 2, 3)).reshape(-1, channels).max(axis=0)
    both = (peaks > 0) & (read > 0)
    scale = np.sqrt(np.where(both, peaks, 1) / np.where(both, read, 1)).astype(np.float32)
    first.weight, first.bias = first.weight / scale[:, None, None, None], first.bias / scale
    own = np.tile(scale, _inputs(second) // channels).reshape(second.groups, 1, 1, 1, depth)
    second.weight = (grouped * own).reshape(outs, high, wide, depth)
    return float(np.abs(np.log(scale)).max())
