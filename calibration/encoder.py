"""A transformer encoder in ONNX to a segment: token ids in, the float32 stream out; nothing is calibrated, since rows are quantized as they come.

`lower_encoder` matches the graph backwards from its output: layer norms, products with their bias, GELU and residual, attention with its split
into heads, and the embedding of the ids. What it does not know it refuses with the operator's name, and the segment is compared with the float
model on the golden ids before it is returned, so that a graph that only looks like one of these is not served wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.graph import Graph, Node, short, with_batch
from calibration.importer import session
from calibration.lower import Constants, place
from calibration.quantize import pack, quantize_matrix
from edge_agent.errors import ModelError
from edge_agent.head import Head
from edge_agent.head import segment as seg
from edge_agent.protocol.messages import Preprocess

F32 = NDArray[np.float32]

#: Least cosine between the rows of the segment's output and the float model's: below, the match or the bit width is wrong.
LEAST_COSINE: Final = {2: 0.0, 3: 0.5, 4: 0.8, 5: 0.9, 6: 0.95, 7: 0.97, 8: 0.97}
_VIEWS: Final = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")


def lower_encoder(model: onnx.ModelProto, bits: int = 8, name: str = "model") -> bytes:
    """The segment of an encoder whose input is token ids [1, T] and whose output is its stream [1, T, C], with weights of ``bits`` bits.

    ``model`` is simplified (`importer.simplify`). Raises `ModelError` for a graph that is no such encoder.
    """
    graph = Graph.of(model)
    work = _Encoder(graph, bits)
    shape = [d.dim_value for d in Graph.input_of(model).type.tensor_type.shape.dim]
    if len(shape) != 2 or shape[1] < 1:
        raise ModelError("an encoder takes token ids of shape [batch, tokens]; export the model with a fixed length")
    source = work.tensor([shape[1]], "i32")
    work.index[graph.input] = source
    output = work.stream(graph.output)
    golden = seg.Golden(f"{name}/{short(graph.output)}/{bits}", "")
    size = place(work.tensors, work.ops, source, output)
    header = seg.Header(
        name, short(graph.output), bits, Preprocess("tensor", [shape[1]]), work.tensors, source, output, work.ops, size, work.constants.size, golden
    )  # fmt: skip
    blob = work.constants.blob()
    head = Head(seg.parse(seg.build(header, blob)), check_golden=False)
    ids = seg.golden_frame(header)
    answer = head.run(ids)
    _compare(model, graph, ids, answer, bits)
    header.golden.sha256 = hashlib.sha256(answer.tobytes()).hexdigest()
    return seg.build(header, blob)


def _compare(model: onnx.ModelProto, graph: Graph, ids: NDArray[np.int32], answer: F32, bits: int) -> None:
    wanted = session(with_batch(model, 1)).run([graph.output], {graph.input: ids[None].astype(np.int64)})[0][0]
    cosine = float((wanted * answer).sum() / math.sqrt((wanted**2).sum() * (answer**2).sum()))
    if not cosine >= LEAST_COSINE[bits]:
        raise ModelError(
            f"the integer encoder differs from the float model (cosine {cosine:.3f}); use more weight bits or another export",
            cosine=cosine,
        )


@dataclass
class _Encoder:
    graph: Graph
    bits: int
    tensors: list[seg.Tensor] = field(default_factory=list)
    ops: list[seg.AnyOp] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)  # of each ONNX tensor that is a tensor of the segment
    constants: Constants = field(default_factory=Constants)

    def tensor(self, shape: list[int], dtype: Any = "f32") -> int:
        self.tensors.append(seg.Tensor(shape, 1.0, 0, 0, dtype))
        return len(self.tensors) - 1

    def stream(self, name: str) -> int:
        """The f32 tensor of the ONNX tensor ``name``, with everything that makes it."""
        if name not in self.index:
            node = self.node(name)
            match = _MATCH.get(node.op)
            if match is None:
                raise _unknown(node)
            self.index[name] = match(self, node)
        return self.index[name]

    def node(self, name: str) -> Node:
        if name not in self.graph.producer:
            raise ModelError(f"the encoder reads {name!r}, which does not depend on its input; export the model again")
        return self.graph.producer[name]

    def constant(self, name: str) -> NDArray[Any] | None:
        return self.graph.constants.get(name)

    def floats(self, values: NDArray[Any]) -> int:
        data = np.ascontiguousarray(values, np.float32)
        return self.constants.put(data.nbytes, lambda: data)

    def weights(self, weight: F32) -> tuple[int, int]:
        """Places of the packed codes and the scales of weight [N, K]."""
        levels, scale = quantize_matrix(np.ascontiguousarray(weight, np.float32), self.bits)
        packed = pack(levels, self.bits)
        return self.constants.put(packed.nbytes, lambda: packed), self.floats(scale)

    def linear(self, label: str, parts: list[_Product], activation: Any = "none", residual: int = -1) -> int:
        """One product of the joined ``parts``, which read the same tensor."""
        x = self.stream(parts[0].x)
        weight, scale = self.weights(np.concatenate([p.weight for p in parts]))
        bias = self.floats(np.concatenate([p.bias for p in parts]))
        out = self.tensor([self.tensors[x].shape[0], sum(len(p.bias) for p in parts)])
        self.ops.append(seg.Linear(short(label), out, x, self.bits, weight, scale, bias, activation, residual))
        return out


def _unknown(node: Node) -> ModelError:
    return ModelError(
        f"{node} is not a part of an encoder that a head can run; cut the model elsewhere", operator=node.op
    )


# --- products ---------------------------------------------------------------------------------------------------------


@dataclass
class _Product:
    """x [T, K] * weight [N, K] + bias [N]."""

    x: str
    weight: F32
    bias: F32


def _product(work: _Encoder, name: str) -> _Product | None:
    """The product with constant weights that yields ``name``, bias included, or None."""
    node = work.graph.producer.get(name)
    if node is None:
        return None
    if node.op == "MatMul":
        weight = work.constant(node.inputs[1])
        if weight is None or weight.ndim != 2:
            return None
        return _Product(node.inputs[0], weight.T, np.zeros(weight.shape[1], np.float32))
    if node.op == "Add":
        for x, other in (node.inputs, node.inputs[::-1]):
            bias, inner = work.constant(other), work.graph.producer.get(x)
            if bias is not None and inner is not None and inner.op == "MatMul":
                product = _product(work, x)
                if product is not None and bias.size == len(product.bias):
                    return _Product(product.x, product.weight, bias.reshape(-1).astype(np.float32))
    return None


def _sum(work: _Encoder, node: Node) -> int:
    """A product with its bias and perhaps a residual, or the embedding."""
    product = _product(work, node.outputs[0])
    if product is not None:
        return work.linear(node.name, [product])
    for x, other in (node.inputs, node.inputs[::-1]):
        product = _product(work, x)
        if product is not None and work.graph.sole_consumer(x) is node:
            return work.linear(node.name, [product], residual=work.stream(other))
    return _embedding(work, node)


def _matmul(work: _Encoder, node: Node) -> int:
    product = _product(work, node.outputs[0])
    if product is None:
        raise _unknown(node)
    return work.linear(node.name, [product])


def _gelu(work: _Encoder, node: Node) -> int:
    product = _product(work, node.inputs[0])
    if product is None or node.attrs.get("approximate", b"none") != b"none":
        raise _unknown(node)
    return work.linear(node.name, [product], activation="gelu")


def _erf_gelu(work: _Encoder, node: Node) -> int:
    """x * 0.5 * (1 + erf(x / sqrt 2)) in any order of its products: all factors are x, 1 + erf, or constants."""
    factors, scale = _factors(work, node), 1.0
    values = [f for f in factors if isinstance(f, str)]
    scale = math.prod(f for f in factors if not isinstance(f, str))
    erf = next((f for f in values if work.node(f).op == "Add" and _erf_argument(work, work.node(f))), None)
    if erf is None or len(values) != 2:
        raise _unknown(node)
    x = next(f for f in values if f != erf)
    product = _product(work, x)
    if product is None or _erf_argument(work, work.node(erf)) != x or not math.isclose(scale, 0.5, rel_tol=1e-5):
        raise _unknown(node)
    return work.linear(node.name, [product], activation="gelu")


def _factors(work: _Encoder, node: Node) -> list[str | float]:
    found: list[str | float] = []
    for name in node.inputs:
        value, inner = work.constant(name), work.graph.producer.get(name)
        if value is not None and value.size == 1:
            found.append(float(value.reshape(-1)[0]))
        elif inner is not None and inner.op == "Mul" and _product(work, name) is None:
            found += _factors(work, inner)
        else:
            found.append(name)
    return found


def _erf_argument(work: _Encoder, node: Node) -> str | None:
    """x where ``node`` is 1 + erf(x / sqrt 2)."""
    for name, other in (node.inputs, node.inputs[::-1]):
        one, inner = work.constant(other), work.graph.producer.get(name)
        if one is None or one.size != 1 or float(one.reshape(-1)[0]) != 1 or inner is None or inner.op != "Erf":
            continue
        scaled = work.graph.producer.get(inner.inputs[0])
        if scaled is None or scaled.op not in ("Mul", "Div"):
            return None
        factor = work.constant(scaled.inputs[1])
        if factor is None or factor.size != 1:
            return None
        value = float(factor.reshape(-1)[0])
        right = math.isclose(value if scaled.op == "Mul" else 1 / value, math.sqrt(0.5), rel_tol=1e-5)
        return scaled.inputs[0] if right else None
    return None


# --- the rest ---------------------------------------------------------------------------------------------------------


def _norm(work: _Encoder, node: Node) -> int:
    gamma, beta = (work.constant(t) for t in (*node.inputs, "", "")[1:3])
    x = work.stream(node.inputs[0])
    shape = work.tensors[x].shape
    if gamma is None or gamma.size != shape[-1] or node.attrs.get("axis", -1) not in (-1, 2):
        raise _unknown(node)
    places = work.floats(gamma), work.floats(np.zeros(shape[-1]) if beta is None else beta)
    epsilon = float(np.float32(max(node.attrs.get("epsilon", 1e-5), 1e-12)))
    out = work.tensor(list(shape))
    work.ops.append(seg.Norm(node.name, out, x, *places, epsilon))
    return out


def _embedding(work: _Encoder, node: Node) -> int:
    """A Gather of the ids and constants added to it: positions, token types."""
    offset: NDArray[Any] = np.zeros(())
    gather: Node | None = node
    while gather is not None and gather.op == "Add":
        constants = [t for t in gather.inputs if work.constant(t) is not None]
        if len(constants) != 1:
            raise _unknown(gather)
        offset = offset + np.asarray(work.constant(constants[0]), np.float64)
        gather = work.graph.producer.get(next(t for t in gather.inputs if t != constants[0]))
    table = None if gather is None or gather.op != "Gather" else work.constant(gather.inputs[0])
    if gather is None or table is None or gather.inputs[1] != work.graph.input or table.ndim != 2:
        raise _unknown(node)
    tokens = work.tensors[work.index[work.graph.input]].shape[0]
    shape = [tokens, table.shape[1]]
    weight, scale = work.weights(table)
    position = work.floats(np.broadcast_to(np.squeeze(offset, 0) if offset.ndim == 3 else offset, shape))
    out = work.tensor(shape)
    source = work.index[work.graph.input]
    work.ops.append(seg.Embed(node.name, out, source, work.bits, len(table), weight, scale, position))
    return out


@dataclass
class _Peeled:
    """What is under views and scalar factors: the tensor, the product of the factors, the heads that a Reshape split off."""

    tensor: str
    factor: float = 1.0
    heads: int = 0


def _peel(work: _Encoder, name: str) -> _Peeled:
    found = _Peeled(name)
    while True:
        node = work.graph.producer.get(found.tensor)
        if node is None:
            return found
        scalar = _scalar_factor(work, node)
        if scalar is not None:
            found = _Peeled(scalar[0], found.factor * scalar[1], found.heads)
        elif node.op in _VIEWS:
            shape = work.graph.shapes.get(node.outputs[0], ())
            before = work.graph.shapes.get(node.inputs[0], ())
            split = node.op == "Reshape" and len(before) == 3 and len(shape) == 4 and shape[2] * shape[3] == before[2]
            found = _Peeled(node.inputs[0], found.factor, shape[2] if split else found.heads)
        else:
            return found


def _scalar_factor(work: _Encoder, node: Node) -> tuple[str, float] | None:
    if node.op not in ("Mul", "Div"):
        return None
    for x, other in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else (node.inputs,):
        value = work.constant(other)
        if value is not None and value.size == 1:
            number = float(value.reshape(-1)[0])
            return x, number if node.op == "Mul" else 1 / number
    return None


def _attention(work: _Encoder, node: Node) -> int:
    """The Reshape that joins the heads again: weights x values, softmax, scores, and the three products below."""
    values = work.node(_peel(work, node.outputs[0]).tensor)
    if values.op != "MatMul":
        raise _unknown(node)
    softmax = work.node(_without_nan_guard(work, values.inputs[0]))
    if softmax.op != "Softmax" or softmax.attrs.get("axis", -1) not in (-1, 3):
        raise _unknown(softmax)
    scores, pad = _masked(work, softmax.inputs[0])
    inner = _peel(work, scores)
    product = work.node(inner.tensor)
    if product.op != "MatMul":
        raise _unknown(product)
    query, key, value = (_peel(work, t) for t in (*product.inputs, values.inputs[1]))
    parts = [_product(work, p.tensor) for p in (query, key, value)]
    if any(p is None or p.x != parts[0].x for p in parts) or not query.heads == key.heads == value.heads > 0:  # type: ignore[union-attr]
        raise _unknown(product)
    if value.factor != 1:
        raise _unknown(values)
    joined = work.linear(f"{product.name}/qkv", [p for p in parts if p is not None])
    tokens, width = work.tensors[joined].shape
    out = work.tensor([tokens, width // 3])
    factor = float(np.float32(inner.factor * query.factor * key.factor))
    ids = -1 if pad is None else work.index[work.graph.input]
    work.ops.append(seg.Attention(short(product.name), out, joined, query.heads, factor, ids, pad or 0))
    return out


def _without_nan_guard(work: _Encoder, name: str) -> str:
    """torch exports Where(IsNaN(p), 0, p) after a softmax that may have no key at all."""
    node = work.node(name)
    if node.op == "Where":
        guard = work.graph.producer.get(node.inputs[0])
        if guard is not None and guard.op == "IsNaN" and guard.inputs[0] == node.inputs[2]:
            return node.inputs[2]
    return name


def _masked(work: _Encoder, name: str) -> tuple[str, int | None]:
    """The scores without their mask, and the id that the mask leaves out (None without a mask)."""
    node = work.node(name)
    if node.op != "Add":
        return name, None
    for scores, mask in (node.inputs, node.inputs[::-1]):
        pad = _padding(work, mask)
        if pad is not None:
            return scores, pad
    raise _unknown(node)


def _padding(work: _Encoder, mask: str) -> int | None:
    """The constant that a mask compares the token ids with."""
    wanted, compared = [mask], set()
    while wanted:
        node = work.graph.producer.get(wanted.pop())
        if node is None:
            continue
        if node.op == "Equal" and work.graph.input in node.inputs:
            other = work.constant(next(t for t in node.inputs if t != work.graph.input))
            compared.add(int(other.reshape(-1)[0]) if other is not None and other.size == 1 else -1)
        elif node.op in ("Not", "Where", "Cast", "Mul", "Sub", "And", "Expand", *_VIEWS):
            wanted += node.inputs
        else:
            return None
    return compared.pop() if len(compared) == 1 and min(compared) >= 0 else None


_MATCH: dict[str, Callable[[_Encoder, Node], int]] = {
    "Add": _sum,
    "MatMul": _matmul,
    "Gelu": _gelu,
    "Mul": _erf_gelu,
    "LayerNormalization": _norm,
    "Gather": _embedding,
    "Reshape": _attention,
}
