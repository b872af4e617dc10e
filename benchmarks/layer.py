"""One convolution in our kernels and in rivals: same shapes and types, pre-packed weights, one thread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks import rivals
from edge_agent.backends import onnx as onnx_backend
from kernels import program, reference
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol.messages import Preprocess

Call = Callable[[], Any]
U8 = NDArray[np.uint8]
SCALE: Final = 0.0625  # of every activation
WEIGHT_SCALE: Final = 0.001


class Layer(NamedTuple):
    """A convolution with TensorFlow's SAME padding. A 1 x 1 window on a plane of M x 1 is the product M x K x N."""

    height: int
    width: int
    channels: int
    outs: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False

    @property
    def out(self) -> tuple[int, int, int]:
        """Shape of the output, channels last."""
        return -(-self.height // self.stride), -(-self.width // self.stride), self.outs

    @property
    def operations(self) -> int:
        """Number of multiplications and additions."""
        return 2 * math.prod(self.out) * self.kernel**2 * (1 if self.depthwise else self.channels)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        whole = [(out - 1) * self.stride + self.kernel for out in self.out[:2]]
        over = [max(w - n, 0) for w, n in zip(whole, (self.height, self.width), strict=True)]
        top, left = (n // 2 for n in over)
        return top, left, over[0] - top, over[1] - left

    def weights(self) -> NDArray[np.int8]:
        """Return random weights [OC, KH, KW, C / groups]."""
        shape = (self.outs, self.kernel, self.kernel, 1 if self.depthwise else self.channels)
        return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)

    def bias(self) -> NDArray[np.int32]:
        """Return the bias [OC] that removes the input's zero point of 128 from the sums; there is no other bias."""
        taken: NDArray[np.int32] = -128 * self.weights().reshape(self.outs, -1).sum(axis=1, dtype=np.int32)
        return taken


def head(layer: Layer) -> Head:
    """Return the layer as a head. A ReLU6 clamp, as in most layers, is codes 0 to 255 with a zero point of 0."""
    return Head(_segment(layer), check_golden=False)


def ours(layer: Layer, us: float, least: int = 1) -> tuple[int, Call]:
    """Return (times, call): a call of the compiled interpreter that runs the layer ``times`` times.

    The call lasts about ``us`` microseconds; ``times`` is at least ``least``.
    """
    one = head(layer)
    memory = one._memory
    random = np.random.default_rng(1)
    memory.arena[:] = random.integers(0, 256, memory.arena.size).astype(np.uint8)
    times = max(least, round(us * 1e3 / max(layer.operations / (30 if layer.depthwise else 300), 1)))
    table = memory._replace(operators=np.repeat(memory.operators, times))
    return times, lambda: program.run(table, *one._operator_sets, 0, times, one._table.scratch_bytes, 0, 1)


def _segment(layer: Layer) -> seg.Segment:
    shape, out = [layer.height, layer.width, layer.channels], list(layer.out)
    sizes = [seg.roundup(math.prod(s)) for s in (shape, out)]
    w = layer.weights()
    multiplier = np.full(layer.outs, WEIGHT_SCALE, np.float32)
    parts: list[NDArray[Any]] = [
        (w.reshape(-1).astype(np.int16) + 127).astype(np.uint8),
        layer.bias(),
        multiplier,
    ]
    blob, places = b"", []
    for part in parts:
        places.append(len(blob))
        blob += part.tobytes() + bytes(-part.nbytes % seg.ALIGN)
    weight, bias, factor = places
    window, step = [layer.kernel] * 2, [layer.stride] * 2
    groups = layer.channels if layer.depthwise else 1
    op = seg.Conv("layer", 1, 0, 8, weight, bias, factor, window, step, [1, 1], list(layer.pads), groups, 0, 255)
    tensors = [seg.Tensor(shape, SCALE, 128, 0), seg.Tensor(out, SCALE, 0, sizes[0])]
    header = seg.Header(
        model="layer",
        cut="layer",
        weight_bits=8,
        preprocess=Preprocess("tensor", shape),
        tensors=tensors,
        input=0,
        output=1,
        ops=[op],
        arena_bytes=sum(sizes),
        blob_bytes=len(blob),
        golden=seg.Golden("layer", ""),
    )
    return seg.parse(seg.build(header, blob))


def onnx_product(layer: Layer) -> _Bound:
    """MatMulInteger: u8 x s8 to int32, without requantization."""
    k, n = layer.channels, layer.outs
    m = layer.height * layer.width
    nodes = [helper.make_node("MatMulInteger", ["x", "w", "zx"], ["y"])]
    constants: dict[str, NDArray[Any]] = {
        "w": np.ascontiguousarray(layer.weights().reshape(n, k).T),
        "zx": np.array(128, np.uint8),
    }
    return _onnx(nodes, constants, [m, k], (TensorProto.INT32, [m, n]))


def onnx_convolution(layer: Layer) -> _Bound:
    """QLinearConv in ONNX Runtime's own channels-last layout: u8 x s8, scales per channel, requantized to u8."""
    w = np.ascontiguousarray(layer.weights().transpose(0, 3, 1, 2))
    names = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "bias"]
    scale = np.array(SCALE, np.float32)
    values: list[Any] = [
        scale,
        np.array(128, np.uint8),
        w,
        np.full(layer.outs, WEIGHT_SCALE, np.float32),
        np.zeros(layer.outs, np.int8),
        scale,
        np.array(0, np.uint8),
        np.zeros(layer.outs, np.int32),
    ]
    node = helper.make_node(
        "QLinearConv",
        names,
        ["y"],
        domain="com.microsoft",
        channels_last=1,
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=list(layer.pads),
        group=layer.channels if layer.depthwise else 1,
    )
    constants: dict[str, NDArray[Any]] = dict(zip(names[1:], values, strict=True))
    shape = [1, layer.height, layer.width, layer.channels]
    return _onnx([node], constants, shape, (TensorProto.UINT8, [1, *layer.out]))


def onnx_nothing() -> _Bound:
    """Return a call of one operator on one value, to time the call overhead of ONNX Runtime."""
    return _onnx([helper.make_node("Identity", ["x"], ["y"])], {}, [1], (TensorProto.UINT8, [1]))


def _onnx(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], shape: list[int], result: tuple[int, list[int]]
) -> _Bound:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", *result)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return _Bound(model, codes(shape))


def codes(shape: list[int]) -> U8:
    """Return the random input of every rival."""
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


class _Bound:
    """A model with bound input and output, so that a call copies neither."""

    def __init__(self, model: onnx.ModelProto, x: U8) -> None:
        self.runtime = onnx_backend.session(model.SerializeToString(), 1)
        self.binding = self.runtime.io_binding()
        self.binding.bind_cpu_input("x", x)
        self.binding.bind_output("y")

    def __call__(self) -> None:
        self.runtime.run_with_iobinding(self.binding)

    def answer(self) -> NDArray[Any]:
        self()
        found: NDArray[Any] = self.binding.copy_outputs_to_cpu()[0]
        return found


def torch_product(layer: Layer) -> Call:
    """torch's int8 product: s8 x s8 to int32, without requantization."""
    import torch

    torch.set_num_threads(1)
    m, k, n = layer.height * layer.width, layer.channels, layer.outs
    x = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    w = torch.from_numpy(np.ascontiguousarray(layer.weights().reshape(n, k).T))
    return lambda: torch._int_mm(x, w)


def litert(layer: Layer) -> Call:
    """LiteRT with XNNPACK: s8 x s8, scales per channel, requantized to s8 with a ReLU6."""
    from calibration.export import tflite

    return rivals.litert(tflite.convolution(*layer[:4], layer.kernel, layer.stride, layer.depthwise), 1)


def litert_nothing() -> Call:
    """Return a minimal call, to time the call overhead of LiteRT."""
    from calibration.export import tflite

    return rivals.litert(tflite.convolution(1, 1, 1, 1, 1), 1)


def reference_codes(layer: Layer, x: U8) -> U8:
    """Return the expected codes of our kernel, by the slow reference."""
    multiplier = np.full(layer.outs, WEIGHT_SCALE, np.float32)
    stride, groups = (layer.stride, layer.stride), layer.channels if layer.depthwise else 1
    return reference.conv(
        x, layer.weights(), layer.bias(), multiplier, stride, (1, 1), layer.pads, groups, 128, 0, 0, 255
    )
