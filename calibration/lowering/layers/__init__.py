"""The ONNX graph as layers that the integer head supports, still in real numbers.

network.py      the layers and their network
planes.py       convolutional networks: uint8 codes between the layers
streams.py      transformers: a float32 stream between the layers
mixed.py        networks with both
attention.py    matches an attention among a graph's operators
elementwise.py  matches functions such as GELU made of several operators
norms.py        matches layer norms made of several operators
terms.py        sums of views times constants, such as rotary positions
views.py        operators that only move elements
moves.py        the strided copies of such operators
"""

from __future__ import annotations

from calibration.importing.graph import Graph
from calibration.lowering.layers import mixed, planes, streams
from calibration.lowering.layers.network import (
    F32,
    F64,
    OPEN,
    Attention,
    Binary,
    Clamp,
    Concat,
    Conv,
    Dequantize,
    Embed,
    Function,
    Gate,
    Gather,
    Layer,
    Linear,
    Mean,
    Network,
    Norm,
    Normalize,
    Pad,
    Patches,
    Pool,
    Position,
    Quantize,
    Resample,
    Reshape,
    RmsNorm,
    Rotary,
    Softmax,
    Sum,
    Transpose,
    Unary,
    Unsupported,
    View,
    Weighted,
    WindowAttention,
)

__all__ = [
    "F32",
    "F64",
    "OPEN",
    "Attention",
    "Binary",
    "Clamp",
    "Concat",
    "Conv",
    "Dequantize",
    "Embed",
    "Function",
    "Gate",
    "Gather",
    "Layer",
    "Linear",
    "Mean",
    "Network",
    "Norm",
    "Normalize",
    "Pad",
    "Patches",
    "Pool",
    "Position",
    "Quantize",
    "Resample",
    "Reshape",
    "RmsNorm",
    "Rotary",
    "Softmax",
    "Sum",
    "Transpose",
    "Unary",
    "Unsupported",
    "View",
    "Weighted",
    "WindowAttention",
    "build",
]


def build(graph: Graph) -> Network:
    """The layers of ``graph``. `Network.unsupported` lists the other operators."""
    if streams.is_transformer(graph):
        return streams.build(graph)
    if mixed.is_mixed(graph):
        return mixed.build(graph)
    network = Network(graph, [], [], {})
    for node in graph.nodes:
        try:
            planes.convert(network, node)
        except Unsupported as reason:
            network.unsupported.append((node, str(reason)))
    return network
