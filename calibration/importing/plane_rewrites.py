"""Rewrites of convolutional networks into the operators that their heads have, with the same answers.

One dimension becomes a plane of height 1, a transposed convolution a convolution whose channels are spread over the
plane, a PRelu with a slope for each channel a sum, and a transposition to channels last moves behind what it feeds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.importing.graph import drop_unread, infer_shapes

#: Element-wise operators of one tensor, whose other inputs are numbers.
_UNARY: Final = {
    "Abs", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_PAIRS: Final = {"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min"}
_WINDOWS: Final = {"Conv", "ConvTranspose", "MaxPool", "AveragePool"}
_POOLS: Final = {"GlobalAveragePool", "GlobalMaxPool"}
_REDUCTIONS: Final = {"ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"}


class _Edit:
    """A graph that is rewritten node by node: constants, shapes and readers of the old one, nodes of the new one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self._model = model
        self.makers = {t: node for node in self.graph.node for t in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for tensor in set(node.input):
                self.readers.setdefault(tensor, []).append(node)
        self.outputs = {out.name for out in self.graph.output}
        self.nodes: list[onnx.NodeProto] = []

    @functools.cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The inferred shapes; 0 for unknown dimensions. Call it before the graph changes."""
        inferred = infer_shapes(self._model).graph
        return {
            info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            for info in (*inferred.input, *inferred.value_info, *inferred.output)
            if info.type.tensor_type.HasField("shape")
        }

    def rank(self, tensor: str) -> int:
        known = self.constants.get(tensor)
        return known.ndim if known is not None else len(self.shapes.get(tensor, ()))

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Store ``values`` (float64 becomes float32) under ``name``, once."""
        if name not in self.constants:
            stored = values.astype(np.float32) if values.dtype == np.float64 else values
            self.constants[name] = stored
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(stored), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> str:
        """Append an operator; returns its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def with_axes(self, op: str, since: int, tensor: str, axes: list[int], output: str, name: str, **more: Any) -> str:
        """``op`` with ``axes``: an input of operator sets from ``since`` on, an attribute before."""
        if self.opset < since:
            return self.add(op, [tensor], output, name, axes=axes, **more)
        place = self.constant(f"{output}@axes", np.array(axes, np.int64))
        return self.add(op, [tensor, place], output, name, **more)

    def axes_of(self, node: onnx.NodeProto) -> list[int] | None:
        """The constant axes of ``node``: its second input or an attribute; None if it has none."""
        if len(node.input) > 1 and node.input[1]:
            values = self.constants.get(node.input[1])
            return None if values is None else [int(v) for v in values.reshape(-1)]
        values = attributes_of(node).get("axes")
        return None if values is None else list(values)

    def finish(self) -> None:
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unread(self.graph)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# --- one dimension ----------------------------------------------------------------------------------------------------


def lines_to_planes(model: onnx.ModelProto) -> None:
    """Turn tensors [N, C, L] of 1-D convolutions and pooling, and of what is around them, into planes [N, C, 1, L]."""
    if not any(node.op_type in _WINDOWS and _is_of_lines(node) for node in model.graph.node):
        return
    edit = _Edit(model)
    lines = _Lines(edit)
    for node in edit.graph.node:
        lines.convert(node)
    lines.keep_outputs()
    edit.finish()


def _is_of_lines(node: onnx.NodeProto) -> bool:
    """Whether a window of ``node`` has one axis; a file that does not say so is not rewritten."""
    sizes = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2}
    return any(len(attributes_of(node).get(name, ())) == size for name, size in sizes.items())


class _Lines:
    """``planes``: for a tensor [N, C, L] the name of its plane. ``lost``: those that exist only as planes."""

    def __init__(self, edit: _Edit) -> None:
        self.edit = edit
        self.planes: dict[str, str] = {}
        self.lost: set[str] = set()

    def convert(self, node: onnx.NodeProto) -> None:
        edit, attributes = self.edit, attributes_of(node)
        op, x = node.op_type, node.input[0] if node.input else ""
        flat = edit.rank(x) == 3
        inside = any(t in self.planes for t in node.input)
        if op in _WINDOWS and flat and self._window(node, attributes):
            return
        if inside and flat and (op in _UNARY or op in _POOLS) and len(node.output) == 1:
            self._same(node, [self.plane(x), *node.input[1:]])
        elif inside and op in _PAIRS and self._pair(node):
            self._same(node, [self._operand(t) for t in node.input])
        elif inside and op in ("Concat", "Split") and all(edit.rank(t) == 3 for t in node.input[:1]):
            self._joined(node, attributes)
        elif (
            inside and flat and op in _REDUCTIONS and edit.axes_of(node) is not None and self._reduced(node, attributes)
        ):
            return
        elif op == "Squeeze" and edit.axes_of(node) in ([2], [-2]) and edit.rank(x) == 4:
            self.planes[node.output[0]] = x
            self.lost.add(node.output[0])
        elif op == "Unsqueeze" and inside and edit.axes_of(node) == [2]:
            edit.add("Identity", [self.planes[x]], node.output[0], node.name)
        elif op == "Flatten" and inside and attributes.get("axis", 1) == 1:
            edit.add("Flatten", [self.planes[x]], node.output[0], node.name, axis=1)
        else:
            for tensor in node.input:
                self.line(tensor)
            edit.nodes.append(node)

    def plane(self, tensor: str) -> str:
        """The plane of a tensor [N, C, L]."""
        if tensor not in self.planes:
            name = f"{tensor}@plane"
            self.planes[tensor] = self.edit.with_axes("Unsqueeze", 13, tensor, [2], name, name)
        return self.planes[tensor]

    def line(self, tensor: str) -> None:
        """Make the tensor itself if only its plane exists."""
        if tensor in self.lost:
            self.edit.with_axes("Squeeze", 13, self.planes[tensor], [2], tensor, f"{tensor}@line")
            self.lost.discard(tensor)

    def keep_outputs(self) -> None:
        for tensor in self.edit.outputs:
            self.line(tensor)

    def _made(self, tensor: str) -> str:
        name = f"{tensor}@plane"
        self.planes[tensor] = name
        self.lost.add(tensor)
        return name

    def _same(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        self.edit.add(node.op_type, inputs, self._made(node.output[0]), node.name, **attributes_of(node))

    def _window(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        inputs = list(node.input)
        if len(node.output) > 1 or (len(inputs) > 1 and inputs[1] not in self.edit.constants):
            return False
        for name, value in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 0)):
            if name in attributes:
                attributes[name] = [value, *attributes[name]]
        if "output_shape" in attributes:
            return False
        if "pads" in attributes:
            before, after = attributes["pads"]
            attributes["pads"] = [0, before, 0, after]
        inputs[0] = self.plane(inputs[0])
        if len(inputs) > 1:
            inputs[1] = self.edit.constant(f"{inputs[1]}@plane", self.edit.constants[inputs[1]][:, :, None])
        self.edit.add(node.op_type, inputs, self._made(node.output[0]), node.name, **attributes)
        return True

    def _pair(self, node: onnx.NodeProto) -> bool:
        ranks = [self.edit.rank(t) for t in node.input]
        variable = [rank for t, rank in zip(node.input, ranks, strict=True) if t not in self.edit.constants]
        return max(ranks) == 3 and all(rank == 3 for rank in variable)

    def _operand(self, tensor: str) -> str:
        value = self.edit.constants.get(tensor)
        if value is None:
            return self.plane(tensor)
        if value.ndim < 2:
            return tensor
        return self.edit.constant(f"{tensor}@plane", np.expand_dims(value, -2))

    def _joined(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        attributes["axis"] = (0, 1, 3)[attributes.get("axis", 0) % 3]
        count = len(node.input) if node.op_type == "Concat" else 1
        inputs = [self.plane(t) for t in node.input[:count]] + list(node.input[count:])
        outputs = [self._made(t) for t in node.output]
        self.edit.nodes.append(helper.make_node(node.op_type, inputs, outputs, node.name, **attributes))

    def _reduced(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        axes, since = self.edit.axes_of(node), 13 if node.op_type == "ReduceSum" else 18
        assert axes is not None
        places = sorted({axis % 3 for axis in axes})
        keep = attributes.get("keepdims", 1)
        attributes.pop("axes", None)
        if 0 in places or not (keep or 2 in places):
            return False
        mapped = [1] * (1 in places) + [2, 3] * (2 in places)
        out = self._made(node.output[0]) if keep else node.output[0]
        self.edit.with_axes(node.op_type, since, self.plane(node.input[0]), mapped, out, node.name, **attributes)
        return True


# --- transposed convolutions ------------------------------------------------------------------------------------------


def transposed_convolutions(model: onnx.ModelProto) -> None:
    """Replace a ConvTranspose of equal strides s by a Conv with s * s times as many channels, and a DepthToSpace.

    Each of the s * s groups of channels holds the elements of one phase of the strides. Constant factors and offsets
    behind it are multiplied into the weights, and a bound moves before the DepthToSpace, where a head fuses it. A plane
    of height 1 with the strides 1 x s passes through [N, 1, W, s * C] instead.
    """
    if not any(node.op_type == "ConvTranspose" for node in model.graph.node):
        return
    edit = _Edit(model)
    done: set[str] = set()  # outputs of operators that became part of a convolution
    for node in edit.graph.node:
        if node.output and node.output[0] in done:
            continue
        if node.op_type != "ConvTranspose" or not _transposed(edit, node, done):
            edit.nodes.append(node)
    edit.finish()


def _transposed(edit: _Edit, node: onnx.NodeProto, done: set[str]) -> bool:
    attributes, x, out = attributes_of(node), node.input[0], node.output[0]
    shape, after = edit.shapes.get(x, []), edit.shapes.get(out, [])
    weight, groups = edit.constants.get(node.input[1]), int(attributes.get("group", 1))
    biased = len(node.input) > 2 and node.input[2]
    if weight is None or len(shape) != 4 or len(after) != 4 or not all(shape[1:] + after[1:]):
        return False
    if biased and node.input[2] not in edit.constants:
        return False
    inner, outs = weight.shape[:2]
    stride = [int(s) for s in attributes.get("strides", (1, 1))]
    line = shape[2] == after[2] == 1 and stride[0] == 1 and weight.shape[2] == 1
    if (stride[0] != stride[1] and not line) or (groups > 1 and outs > 1 and stride != [1, 1]):
        return False
    w = weight.astype(np.float64).reshape(groups, inner // groups, outs, *weight.shape[2:])
    w = _dilated(w.transpose(0, 2, 1, 3, 4), attributes.get("dilations", (1, 1)))  # [G, O, I, KH, KW]
    bias = edit.constants[node.input[2]].astype(np.float64) if biased else np.zeros(groups * outs)
    pads = _begin(attributes, shape, after, stride, w.shape[3:])
    factor, bias, last = _following(edit, node, bias, done)
    w = w * factor.reshape(groups, outs, 1, 1, 1)
    taps = [
        max(-(-w.shape[3 + i] // stride[i]), -(-(pads[i] + after[2 + i]) // stride[i]) - shape[2 + i] + 1)
        for i in range(2)
    ]
    full = np.zeros((*w.shape[:3], taps[0] * stride[0], taps[1] * stride[1]))
    full[..., : w.shape[3], : w.shape[4]] = w
    # [G, O, I, tap, phase, tap, phase], the last tap first, to [G, phase, phase, O, I, tap, tap]
    parts = full.reshape(*w.shape[:3], taps[0], stride[0], taps[1], stride[1])[:, :, :, ::-1, :, ::-1, :]
    phases = stride[0] * stride[1]
    made = parts.transpose(0, 4, 6, 1, 2, 3, 5)
    weights = made.reshape(groups * phases * outs, inner // groups, *taps)
    spread = np.repeat(bias.reshape(groups, 1, outs), phases, axis=1).reshape(-1)
    inputs = [x, edit.constant(f"{out}@weight", weights), edit.constant(f"{out}@bias", spread)]
    ends = [taps[0] - 1, taps[1] - 1]
    y = edit.add("Conv", inputs, f"{out}@phases", node.name, kernel_shape=taps, pads=[*ends, *ends], group=groups)
    *bounds, result = last
    for bound in bounds:
        y = edit.add(
            bound.op_type, [y, *bound.input[1:]], f"{bound.output[0]}@phases", bound.name, **attributes_of(bound)
        )
    if groups > 1 and phases > 1:  # [G, phases] to [phases, G]
        places = np.arange(groups * phases).reshape(groups, phases).T.reshape(-1)
        y = edit.add(
            "Gather",
            [y, edit.constant(f"{out}@places", places.astype(np.int64))],
            f"{out}@order",
            f"{out}@order",
            axis=1,
        )
    sizes = [(shape[2 + i] + taps[i] - 1) * stride[i] for i in range(2)]
    y = _spread(edit, y, out, stride, sizes, groups * outs, line)
    _cut(edit, y, result.output[0], pads, after[2:], sizes)
    return True


def _dilated(w: NDArray[np.float64], dilations: Sequence[int]) -> NDArray[np.float64]:
    sizes = [(w.shape[3 + i] - 1) * dilations[i] + 1 for i in range(2)]
    wide = np.zeros((*w.shape[:3], *sizes))
    wide[..., :: dilations[0], :: dilations[1]] = w
    return wide


def _begin(
    attributes: dict[str, Any], shape: list[int], after: list[int], stride: Sequence[int], kernel: Sequence[int]
) -> list[int]:
    """Rows and columns that the padding removes before the first one, by ONNX's definition."""
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID") and "output_shape" not in attributes:
        return [int(p) for p in attributes.get("pads", (0, 0))[:2]] if mode == b"NOTSET" else [0, 0]
    more = attributes.get("output_padding", (0, 0))
    total = [max(0, stride[i] * (shape[2 + i] - 1) + more[i] + kernel[i] - after[2 + i]) for i in range(2)]
    return [t // 2 if mode == b"SAME_UPPER" else t - t // 2 for t in total]


def _following(
    edit: _Edit, node: onnx.NodeProto, bias: NDArray[np.float64], done: set[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[onnx.NodeProto]]:
    """The factor of each channel and the bias with what follows ``node``; then the bounds behind, and the last operator."""
    factor, last = np.ones(len(bias)), node
    bounds: list[onnx.NodeProto] = []
    while (after := edit.sole_reader(last.output[0])) is not None:
        other = [t for t in after.input if t != last.output[0]]
        value = edit.constants.get(other[0]) if len(other) == 1 else None
        fits = value is not None and (
            value.size == 1 or (value.shape[-3:] == (len(bias), 1, 1) and value.size == len(bias))
        )
        if after.op_type in ("Mul", "Add") and fits and value is not None and not bounds and value.ndim <= 4:
            each = np.broadcast_to(value.reshape(-1).astype(np.float64), bias.shape)
            factor, bias = (factor * each, bias * each) if after.op_type == "Mul" else (factor, bias + each)
        elif after.op_type in ("Relu", "Clip", "LeakyRelu") and not bounds:
            bounds.append(after)
        else:
            break
        done.add(after.output[0])
        last = after
    return factor, bias, [*bounds, last]


def _spread(
    edit: _Edit, y: str, out: str, stride: Sequence[int], sizes: Sequence[int], channels: int, line: bool
) -> str:
    if stride == [1, 1]:
        return y
    if not line:
        return edit.add("DepthToSpace", [y], f"{out}@spread", f"{out}@spread", blocksize=stride[0])
    last = edit.add("Transpose", [y], f"{out}@last", f"{out}@last", perm=[0, 2, 3, 1])
    shape = edit.constant(f"{out}@shape", np.array([0, 1, sizes[1], channels], np.int64))
    wide = edit.add("Reshape", [last, shape], f"{out}@wide", f"{out}@wide")
    return edit.add("Transpose", [wide], f"{out}@spread", f"{out}@spread", perm=[0, 3, 1, 2])


def _cut(edit: _Edit, y: str, out: str, pads: Sequence[int], kept: Sequence[int], sizes: Sequence[int]) -> None:
    """``out`` is the plane ``y`` of ``sizes`` without what lies outside of ``kept`` from ``pads`` on."""
    if list(pads) == [0, 0] and list(kept) == list(sizes):
        edit.nodes[-1].output[0] = out
        return
    ends = [pads[i] + kept[i] for i in range(2)]
    if edit.opset < 10:
        edit.add("Slice", [y], out, f"{out}@cut", starts=list(pads), ends=ends, axes=[2, 3])
        return
    numbers = {"starts": pads, "ends": ends, "axes": (2, 3)}
    inputs = [edit.constant(f"{out}@{name}", np.array(values, np.int64)) for name, values in numbers.items()]
    edit.add("Slice", [y, *inputs], out, f"{out}@cut")


# --- element-wise operators -------------------------------------------------------------------------------------------


def elementwise_forms(model: onnx.ModelProto) -> None:
    """PRelu with a slope for each channel, quotients of two tensors, Sum and Mean of several, and ReduceL2, as sums,
    products and functions of one tensor.
    """
    if not any(node.op_type in _FORMS for node in model.graph.node):
        return
    edit = _Edit(model)
    for node in edit.graph.node:
        form = _FORMS.get(node.op_type)
        if form is None or not form(edit, node):
            edit.nodes.append(node)
    if len(edit.nodes) != len(edit.graph.node):
        edit.finish()


def _slopes(edit: _Edit, node: onnx.NodeProto) -> bool:
    """max(x, 0) + slope * min(x, 0), the latter as -slope * max(-x, 0)."""
    x, out, slope = node.input[0], node.output[0], edit.constants.get(node.input[1])
    if slope is None or slope.size == 1:
        return False
    above = edit.add("Relu", [x], f"{out}@above", f"{node.name}@above")
    minus = edit.add("Neg", [x], f"{out}@minus", f"{node.name}@minus")
    below = edit.add("Relu", [minus], f"{out}@below", f"{node.name}@below")
    factor = edit.constant(f"{out}@slope", -slope.astype(np.float64))
    scaled = edit.add("Mul", [below, factor], f"{out}@scaled", f"{node.name}@scaled")
    edit.add("Add", [above, scaled], out, node.name)
    return True


def _quotient(edit: _Edit, node: onnx.NodeProto) -> bool:
    """a * (1 / b). The quotient of a norm made of single operators stays."""
    a, b = node.input
    maker = edit.makers.get(b)
    if a in edit.constants or b in edit.constants or (maker is not None and maker.op_type == "Sqrt"):
        return False
    inverse = edit.add("Reciprocal", [b], f"{node.output[0]}@inverse", f"{node.name}@inverse")
    edit.add("Mul", [a, inverse], node.output[0], node.name)
    return True


def _several(edit: _Edit, node: onnx.NodeProto) -> bool:
    first, *others = node.input
    out = node.output[0]
    if not others:
        return False
    for i, other in enumerate(others):
        whole = i == len(others) - 1 and node.op_type == "Sum"
        first = edit.add("Add", [first, other], out if whole else f"{out}@{i}", f"{node.name}@{i}")
    if node.op_type == "Mean":
        share = edit.constant(f"{out}@share", np.array(1 / len(node.input)))
        edit.add("Mul", [first, share], out, node.name)
    return True


def _length(edit: _Edit, node: onnx.NodeProto) -> bool:
    """ReduceL2 as the root of a sum of squares."""
    axes, out = edit.axes_of(node), node.output[0]
    if axes is None:
        return False
    square = edit.add("Mul", [node.input[0]] * 2, f"{out}@square", f"{node.name}@square")
    keep = attributes_of(node).get("keepdims", 1)
    total = edit.with_axes("ReduceSum", 13, square, axes, f"{out}@total", f"{node.name}@total", keepdims=keep)
    edit.add("Sqrt", [total], out, node.name)
    return True


_FORMS: Final = {"PRelu": _slopes, "Div": _quotient, "Sum": _several, "Mean": _several, "ReduceL2": _length}


# --- group norms ------------------------------------------------------------------------------------------------------


def group_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, or a copy with each GroupNormalization as torch exports it for older operator sets.

    ONNX Runtime would replace the operator by thirty others.
    """
    if not any(node.op_type == "GroupNormalization" and not node.domain for node in model.graph.node):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    edit = _Edit(made)
    for node in edit.graph.node:
        if node.op_type != "GroupNormalization" or not _grouped(edit, node):
            edit.nodes.append(node)
    edit.finish()
    return made


def _grouped(edit: _Edit, node: onnx.NodeProto) -> bool:
    attributes, (x, gamma, beta), out = attributes_of(node), node.input, node.output[0]
    shape, groups = edit.shapes.get(x, []), int(attributes["num_groups"])
    if len(shape) < 3 or not all(shape[1:]) or gamma not in edit.constants or beta not in edit.constants:
        return False
    parts = edit.constant(f"{out}@parts", np.array([0, groups, -1], np.int64))
    whole = edit.constant(f"{out}@whole", np.array([0, *shape[1:]], np.int64))
    ends = [edit.constant(f"{out}@{name}", np.full(groups, value)) for name, value in (("ones", 1.0), ("zeros", 0.0))]
    flat = edit.add("Reshape", [x, parts], f"{out}@groups", f"{node.name}@groups")
    epsilon = attributes.get("epsilon", 1e-5)
    even = edit.add("InstanceNormalization", [flat, *ends], f"{out}@even", f"{node.name}@even", epsilon=epsilon)
    back = edit.add("Reshape", [even, whole], f"{out}@back", f"{node.name}@back")
    axes = [shape[1]] + [1] * (len(shape) - 2)
    factor, offset = (
        edit.constant(
            f"{out}@{t}",
            np.repeat(edit.constants[t].astype(np.float64), shape[1] // edit.constants[t].size).reshape(axes),
        )
        for t in (gamma, beta)
    )
    scaled = edit.add("Mul", [back, factor], f"{out}@scaled", f"{node.name}@scaled")
    edit.add("Add", [scaled, offset], out, node.name)
    return True


# --- channels last ----------------------------------------------------------------------------------------------------

_FIRST, _LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def channels_last_parts(model: onnx.ModelProto) -> None:
    """Compute what lies between a Transpose to channels last and one back with the channels first.

    The Transpose back moves up, past element-wise operators, products with a matrix (which become 1 x 1 convolutions)
    and reductions, to a layer norm or the Transpose there, which it cancels. Other readers of what moved get it
    transposed again. The graph stays if that would compute a product twice.
    """
    backs = [
        n.output[0] for n in model.graph.node if n.op_type == "Transpose" and attributes_of(n).get("perm") == _FIRST
    ]
    if not backs:
        return
    made = onnx.ModelProto()
    made.CopyFrom(model)
    edit = _Edit(made)
    turned = _Turned(edit)
    for node in edit.graph.node:
        if node.output and node.output[0] in backs:
            edit.add("Identity", [turned.first(node.input[0])], node.output[0], node.name)
            continue
        if node.op_type == "LayerNormalization" and edit.rank(node.input[0]) == 4:
            turned.first(node.input[0])  # so that what it reads moves too
        edit.nodes.append(node)
    turned.read_by_others()
    _sort(edit)
    edit.finish()
    if turned.moved and _products(edit.graph) <= _products(model.graph):
        _drop_identities(edit.graph)
        model.graph.CopyFrom(made.graph)


def _products(graph: onnx.GraphProto) -> int:
    return sum(node.op_type in ("MatMul", "Conv", "Gemm") for node in graph.node)


class _Turned:
    """For tensors [N, H, W, C] the names of the same with the channels first. ``moved``: those computed in that order."""

    def __init__(self, edit: _Edit) -> None:
        self.edit = edit
        self.moved: set[str] = set()
        self.names: dict[str, str] = {}

    def first(self, tensor: str) -> str:
        if tensor not in self.names:
            self.names[tensor] = self._made(tensor)
        return self.names[tensor]

    def _made(self, tensor: str) -> str:
        edit, out = self.edit, f"{tensor}@first"
        node = edit.makers.get(tensor)
        shape = edit.shapes.get(tensor, [])
        if node is None or len(node.output) > 1 or len(shape) != 4:
            return self._turned(tensor)
        attributes = attributes_of(node)
        if node.op_type == "Transpose" and attributes.get("perm") == _LAST:
            return str(node.input[0])
        inputs = [t for t in node.input if t not in edit.constants]
        if node.op_type in _UNARY or (node.op_type in _PAIRS and all(edit.rank(t) == 4 for t in inputs)):
            self.moved.add(tensor)
            return edit.add(node.op_type, [self._operand(t, node) for t in node.input], out, node.name, **attributes)
        weight = edit.constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.ndim == 2 and node.input[0] not in edit.constants:
            self.moved.add(tensor)
            name = edit.constant(f"{tensor}@kernel", np.ascontiguousarray(weight.T)[:, :, None, None])
            return edit.add("Conv", [self.first(node.input[0]), name], out, node.name, kernel_shape=[1, 1])
        axes = edit.axes_of(node) if node.op_type in _REDUCTIONS and attributes.get("keepdims", 1) else None
        if axes is not None and edit.rank(node.input[0]) == 4:
            self.moved.add(tensor)
            attributes.pop("axes", None)
            mapped = sorted(_FIRST.index(axis % 4) for axis in axes)
            since = 13 if node.op_type == "ReduceSum" else 18
            return edit.with_axes(node.op_type, since, self.first(node.input[0]), mapped, out, node.name, **attributes)
        return self._turned(tensor)

    def read_by_others(self) -> None:
        """Let the operators that were not moved read what was moved, transposed again."""
        own = {f"{tensor}@first" for tensor in self.names}
        again: dict[str, str] = {}
        for node in list(self.edit.nodes):
            if self.moved.intersection(node.output) or own.intersection(node.output):
                continue
            for place, tensor in enumerate(node.input):
                if tensor in self.moved:
                    name = f"{tensor}@again"
                    if tensor not in again:
                        again[tensor] = self.edit.add("Transpose", [self.names[tensor]], name, name, perm=_LAST)
                    node.input[place] = name

    def _turned(self, tensor: str) -> str:
        return self.edit.add("Transpose", [tensor], f"{tensor}@first", f"{tensor}@first", perm=_FIRST)

    def _operand(self, tensor: str, node: onnx.NodeProto) -> str:
        value = self.edit.constants.get(tensor)
        if not tensor or (value is not None and (value.ndim == 0 or value.size == 1 or node.op_type in _UNARY)):
            return tensor
        if value is None:
            return self.first(tensor)
        whole = value.reshape([1] * (4 - value.ndim) + list(value.shape))
        return self.edit.constant(f"{tensor}@first", np.ascontiguousarray(whole.transpose(_FIRST)))


def _sort(edit: _Edit) -> None:
    """Put the nodes in an order in which each follows what it reads."""
    makers = {t: node for node in edit.nodes for t in node.output}
    placed: set[int] = set()
    found: list[onnx.NodeProto] = []
    for root in edit.nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            if id(node) in placed:
                stack.pop()
                continue
            waiting = [makers[t] for t in node.input if t in makers and id(makers[t]) not in placed]
            if waiting:
                stack += waiting
                continue
            placed.add(id(node))
            found.append(node)
            stack.pop()
    edit.nodes = found


def _drop_identities(graph: onnx.GraphProto) -> None:
    """Let readers of an Identity read its source, unless it makes an output."""
    outputs = {out.name for out in graph.output}
    names = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.output[0] not in outputs}
    for node in graph.node:
        for place, name in enumerate(node.input):
            while name in names:
                name = names[name]
            node.input[place] = name
    kept = [node for node in graph.node if not (node.op_type == "Identity" and node.output[0] in names)]
    del graph.node[:]
    graph.node.extend(kept)
