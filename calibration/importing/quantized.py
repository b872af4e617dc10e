"""Turns a quantized model into the float model that it rounds, and takes its codes over.

Quantized files compute with integers (QOperator form: QLinearConv, MatMulInteger), or mark where real numbers are
rounded to codes (QDQ form: QuantizeLinear, DequantizeLinear). The float model has neither. Its metadata hold the scale
and the zero point of each tensor that the file codes in 8 bits, and calibration uses them in place of measured ranges.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.importing.graph import inputs, metadata, reads, set_metadata

Array = NDArray[Any]

#: Key in `ModelProto.metadata_props`: scale and zero point of tensors, as JSON.
CODES: Final = "splitedge.codes"
#: Operators that this module replaces.
QUANTIZED: Final = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QLinearAdd",
    "QLinearMul",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearSoftmax",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearConcat",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
}
#: Least and greatest results of operators.
_BOUNDS: Final = {
    "Relu": (0.0, math.inf),
    "Exp": (0.0, math.inf),
    "Abs": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sqrt": (0.0, math.inf),
}
#: Operators whose results are values of their first input.
_MOVES: Final = {
    "MaxPool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Gather",
    "DepthToSpace",
    "SpaceToDepth",
}
#: Operators whose results are between those of their first input, or padding.
_PASSES: Final = {*_MOVES, "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "Resize", "Pad"}
_BYTES: Final = {np.dtype(np.int8): 128, np.dtype(np.uint8): 0}


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether an operator of ``model`` computes with codes."""
    return any(node.op_type in QUANTIZED for node in model.graph.node)


def to_float(model: onnx.ModelProto) -> None:
    """Replace the quantized operators of ``model`` with float ones, and record the codes of tensors.

    Quantization also cuts off values beyond the codes, and converters drop a ReLU where the codes begin at zero. A Clip
    does the same. In a model with attention it does so at zero only, as other Clips there end an integer head.

    Raises `KeyError` or `ValueError` for forms that are not known; ``model`` is then undefined.
    """
    _Dequantizer(model).run()


def codes(model: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Scale and zero point, for codes from 0 to 255, of the tensors that the file codes in 8 bits."""
    found = metadata(model, CODES)
    return (
        {} if found is None else {name: (float(scale), int(zero)) for name, (scale, zero) in json.loads(found).items()}
    )


def record(model: onnx.ModelProto, found: dict[str, tuple[float, int]]) -> None:
    """Write ``found``, as `codes` gives it, into the metadata of ``model``, for the tensors that it still has."""
    names = {t for node in model.graph.node for t in (*node.input, *node.output)}
    kept = {name: code for name, code in found.items() if name in names}
    set_metadata(model, CODES, json.dumps(kept) if kept else None)


class _Dequantizer:
    """Builds the float form of a graph, one operator after another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                value = helper.get_attribute_value(node.attribute[0])
                is_tensor = isinstance(value, onnx.TensorProto)
                self.constants[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        #: Sums of codes, which an integer operator gives and a Cast makes real.
        self.sums: set[str] = set()
        #: The real tensor that each quantized or dequantized tensor stands for.
        self.real: dict[str, str] = {}
        self.codes: dict[str, tuple[float, int]] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        #: Least and greatest value of tensors with codes.
        self.ranges: dict[str, tuple[float, float]] = {}
        self.saturates = not self._attends()
        self.readers = Counter([*(t for n in self.graph.node for t in reads(n)), *(o.name for o in self.graph.output)])

    def run(self) -> None:
        for node in self.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = self.real.get(name, name)
            make = _FORMS.get(node.op_type)
            if make is not None:
                make(self, node)
            else:
                self._keep(node)
        self._fold_factors()
        self._pass_codes_back()
        for out in self.graph.output:
            if out.name in self.real:
                real = self.real[out.name]
                self.append("Identity", [real], out.name)
                self.codes |= {out.name: self.codes[real]} if real in self.codes else {}
                out.type.tensor_type.elem_type = TensorProto.FLOAT
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        record(self.model, self.codes)

    def _keep(self, node: onnx.NodeProto) -> None:
        alone = node.op_type == "Identity" and node.output[0] not in {out.name for out in self.graph.output}
        if alone or (node.op_type == "Cast" and node.input[0] in self.sums):
            self.real[node.output[0]] = node.input[0]
            return
        if node.op_type in _MOVES and node.input[0] in self.codes:
            self.codes[node.output[0]] = self.codes[node.input[0]]
        if node.op_type == "Pad" and len(node.input) > 2 and node.input[2] in self.constants:
            code, value = self.codes.get(node.input[0]), self.constants[node.input[2]]
            if code is not None and value.dtype in _BYTES:
                offset = _BYTES[value.dtype]
                node.input[2] = self.constant(
                    f"{node.output[0]}@value", code[0] * (value.astype(np.float64) + offset - code[1])
                )
        self.nodes.append(node)
        self.makers |= dict.fromkeys(node.output, node)

    def _attends(self) -> bool:
        """Whether an operator multiplies two tensors that are both computed, as attention does."""
        known = set(self.constants)
        for node in self.graph.node:
            if node.input and all(t in known for t in node.input if t):
                known |= set(node.output)
            elif node.op_type in ("MatMul", "QLinearMatMul"):
                factors = node.input[:2] if node.op_type == "MatMul" else (node.input[0], node.input[3])
                if not known.intersection(factors):
                    return True
        return False

    # --- building ---------------------------------------------------------------------------------------------------

    def append(self, kind: str, given: list[str], name: str, **attributes: Any) -> str:
        node = helper.make_node(kind, given, [name], f"{name}@{kind}", **attributes)
        self.nodes.append(node)
        self.makers[name] = node
        return name

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = np.asarray(value, np.float32)
        self.graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return name

    def value(self, name: str) -> Array:
        """A constant. Raises `KeyError` for another tensor."""
        found: Array = self.constants[name]
        return found

    def zero_of(self, node: onnx.NodeProto, place: int) -> Array:
        """The zero point that ``node`` reads at ``place``; 0 without one."""
        return (
            self.value(node.input[place]) if len(node.input) > place and node.input[place] else np.zeros((), np.uint8)
        )

    def weight(self, name: str, scale: Array, zero: Array, axis: int) -> str:
        """A constant's real values."""
        own = self.value(name)
        shape = [1] * own.ndim
        if max(scale.size, zero.size) > 1:
            shape[axis % own.ndim] = max(scale.size, zero.size)
        values = scale.astype(np.float64).reshape(shape if scale.size > 1 else [1] * own.ndim) * (
            own.astype(np.float64) - zero.astype(np.float64).reshape(shape if zero.size > 1 else [1] * own.ndim)
        )
        return self.constant(f"{name}@real{len(self.graph.initializer)}", values)

    def rounded(self, source: str, quantized: str, scale: Array, zero: Array) -> None:
        """Let ``quantized`` stand for ``source``, which the file rounds to codes."""
        offset = _BYTES.get(zero.dtype)
        if scale.size > 1 or offset is None:
            self.real[quantized] = source
            return
        code = float(scale.reshape(())), int(zero.reshape(())) + offset
        low, high = (code[0] * (end - code[1]) for end in (0, 255))
        least, most = self.bounds(source)
        below = least < low - code[0] and (self.saturates or code[1] == 0)
        if below or (self.saturates and most > high + code[0]):
            source = self._clip(source, low, high)
        self.real[quantized] = source
        if source not in self.ranges:
            self.codes[source], self.ranges[source] = code, (low, high)

    def _clip(self, source: str, low: float, high: float) -> str:
        """Cut ``source`` off. The result takes its name if nothing else reads it."""
        inner, name = source, f"{source}@cut"
        if self.readers[source] <= 1:
            maker, inner, name = self.makers[source], f"{source}@open", source
            maker.output[list(maker.output).index(source)] = inner
            self.makers[inner] = maker
        if self.opset < 11:
            return self.append("Clip", [inner], name, min=low, max=high)
        ends = [self.constant(f"{name}@{end}", np.array(value)) for end, value in (("low", low), ("high", high))]
        return self.append("Clip", [inner, *ends], name)

    def bounds(self, name: str) -> tuple[float, float]:
        """Least and greatest value that a tensor can have. The caller answers for those of the input."""
        if name in self.ranges:
            return self.ranges[name]
        if name in {i.name for i in inputs(self.graph)}:
            return 0.0, 0.0
        node = self.makers.get(name)
        if node is not None and node.op_type in _PASSES:
            low, high = self.bounds(node.input[0])
            return (min(low, 0.0), max(high, 0.0)) if node.op_type == "Pad" else (low, high)
        if node is not None and node.op_type in ("Add", "Pow", "Mul"):
            return self._of_two(node)
        if node is not None and node.op_type == "Clip" and len(node.input) > 1:
            ends = [self.constants.get(t) for t in node.input[1:3]]
            low, high = (
                float(e.reshape(())) if e is not None else far
                for e, far in zip([*ends, None][:2], (-math.inf, math.inf), strict=True)
            )
            return low, high
        return _BOUNDS.get("" if node is None else node.op_type, (-math.inf, math.inf))

    def _of_two(self, node: onnx.NodeProto) -> tuple[float, float]:
        """Least and greatest result of a sum with a constant, or of a square; else open."""
        numbers = [self.constants.get(t) for t in node.input]
        added = next((float(n.reshape(())) for n in numbers if n is not None and n.size == 1), None)
        if node.op_type == "Add" and added is not None:
            low, high = self.bounds(node.input[0 if numbers[0] is None else 1])
            return low + added, high + added
        square = node.input[0] == node.input[1] if node.op_type == "Mul" else node.op_type == "Pow" and added == 2
        return (0.0 if square else -math.inf), math.inf

    def coded(self, node: onnx.NodeProto, name: str, scale: int, zero: int) -> str:
        """The real tensor of the input ``name`` of an integer operator, whose scale and zero point are at these
        places.
        """
        if name in self.constants and self.constants[name].dtype.kind in "iu":
            return self.weight(name, self.value(node.input[scale]), self.zero_of(node, zero), 0)
        self.settle(name, self.value(node.input[scale]), self.zero_of(node, zero))
        return name

    def settle(self, name: str, scale: Array, zero: Array) -> None:
        """Make the codes ``name`` real if they are the model's input, or elements of a constant, as embeddings are."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type in _MOVES and maker.input[0] in self.constants:
            if self.constants[maker.input[0]].dtype.kind in "iu":
                maker.input[0] = self.weight(maker.input[0], scale, zero, 0)
        elif name in {i.name for i in inputs(self.graph)}:
            self._entry(name, scale, zero)

    def _entry(self, name: str, scale: Array, zero: Array) -> None:
        """Let the input take real numbers in place of codes."""
        entry = next(i for i in inputs(self.graph) if i.name == name)
        if entry.type.tensor_type.elem_type != TensorProto.FLOAT:
            entry.type.tensor_type.elem_type = TensorProto.FLOAT
            if zero.dtype in _BYTES:
                self.codes[name] = float(scale.reshape(())), int(zero.reshape(())) + _BYTES[zero.dtype]

    def _pass_codes_back(self) -> None:
        """Let a tensor that is only moved or cut off have the codes of the result."""
        readers = Counter(t for node in self.nodes for t in reads(node))
        for node in reversed(self.nodes):
            if node.op_type in {*_MOVES, "Clip"} and node.output[0] in self.codes and readers[node.input[0]] == 1:
                self.codes.setdefault(node.input[0], self.codes[node.output[0]])

    def _fold_factors(self) -> None:
        """Multiply a constant factor of a product into its weights.

        The integer product of a dynamically quantized layer is multiplied by the weights' scale.
        """
        readers = Counter(t for node in self.nodes for t in reads(node))
        ends = {out.name for out in self.graph.output}
        for node in [n for n in self.nodes if n.op_type == "Mul"]:
            source, factor = (self.makers.get(t) for t in node.input)
            names = list(node.input)
            if source is None or source.op_type not in ("MatMul", "Conv"):
                source, names = factor, names[::-1]
            own = self._folded(names[1])
            if source is None or source.op_type not in ("MatMul", "Conv") or own is None or names[0] in ends:
                continue
            weight = self.constants.get(source.input[1])
            if (
                weight is None
                or readers[names[0]] != 1
                or own.size not in (1, weight.shape[-1])
                or len(source.input) > 2
            ):
                continue
            if own.size > 1 and source.op_type == "Conv":
                continue
            scaled = weight.astype(np.float64) * own.astype(np.float64).reshape(-1)
            source.input[1] = self.constant(f"{source.output[0]}@scaled", scaled)
            node.op_type = "Identity"
            del node.input[:], node.attribute[:]
            node.input.append(names[0])

    def _folded(self, name: str) -> Array | None:
        """The value of a tensor that is a product of constants."""
        if name in self.constants:
            return self.constants[name] if self.constants[name].dtype.kind == "f" else None
        node = self.makers.get(name)
        if node is None or node.op_type not in ("Mul", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        values = [self._folded(t) for t in node.input[: 2 if node.op_type == "Mul" else 1]]
        if any(v is None for v in values):
            return None
        return values[0] if len(values) == 1 else np.multiply(values[0], values[1])  # type: ignore[arg-type]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _quantize(work: _Dequantizer, node: onnx.NodeProto) -> None:
    source, scale, zero = node.input[0], work.value(node.input[1]), work.zero_of(node, 2)
    if source in work.constants:  # weights that the session would round itself
        info = np.iinfo(zero.dtype)
        own, axis = work.constants[source], _attributes(node).get("axis", 1)
        shape = [1] * own.ndim
        if scale.size > 1:
            shape[axis % own.ndim] = scale.size
        levels = np.rint(own / scale.reshape(shape)) + zero.astype(np.float64).reshape(
            shape if zero.size > 1 else [1] * own.ndim
        )
        work.constants[node.output[0]] = np.clip(levels, info.min, info.max).astype(zero.dtype)
        return
    work.rounded(source, node.output[0], scale, zero)


def _dequantize(work: _Dequantizer, node: onnx.NodeProto) -> None:
    name, out = node.input[0], node.output[0]
    scale, zero = work.value(node.input[1]), work.zero_of(node, 2)
    if name in work.constants and work.constants[name].dtype.kind in "iu":
        if _attributes(node).get("block_size"):
            raise ValueError("blocked weights")
        work.real[out] = work.weight(name, scale, zero, _attributes(node).get("axis", 1))
        return
    work.settle(name, scale, zero)
    if scale.size == 1 and zero.dtype in _BYTES:
        work.codes.setdefault(name, (float(scale.reshape(())), int(zero.reshape(())) + _BYTES[zero.dtype]))
    work.real[out] = name


def _dynamic(work: _Dequantizer, node: onnx.NodeProto) -> None:
    """Codes of a scale that each input has of its own: the values themselves, with a scale of 1."""
    work.real[node.output[0]] = node.input[0]
    work.real[node.output[1]] = work.constant(f"{node.output[1]}@one", np.array(1.0))
    work.real[node.output[2]] = work.constant(f"{node.output[2]}@none", np.array(0.0))


def _integer(kind: str) -> _Form:
    """ConvInteger and MatMulInteger: the sums of codes without zero points, as real numbers."""

    def make(work: _Dequantizer, node: onnx.NodeProto) -> None:
        x, w, zero = node.input[0], node.input[1], work.zero_of(node, 3)
        if x in work.constants or w not in work.constants:
            raise ValueError("the weights of an integer product are not constant")
        if len(node.input) > 2 and node.input[2] and work.value(node.input[2]).any():
            raise ValueError("static zero point of an integer product")
        weight = work.weight(w, np.ones(1), zero, 0 if kind == "Conv" else -1)
        work.append(kind, [x, weight], node.output[0], **_attributes(node))
        work.sums.add(node.output[0])

    return make


def _qlinear_conv(work: _Dequantizer, node: onnx.NodeProto) -> None:
    x = work.coded(node, node.input[0], 1, 2)
    weight = work.weight(node.input[3], work.value(node.input[4]), work.zero_of(node, 5), 0)
    given = [x, weight]
    if len(node.input) > 8 and node.input[8]:
        step = work.value(node.input[1]).astype(np.float64) * work.value(node.input[4]).astype(np.float64)
        given.append(work.weight(node.input[8], step.reshape(-1), np.zeros((), np.int32), 0))
    _made(work, node, "Conv", given, 6)


def _qlinear_matmul(work: _Dequantizer, node: onnx.NodeProto) -> None:
    given = []
    for place in (0, 3):
        name = node.input[place]
        if name in work.constants:
            given.append(work.weight(name, work.value(node.input[place + 1]), work.zero_of(node, place + 2), -1))
        else:
            given.append(work.coded(node, name, place + 1, place + 2))
    _made(work, node, "MatMul", given, 6)


def _qgemm(work: _Dequantizer, node: onnx.NodeProto) -> None:
    attributes = _attributes(node)
    axis = 0 if attributes.get("transB", 0) else 1
    given = [
        work.coded(node, node.input[0], 1, 2),
        work.weight(node.input[3], work.value(node.input[4]), work.zero_of(node, 5), axis),
    ]
    if len(node.input) > 6 and node.input[6]:
        step = (
            float(attributes.get("alpha", 1.0))
            * work.value(node.input[1]).astype(np.float64)
            * work.value(node.input[4])
        )
        given.append(work.weight(node.input[6], step.reshape(-1), np.zeros((), np.int32), -1))
    _made(work, node, "Gemm", given, 7, attributes)


def _qlinear(kind: str, operands: int, at: int) -> _Form:
    """An operator of com.microsoft with ``operands``, each followed by its scale and zero point, and those of the
    output from ``at`` on.
    """

    def make(work: _Dequantizer, node: onnx.NodeProto) -> None:
        given = [work.coded(node, node.input[3 * i], 3 * i + 1, 3 * i + 2) for i in range(operands)]
        attributes = _attributes(node)
        if attributes.pop("channels_last", 0):
            raise ValueError("channels last")
        attributes.pop("opset", None)
        _made(work, node, kind, given, at, attributes)

    return make


def _qlinear_concat(work: _Dequantizer, node: onnx.NodeProto) -> None:
    given = [work.coded(node, node.input[i], i + 1, i + 2) for i in range(2, len(node.input), 3)]
    _made(work, node, "Concat", given, 0)


def _made(
    work: _Dequantizer,
    node: onnx.NodeProto,
    kind: str,
    given: list[str],
    at: int,
    attributes: dict[str, Any] | None = None,
) -> None:
    """Append the float form of ``node``, whose output has its scale and zero point at ``at``."""
    name = work.append(
        kind, given, f"{node.output[0]}@real", **(_attributes(node) if attributes is None else attributes)
    )
    work.rounded(name, node.output[0], work.value(node.input[at]), work.zero_of(node, at + 1))


_Form = Callable[[_Dequantizer, onnx.NodeProto], None]

_FORMS: Final[dict[str, _Form]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearAdd": _qlinear("Add", 2, 6),
    "QLinearMul": _qlinear("Mul", 2, 6),
    "QLinearSigmoid": _qlinear("Sigmoid", 1, 3),
    "QLinearLeakyRelu": _qlinear("LeakyRelu", 1, 3),
    "QLinearSoftmax": _qlinear("Softmax", 1, 3),
    "QLinearAveragePool": _qlinear("AveragePool", 1, 3),
    "QLinearGlobalAveragePool": _qlinear("GlobalAveragePool", 1, 3),
    "QLinearConcat": _qlinear_concat,
    "QGemm": _qgemm,
    "ConvInteger": _integer("Conv"),
    "MatMulInteger": _integer("MatMul"),
}
