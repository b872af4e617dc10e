"""Layers of transformers with a float32 stream between them.

First, patterns of several operators are matched: attention, GELU and layer norms in pieces, images cut into squares.
Then each remaining operator becomes a layer. An unknown operator is unsupported, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from calibration.importing.graph import Graph, Node
from calibration.lowering.layers import attention, elementwise
from calibration.lowering.layers.network import (
    F32,
    I64,
    Attention,
    Embed,
    Layer,
    Linear,
    Mean,
    Network,
    Norm,
    Patches,
    Position,
    Reshape,
    Unsupported,
    argument,
    gemm_weights,
    layer_name,
    rename,
    weights,
)
from calibration.lowering.layers.norms import pieces
from calibration.lowering.layers.views import is_view, rows_ahead, view

_SMALLEST_EPSILON: Final = 1e-12


def is_transformer(graph: Graph) -> bool:
    """Whether ``graph`` is a transformer.

    It takes token ids, or it has layer norms and its only convolution cuts its input into squares.
    """
    if graph.takes_ids:
        return True
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    normalised = any(
        node.op == "LayerNormalization" or (node.op == "Sqrt" and pieces(graph, node)) for node in graph.nodes
    )
    return normalised and all(_cuts_squares(graph, node) for node in convolutions)


def build(graph: Graph) -> Network:
    """The layers of a transformer's graph (`is_transformer`)."""
    work = _Work(Network(graph, [], [], {}, "i32" if graph.takes_ids else "f32"))
    for node in graph.nodes:
        work.find(node)
    for node in graph.nodes:
        work.convert(node)
    marks = work.network.marks()  # a tail computes padding marks itself, so no head has to
    work.network.unsupported = [one for one in work.network.unsupported if not marks.issuperset(one[0].outputs)]
    return work.network


@dataclass
class _Work:
    """``found``: layers made of several operators, by their output tensor. ``inside``: all operators of these."""

    network: Network
    found: dict[str, Callable[[], list[Layer]]] = field(default_factory=dict)
    inside: set[Node] = field(default_factory=set)

    def find(self, node: Node) -> None:
        finder = _FINDERS.get(node.op)
        if finder is not None:
            try:
                finder(self, node)
            except Unsupported as reason:
                self.network.unsupported.append((node, str(reason)))
                self.inside.add(node)

    def keep(self, out: str, nodes: Sequence[Node], make: Callable[[], list[Layer]]) -> None:
        self.found[out] = make
        self.inside |= set(nodes)

    def convert(self, node: Node) -> None:
        out = next((t for t in node.outputs if t in self.found), None)
        if out is None and node in self.inside:
            return
        try:
            layers = self.found[out]() if out is not None else _alone(self.network, node)
        except Unsupported as reason:
            self.network.unsupported.append((node, str(reason)))
            return
        for layer in layers:
            self.network.layers.append(layer)
            self.network.made[layer.out] = layer


def _alone(network: Network, node: Node) -> list[Layer]:
    """The layers of an operator that is not part of a pattern."""
    if any(network.graph.consumers.get(t) for t in node.outputs[1:]):
        raise Unsupported("its second output is used")
    if node.outputs[0] not in network.graph.shapes:
        raise Unsupported("a tensor of unknown shape or of whole numbers")
    if is_view(network.graph, node) and node.op != "Gather":
        return _view(network, node)
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise Unsupported("the integer head has no such operator for transformers")
    return builder(network, node)


def _moved(network: Network, layer: Layer, out: str) -> list[Layer]:
    """Rename the output of ``layer`` to ``out`` and move it to the end, because its new input may come after it."""
    network.layers.remove(layer)
    rename(network, layer, out)
    return [layer]


# --- products ---------------------------------------------------------------------------------------------------------


def _linear(name: str, out: str, x: str, weight: F32, bias: F32) -> Linear:
    whole = np.arange(len(weight))
    return Linear(name, out, [x], np.ascontiguousarray(weight), bias, {out: whole})


def _matmul(network: Network, node: Node) -> list[Layer]:
    graph = network.graph
    if node.inputs[0] in graph.constants or len(graph.shapes.get(node.inputs[0], ())) not in (2, 3):
        raise Unsupported("a matrix product of other than [N, K] or [N, T, K] with a constant")
    weight = weights(graph, node.inputs[1])
    if weight.ndim != 2:
        raise Unsupported("its weights are not a matrix")
    bias = np.zeros(weight.shape[1], np.float32)
    return [_linear(layer_name(graph, node), node.outputs[0], node.inputs[0], weight.T, bias)]


def _gemm(network: Network, node: Node) -> list[Layer]:
    weight, bias = gemm_weights(network.graph, node)
    return [_linear(layer_name(network.graph, node), node.outputs[0], node.inputs[0], weight, bias)]


def _gelu(network: Network, node: Node) -> list[Layer]:
    if network.graph.sole_consumer(node.inputs[0]) is not node:
        raise Unsupported("something else reads what goes into it")
    return _activate(network, node.inputs[0], node.outputs[0])


def _activate(network: Network, x: str, out: str) -> list[Layer]:
    before = network.made.get(x)
    if not isinstance(before, Linear) or not before.open:
        raise Unsupported("a GELU of something else than a product")
    before.activation = "gelu"
    return rename(network, before, out)


def _find_gelu(work: _Work, node: Node) -> None:
    """Match a GELU made of single operators around ``node``, an Erf or a Tanh, in any order that computes it."""
    graph = work.network.graph
    x = elementwise.source(graph, node.outputs[0])
    if x is None:
        return
    nodes = elementwise.behind(graph, x)
    out = elementwise.end(graph, x, nodes)
    if out is None or not elementwise.is_gelu(graph, x, nodes, out):
        return
    work.keep(out, nodes, lambda: _activate(work.network, x, out))


# --- sums -------------------------------------------------------------------------------------------------------------


def _add(network: Network, node: Node) -> list[Layer]:
    graph = network.graph
    constants = [t for t in node.inputs if t in graph.constants]
    if constants:
        x = next(t for t in node.inputs if t not in constants)
        return _add_constant(network, node, x, constants[0])
    parts = [network.made.get(t) for t in node.inputs]
    hosts = [layer for layer in parts if isinstance(layer, Linear) and _may_host(network, node, layer)]
    if not hosts:
        raise Unsupported("a sum of which no part is a product")
    host = hosts[0]
    host.inputs.append(next(t for t in node.inputs if t != host.out))
    return _moved(network, host, node.outputs[0])


def _may_host(network: Network, node: Node, layer: Linear) -> bool:
    """Whether the other operand of the sum ``node`` can be the residual of ``layer``."""
    graph = network.graph
    if len(layer.inputs) > 1 or graph.sole_consumer(layer.out) is not node:
        return False
    return all(graph.shapes.get(t) == graph.shapes[node.outputs[0]] for t in node.inputs)


def _add_constant(network: Network, node: Node, x: str, constant: str) -> list[Layer]:
    graph, out, before = network.graph, node.outputs[0], network.made.get(x)
    value, shape = graph.constants[constant].astype(np.float32), graph.shapes[node.outputs[0]]
    if shape != graph.shapes.get(x) or not np.isfinite(value).all():
        raise Unsupported("a constant that widens its tensor, or is not finite")
    alone = graph.sole_consumer(x) is node
    if isinstance(before, Linear) and before.open and alone and value.size == value.shape[-1] == len(before.bias):
        before.bias = before.bias + value.reshape(-1)
        before.name = constant.removesuffix(".bias") if constant.endswith(".bias") else before.name
        before.products = {out: before.products[x]}
        return rename(network, before, out)
    if len(shape) != 3 or shape[0] != 1:
        raise Unsupported("a constant that is added to something else than [1, T, C]")
    table = np.ascontiguousarray(np.broadcast_to(value, shape)[0])
    if isinstance(before, Embed) and alone:
        before.position = before.position + table
        return rename(network, before, out)
    if isinstance(before, Position) and alone:
        before.table = before.table + table
        return rename(network, before, out)
    return [Position(node.name, out, [x], table)]


def _concat(network: Network, node: Node) -> list[Layer]:
    """Constant rows joined ahead of the stream: class tokens."""
    shape, rows = graph_shape(network, node), rows_ahead(network.graph, node)
    if rows is None:
        raise Unsupported("it joins something else than constant rows and the rows behind them")
    table = np.concatenate([rows, np.zeros((shape[1] - len(rows), shape[2]), np.float32)])
    return [Position(node.name, node.outputs[0], [node.inputs[-1]], table)]


def _pad(network: Network, node: Node) -> list[Layer]:
    """Rows of zeros joined ahead of the stream."""
    graph, shape = network.graph, graph_shape(network, node)
    pads = [int(p) for p in np.asarray(argument(graph, node, 1, "pads")).reshape(-1)]
    value = argument(graph, node, 2, "value", 0.0)
    plain = node.attrs.get("mode", b"constant") == b"constant" and len(node.inputs) < 4 and not np.any(value)
    if not plain or len(shape) != 3 or any(pads[:1] + pads[2:]) or pads[1] < 0:
        raise Unsupported("it pads with something else than rows of zeros ahead")
    return [Position(node.name, node.outputs[0], [node.inputs[0]], np.zeros(shape[1:], np.float32))]


def graph_shape(network: Network, node: Node) -> tuple[int, ...]:
    """Shape of the first output of ``node``."""
    return network.graph.shapes[node.outputs[0]]


# --- other operators --------------------------------------------------------------------------------------------------


def _norm(network: Network, node: Node) -> list[Layer]:
    graph, rank = network.graph, len(graph_shape(network, node))
    channels = graph_shape(network, node)[-1]
    gamma = weights(graph, node.inputs[1])
    beta = weights(graph, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros_like(gamma)
    if int(node.attrs.get("axis", -1)) % rank != rank - 1 or gamma.shape != (channels,) or beta.shape != (channels,):
        raise Unsupported("a norm over other axes than the channels alone")
    epsilon = float(np.float32(max(node.attrs.get("epsilon", 1e-5), _SMALLEST_EPSILON)))
    return [Norm(layer_name(graph, node), node.outputs[0], [node.inputs[0]], gamma, beta, epsilon)]


def _find_norm(work: _Work, node: Node) -> None:
    """Match a layer norm made of single operators around the Sqrt ``node``, as in exports before opset 17."""
    graph = work.network.graph
    found = pieces(graph, node)
    if found is None:
        return
    gamma, beta = (graph.constants[t].astype(np.float32).reshape(-1) for t in (found.gamma, found.beta))
    name = found.gamma.removesuffix(".weight") if found.gamma.endswith(".weight") else found.nodes[-1].name
    epsilon = float(np.float32(max(found.epsilon, _SMALLEST_EPSILON)))
    work.keep(found.out, found.nodes, lambda: [Norm(name, found.out, [found.x], gamma, beta, epsilon)])


def _gather(network: Network, node: Node) -> list[Layer]:
    graph = network.graph
    if node.inputs[0] not in graph.constants:
        return _view(network, node)
    table, ids = weights(graph, node.inputs[0]), node.inputs[1]
    cast = graph.producer.get(ids)
    ids = cast.inputs[0] if cast is not None and cast.op == "Cast" else ids
    if ids != graph.input or not graph.takes_ids or table.ndim != 2 or int(node.attrs.get("axis", 0)) != 0:
        raise Unsupported("it looks up something else than the token ids")
    out = node.outputs[0]
    position = np.zeros(graph_shape(network, node)[1:], np.float32)
    name = node.inputs[0].removesuffix(".weight") if node.inputs[0].endswith(".weight") else node.name
    return [Embed(name, out, [ids], table, np.zeros(0, np.float32), position, out)]


def _cast(network: Network, node: Node) -> list[Layer]:
    """A Cast of the token ids, which `_gather` skips. Other casts are unsupported."""
    if node.inputs[0] != network.graph.input:
        raise Unsupported("a change of type")
    return []


def _view(network: Network, node: Node) -> list[Layer]:
    """The unchanged stream, or one row of it: a class token."""
    out = node.outputs[0]
    seen = view(network.graph, out)
    if seen is not None and seen.factor == 1 and seen.root in network.made:
        if seen.is_plain() and network.graph.storable(out):
            return [Reshape(node.name, out, [seen.root], network.graph.stored_shape(out))]
        rows = _rows(network.graph, seen.root, seen.index)
        if rows is not None and rows[1] == 1:
            return [Mean(node.name, out, [seen.root], *rows)]
    raise Unsupported("a change of shape that a head does not know")


def _mean(network: Network, node: Node) -> list[Layer]:
    graph, x = network.graph, node.inputs[0]
    axes = argument(graph, node, 1, "axes")
    seen = view(graph, x)
    rows = None if seen is None or seen.factor != 1 else _rows(graph, seen.root, seen.index)
    if seen is None or rows is None or axes is None or [int(a) % 3 for a in np.asarray(axes).reshape(-1)] != [1]:
        raise Unsupported("a mean of something else than the tokens")
    return [Mean(node.name, node.outputs[0], [seen.root], *rows)]


def _rows(graph: Graph, root: str, index: I64) -> tuple[int, int] | None:
    """The first row and the number of consecutive rows of ``root`` [1, T, C] that ``index`` shows.

    None if it shows anything else.
    """
    shape = graph.shapes[root]
    if len(shape) != 3 or shape[0] != 1 or index.size % shape[2]:
        return None
    flat = index.reshape(-1)
    first = int(flat[0])
    whole = first % shape[2] == 0 and bool((flat == first + np.arange(len(flat))).all())
    return (first // shape[2], len(flat) // shape[2]) if whole else None


def _find_attention(work: _Work, node: Node) -> None:
    found = attention.match(work.network.graph, node)
    work.keep(found.out, found.nodes, lambda: _attention(work.network, found))


def _attention(network: Network, found: attention.Match) -> list[Layer]:
    """The product that computes queries, keys and values, and the attention after it."""
    owners = {part.root: network.made.get(part.root) for part in found.parts}
    linears = [layer for layer in owners.values() if isinstance(layer, Linear) and layer.open]
    if len(linears) < len(owners) or len({layer.inputs[0] for layer in linears}) > 1:
        raise Unsupported("queries, keys and values are not products of one tensor")
    channels = [part.channels.reshape(-1) for part in found.parts]
    products = {root: _places(found.parts, root, len(layer.bias)) for root, layer in zip(owners, linears, strict=True)}
    by_root = dict(zip(owners, linears, strict=True))
    weight = np.concatenate([by_root[p.root].weight[c] for p, c in zip(found.parts, channels, strict=True)])
    bias = np.concatenate([by_root[p.root].bias[c] for p, c in zip(found.parts, channels, strict=True)])
    for layer in linears:
        network.layers.remove(layer)
        del network.made[layer.out]
    name = linears[0].name if len(linears) == 1 else f"{found.name}/qkv"
    joined = Linear(name, f"{found.out}@qkv", [linears[0].inputs[0]], weight, bias, products)
    reads = [joined.out] if found.pad is None else [joined.out, network.graph.input]
    factor = float(np.float32(found.factor))
    return [joined, Attention(found.name, found.out, reads, len(found.parts[0].channels), factor, found.pad or 0)]


def _places(parts: Sequence[attention.Part], root: str, count: int) -> I64:
    """The position of each of the ``count`` channels of ``root`` among queries, keys and values."""
    places = np.full(count, -1, np.int64)
    for i, part in enumerate(parts):
        if part.root == root:
            places[part.channels.reshape(-1)] = i * part.channels.size + np.arange(part.channels.size)
    if places.min() < 0:
        raise Unsupported("a part of its product is neither query nor key nor value")
    return places


# --- images -----------------------------------------------------------------------------------------------------------


def _cuts_squares(graph: Graph, node: Node) -> bool:
    """Whether the Conv ``node`` reads each pixel of the input once, in squares."""
    if node.inputs[0] != graph.input or node.inputs[1] not in graph.constants or len(graph.shapes[graph.input]) != 4:
        return False
    kernel = list(graph.constants[node.inputs[1]].shape[2:])
    plain = not any(node.attrs.get("pads") or [0]) and node.attrs.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    whole = all(n % k == 0 for n, k in zip(graph.shapes[graph.input][2:], kernel, strict=True))
    same = list(node.attrs.get("strides") or [1, 1]) == kernel and len(set(kernel)) == 1
    single = int(node.attrs.get("group", 1)) == 1 and set(node.attrs.get("dilations") or [1]) == {1}
    return plain and whole and same and single


def _find_squares(work: _Work, node: Node) -> None:
    """Match a convolution of squares and the views that turn its planes into tokens."""
    graph = work.network.graph
    if not _cuts_squares(graph, node):
        raise Unsupported("a convolution of something else than squares of the input")
    outs, _, size, _ = graph.constants[node.inputs[1]].shape
    at, nodes = node.outputs[0], [node]
    tokens = math.prod(graph.shapes[at][2:])
    wanted = np.arange(outs * tokens).reshape(outs, tokens).T[None]
    while graph.shapes[at] != wanted.shape or not _shows(graph, at, node.outputs[0], wanted):
        reader = graph.sole_consumer(at)
        if reader is None or not is_view(graph, reader):
            raise Unsupported("its planes do not become tokens")
        nodes.append(reader)
        at = reader.outputs[0]
    weight = weights(graph, node.inputs[1]).transpose(0, 2, 3, 1).reshape(outs, -1)
    bias = weights(graph, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(outs, np.float32)
    made = _squares(graph, layer_name(graph, node), at, size, weight, bias)
    work.keep(at, nodes, lambda: made)


def _shows(graph: Graph, tensor: str, root: str, index: I64) -> bool:
    seen = view(graph, tensor)
    return seen is not None and seen.root == root and seen.factor == 1 and bool((seen.index == index).all())


def _squares(graph: Graph, name: str, out: str, size: int, weight: F32, bias: F32) -> list[Layer]:
    """Layers that cut the image into squares and multiply these by ``weight`` [N, size * size * C]."""
    cut = f"{out}@squares"
    return [Patches(f"{name}/squares", cut, [graph.input], size), _linear(name, out, cut, weight, bias)]


def _find_cut_image(work: _Work, node: Node) -> None:
    """Match a product of squares that views cut out of the image."""
    graph = work.network.graph
    seen = view(graph, node.inputs[0]) if len(graph.shapes[graph.input]) == 4 else None
    if seen is None or seen.root != graph.input or node.inputs[1] not in graph.constants:
        return
    _, channels, height, width = graph.shapes[graph.input]
    size = math.isqrt(seen.index.shape[-1] // channels)
    if seen.index.ndim != 3 or height % size or width % size or size * size * channels != seen.index.shape[2]:
        raise Unsupported("a product of something else than squares of the image")
    planes = np.arange(channels * height * width).reshape(channels, height // size, size, width // size, size)
    ours = planes.transpose(1, 3, 2, 4, 0).reshape(-1, size * size * channels)
    place = np.empty(ours.shape[1], np.int64)  # position of each input of the product in a stored square
    place[seen.index[0, 0].argsort()] = ours[0].argsort()
    if seen.index[0].shape != ours.shape or not (ours[:, place] == seen.index[0]).all():
        raise Unsupported("a product of something else than squares of the image")
    theirs = weights(graph, node.inputs[1]).T * np.float32(seen.factor)
    weight = np.empty_like(theirs)
    weight[:, place] = theirs
    bias, out = np.zeros(len(weight), np.float32), node.outputs[0]
    made = _squares(graph, layer_name(graph, node), out, size, weight, bias)
    work.keep(out, [*seen.nodes, node], lambda: made)


_FINDERS: dict[str, Callable[[_Work, Node], None]] = {
    "Softmax": _find_attention,
    "Erf": _find_gelu,
    "Tanh": _find_gelu,
    "Sqrt": _find_norm,
    "Conv": _find_squares,
    "MatMul": _find_cut_image,
}

_BUILDERS: dict[str, Callable[[Network, Node], list[Layer]]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Gelu": _gelu,
    "Add": _add,
    "Concat": _concat,
    "Pad": _pad,
    "LayerNormalization": _norm,
    "Gather": _gather,
    "Cast": _cast,
    "ReduceMean": _mean,
}
