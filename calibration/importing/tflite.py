"""Converts a .tflite file to an ONNX model.

TFLite's tensors of four axes have their channels last, ONNX's convolutions take them first. A tensor is kept in the
order that its operator makes it in, and turned only where another operator needs the other order. So networks of
planes have one transposition at their input, which import removes.

A quantized tensor becomes a QuantizeLinear and a DequantizeLinear (`calibration.importing.quantized` takes their codes
over); quantized and half-precision weights become float32. An operator that is not converted stays in the graph under
the domain `UNCONVERTED`, so that a tensor before it can still be the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.importing import tflite_file
from calibration.importing.tflite_file import File, Operator
from splitedge import errors

Array = NDArray[Any]
#: Order of the axes of a tensor: the file's own, or with the channels (the last axis of four) after the batch.
Order = Literal["own", "first"]

#: Domain of operators that have no conversion.
UNCONVERTED: Final = "tflite"
OPSET: Final = 17
IR: Final = 8
#: From an axis of [N, H, W, C] to that of [N, C, H, W].
_PLACES: Final = (0, 2, 3, 1)
_FIRST: Final = [0, 3, 1, 2]
_LAST: Final = [0, 2, 3, 1]
#: Operators that may come before or after the one that a file's operator becomes.
_AROUND: Final = {"Transpose", "Reshape", "QuantizeLinear", "DequantizeLinear"}
#: TFLite's floor of the length in L2_NORMALIZATION.
_SHORTEST: Final = 1e-6
_SAME: Final = 0  # Padding.SAME


def read(path: Path) -> onnx.ModelProto:
    """The model in the file. Its input and output are float32 where the file's are quantized.

    Raises `errors.ModelError`.
    """
    return _Converter(tflite_file.read(path)).model()


def refuse_unconverted(model: onnx.ModelProto) -> None:
    """Refuse a model that needs an operator without a conversion. Raises `errors.ModelError`."""
    for node in model.graph.node:
        if node.domain == UNCONVERTED:
            before = next((t for t in node.input if t), "")
            raise errors.ModelError(
                f"the .tflite operator {node.op_type} ({node.output[0]}) is not supported; "
                f"choose a tensor before it with --output, such as {before}, or convert the model to ONNX",
                reason="tflite-operator",
                operator=node.op_type,
            )


class _UnsupportedError(Exception):
    """This form of an operator has no conversion."""


class _Converter:
    """Builds the ONNX graph, one operator of the file after another."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names: dict[tuple[int, Order], str] = {}
        self._count = 0
        self._op = ""

    def model(self) -> onnx.ModelProto:
        entries = [self._entry(i) for i in self.file.inputs]
        for operator in self.file.operators:
            self._convert(operator)
        ends = [self._end(i) for i in dict.fromkeys(self.file.outputs)]
        graph = helper.make_graph(self.nodes, "tflite", entries, ends, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(UNCONVERTED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR)

    # --- tensors ----------------------------------------------------------------------------------------------------

    def _entry(self, i: int) -> onnx.ValueInfoProto:
        tensor = self.file.tensors[i]
        if tensor.quantized is not None and tensor.dtype in (np.int8, np.uint8):
            entry = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape)
            self.names[i, "own"] = self._coded(tensor.name, i, f"{tensor.name}@coded")
            return entry
        self.names[i, "own"] = tensor.name
        return helper.make_tensor_value_info(tensor.name, self._type(i), tensor.shape)

    def _end(self, i: int) -> onnx.ValueInfoProto:
        tensor = self.file.tensors[i]
        name = self.get(i)
        if name != tensor.name or i in self.file.inputs:
            name = tensor.name if i not in self.file.inputs else f"{tensor.name}@same"
            self.add("Identity", [self.get(i)], name)
        return helper.make_tensor_value_info(name, self._type(i), tensor.shape)

    def _type(self, i: int) -> int:
        """The ONNX type of a tensor: float32 where its values are real."""
        dtype = self.file.tensors[i].dtype
        if dtype is None:
            return int(TensorProto.UNDEFINED)
        real = dtype == np.float16 or self._is_coded(i)
        return int(TensorProto.FLOAT if real else helper.np_dtype_to_tensor_dtype(dtype))

    def _is_coded(self, i: int) -> bool:
        tensor = self.file.tensors[i]
        return tensor.quantized is not None and tensor.dtype is not None and tensor.dtype.kind in "iu"

    def shape(self, i: int) -> tuple[int, ...]:
        return self.file.tensors[i].shape

    def rank(self, i: int) -> int:
        return len(self.shape(i))

    def value(self, i: int) -> Array:
        """A constant. Raises `_UnsupportedError` for another tensor."""
        found = self.file.tensors[i].value() if i >= 0 else None
        if found is None:
            raise _UnsupportedError(f"input {i} is not constant")
        return found

    def whole(self, i: int) -> list[int]:
        return [int(v) for v in self.value(i).reshape(-1)]

    def is_constant(self, i: int) -> bool:
        return self.file.tensors[i].data is not None

    def get(self, i: int, order: Order = "own") -> str:
        """The ONNX name of the tensor in ``order``."""
        if (i, order) in self.names:
            return self.names[i, order]
        tensor = self.file.tensors[i]
        if (value := tensor.value()) is not None:
            made = self.constant(value if order == "own" else value.transpose(_FIRST), f"{tensor.name}@{order}")
        else:
            other: Order = "first" if order == "own" else "own"
            if (i, other) not in self.names:
                raise _UnsupportedError(f"{tensor.name} has no value")
            name = tensor.name if i in self.file.outputs and order == "own" else f"{tensor.name}@{order}"
            perm = _LAST if order == "own" else _FIRST
            made = self.add("Transpose", [self.names[i, other]], name, perm=perm)
        self.names[i, order] = made
        return made

    def put(self, i: int, name: str, order: Order = "own") -> None:
        """Let ``name``, in ``order``, be the tensor, rounded to its codes if it has any."""
        tensor = self.file.tensors[i]
        coded = self._is_coded(i) and tensor.dtype in (np.int8, np.uint8, np.int16)
        wanted = tensor.name
        if i in self.file.outputs and (coded or order == "first"):
            wanted = f"{tensor.name}@real"
        if name == self.nodes[-1].output[0]:
            self.nodes[-1].output[0] = name = wanted
        self.names[i, order] = self._coded(name, i, f"{tensor.name}@rounded") if coded else name

    def named(self, i: int) -> str:
        """The tensor's name in the file."""
        return self.file.tensors[i].name

    def _coded(self, source: str, i: int, name: str) -> str:
        tensor = self.file.tensors[i]
        assert tensor.quantized is not None
        assert tensor.dtype is not None
        if tensor.quantized.scale.size > 1:
            raise _UnsupportedError("an activation has a scale for each channel")
        if tensor.dtype == np.int16:  # ONNX has 16-bit codes from opset 21 on; their steps are too fine to matter
            return self.add("Identity", [source], name)
        scale = self.constant(tensor.quantized.scale.reshape(()), f"{name}@scale")
        zero = self.constant(tensor.quantized.zero_point.astype(tensor.dtype).reshape(()), f"{name}@zero")
        codes = self.add("QuantizeLinear", [source, scale, zero], f"{name}@codes")
        return self.add("DequantizeLinear", [codes, scale, zero], name)

    def constant(self, value: Array, name: str = "") -> str:
        name = name or self.fresh()
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def real(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def fresh(self) -> str:
        self._count += 1
        return f"{self._op}@{self._count}"

    def add(self, kind: str, given: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Append an operator; returns its output."""
        name = name or self.fresh()
        self.nodes.append(helper.make_node(kind, list(given), [name], f"{name}@{kind}", **attributes))
        return name

    # --- operators --------------------------------------------------------------------------------------------------

    def _convert(self, operator: Operator) -> None:
        make = _OPERATORS.get(operator.kind)
        before, self._op = len(self.nodes), self.file.tensors[operator.outputs[0]].name if operator.outputs else "none"
        known = dict(self.names)
        try:
            if make is None:
                raise _UnsupportedError(operator.kind)
            make(self, operator)
            made = self.nodes[before:]
            if made:  # the name in the file, for the operator that computes
                next((node for node in made if node.op_type not in _AROUND), made[0]).name = self._op
        except (_UnsupportedError, AttributeError, IndexError, TypeError, ValueError):  # a form that the schema allows
            del self.nodes[before:]
            self.names = known
            self._leave(operator)

    def _leave(self, operator: Operator) -> None:
        """Keep an operator that has no conversion."""
        given = [
            self.get(i) if i >= 0 and ((i, "own") in self.names or (i, "first") in self.names) else ""
            for i in operator.inputs
        ]
        made = [self.file.tensors[i].name for i in operator.outputs]
        self.nodes.append(helper.make_node(operator.kind, given, made, self._op, domain=UNCONVERTED))
        self.names |= {(i, "own"): self.file.tensors[i].name for i in operator.outputs}

    def activated(self, name: str, function: int, out: str) -> str:
        """``name`` after the activation that is fused into an operator."""
        if function == 0:
            return name
        if function in (1, 4):
            return self.add({1: "Relu", 4: "Tanh"}[function], [name], out)
        if function in (2, 3):
            lo, hi = {2: (-1.0, 1.0), 3: (0.0, 6.0)}[function]
            return self.add("Clip", [name, self.real(lo), self.real(hi)], out)
        raise _UnsupportedError(f"activation {function}")

    def finish(self, operator: Operator, name: str, order: Order = "own", function: int = 0) -> None:
        """Let ``name`` be the only output of ``operator``."""
        i = operator.outputs[0]
        self.put(i, self.activated(name, function, ""), order)

    def order_of(self, operator: Operator) -> Order:
        """The order to compute ``operator`` in: with channels first if one of its inputs is so."""
        moving = [i for i in operator.inputs if i >= 0 and not self.is_constant(i)]
        planes = all(self.rank(i) == 4 for i in (*moving, *operator.outputs))
        return "first" if planes and any((i, "first") in self.names for i in moving) else "own"

    def argument(self, i: int, order: Order) -> str:
        """The tensor in ``order``; a constant of fewer axes as it broadcasts to four."""
        if order == "own" or self.rank(i) == 4:
            return self.get(i, order)
        value = self.value(i)
        if value.size == 1:
            return self.constant(value.reshape(()))
        return self.constant(value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(_FIRST))

    def axis(self, axis: int, rank: int, order: Order) -> int:
        axis %= rank
        return axis if order == "own" else _PLACES[axis]

    def flat(self, i: int) -> str:
        """The tensor in an order in which its values are those of the file's own order, without a transposition if
        that needs none.
        """
        shape = self.shape(i)
        if (i, "own") not in self.names and len(shape) == 4 and (shape[3] == 1 or shape[1] * shape[2] == 1):
            return self.get(i, "first")
        return self.get(i)


# --- products -------------------------------------------------------------------------------------------------------


def _pads(
    sizes: Sequence[int], outs: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: int
) -> list[int]:
    """The padding [top, left, bottom, right] of windows: none, or TensorFlow's SAME, whose odd row is at the end."""
    totals = [0, 0]
    if padding == _SAME:
        totals = [
            max(0, (out - 1) * stride + window - size)
            for size, out, window, stride in zip(sizes, outs, kernel, strides, strict=True)
        ]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _conv(work: _Converter, op: Operator) -> None:
    x, w = op.inputs[:2]
    weight = work.value(w)
    groups = work.shape(x)[3] // weight.shape[3]
    _convolve(work, op, weight.transpose(0, 3, 1, 2), groups)


def _depthwise(work: _Converter, op: Operator) -> None:
    weight = work.value(op.inputs[1])
    _convolve(work, op, weight.transpose(3, 0, 1, 2), work.shape(op.inputs[0])[3])


def _convolve(work: _Converter, op: Operator, weight: Array, groups: int) -> None:
    x, y = op.inputs[0], op.outputs[0]
    o = op.options
    strides, dilations = [o.StrideH(), o.StrideW()], [o.DilationHFactor(), o.DilationWFactor()]
    windows = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(work.shape(x)[1:3], work.shape(y)[1:3], windows, strides, o.Padding())
    given = [work.get(x, "first"), work.constant(weight, f"{work.named(y)}/weight")]
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        given.append(work.constant(work.value(op.inputs[2]), f"{work.named(y)}/bias"))
    made = work.add("Conv", given, strides=strides, dilations=dilations, pads=pads, group=groups)
    work.finish(op, made, "first", o.FusedActivationFunction())


def _transpose_conv(work: _Converter, op: Operator) -> None:
    w, x, y, o = op.inputs[1], op.inputs[2], op.outputs[0], op.options
    weight, strides = work.value(w).transpose(3, 0, 1, 2), [o.StrideH(), o.StrideW()]
    kernel, sizes, outs = weight.shape[2:], work.shape(x)[1:3], work.shape(y)[1:3]
    pads = _pads(outs, sizes, kernel, strides, o.Padding())
    full = [(size - 1) * stride + k for size, stride, k in zip(sizes, strides, kernel, strict=True)]
    more = [out - f + pads[i] + pads[i + 2] for i, (out, f) in enumerate(zip(outs, full, strict=True))]
    given = [work.get(x, "first"), work.constant(weight, f"{work.named(y)}/weight")]
    if len(op.inputs) > 3 and op.inputs[3] >= 0:
        given.append(work.constant(work.value(op.inputs[3]), f"{work.named(y)}/bias"))
    made = work.add("ConvTranspose", given, strides=strides, pads=pads, output_padding=more)
    work.finish(op, made, "first", o.FusedActivationFunction())


def _fully_connected(work: _Converter, op: Operator) -> None:
    x, w, y, o = op.inputs[0], op.inputs[1], op.outputs[0], op.options
    weight = work.value(w)
    bias = (
        [work.constant(work.value(op.inputs[2]), f"{work.named(y)}/bias")]
        if len(op.inputs) > 2 and op.inputs[2] >= 0
        else []
    )
    if work.rank(y) == 2:
        source = (
            work.get(x) if work.rank(x) == 2 else work.add("Reshape", [work.flat(x), work.ints(-1, weight.shape[1])])
        )
        made = work.add("Gemm", [source, work.constant(weight, f"{work.named(y)}/weight"), *bias], transB=1)
    else:
        made = work.add("MatMul", [work.get(x), work.constant(weight.T, f"{work.named(y)}/weight")])
        made = work.add("Add", [made, *bias]) if bias else made
        if work.shape(y)[:-1] != work.shape(x)[:-1]:
            made = work.add("Reshape", [made, work.ints(*work.shape(y))])
    work.finish(op, made, function=o.FusedActivationFunction())


def _batch_matmul(work: _Converter, op: Operator) -> None:
    x, y = op.inputs
    given = [work.get(x), work.get(y)]
    for place, (i, turned) in enumerate(((x, op.options.AdjX()), (y, op.options.AdjY()))):
        if turned:
            axes = list(range(work.rank(i)))
            given[place] = work.add("Transpose", [given[place]], perm=[*axes[:-2], axes[-1], axes[-2]])
    work.finish(op, work.add("MatMul", given))


# --- element-wise ---------------------------------------------------------------------------------------------------


def _unary(kind: str, **attributes: Any) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        order = work.order_of(op)
        work.finish(op, work.add(kind, [work.get(op.inputs[0], order)], **attributes), order)

    return make


def _clip(lo: float, hi: float) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        order = work.order_of(op)
        made = work.add("Clip", [work.get(op.inputs[0], order), work.real(lo), work.real(hi)])
        work.finish(op, made, order)

    return make


def _binary(kind: str) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        order = work.order_of(op)
        function = getattr(op.options, "FusedActivationFunction", lambda: 0)()
        made = work.add(kind, [work.argument(i, order) for i in op.inputs])
        work.finish(op, made, order, function)

    return make


def _then(*kinds: str) -> _Make:
    """Element-wise operators one after the other; the first takes all inputs."""

    def make(work: _Converter, op: Operator) -> None:
        order = work.order_of(op)
        made = work.add(kinds[0], [work.argument(i, order) for i in op.inputs])
        for kind in kinds[1:]:
            made = work.add(kind, [made])
        work.finish(op, made, order)

    return make


def _square(work: _Converter, op: Operator) -> None:
    order = work.order_of(op)
    x = work.get(op.inputs[0], order)
    work.finish(op, work.add("Mul", [x, x]), order)


def _squared_difference(work: _Converter, op: Operator) -> None:
    order = work.order_of(op)
    made = work.add("Sub", [work.argument(i, order) for i in op.inputs])
    work.finish(op, work.add("Mul", [made, made]), order)


def _leaky(work: _Converter, op: Operator) -> None:
    order = work.order_of(op)
    made = work.add("LeakyRelu", [work.get(op.inputs[0], order)], alpha=op.options.Alpha())
    work.finish(op, made, order)


def _prelu(work: _Converter, op: Operator) -> None:
    x, slope = op.inputs
    order: Order = "first" if work.rank(x) == 4 else "own"
    value = work.value(slope)
    value = value.reshape((1,) * (work.rank(x) - value.ndim) + value.shape)
    value = value.transpose(_FIRST)[0] if order == "first" else value[0] if value.ndim > 1 else value
    made = work.add("PRelu", [work.get(x, order), work.constant(value, f"{work.named(op.outputs[0])}/slope")])
    work.finish(op, made, order)


def _gelu(work: _Converter, op: Operator) -> None:
    order = work.order_of(op)
    x = work.get(op.inputs[0], order)
    if op.options is not None and op.options.Approximate():
        cube = work.add("Mul", [work.add("Mul", [work.add("Mul", [x, x]), x]), work.real(0.044715)])
        inner = work.add("Mul", [work.add("Add", [x, cube]), work.real(math.sqrt(2 / math.pi))])
        bent = work.add("Tanh", [inner])
    else:
        bent = work.add("Erf", [work.add("Mul", [x, work.real(math.sqrt(0.5))])])
    half = work.add("Mul", [x, work.real(0.5)])
    work.finish(op, work.add("Mul", [half, work.add("Add", [bent, work.real(1.0)])]), order)


def _softmax(work: _Converter, op: Operator) -> None:
    x, beta = op.inputs[0], op.options.Beta() if op.options is not None else 1.0
    order = work.order_of(op)
    source = work.get(x, order)
    if beta != 1.0:
        source = work.add("Mul", [source, work.real(beta)])
    work.finish(op, work.add("Softmax", [source], axis=work.axis(-1, work.rank(x), order)), order)


def _log_softmax(work: _Converter, op: Operator) -> None:
    order, x = work.order_of(op), op.inputs[0]
    made = work.add("LogSoftmax", [work.get(x, order)], axis=work.axis(-1, work.rank(x), order))
    work.finish(op, made, order)


def _l2_norm(work: _Converter, op: Operator) -> None:
    order, x = work.order_of(op), op.inputs[0]
    source = work.get(x, order)
    length = work.add("ReduceL2", [source], axes=[work.axis(-1, work.rank(x), order)], keepdims=1)
    made = work.add("Div", [source, work.add("Max", [length, work.real(_SHORTEST)])])
    work.finish(op, made, order, op.options.FusedActivationFunction())


def _lrn(work: _Converter, op: Operator) -> None:
    o = op.options
    size = 2 * o.Radius() + 1
    made = work.add(
        "LRN", [work.get(op.inputs[0], "first")], size=size, alpha=o.Alpha() * size, beta=o.Beta(), bias=o.Bias()
    )
    work.finish(op, made, "first")


def _select(work: _Converter, op: Operator) -> None:
    work.finish(op, work.add("Where", [work.get(i) for i in op.inputs]))


def _cast(work: _Converter, op: Operator) -> None:
    order = work.order_of(op)
    made = work.add("Cast", [work.get(op.inputs[0], order)], to=work._type(op.outputs[0]))
    work.finish(op, made, order)


def _same(work: _Converter, op: Operator) -> None:
    """QUANTIZE, DEQUANTIZE and DENSIFY: the codes of the output round the value, if it has any."""
    x, y = op.inputs[0], op.outputs[0]
    if work.is_constant(x):
        found = work.file.tensors[x]
        constant = found.value()
        assert constant is not None
        work.file.tensors[y] = tflite_file.Tensor(
            work.file.tensors[y].name, constant.shape, constant.dtype, None, constant
        )
        return
    order = work.order_of(op)
    work.finish(op, work.add("Identity", [work.get(x, order)]), order)


# --- windows and reductions -----------------------------------------------------------------------------------------


def _pool(kind: str, **attributes: Any) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        x, y, o = op.inputs[0], op.outputs[0], op.options
        kernel, strides = [o.FilterHeight(), o.FilterWidth()], [o.StrideH(), o.StrideW()]
        pads = _pads(work.shape(x)[1:3], work.shape(y)[1:3], kernel, strides, o.Padding())
        made = work.add(kind, [work.get(x, "first")], kernel_shape=kernel, strides=strides, pads=pads, **attributes)
        work.finish(op, made, "first", o.FusedActivationFunction())

    return make


def _reduce(kind: str) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        x, rank = op.inputs[0], work.rank(op.inputs[0])
        keep = work.rank(op.outputs[0]) == rank
        axes = sorted({axis % rank for axis in work.whole(op.inputs[1])})
        # without the reduced axes, the others are in the file's order only in some cases
        ordered = keep or 3 in axes or {1, 2} <= set(axes)
        order: Order = "first" if rank == 4 and ordered and (x, "first") in work.names else "own"
        places = sorted(work.axis(axis, rank, order) for axis in axes)
        given = [work.get(x, order)]
        if kind == "ReduceSum":
            made = work.add(kind, [*given, work.ints(*places)], keepdims=int(keep))
        else:
            made = work.add(kind, given, axes=places, keepdims=int(keep))
        work.finish(op, made, order if keep else "own")

    return make


def _arg(kind: str) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        axis = work.whole(op.inputs[1])[0] % work.rank(op.inputs[0])
        made = work.add(kind, [work.get(op.inputs[0])], axis=axis, keepdims=0)
        work.finish(op, work.add("Cast", [made], to=work._type(op.outputs[0])))

    return make


def _resize(work: _Converter, op: Operator) -> None:
    x, y, o = op.inputs[0], op.outputs[0], op.options
    sizes, outs = work.shape(x)[1:3], work.shape(y)[1:3]
    aligned, centred = o.AlignCorners(), o.HalfPixelCenters()
    mode = "align_corners" if aligned else "half_pixel" if centred else "asymmetric"
    attributes = {"mode": "linear"}
    if op.kind == "RESIZE_NEAREST_NEIGHBOR":
        attributes = {"mode": "nearest", "nearest_mode": "round_prefer_ceil" if aligned or centred else "floor"}
    scales = np.array([1, 1, *(out / size for out, size in zip(outs, sizes, strict=True))], np.float32)
    given = [work.get(x, "first"), ""]
    if [math.floor(np.float32(size) * scale) for size, scale in zip(sizes, scales[2:], strict=True)] == [*outs]:
        given += [work.constant(scales)]
    else:
        given += ["", work.ints(1, work.shape(y)[3], *outs)]
    work.finish(op, work.add("Resize", given, coordinate_transformation_mode=mode, **attributes), "first")


def _blocks(kind: str) -> _Make:
    def make(work: _Converter, op: Operator) -> None:
        made = work.add(kind, [work.get(op.inputs[0], "first")], blocksize=op.options.BlockSize())
        work.finish(op, made, "first")

    return make


def _pad(work: _Converter, op: Operator) -> None:
    x, rank = op.inputs[0], work.rank(op.inputs[0])
    pads = work.value(op.inputs[1]).reshape(-1, 2)
    order: Order = "first" if rank == 4 else "own"
    if order == "first":
        pads = pads[_FIRST]
    mode = "constant"
    if op.kind == "MIRROR_PAD":
        if op.options.Mode() != 0:
            raise _UnsupportedError("symmetric padding")
        mode = "reflect"
    given = [work.get(x, order), work.ints(*map(int, pads.T.reshape(-1)))]
    if len(op.inputs) > 2:
        given.append(work.constant(work.value(op.inputs[2]).reshape(())))
    work.finish(op, work.add("Pad", given, mode=mode), order)


# --- views ----------------------------------------------------------------------------------------------------------


def _reshape(work: _Converter, op: Operator) -> None:
    """RESHAPE, SQUEEZE and EXPAND_DIMS."""
    x, y = op.inputs[0], op.outputs[0]
    shape = work.shape(y)
    if len(shape) == 4 and (shape[3] == 1 or shape[1] * shape[2] == 1):
        made = work.add("Reshape", [work.flat(x), work.ints(*(shape[axis] for axis in _FIRST))])
        work.finish(op, made, "first")
    else:
        work.finish(op, work.add("Reshape", [work.flat(x), work.ints(*shape)]))


def _transpose(work: _Converter, op: Operator) -> None:
    x, perm = op.inputs[0], work.whole(op.inputs[1])
    if perm == _FIRST and (x, "first") in work.names:
        work.finish(op, work.add("Identity", [work.get(x, "first")]))
    elif perm == _LAST:
        work.finish(op, work.add("Identity", [work.get(x)]), "first")
    else:
        work.finish(op, work.add("Transpose", [work.get(x)], perm=perm))


def _concat(work: _Converter, op: Operator) -> None:
    y, order = op.outputs[0], work.order_of(op)
    axis = work.axis(op.options.Axis(), work.rank(y), order)
    made = work.add("Concat", [work.get(i, order) for i in op.inputs], axis=axis)
    work.finish(op, made, order, op.options.FusedActivationFunction())


def _pack(work: _Converter, op: Operator) -> None:
    shape = list(work.shape(op.outputs[0]))
    axis = op.options.Axis() % len(shape)
    shape[axis] = 1  # files write scalars with one axis or with none
    rows = [work.add("Reshape", [work.get(i), work.ints(*shape)]) for i in op.inputs]
    work.finish(op, work.add("Concat", rows, axis=axis))


def _unpack(work: _Converter, op: Operator) -> None:
    x = op.inputs[0]
    axis = op.options.Axis() % work.rank(x)
    for place, y in enumerate(op.outputs):
        work.put(y, work.add("Gather", [work.get(x), work.constant(np.array(place, np.int64))], axis=axis))


def _split(work: _Converter, op: Operator) -> None:
    sized = op.kind == "SPLIT_V"
    x = op.inputs[0 if sized else 1]
    axis = work.whole(op.inputs[2 if sized else 0])[0] % work.rank(x)
    order: Order = "first" if (x, "first") in work.names else "own"
    names = [work.fresh() for _ in op.outputs]
    sizes = work.ints(*(work.shape(y)[axis] for y in op.outputs))
    place = work.axis(axis, work.rank(x), order)
    work.nodes.append(helper.make_node("Split", [work.get(x, order), sizes], names, names[0], axis=place))
    for y, name in zip(op.outputs, names, strict=True):
        work.put(y, name, order)


def _cut(
    work: _Converter, op: Operator, starts: list[int], ends: list[int], steps: list[int], dropped: list[int]
) -> None:
    x, rank = op.inputs[0], work.rank(op.inputs[0])
    order: Order = "first" if rank == 4 and not dropped and (x, "first") in work.names else "own"
    axes = [work.axis(axis, rank, order) for axis in range(rank)]
    given = [work.get(x, order), *(work.ints(*each) for each in (starts, ends, axes, steps))]
    made = work.add("Slice", given)
    if dropped:
        made = work.add("Squeeze", [made, work.ints(*dropped)])
    work.finish(op, made, order)


def _slice(work: _Converter, op: Operator) -> None:
    starts, sizes = work.whole(op.inputs[1]), work.shape(op.outputs[0])
    _cut(work, op, starts, [s + n for s, n in zip(starts, sizes, strict=True)], [1] * len(starts), [])


def _strided_slice(work: _Converter, op: Operator) -> None:
    o, shape = op.options, work.shape(op.inputs[0])
    if o.EllipsisMask() or o.NewAxisMask():
        raise _UnsupportedError("an ellipsis or a new axis")
    starts, ends, steps = (work.whole(i) for i in op.inputs[1:4])
    furthest = np.iinfo(np.int32).max
    dropped = [axis for axis in range(len(starts)) if o.ShrinkAxisMask() >> axis & 1]
    for axis, step in enumerate(steps):
        if axis in dropped:
            starts[axis] %= shape[axis]
            ends[axis], steps[axis] = starts[axis] + 1, 1
            continue
        if o.BeginMask() >> axis & 1:
            starts[axis] = 0 if step > 0 else shape[axis] - 1
        if o.EndMask() >> axis & 1:
            ends[axis] = furthest if step > 0 else -furthest
    whole = range(len(starts), len(shape))
    starts, ends, steps = starts + [0 for _ in whole], ends + [furthest for _ in whole], steps + [1 for _ in whole]
    _cut(work, op, starts, ends, steps, dropped)


def _gather(work: _Converter, op: Operator) -> None:
    x, indices = op.inputs
    if op.options.BatchDims():
        raise _UnsupportedError("batch dimensions")
    axis = op.options.Axis() % work.rank(x)
    work.finish(op, work.add("Gather", [work.get(x), work.get(indices)], axis=axis))


def _tile(work: _Converter, op: Operator) -> None:
    work.finish(op, work.add("Tile", [work.get(op.inputs[0]), work.ints(*work.whole(op.inputs[1]))]))


def _broadcast(work: _Converter, op: Operator) -> None:
    work.finish(op, work.add("Expand", [work.get(op.inputs[0]), work.ints(*work.shape(op.outputs[0]))]))


def _shape(work: _Converter, op: Operator) -> None:
    """The shape, which is constant with a batch of 1."""
    y = op.outputs[0]
    values = np.array(work.shape(op.inputs[0]), work.file.tensors[y].dtype)
    work.file.tensors[y] = tflite_file.Tensor(work.file.tensors[y].name, values.shape, values.dtype, None, values)


_Make = Callable[[_Converter, Operator], None]

_OPERATORS: Final[dict[str, _Make]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "ADD": _binary("Add"),
    "SUB": _binary("Sub"),
    "MUL": _binary("Mul"),
    "DIV": _binary("Div"),
    "POW": _binary("Pow"),
    "MAXIMUM": _binary("Max"),
    "MINIMUM": _binary("Min"),
    "EQUAL": _binary("Equal"),
    "LESS": _binary("Less"),
    "LESS_EQUAL": _binary("LessOrEqual"),
    "GREATER": _binary("Greater"),
    "GREATER_EQUAL": _binary("GreaterOrEqual"),
    "NOT_EQUAL": _then("Equal", "Not"),
    "LOGICAL_AND": _binary("And"),
    "LOGICAL_OR": _binary("Or"),
    "LOGICAL_NOT": _unary("Not"),
    "SQUARED_DIFFERENCE": _squared_difference,
    "SQUARE": _square,
    "RELU": _unary("Relu"),
    "RELU6": _clip(0.0, 6.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
    "RELU_0_TO_1": _clip(0.0, 1.0),
    "LEAKY_RELU": _leaky,
    "PRELU": _prelu,
    "ELU": _unary("Elu"),
    "GELU": _gelu,
    "HARD_SWISH": _unary("HardSwish"),
    "LOGISTIC": _unary("Sigmoid"),
    "TANH": _unary("Tanh"),
    "EXP": _unary("Exp"),
    "LOG": _unary("Log"),
    "SQRT": _unary("Sqrt"),
    "RSQRT": _then("Sqrt", "Reciprocal"),
    "ABS": _unary("Abs"),
    "NEG": _unary("Neg"),
    "SIN": _unary("Sin"),
    "COS": _unary("Cos"),
    "SIGN": _unary("Sign"),
    "FLOOR": _unary("Floor"),
    "CEIL": _unary("Ceil"),
    "ROUND": _unary("Round"),
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": _log_softmax,
    "L2_NORMALIZATION": _l2_norm,
    "LOCAL_RESPONSE_NORMALIZATION": _lrn,
    "SELECT": _select,
    "SELECT_V2": _select,
    "CAST": _cast,
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
    "DENSIFY": _same,
    "MAX_POOL_2D": _pool("MaxPool"),
    "AVERAGE_POOL_2D": _pool("AveragePool", count_include_pad=0),
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "ARG_MAX": _arg("ArgMax"),
    "ARG_MIN": _arg("ArgMin"),
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SPACE_TO_DEPTH": _blocks("SpaceToDepth"),
    "DEPTH_TO_SPACE": _blocks("DepthToSpace"),
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _pad,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concat,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "GATHER": _gather,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast,
    "SHAPE": _shape,
}
