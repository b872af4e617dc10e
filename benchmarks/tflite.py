"""Int8 .tflite models for LiteRT, a rival in the benchmarks: one convolution, or a whole head of ours.

TFLite's activations are int8 where ours are uint8: the same value, scale and weights, code and zero point less by 128. TFLite pads as TensorFlow's
SAME does; where a network pads otherwise (torch is symmetric at stride 2) an explicit PAD goes before, which XNNPACK folds into the
convolution (measured: no time of its own) and runs as it stands before a pooling.
"""

from __future__ import annotations

import math
from typing import Any, Final

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

from splitedge.errors import ModelError, UsageError
from splitedge.head import segment as seg
from splitedge.head.verify import hwc, inputs, verify

U8 = NDArray[np.uint8]

#: Between our codes and zero points and TFLite's.
SHIFT: Final = 128
_ALIGN: Final = 16  # of constants, as the schema has it
_SCHEMA: Final = 3
_TYPES: Final = {np.dtype(np.int8): tflite.TensorType.INT8, np.dtype(np.int32): tflite.TensorType.INT32}
_NONE: Final = tflite.ActivationFunctionType.NONE
_RELU6: Final = tflite.ActivationFunctionType.RELU6


def signed(codes: U8) -> NDArray[np.int8]:
    """Our codes as TFLite's, of the same shape."""
    return (codes ^ np.uint8(SHIFT)).view(np.int8)


def unsigned(codes: NDArray[np.int8]) -> U8:
    """TFLite's codes as ours, of the same shape."""
    return codes.view(np.uint8) ^ np.uint8(SHIFT)


def convolution(
    height: int,
    width: int,
    channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    depthwise: bool = False,
    *,
    relu6: bool = True,
    chain: int = 1,
) -> bytes:
    """A .tflite of one convolution with SAME padding and random int8 weights per channel: [1, H, W, C] int8 to [1, OH, OW, OC] int8.

    A window of 1 on a plane of 1 x 1 is a FULLY_CONNECTED. ``chain``: so many of the same one after another, for times that stand clear of the call.
    Raises `UsageError` for a depthwise one that changes the number of channels, and for a chain of one that changes the shape.
    """
    if depthwise and channels != out_channels:
        raise UsageError(
            "a depthwise convolution keeps its channels; give as many out as in", reason="depthwise-channels"
        )
    if chain > 1 and (stride != 1 or channels != out_channels):
        raise UsageError(
            "only a convolution that keeps its shape can be chained; use stride 1 and as many channels out as in",
            reason="chain",
        )
    random, model = np.random.default_rng(0), _Model()
    depth = 1 if depthwise else channels
    spread = 73 * kernel * math.sqrt(depth)  # of a sum of products with such weights
    source = tensor = model.activation([1, height, width, channels], 6 / 255, -SHIFT)
    for _ in range(chain):
        weights = random.integers(-127, 128, (out_channels, kernel, kernel, depth), np.int8)
        bias = random.integers(-1000, 1000, out_channels, np.int32)
        scales = random.uniform(0.5, 1.5, out_channels) / spread
        shape = [1, -(-height // stride), -(-width // stride), out_channels]
        target = model.activation(shape, 6 / 255, -SHIFT)
        activation = _RELU6 if relu6 else _NONE
        model.convolve(tensor, target, weights, bias, scales, [stride, stride], [1, 1], tflite.Padding.SAME, activation)
        tensor = target
    return model.finish(source, tensor)


def network(data: bytes) -> bytes:
    """The .tflite of the convolutional head in the segment file ``data``: the same scales, weights and padding.

    Knows convolutions (with groups: depthwise only), sums of equal shapes, maximum pooling, the average over a whole plane and reshaping. Raises `ModelError`
    for any other operator.
    """
    segment = seg.parse(data)
    return _Translation(segment, verify(segment)).translate()


class _Translation:
    """A segment's operators, one after another, into a model."""

    def __init__(self, segment: seg.Segment, weights: dict[int, NDArray[np.int8]]) -> None:
        self.header, self.blob, self.weights = segment.header, segment.blob, weights
        self.model = _Model()
        self.index: dict[int, int] = {}

    def translate(self) -> bytes:
        source = self._activation(self.header.input)
        for i, op in enumerate(self.header.ops):
            if not self._has_form(op):
                raise ModelError(
                    f"operator {op.name!r} has no form in .tflite here; compare this network with ONNX Runtime only",
                    reason="no-tflite-form",
                )
            if isinstance(op, seg.Conv):
                self._conv(op, self.weights[i])
            elif isinstance(op, seg.Pool) and op.kind == "max":
                self._max_pool(op)
            else:
                self._plain(op)
        return self.model.finish(source, self.index[self.header.output])

    def _has_form(self, op: seg.AnyOp) -> bool:
        """A fused ReLU or ReLU6 needs no clamp of its own: the range of the codes ends where it does."""
        if (getattr(op, "lo", 0), getattr(op, "hi", 255)) != (0, 255):
            return False
        if isinstance(op, seg.Conv):
            return op.groups == 1 or op.groups == hwc(self._tensor(op.x).shape)[2] == hwc(self._tensor(op.out).shape)[2]
        if isinstance(op, seg.Add):
            return self._tensor(op.a).shape == self._tensor(op.b).shape
        if isinstance(op, seg.Pool):
            x = self._tensor(op.x)  # PAD writes the zero point, which wins over no code only where it is the least
            return x.zero_point == 0 if op.kind == "max" else (*op.kernel, *op.pad) == (*hwc(x.shape)[:2], 0, 0, 0, 0)
        return isinstance(op, seg.Reshape)

    def _tensor(self, index: int) -> seg.Tensor:
        return self.header.tensors[index]

    def _activation(self, index: int) -> int:
        tensor = self._tensor(index)
        self.index[index] = self.model.activation([1, *tensor.shape], tensor.scale, tensor.zero_point - SHIFT)
        return self.index[index]

    def _conv(self, op: seg.Conv, weights: NDArray[np.int8]) -> None:
        x, y, outs = self._tensor(op.x), self._tensor(op.out), len(weights)
        multiplier = self.blob[op.multiplier :][: 4 * outs].view(np.float32)
        bias = self.blob[op.bias :][: 4 * outs].view(np.int32)
        sums = weights.reshape(outs, -1).sum(axis=1, dtype=np.int32)
        scales = multiplier.astype(np.float64) * y.scale / x.scale
        source, padding = self._padded(op)
        self.model.convolve(
            source,
            self._activation(op.out),
            weights,
            bias + x.zero_point * sums,
            scales,
            op.stride,
            op.dilation,
            padding,
        )

    def _padded(self, op: seg.Conv | seg.Pool) -> tuple[int, int]:
        """The tensor that ``op`` reads, behind a PAD where it must be, and how TFLite is to pad it."""
        x = self._tensor(op.x)
        height, width, channels = hwc(x.shape)
        dilation = op.dilation if isinstance(op, seg.Conv) else [1, 1]
        spans = [(k - 1) * d + 1 for k, d in zip(op.kernel, dilation, strict=True)]
        if not any(op.pad):
            return self.index[op.x], tflite.Padding.VALID
        if op.pad == _same((height, width), spans, op.stride):
            return self.index[op.x], tflite.Padding.SAME
        top, left, bottom, right = op.pad
        shape = [1, height + top + bottom, width + left + right, channels]
        target = self.model.activation(shape, x.scale, x.zero_point - SHIFT)
        amounts = self.model.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        self.model.operator("PAD", [self.index[op.x], amounts], target, "PadOptions")
        return target, tflite.Padding.VALID

    def _max_pool(self, op: seg.Pool) -> None:
        source, padding = self._padded(op)
        (kh, kw), (sh, sw) = op.kernel, op.stride
        window = {"Padding": padding, "StrideH": sh, "StrideW": sw, "FilterHeight": kh, "FilterWidth": kw}
        self.model.operator("MAX_POOL_2D", [source], self._activation(op.out), "Pool2DOptions", **window)

    def _plain(self, op: seg.AnyOp) -> None:
        """Operators that TFLite has as they are: a sum, the average of a plane, another shape."""
        target = self._activation(op.out)
        sources = [self.index[t] for t in inputs(op)]
        if isinstance(op, seg.Add):
            self.model.operator("ADD", sources, target, "AddOptions")
        elif isinstance(op, seg.Pool):
            axes = self.model.constant(np.array([1, 2], np.int32))
            self.model.operator("MEAN", [*sources, axes], target, "ReducerOptions", KeepDims=True)
        else:
            shape = self.model.constant(np.array([1, *self._tensor(op.out).shape], np.int32))
            self.model.operator("RESHAPE", [*sources, shape], target, "ReshapeOptions")


def _same(size: tuple[int, int], spans: list[int], stride: list[int]) -> list[int]:
    """TensorFlow's SAME padding: top, left, bottom, right."""
    totals = [max(0, (-(-n // s) - 1) * s + span - n) for n, span, s in zip(size, spans, stride, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


class _Model:
    """A file in the making: one subgraph; tensors are named by their place in it."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(1 << 16)
        self._buffers = [self._table("Buffer")]  # by the schema the first is empty: it is every activation's
        self._tensors: list[int] = []
        self._shapes: list[list[int]] = []
        self._scales: list[float] = []  # of activations; constants have 0
        self._operators: list[int] = []
        self._codes: dict[str, int] = {}

    def activation(self, shape: list[int], scale: float, zero_point: int) -> int:
        tensor = self._tensor(shape, tflite.TensorType.INT8, 0, np.array([scale]), zero_point)
        self._scales[tensor] = scale
        return tensor

    def constant(self, values: NDArray[Any], scales: NDArray[Any] | None = None, axis: int = 0) -> int:
        """int8 or int32 ``values``, with a scale for each slice along ``axis``."""
        data = values.tobytes()
        self._builder.Prep(_ALIGN, len(data))
        self._buffers.append(self._table("Buffer", Data=self._builder.CreateByteVector(data)))
        return self._tensor(list(values.shape), _TYPES[values.dtype], len(self._buffers) - 1, scales, 0, axis)

    def convolve(
        self, source: int, target: int, weights: NDArray[np.int8], bias: NDArray[np.int32], scales: NDArray[Any],
        stride: list[int], dilation: list[int], padding: int, activation: int = _NONE,
    ) -> None:  # fmt: skip
        """``weights`` [OC, KH, KW, C / groups] become CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED; ``scales`` [OC] are theirs."""
        (outs, *window, depth), plane = weights.shape, self._shapes[source][1:-1]
        bias_scales = scales * self._scales[source]
        fused = {"FusedActivationFunction": activation}
        geometry = fused | {
            "Padding": padding, "StrideH": stride[0], "StrideW": stride[1], "DilationHFactor": dilation[0], "DilationWFactor": dilation[1],
        }  # fmt: skip
        if math.prod(plane) == 1 and window == [1, 1] and depth == self._shapes[source][-1]:
            inputs = [source, self.constant(weights.reshape(outs, depth), scales), self.constant(bias, bias_scales)]
            keep = len(self._shapes[target]) > 2
            self.operator("FULLY_CONNECTED", inputs, target, "FullyConnectedOptions", **fused, KeepNumDims=keep)
        elif depth == 1 and outs == self._shapes[source][-1] > 1:
            moved = np.moveaxis(weights, 0, -1).reshape(1, *window, outs)
            inputs = [source, self.constant(moved, scales, 3), self.constant(bias, bias_scales)]
            self.operator("DEPTHWISE_CONV_2D", inputs, target, "DepthwiseConv2DOptions", DepthMultiplier=1, **geometry)
        else:
            inputs = [source, self.constant(weights, scales), self.constant(bias, bias_scales)]
            self.operator("CONV_2D", inputs, target, "Conv2DOptions", **geometry)

    def operator(self, name: str, inputs: list[int], output: int, options: str, **fields: int) -> None:
        """Append the builtin operator ``name``; ``fields`` are those of its table of ``options``."""
        code = self._codes.setdefault(name, len(self._codes))
        kind, table = getattr(tflite.BuiltinOptions, options), self._table(options, **fields)
        ends = {"Inputs": self._numbers(inputs, np.int32), "Outputs": self._numbers([output], np.int32)}
        self._operators.append(
            self._table("Operator", OpcodeIndex=code, **ends, BuiltinOptionsType=kind, BuiltinOptions=table)
        )

    def finish(self, source: int, target: int) -> bytes:
        """The file, whose input and output are these tensors."""
        ends = {"Inputs": self._numbers([source], np.int32), "Outputs": self._numbers([target], np.int32)}
        parts = {"Tensors": self._offsets(self._tensors), "Operators": self._offsets(self._operators)}
        graphs = self._offsets([self._table("SubGraph", **parts, **ends)])
        numbers = [getattr(tflite.BuiltinOperator, name) for name in self._codes]
        codes = self._offsets([self._table("OperatorCode", DeprecatedBuiltinCode=n, BuiltinCode=n) for n in numbers])
        buffers = self._offsets(self._buffers)
        model = self._table("Model", Version=_SCHEMA, OperatorCodes=codes, Subgraphs=graphs, Buffers=buffers)
        self._builder.Finish(model, b"TFL3")
        return bytes(self._builder.Output())

    def _tensor(
        self, shape: list[int], kind: int, buffer: int, scales: NDArray[Any] | None, zero_point: int, axis: int = 0
    ) -> int:
        fields = {"Shape": self._numbers(shape, np.int32), "Type": kind, "Buffer": buffer}
        if scales is not None:
            zeros = self._numbers([zero_point] * len(scales), np.int64)
            codes = {"Scale": self._numbers(scales, np.float32), "ZeroPoint": zeros, "QuantizedDimension": axis}
            fields["Quantization"] = self._table("QuantizationParameters", **codes)
        self._tensors.append(self._table("Tensor", **fields))
        self._shapes.append(shape)
        self._scales.append(0.0)
        return len(self._tensors) - 1

    def _numbers(self, values: Any, dtype: type) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, dtype)))

    def _offsets(self, places: list[int]) -> int:
        self._builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self._builder.PrependUOffsetTRelative(place)
        return int(self._builder.EndVector())

    def _table(self, kind: str, **fields: int) -> int:
        """A table of the schema; ``fields`` are numbers, or the places of what was written before."""
        getattr(tflite, f"{kind}Start")(self._builder)
        for name, value in fields.items():
            getattr(tflite, f"{kind}Add{name}")(self._builder, value)
        return int(getattr(tflite, f"{kind}End")(self._builder))
