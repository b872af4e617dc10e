"""Small random ONNX models, built by hand with onnx.helper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph that grows: `add` appends an operator to the last tensor (or to given ones) and returns its output's name."""

    def __init__(self, shape: Sequence[int], seed: int = 0, opset: int = 18) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        self.last, self.opset = "x", opset

    def constant(self, values: Any, dtype: Any = np.float32, name: str = "") -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name or f"c{len(self.weights)}"))
        return self.weights[-1].name

    def random_weight(self, *shape: int, scale: float | None = None, name: str = "") -> str:
        spread = scale if scale is not None else 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.constant(self.random.normal(size=shape) * spread, name=name)

    def add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attrs: Any) -> str:
        index = len(self.nodes)
        outs = [f"t{index}"] + [f"t{index}_{i}" for i in range(1, outputs)]
        node = helper.make_node(op, list(inputs) or [self.last], outs, name or f"{op.lower()}{index}", **attrs)
        self.nodes.append(node)
        self.last = outs[0]
        return self.last

    def conv(self, outs: int, ins: int, kernel: int = 3, x: str = "", groups: int = 1, **attrs: Any) -> str:
        weight = self.random_weight(outs, ins // groups, kernel, kernel, name=f"conv{len(self.nodes)}.weight")
        bias = self.random_weight(outs, scale=0.2)
        if "auto_pad" not in attrs:
            attrs.setdefault("pads", [kernel // 2] * 4)
        return self.add("Conv", x or self.last, weight, bias, group=groups, kernel_shape=[kernel, kernel], **attrs)

    def gemm(self, outs: int, ins: int, x: str = "") -> str:
        weight = self.random_weight(outs, ins, name=f"fc{len(self.nodes)}.weight")
        return self.add("Gemm", x or self.last, weight, self.random_weight(outs, scale=0.2), transB=1)

    def batch_norm(self, channels: int, x: str = "") -> str:
        gamma = self.constant(self.random.uniform(0.5, 1.5, channels))
        beta, mean = self.random_weight(channels, scale=0.3), self.random_weight(channels, scale=0.3)
        variance = self.constant(self.random.uniform(0.5, 1.5, channels))
        return self.add("BatchNormalization", x or self.last, gamma, beta, mean, variance)

    def model(self) -> onnx.ModelProto:
        output = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [self.input], [output], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def cnn(classes: int = 10) -> onnx.ModelProto:
    """Convolutions, pooling, a flattened plane, two matrix products."""
    net = Net([1, 3, 16, 16])
    net.conv(8, 3)
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(12, 8, strides=[2, 2])
    net.add("Relu")
    net.add("Flatten")
    net.gemm(16, 12 * 4 * 4)
    net.add("Relu")
    net.gemm(classes, 16)
    return net.model()


def mlp(classes: int = 10) -> onnx.ModelProto:
    net = Net([1, 64])
    for outs, ins in ((48, 64), (24, 48)):
        net.gemm(outs, ins)
        net.add("Relu")
    net.gemm(classes, 24)
    return net.model()


def resnet(classes: int = 10) -> onnx.ModelProto:
    """Two residual blocks with batch norms, one of them with a projection."""
    net = Net([1, 3, 16, 16])
    net.conv(8, 3)
    net.batch_norm(8)
    start = net.add("Relu")
    net.conv(8, 8)
    net.batch_norm(8)
    net.add("Relu")
    net.conv(8, 8)
    end = net.batch_norm(8)
    net.add("Add", end, start)
    start = net.add("Relu")
    short = net.conv(16, 8, 1, x=start, strides=[2, 2], pads=[0, 0, 0, 0])
    net.conv(16, 8, x=start, strides=[2, 2])
    net.add("Relu")
    end = net.conv(16, 16)
    net.add("Add", end, short)
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(classes, 16)
    return net.model()


def mobilenet(classes: int = 10) -> onnx.ModelProto:
    """Inverted residuals with depthwise convolutions and ReLU6."""
    net = Net([1, 3, 16, 16])
    net.conv(8, 3, strides=[2, 2])
    six = net.constant(6.0)
    zero = net.constant(0.0)
    net.add("Clip", net.last, zero, six)
    for _ in range(2):
        start = net.last
        net.conv(24, 8, 1, pads=[0, 0, 0, 0])
        net.add("Clip", net.last, zero, six)
        net.conv(24, 24, groups=24)
        net.add("Clip", net.last, zero, six)
        end = net.conv(8, 24, 1, pads=[0, 0, 0, 0])
        net.add("Add", start, end)
    net.add("ReduceMean", net.last, net.constant([2, 3], np.int64), keepdims=0)
    net.gemm(classes, 8)
    return net.model()
