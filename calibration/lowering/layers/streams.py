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
    Function,
    FunctionKind,
    Gate,
    Gather,
    Layer,
    Linear,
    Mean,
    Network,
    Norm,
    Patches,
    Position,
    Reshape,
    RmsNorm,
    Rotary,
    Sum,
    Unsupported,
    WindowAttention,
    argument,
    gemm_weights,
    layer_name,
    rename,
    weights,
)
from calibration.lowering.layers.network import View as StridedView
from calibration.lowering.layers.norms import pieces
from calibration.lowering.layers.views import View, is_view, rows_ahead, view

_SMALLEST_EPSILON: Final = 1e-12


def is_transformer(graph: Graph) -> bool:
    """Whether ``graph`` is a transformer.

    It takes token ids, or it has layer norms and its only convolution cuts its input into squares.
    """
    if graph.takes_ids:
        return True
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    normalised = any(
        node.op in ("LayerNormalization", "RMSNormalization") or (node.op == "Sqrt" and pieces(graph, node))
        for node in graph.nodes
    )
    return normalised and all(_cuts_squares(graph, node) for node in convolutions)


def build(graph: Graph) -> Network:
    """The layers of a transformer's graph (`is_transformer`)."""
    work = Work(Network(graph, [], [], {}, "i32" if graph.takes_ids else "f32"))
    for node in graph.nodes:
        work.find(node)
    for node in graph.nodes:
        work.convert(node)
    marks = work.network.marks()  # a tail computes padding marks itself, so no head has to
    work.network.unsupported = [one for one in work.network.unsupported if not marks.issuperset(one[0].outputs)]
    return work.network


@dataclass(frozen=True)
class _FunctionOf:
    """A function of the tensor ``x``, computed by ``nodes``."""

    x: str
    kind: FunctionKind
    nodes: list[Node]


@dataclass
class Work:
    """Finds the structures of a graph, then converts its operators one by one.

    ``found``: layers made of several operators, by their output tensor. ``parts``: these operators. ``inside``: all
    operators of these. ``functions``: those of them that are a function of one tensor.
    """

    network: Network
    found: dict[str, Callable[[], list[Layer]]] = field(default_factory=dict)
    functions: dict[str, _FunctionOf] = field(default_factory=dict)
    parts: dict[str, Sequence[Node]] = field(default_factory=dict)
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
        self.found[out], self.parts[out] = make, nodes
        self.inside |= set(nodes)

    def convert(self, node: Node) -> None:
        out = next((t for t in node.outputs if t in self.found), None)
        if out is None and node in self.inside:
            return
        try:
            layers = self.found[out]() if out is not None else _alone(self.network, node)
        except Unsupported as reason:
            hurt = dict.fromkeys([node, *(self.parts[out] if out is not None else ())])
            self.network.unsupported += [(one, str(reason)) for one in hurt]
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


def _find_function(work: Work, node: Node) -> None:
    """Match a function made of ``node`` and others, in any order that computes it."""
    graph = work.network.graph
    x = elementwise.source(graph, node.outputs[0])
    if x is None or x not in graph.shapes:
        return
    nodes = elementwise.behind(graph, x)
    out = elementwise.end(graph, x, nodes)
    kind = None if out is None else elementwise.kind(graph, x, nodes, out)
    if out is None or kind is None or out in work.functions:
        return
    work.functions[out] = _FunctionOf(x, kind, nodes)
    work.keep(out, nodes, lambda: _activate(work.network, node.name, x, out, kind))


def _activate(network: Network, name: str, x: str, out: str, kind: FunctionKind) -> list[Layer]:
    """A function, of a product within it where the product has it."""
    before = network.made.get(x)
    if kind == "gelu" and isinstance(before, Linear) and before.open:
        before.activation = "gelu"
        return rename(network, before, out)
    if before is None:
        raise Unsupported("a function of something that no head computes")
    return [Function(name, out, [x], kind)]


def _find_gate(work: Work, node: Node) -> None:
    """Match the product of a function of some channels and other channels, of one product or of two."""
    graph = work.network.graph
    for function, other in (node.inputs, node.inputs[::-1]):
        found = work.functions.get(function)
        if found is None or other in graph.constants or graph.sole_consumer(function) is not node:
            continue
        seen = [view(graph, t) for t in (found.x, other)]
        if seen[0] is None or seen[1] is None:
            continue
        views = (seen[0], seen[1])
        del work.found[function]
        nodes = [node, *found.nodes, *views[0].nodes, *views[1].nodes]
        work.keep(node.outputs[0], nodes, lambda views=views, found=found: _gate(work.network, node, views, found.kind))  # type: ignore[misc]
        return


def _gate(network: Network, node: Node, views: Sequence[View], kind: FunctionKind) -> list[Layer]:
    """The product that computes both halves, and the gate after it."""
    parts = [(seen.root, _channels(network.graph, seen)) for seen in views]
    joined = _one_product(network, parts, f"{node.name}/halves", f"{node.outputs[0]}@halves")
    return [joined, Gate(node.name, node.outputs[0], [joined.out], kind)]


def _channels(graph: Graph, seen: View) -> I64:
    """The channels that ``seen`` shows of every row of its root. Raises `Unsupported`."""
    shape = graph.shapes[seen.root]
    index = seen.index.reshape(-1, seen.index.shape[-1])
    rows = shape[-1] * np.arange(math.prod(shape[:-1]))
    if seen.factor != 1 or len(index) != len(rows) or not (index == index[:1] + rows[:, None]).all():
        raise Unsupported("it reads something else than channels of a product")
    channels: I64 = index[0]
    return channels


def _one_product(network: Network, parts: Sequence[tuple[str, I64]], name: str, out: str) -> Linear:
    """One product for the channels of several that read one tensor; ``parts``: their roots and channels.

    -1 is a channel of zeros.
    """
    owners = {root: network.made.get(root) for root, _ in parts}
    linears = [layer for layer in owners.values() if isinstance(layer, Linear) and layer.open]
    if len(linears) < len(owners) or len({layer.inputs[0] for layer in linears}) > 1:
        raise Unsupported("its parts are not products of one tensor")
    products = {root: _places(parts, root, len(layer.bias)) for root, layer in zip(owners, linears, strict=True)}
    by_root = dict(zip(owners, linears, strict=True))
    real = np.concatenate([channels >= 0 for _, channels in parts])
    weight = np.concatenate([by_root[root].weight[channels] for root, channels in parts]) * real[:, None]
    bias = np.concatenate([by_root[root].bias[channels] for root, channels in parts]) * real
    for layer in linears:
        network.layers.remove(layer)
        del network.made[layer.out]
    name = linears[0].name if len(linears) == 1 else name
    return Linear(name, out, [linears[0].inputs[0]], weight, bias, products)


def _places(parts: Sequence[tuple[str, I64]], root: str, count: int) -> I64:
    """The position of each of the ``count`` channels of ``root`` among all ``parts``."""
    places = np.full(count, -1, np.int64)
    start = 0
    for name, channels in parts:
        if name == root:
            places[channels[channels >= 0]] = start + np.flatnonzero(channels >= 0)
        start += len(channels)
    if places.min() < 0:
        raise Unsupported("a part of its product is read by nothing that a head knows")
    return places


def _mul(network: Network, node: Node) -> list[Layer]:
    """A product with one constant for each channel, as part of the product before it."""
    graph, out = network.graph, node.outputs[0]
    constants = [t for t in node.inputs if t in graph.constants]
    x = next((t for t in node.inputs if t not in graph.constants), "")
    before = network.made.get(x)
    if len(constants) != 1 or not isinstance(before, Linear) or not before.open:
        raise Unsupported("a product of other than a matrix product and a constant")
    value = weights(graph, constants[0])
    wide = value.size == value.shape[-1] == len(before.bias) if value.ndim else False
    if graph.sole_consumer(x) is not node or not (wide or value.size == 1) or graph.shapes[x] != graph.shapes[out]:
        raise Unsupported("a constant that is not one number for each channel")
    before.weight = before.weight * value.reshape(-1, 1)
    before.bias = before.bias * value.reshape(-1)
    before.products = {out: before.products[x]}
    return rename(network, before, out)


# --- sums -------------------------------------------------------------------------------------------------------------


def _add(network: Network, node: Node) -> list[Layer]:
    graph = network.graph
    constants = [t for t in node.inputs if t in graph.constants]
    if constants:
        x = next(t for t in node.inputs if t not in constants)
        return _add_constant(network, node, x, constants[0])
    parts = [network.made.get(t) for t in node.inputs]
    hosts = [layer for layer in parts if isinstance(layer, Linear) and _may_host(network, node, layer)]
    if not hosts and all(graph.shapes.get(t) == graph.shapes[node.outputs[0]] for t in node.inputs):
        return [Sum(node.name, node.outputs[0], list(node.inputs))]
    if not hosts:
        raise Unsupported("a sum of tensors of different shapes")
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
        return _mixed_rows(network, node)
    table = np.concatenate([rows, np.zeros((shape[1] - len(rows), shape[2]), np.float32)])
    return [Position(node.name, node.outputs[0], [node.inputs[-1]], table)]


def _mixed_rows(network: Network, node: Node) -> list[Layer]:
    """Rows of one stream [1, T, C] joined in another order, and constant rows between them."""
    graph, shape, out = network.graph, graph_shape(network, node), node.outputs[0]
    if len(shape) != 3 or shape[0] != 1 or int(node.attrs["axis"]) % 3 != 1:
        raise Unsupported("it joins something else than rows of a stream")
    seen = [None if t in graph.constants else view(graph, t) for t in node.inputs]
    roots = {one.root for one in seen if one is not None}
    if len(roots) != 1 or any(one.factor != 1 for one in seen if one is not None):
        raise Unsupported("it joins rows of several streams")
    root, table, rows = roots.pop(), [], []
    for name, one in zip(node.inputs, seen, strict=True):
        given = _row_numbers(graph, one) if one is not None else np.full(graph.constants[name].shape[1], -1)
        rows.append(given)
        fixed = weights(graph, name)[0] if one is None else np.zeros((len(given), shape[2]), np.float32)
        table.append(np.broadcast_to(fixed, (len(given), shape[2])))
    if root not in network.made:
        raise Unsupported("it joins rows of a tensor that no head computes")
    places = np.concatenate(rows)
    if (places >= 0).all():
        return [Gather(node.name, out, [root], places)]
    gathered = f"{out}@gathered"
    position = Position(node.name, out, [gathered], np.ascontiguousarray(np.concatenate(table)))
    return [Gather(f"{node.name}/rows", gathered, [root], places), position]


def _row_numbers(graph: Graph, seen: View) -> I64:
    """The rows of a stream that ``seen`` shows. Raises `Unsupported`."""
    shape = graph.shapes[seen.root]
    if len(shape) != 3 or shape[0] != 1 or seen.index.shape[-1] != shape[2]:
        raise Unsupported("it moves something else than rows of a stream")
    index = seen.index.reshape(-1, shape[2])
    if (index[:, 0] % shape[2]).any() or not (index == index[:, :1] + np.arange(shape[2])).all():
        raise Unsupported("it moves something else than rows of a stream")
    return index[:, 0] // shape[2]


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


def _rms_norm(network: Network, node: Node) -> list[Layer]:
    graph, shape = network.graph, graph_shape(network, node)
    gamma = weights(graph, node.inputs[1])
    if int(node.attrs.get("axis", -1)) % len(shape) != len(shape) - 1 or gamma.shape != shape[-1:]:
        raise Unsupported("a norm over other axes than the channels alone")
    epsilon = float(np.float32(max(node.attrs.get("epsilon", 1e-5), _SMALLEST_EPSILON)))
    return [RmsNorm(layer_name(graph, node), node.outputs[0], [node.inputs[0]], gamma, epsilon)]


def _find_norm(work: Work, node: Node) -> None:
    """Match a layer norm made of single operators around the Sqrt ``node``, as in exports before opset 17."""
    graph = work.network.graph
    found = pieces(graph, node)
    if found is None:
        return
    gamma = weights(graph, found.gamma).reshape(-1)
    beta = np.zeros_like(gamma) if found.beta is None else weights(graph, found.beta).reshape(-1)
    name = found.gamma.removesuffix(".weight") if found.gamma.endswith(".weight") else found.nodes[-1].name
    epsilon = float(np.float32(max(found.epsilon, _SMALLEST_EPSILON)))
    if found.centred:
        work.keep(found.out, found.nodes, lambda: [Norm(name, found.out, [found.x], gamma, beta, epsilon)])
    else:
        work.keep(found.out, found.nodes, lambda: [RmsNorm(name, found.out, [found.x], gamma, epsilon)])


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
        if node.op == "Reshape" and node.inputs[0] in network.made and network.graph.storable(out):
            return [Reshape(node.name, out, [node.inputs[0]], network.graph.stored_shape(out))]
        strided = _strided(seen.index[0]) if network.graph.storable(out) and len(seen.index.shape) < 4 else None
        if strided is not None:
            sizes = list(seen.index.shape[1:])
            return [StridedView(node.name, out, [seen.root], strided[0], sizes, strided[1], sizes)]
        if len(graph_shape(network, node)) == 3 and graph_shape(network, node)[0] == 1:
            return [Gather(node.name, out, [seen.root], _row_numbers(network.graph, seen))]
    raise Unsupported("a change of shape that a head does not know")


def _strided(index: I64) -> tuple[int, list[int]] | None:
    """The first element and the step along each axis of ``index``, if all lie at even distances; else None."""
    first = int(index.flat[0])
    corners = [tuple(int(i == axis) for i in range(index.ndim)) for axis in range(index.ndim)]
    steps = [int(index[c]) - first if n > 1 else 0 for c, n in zip(corners, index.shape, strict=True)]
    made = np.full(index.shape, first)
    for step, at in zip(steps, np.indices(index.shape), strict=True):
        made += step * at
    return (first, steps) if min(steps) >= 0 and bool((made == index).all()) else None


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


def _find_attention(work: Work, node: Node) -> None:
    found = attention.match(work.network.graph, node)
    work.keep(found.out, found.nodes, lambda: _attention(work.network, found))


def _attention(network: Network, found: attention.Match) -> list[Layer]:
    """The product that computes queries, keys and values, and the attention after it."""
    parts = [(part.root, part.channels.reshape(-1)) for part in found.parts]
    joined = _one_product(network, parts, f"{found.name}/qkv", f"{found.out}@qkv")
    heads, made, x = len(found.parts[0].channels), list[Layer]([joined]), joined.out
    if found.table is not None:
        x = f"{found.out}@turned"
        made.append(Rotary(f"{found.name}/rotary", x, [joined.out], 2 * heads, found.table))
    reads = [x] if found.pad is None else [x, network.graph.input]
    given = found.name, found.out, reads, heads, float(np.float32(found.factor)), found.pad or 0
    if found.windows == 1 and found.bias is None and found.mask is None:
        return [*made, Attention(*given)]
    return [*made, WindowAttention(*given, found.windows, found.bias, found.mask)]


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


def _find_squares(work: Work, node: Node) -> None:
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


def _find_cut_image(work: Work, node: Node) -> None:
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


_FINDERS: dict[str, Callable[[Work, Node], None]] = {
    "Softmax": _find_attention,
    **dict.fromkeys(("Erf", "Tanh", "Gelu", "Relu", "Sigmoid", "HardSigmoid", "HardSwish"), _find_function),
    "Mul": _find_gate,
    "Sqrt": _find_norm,
    "Conv": _find_squares,
    "MatMul": _find_cut_image,
}

_BUILDERS: dict[str, Callable[[Network, Node], list[Layer]]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _add,
    "Mul": _mul,
    "Concat": _concat,
    "Pad": _pad,
    "LayerNormalization": _norm,
    "RMSNormalization": _rms_norm,
    "Gather": _gather,
    "Cast": _cast,
    "ReduceMean": _mean,
}
