"""Cross-layer equalization, as a rival.

Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019. The method
takes pairs of layers with only ReLU, pooling or flattening between them. For each channel it divides the first layer by
a positive scale and multiplies the second by it. The float network does not change. The paper's scale makes the
greatest weights of both layers equal in each channel. The method is not exact through a ReLU6, or if another layer
reads the tensor. Biases are not absorbed, because their means are corrected later.
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

#: Clamps that commute with a positive factor.
HOMOGENEOUS: Final = (OPEN, (0.0, math.inf))
#: Iteration stops when all scales are this close to 1, or after `ROUNDS`. A layer between two others is in two pairs.
NEAR, ROUNDS = 1e-3, 100


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, layers.Network, int]:
    """Return ``model`` with equalized layers, its network, and the number of pairs. Tensors keep their names."""
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
    """As `substitute_weights`, but keep every layer's tensor observable, even if no node reads it."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=layer.out) for layer in network.layers)
    made = substitute_weights(whole, network, changed, values)
    del made.graph.output[len(model.graph.output) :]
    return made


def pairs(network: layers.Network) -> list[tuple[Conv, Conv]]:
    """Return the pairs of layers that can be scaled against each other, in order."""
    alive = network.needed(network.graph.output)
    readers: dict[str, list[Layer]] = {}
    for layer in alive:
        for tensor in layer.inputs:
            readers.setdefault(tensor, []).append(layer)
    seconds = [(layer, _second(layer, readers)) for layer in alive if isinstance(layer, Conv)]
    return [(first, second) for first, second in seconds if second is not None]


def _second(first: Conv, readers: dict[str, list[Layer]]) -> Conv | None:
    """Return the only convolution that reads ``first``'s output, if a positive factor passes all layers between."""
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
    """Scale both layers; return the greatest absolute logarithm of a scale. A flattened plane repeats its channels."""
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
