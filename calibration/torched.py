"""An ONNX model as a differentiable function in PyTorch: the operators of `_OPERATORS`, anything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from edge_agent import errors

Tensors = dict[str, Any]


class Torched:
    """``model`` on torch tensors; ``torch`` is the module, which only those import who have it."""

    def __init__(self, torch: Any, model: onnx.ModelProto) -> None:
        self._torch, self._graph = torch, model.graph
        self._constants = {t.name: _tensor(torch, t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in _OPERATORS:
                raise errors.ModelError(
                    f"weights cannot be tuned through the operator {node.op_type}; calibrate without tuning"
                )

    def __call__(self, feeds: Mapping[str, Any], changed: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
        """The output for the inputs ``feeds``, where each tensor named in ``changed`` is replaced by what its function makes of it."""
        known: Tensors = {**self._constants, **feeds}
        for name in set(changed or ()) & set(feeds):
            known[name] = (changed or {})[name](known[name])
        for node in self._graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [known[name] if name else None for name in node.input]
            made = _OPERATORS[node.op_type](self._torch, inputs, attributes)
            for name, value in zip(node.output, made if isinstance(made, tuple | list) else (made,), strict=False):
                known[name] = changed[name](value) if changed and name in changed else value
        return known[self._graph.output[0].name]


def _tensor(torch: Any, stored: onnx.TensorProto) -> Any:
    return torch.from_numpy(onnx.numpy_helper.to_array(stored).copy())


def _constant(torch: Any, _: list[Any], attributes: Mapping[str, Any]) -> Any:
    ((name, value),) = attributes.items()
    return _tensor(torch, value) if name == "value" else torch.tensor(value)


def _conv(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, weight, bias = (*inputs, None)[:3]
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    steps = [tuple(attributes.get(name, (1, 1))) for name in ("strides", "dilations")]
    return torch.nn.functional.conv2d(x, weight, bias, steps[0], 0, steps[1], attributes.get("group", 1))


def _gemm(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    a, b, c = (*inputs, None)[:3]
    a, b = a.T if attributes.get("transA") else a, b.T if attributes.get("transB") else b
    y = attributes.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + attributes.get("beta", 1.0) * c


def _max_pool(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    x = torch.nn.functional.pad(inputs[0], (left, right, top, bottom), value=float("-inf"))
    kernel = tuple(attributes["kernel_shape"])
    return torch.nn.functional.max_pool2d(x, kernel, tuple(attributes.get("strides", (1, 1))))


def _average_pool(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    if any(attributes.get("pads", ())):
        raise errors.ModelError("weights cannot be tuned through padded average pooling; calibrate without tuning")
    kernel = tuple(attributes["kernel_shape"])
    return torch.nn.functional.avg_pool2d(inputs[0], kernel, tuple(attributes.get("strides", (1, 1))))


def _reshape(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, shape = inputs[0], [int(n) for n in inputs[1]]
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


def _flatten(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.flatten(1) if axis == 1 else x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _clip(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    lo, hi = (*inputs[1:], None, None)[:2]
    return inputs[0].clamp(None if lo is None else float(lo), None if hi is None else float(hi))


def _reduce_mean(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    axes = inputs[1].tolist() if len(inputs) > 1 else attributes["axes"]
    return inputs[0].mean(dim=tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))


def _squeeze(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0].squeeze(tuple(inputs[1].tolist()))


def _unsqueeze(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    for axis in sorted(inputs[1].tolist()):
        inputs[0] = inputs[0].unsqueeze(axis)
    return inputs[0]


def _split(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1:
        return x.split(inputs[1].tolist(), axis)
    return x.chunk(attributes["num_outputs"], axis)


def _layer_norm(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    x, gamma, beta = (*inputs, None)[:3]
    return torch.nn.functional.layer_norm(x, gamma.shape, gamma, beta, attributes.get("epsilon", 1e-5))


def _gelu(torch: Any, inputs: list[Any], attributes: Mapping[str, Any]) -> Any:
    kind = attributes.get("approximate", b"none")
    return torch.nn.functional.gelu(inputs[0], approximate=kind.decode())


_TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool"}

_OPERATORS: Mapping[str, Callable[[Any, list[Any], Mapping[str, Any]], Any]] = {
    "Abs": lambda t, i, a: i[0].abs(),
    "Add": lambda t, i, a: i[0] + i[1],
    "And": lambda t, i, a: i[0] & i[1],
    "AveragePool": _average_pool,
    "Cast": lambda t, i, a: i[0].to(getattr(t, _TYPES[a["to"]])),
    "Clip": _clip,
    "Concat": lambda t, i, a: t.cat(i, a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "Div": lambda t, i, a: i[0] / i[1],
    "Equal": lambda t, i, a: i[0] == i[1],
    "Erf": lambda t, i, a: i[0].erf(),
    "Expand": lambda t, i, a: i[0].expand(t.broadcast_shapes(i[0].shape, i[1].tolist())),
    "Flatten": _flatten,
    "Gather": lambda t, i, a: i[0][(slice(None),) * a.get("axis", 0) + (i[1],)],
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda t, i, a: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "HardSigmoid": lambda t, i, a: (a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda t, i, a: t.nn.functional.hardswish(i[0]),
    "Identity": lambda t, i, a: i[0],
    "LayerNormalization": _layer_norm,
    "MatMul": lambda t, i, a: i[0] @ i[1],
    "Max": lambda t, i, a: t.maximum(i[0], i[1]),
    "MaxPool": _max_pool,
    "Min": lambda t, i, a: t.minimum(i[0], i[1]),
    "Mul": lambda t, i, a: i[0] * i[1],
    "Not": lambda t, i, a: ~i[0],
    "Pow": lambda t, i, a: i[0] ** i[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda t, i, a: i[0].relu(),
    "Reshape": _reshape,
    "Sigmoid": lambda t, i, a: i[0].sigmoid(),
    "Softmax": lambda t, i, a: i[0].softmax(a.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda t, i, a: i[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda t, i, a: i[0] - i[1],
    "Tanh": lambda t, i, a: i[0].tanh(),
    "Transpose": lambda t, i, a: i[0].permute(tuple(a["perm"])),
    "Unsqueeze": _unsqueeze,
    "Where": lambda t, i, a: t.where(i[0], i[1], i[2]),
}
