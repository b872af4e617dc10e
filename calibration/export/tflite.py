"""Int8 .tflite models for LiteRT, a rival in the benchmarks: one convolution, or a whole head.

TFLite's activations are int8, ours are uint8: value, scale and weights are the same, code and zero point differ by 128.
TFLite pads as TensorFlow's SAME. For other padding (torch is symmetric at stride 2) an explicit PAD precedes the
operator. XNNPACK folds it into a convolution at no measurable cost, and runs it separately before a pooling.
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

#: Difference between our codes and zero points and TFLite's.
SHIFT: Final = 128
_ALIGN: Final = 16  # of constants, by the schema
_SCHEMA: Final = 3
_TYPES: Final = {np.dtype(np.int8): tflite.TensorType.INT8, np.dtype(np.int32): tflite.TensorType.INT32}
_NONE: Final = tflite.ActivationFunctionType.NONE
_RELU6: Final = tflite.ActivationFunctionType.RELU6


def signed(codes: U8) -> NDArray[np.int8]:
    """Convert our codes to TFLite's, of the same shape."""
    return (codes ^ np.uint8(SHIFT)).view(np.int8)


def unsigned(codes: NDArray[np.int8]) -> U8:
    """Convert TFLite's codes to ours, of the same shape."""
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
    """Return a .tflite of a convolution with SAME padding and random int8 weights per channel.

    It maps [1, H, W, C] int8 to [1, OH, OW, OC] int8. A window of 1 on a plane of 1 x 1 becomes FULLY_CONNECTED.
    ``chain``: number of copies in sequence, so that their time exceeds the call overhead. Raises `UsageError` for a
    depthwise convolution that changes the number of channels, and for a chain that changes the shape.
    """
    if depthwise and channels != out_channels:
        raise UsageError(
            "a depthwise convolution keeps its channels; pass equal numbers of channels", reason="depthwise-channels"
        )
    if chain > 1 and (stride != 1 or channels != out_channels):
        raise UsageError(
            "a chain needs a convolution that keeps its shape; use stride 1 and equal numbers of channels",
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
    """Return the .tflite of the convolutional head in the segment file ``data``: same scales, weights and padding.

    Supports convolutions (with groups: depthwise only), sums of equal shapes, maximum pooling, the average over a whole
    plane, and reshaping. Raises `ModelError` for any other operator.
    """
    segment = seg.parse(data)
    return _Translation(segment, verify(segment)).translate()


class _Translation:
    """Translates a segment's operators, in order, to a model."""

    def __init__(self, segment: seg.Segment, weights: dict[int, NDArray[np.int8]]) -> None:
        self.header, self.blob, self.weights = segment.header, segment.blob, weights
        self.model = _Model()
        self.index: dict[int, int] = {}

    def translate(self) -> bytes:
        source = self._activation(self.header.input)
        for i, op in enumerate(self.header.ops):
            if not self._has_form(op):
                raise ModelError(
                    f"operator {op.name!r} has no .tflite form; compare this network with ONNX Runtime only",
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
        """Return whether ``op`` has a .tflite form. A fused ReLU or ReLU6 needs no clamp: the code range matches it."""
        if (getattr(op, "lo", 0), getattr(op, "hi", 255)) != (0, 255):
            return False
        if isinstance(op, seg.Conv):
            return op.groups == 1 or op.groups == hwc(self._tensor(op.x).shape)[2] == hwc(self._tensor(op.out).shape)[2]
        if isinstance(op, seg.Add):
            return self._tensor(op.a).shape == self._tensor(op.b).shape
        if isinstance(op, seg.Pool):
            x = self._tensor(op.x)  # PAD writes the zero point; a maximum ignores it only if it is the least code
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
        """Return the tensor that ``op`` reads, after a PAD if needed, and TFLite's padding mode."""
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
        """Add an operator with a direct TFLite equivalent: a sum, the average of a plane, a reshape."""
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
    """Return TensorFlow's SAME padding: top, left, bottom, right."""
    totals = [max(0, (-(-n // s) - 1) * s + span - n) for n, span, s in zip(size, spans, stride, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


class _Model:
    """Builds a file with one subgraph; an index identifies each tensor."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(1 << 16)
        self._buffers = [self._table("Buffer")]  # the schema reserves the first, empty buffer for activations
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
        """Add int8 or int32 ``values``, with a scale for each slice along ``axis``."""
        data = values.tobytes()
        self._builder.Prep(_ALIGN, len(data))
        self._buffers.append(self._table("Buffer", Data=self._builder.CreateByteVector(data)))
        return self._tensor(list(values.shape), _TYPES[values.dtype], len(self._buffers) - 1, scales, 0, axis)

    def convolve(
        self,
        source: int,
        target: int,
        weights: NDArray[np.int8],
        bias: NDArray[np.int32],
        scales: NDArray[Any],
        stride: list[int],
        dilation: list[int],
        padding: int,
        activation: int = _NONE,
    ) -> None:
        """Add a CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED of ``weights`` [OC, KH, KW, C / groups].

        ``scales`` [OC]: of the weights.
        """
        (outs, *window, depth), plane = weights.shape, self._shapes[source][1:-1]
        bias_scales = scales * self._scales[source]
        fused = {"FusedActivationFunction": activation}
        geometry = fused | {
            "Padding": padding,
            "StrideH": stride[0],
            "StrideW": stride[1],
            "DilationHFactor": dilation[0],
            "DilationWFactor": dilation[1],
        }
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
        """Append the builtin operator ``name``; ``fields``: fields of its ``options`` table."""
        code = self._codes.setdefault(name, len(self._codes))
        kind, table = getattr(tflite.BuiltinOptions, options), self._table(options, **fields)
        ends = {"Inputs": self._numbers(inputs, np.int32), "Outputs": self._numbers([output], np.int32)}
        self._operators.append(
            self._table("Operator", OpcodeIndex=code, **ends, BuiltinOptionsType=kind, BuiltinOptions=table)
        )

    def finish(self, source: int, target: int) -> bytes:
        """Return the file with input tensor ``source`` and output tensor ``target``."""
        ends = {"Inputs": self._numbers([source], np.int32), "Outputs": self._numbers([target], np.int32)}
        parts = {"Tensors": self._offsets(self._tensors), "Operators": self._offsets(self._operators)}
        graphs = self._offsets([self._table("SubGraph", **parts, **ends)])
        numbers = [getattr(tflite.BuiltinOperator, name) for name in self._codes]
        codes = self._offsets(
            [self._table("OperatorCode", DeprecatedBuiltinCode=min(n, 127), BuiltinCode=n) for n in numbers]
        )
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
        """Write a table of the schema; ``fields`` are numbers, or offsets of earlier objects."""
        getattr(tflite, f"{kind}Start")(self._builder)
        for name, value in fields.items():
            getattr(tflite, f"{kind}Add{name}")(self._builder, value)
        return int(getattr(tflite, f"{kind}End")(self._builder))
