"""The ONNX graph as layers that the integer head can run, still in real numbers.

network.py    the layers, and the network of them
planes.py     convolutional networks: uint8 codes between the layers
streams.py    transformers: a float32 stream between the layers
attention.py  an attention among a graph's operators, and what it leaves out
views.py      what operators that only move elements about do
"""

from __future__ import annotations

from calibration.importing.graph import Graph
from calibration.lowering.layers import planes, streams
from calibration.lowering.layers.network import (  # fmt: skip
    F32,
    F64,
    OPEN,
    Attention,
    Binary,
    Clamp,
    Concat,
    Conv,
    Embed,
    Layer,
    Linear,
    Mean,
    Network,
    Norm,
    Pad,
    Patches,
    Pool,
    Position,
    Reshape,
    Softmax,
    Transpose,
    Unary,
    Unsupported,
    Weighted,
)

__all__ = [
    "F32", "F64", "OPEN", "Attention", "Binary", "Clamp", "Concat", "Conv", "Embed", "Layer", "Linear", "Mean", "Network", "Norm", "Pad",
    "Patches", "Pool", "Position", "Reshape", "Softmax", "Transpose", "Unary", "Unsupported", "Weighted", "build",
]  # fmt: skip


def build(graph: Graph) -> Network:
    """The layers of ``graph``; what is none is listed in `Network.unsupported`."""
    if streams.is_transformer(graph):
        return streams.build(graph)
    network = Network(graph, [], [], {})
    for node in graph.nodes:
        try:
            planes.convert(network, node)
        except Unsupported as reason:
            network.unsupported.append((node, str(reason)))
    return network
