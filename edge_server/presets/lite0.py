"""EfficientNet-Lite0 with its ImageNet weights as an ONNX model, made without torch.

The graph equals the output of torch's own exporter: batch norms folded in float32, the same order and the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_server.presets import torch_weights

Array = NDArray[Any]

SHAPE: Final = [1, 3, 224, 224]

_EPSILON: Final = 1e-3  # of the batch norms
_OPSET: Final = 20
_IR: Final = 10


class _Group(NamedTuple):
    """Blocks of one kind; the first has ``stride``, the others 1."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


_GROUPS: Final = (
    _Group(1, 3, 1, 1, 32, 16),
    _Group(2, 3, 2, 6, 16, 24),
    _Group(2, 5, 2, 6, 24, 40),
    _Group(3, 3, 2, 6, 40, 80),
    _Group(3, 5, 1, 6, 80, 112),
    _Group(4, 5, 2, 6, 112, 192),
    _Group(1, 3, 1, 6, 192, 320),
)


def model(weights: bytes) -> bytes:
    """The ONNX file of the network with the weights in ``weights``, a file of ``torch.save``."""
    made: bytes = network(torch_weights.parse(weights)).SerializeToString()
    return made


class _Graph:
    """Nodes and constants of the network, in order. Each method adds a layer and returns the name of its output."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.adds = 0

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def conv(self, source: str, name: str, norm: str, size: int, stride: int = 1) -> str:
        """Add a convolution of an input of ``size`` pixels with the folded batch norm ``norm``.

        Padding follows TensorFlow, with the larger part at the end.
        """
        weight, bias = self._folded(f"{name}.weight", norm)
        kernel = weight.shape[2]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        inputs = [source, self.constant(f"{name}.weight", weight), self.constant(f"{name}.weight_bias", bias)]
        return self.node(
            "Conv",
            name,
            inputs,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            dilations=[1, 1],
            pads=[total // 2] * 2 + [total - total // 2] * 2,
            group=weight.shape[0] if "_depthwise_conv" in name else 1,
        )

    def relu6(self, source: str) -> str:
        return self.node("Clip", source.removesuffix(".out") + ".relu6", [source, "zero", "six"])

    def add(self, a: str, b: str) -> str:
        self.adds += 1
        return self.node("Add", f"node_add_{self.adds - 1}" if self.adds > 1 else "node_add", [a, b])

    def _folded(self, weight: str, norm: str) -> tuple[Array, Array]:
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + np.float32(_EPSILON))
        return self.weights[weight] * factor[:, None, None, None], (0 - mean) * factor + beta


def network(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Return EfficientNet-Lite0 with ``weights``: float32 "inputs" [1, 3, 224, 224] to logits "linear" [1, 1000]."""
    graph = _Graph(weights)
    graph.constant("zero", np.array(0, np.float32))
    graph.constant("six", np.array(6, np.float32))
    x, size = graph.relu6(graph.conv("inputs", "_conv_stem", "_bn0", SHAPE[2], 2)), 112
    number = 0
    for group in _GROUPS:
        for repeat in range(group.blocks):
            stride = 1 if repeat else group.stride
            x = _block(graph, x, f"_blocks.{number}", group.expand, size, stride, residual=repeat > 0)
            size //= stride
            number += 1
    x = graph.relu6(graph.conv(x, "_conv_head", "_bn1", size))
    x = graph.node("ReduceMean", "node_mean", [x, graph.constant("axes", np.array([-1, -2]))], keepdims=1)
    x = graph.node("Reshape", "node_view", [x, graph.constant("rows", np.array([1, -1]))], allowzero=1)
    fc = [graph.constant(name, weights[name]) for name in ("_fc.weight", "_fc.bias")]
    graph.nodes.append(helper.make_node("Gemm", [x, *fc], ["linear"], "node_linear", transB=1))
    ends = [helper.make_tensor_value_info(*end) for end in (("inputs", 1, SHAPE), ("linear", 1, [1, 1000]))]
    made = helper.make_graph(graph.nodes, "main_graph", ends[:1], ends[1:], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _block(graph: _Graph, x: str, name: str, expand: int, size: int, stride: int, *, residual: bool) -> str:
    """Add an inverted residual block (as in MobileNetV2, without squeeze and excitation)."""
    inner = graph.relu6(graph.conv(x, f"{name}._expand_conv", f"{name}._bn0", size)) if expand > 1 else x
    inner = graph.relu6(graph.conv(inner, f"{name}._depthwise_conv", f"{name}._bn1", size, stride))
    made = graph.conv(inner, f"{name}._project_conv", f"{name}._bn2", size // stride)
    return graph.add(made, x) if residual else made
