"""Matches an attention among the operators of a graph.

It finds the channels of queries, keys and values, rotary positions, tables that are added to the scores, and masked
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.importing import masks
from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import F32, F64, I64, Unsupported
from calibration.lowering.layers.terms import Terms, terms
from calibration.lowering.layers.views import View, is_view, view

#: Instead of minus infinity, which a segment cannot hold. It absorbs every score.
_AWAY = -1e30
#: Largest difference between rotary tables that are one.
_ALIKE = 1e-5


@dataclass
class Part:
    """Queries, keys or values: the channels [heads, D] of the tensor ``root`` [1, windows x T, N] for each head.

    -1 is a channel of zeros.
    """

    root: str
    channels: I64
    windows: int

    def widen(self, size: int) -> None:
        """Add channels of zeros to heads of fewer than ``size``: they change no score."""
        missing = max(0, size - self.channels.shape[1])
        self.channels = np.pad(self.channels, ((0, 0), (0, missing)), constant_values=-1)


@dataclass
class Match:
    """An attention with the output ``out`` [1, windows x T, heads x D], computed by ``nodes``.

    Tokens with the id ``pad`` are not keys (None: all tokens are). ``bias`` [heads, T, T] and ``mask`` [windows, T, T]
    are added to the scores, and ``table`` [T, 2, D] turns queries and keys (None: nothing does).
    """

    name: str
    out: str
    parts: tuple[Part, Part, Part]
    factor: float
    windows: int
    pad: int | None
    bias: F32 | None
    mask: F32 | None
    table: F32 | None
    nodes: list[Node]


def match(graph: Graph, softmax: Node) -> Match:
    """The attention around ``softmax``. Raises `Unsupported`."""
    if softmax.attrs.get("axis", -1) not in (-1, len(graph.shapes.get(softmax.outputs[0], ())) - 1):
        raise Unsupported("it runs over other axes than the channels alone")
    scores = _scores(graph, softmax.inputs[0])
    values, weighing = _values(graph, softmax)
    product = scores.product
    query, key = (terms(graph, t) for t in product.inputs)
    value = _seen(graph, values.inputs[1])
    key.index, key.coefficients = key.index.swapaxes(-1, -2), key.coefficients.swapaxes(-1, -2)
    turned, factor = _turned(graph, query, key)
    parts = (*turned[:2], _part(graph, value.root, value.index))
    size = parts[2].channels.shape[1]
    for part in parts[:2] if turned[2] is None else ():
        part.widen(size)
    if value.factor != 1 or len({(p.channels.shape, p.windows) for p in parts}) > 1:
        raise Unsupported("queries, keys and values of different shapes")
    windows, heads = parts[0].windows, len(parts[0].channels)
    out, joining = _joined(graph, values.outputs[0], windows, parts[0].channels.size)
    bias, mask = _tables(graph, scores, windows, heads)
    nodes = [softmax, product, values, *weighing, *joining, *scores.nodes, *query.nodes, *key.nodes, *value.nodes]
    factor *= scores.factor
    return Match(product.name, out, parts, factor, windows, scores.pad, bias, mask, turned[2], nodes)


def _seen(graph: Graph, tensor: str) -> View:
    found = view(graph, tensor)
    if found is None:
        raise Unsupported("an attention of unknown shape")
    return found


def _part(graph: Graph, root: str, index: I64) -> Part:
    """The part that ``index`` [..., T, D] of ``root`` shows: the same channels of every token of each window."""
    shape = graph.shapes[root]
    groups = index.reshape(-1, *index.shape[-2:])
    tokens = groups.shape[1]
    if len(shape) != 3 or shape[0] != 1 or shape[1] % tokens or len(groups) % (shape[1] // tokens):
        raise Unsupported("an attention over something else than the tokens")
    windows = shape[1] // tokens
    split = groups.reshape(windows, -1, tokens, groups.shape[2])
    channels = split[0, :, :1]
    rows = np.arange(shape[1]).reshape(windows, 1, tokens, 1)
    if not (split == channels + shape[2] * rows).all() or channels.max() >= shape[2]:
        raise Unsupported("an attention whose heads mix tokens and channels")
    return Part(root, channels[:, 0], windows)


# --- rotary positions -------------------------------------------------------------------------------------------------


def _turned(graph: Graph, query: Terms, key: Terms) -> tuple[tuple[Part, Part, F32 | None], float]:
    """Queries, keys, and the table that turns them (None: nothing does); and the factor of their products."""
    plain = [_plain(one) for one in (query, key)]
    if plain[0] is not None and plain[1] is not None:
        first, second = (_part(graph, one.root, one.index[0]) for one in (query, key))
        return (first, second, None), plain[0] * plain[1]
    (first, own, turns), (second, others, turns_of_keys) = (_pairs(graph, one) for one in (query, key))
    place = np.unravel_index(np.abs(others).argmax(), others.shape)
    factor = float(own[place] / others[place])
    order = _order(turns)
    if order is None or not np.array_equal(turns, turns_of_keys) or not np.allclose(own, factor * others, atol=_ALIKE):
        raise Unsupported("queries and keys that are turned in different ways")
    for part in (first, second):
        part.channels = part.channels[:, order]
    return (first, second, others[:, :, order].astype(np.float32)), factor


def _plain(one: Terms) -> float | None:
    """The factor of a tensor that is one view times a number; else None."""
    number = float(one.coefficients.flat[0])
    return number if len(one.index) == 1 and bool((one.coefficients == number).all()) else None


def _pairs(graph: Graph, one: Terms) -> tuple[Part, F64, I64]:
    """The channels that ``one`` turns, the table [T, 2, D] that does, and for each channel of D its partner."""
    index = one.index.reshape(len(one.index), -1, *one.index.shape[-2:])
    weights = one.coefficients.reshape(index.shape)
    wide = graph.shapes[one.root][-1]
    used = (weights != 0).any(axis=(1, 2))  # [terms, D]
    channels = index[:, :, 0] % wide  # [terms, G, D]
    tokens, size = index.shape[2:]
    order = np.argsort(~used, axis=0, kind="stable")  # terms that count come first
    if used.sum(axis=0).max() > 2 or not (weights == weights[:, :1]).all():
        raise Unsupported("queries or keys that are more than turned")
    own = np.take_along_axis(channels, order[:1, None], 0)[0]
    beside = np.take_along_axis(channels, order[1:2, None], 0)[0] if len(order) > 1 else own
    factors = np.take_along_axis(weights[:, 0], order[:, None], 0)
    table = np.stack([factors[0], factors[1] if len(order) > 1 else np.zeros((tokens, size))], axis=1)
    paired = np.take_along_axis(used, order, 0)[1] if len(order) > 1 else np.zeros(size, bool)
    turns = np.full(size, -1)
    for j in np.flatnonzero(paired):
        if turns[j] >= 0:
            continue
        partner = next((i for i in np.flatnonzero(paired) if i != j and {own[0, i], beside[0, i]} == {own[0, j], beside[0, j]}), None)  # fmt: skip
        if partner is None:
            raise Unsupported("queries or keys whose channels are not turned in pairs")
        if own[0, partner] == own[0, j]:
            own[:, partner], beside[:, partner] = beside[:, partner].copy(), own[:, partner].copy()
            table[:, :, partner] = table[:, ::-1, partner].copy()
        turns[j], turns[partner] = partner, j
    if (paired & ((own[:, turns] != beside).any(axis=0))).any():
        raise Unsupported("queries or keys whose channels are not turned in pairs")
    rows = index // wide
    if not (rows == rows[:1, :, :, :1]).all():
        raise Unsupported("queries or keys that mix tokens")
    return _part(graph, one.root, rows[0] * wide + own[:, None]), table, turns


def _order(turns: I64) -> I64 | None:
    """An order of the channels in which partners are half of them apart; None if one is left over."""
    alone = np.flatnonzero(turns < 0)
    if len(alone) % 2:
        return None
    first = [j for j in range(len(turns)) if turns[j] > j]
    half = len(alone) // 2
    return np.array([*first, *alone[:half], *(turns[j] for j in first), *alone[half:]], np.int64)


# --- scores -----------------------------------------------------------------------------------------------------------


@dataclass
class _Scores:
    """``product`` of queries and keys times ``factor``, and the constants ``added`` to it, each with its operator."""

    product: Node
    factor: float
    pad: int | None
    added: list[tuple[Node, str]]
    nodes: list[Node]


def _scores(graph: Graph, tensor: str) -> _Scores:
    """The scores without what is added to them, the masked token id, and the operators between."""
    added: list[tuple[Node, str]] = []
    nodes: list[Node] = []
    pads: set[int] = set()
    at = tensor
    while True:
        seen = _seen(graph, at)
        node = graph.producer.get(seen.root)
        nodes += seen.nodes
        if not seen.is_plain() or node is None or node.op not in ("Add", "MatMul"):
            raise Unsupported("its input is not a product of queries and keys")
        if node.op == "MatMul":
            if len(pads) > 1:
                raise Unsupported("masks of several tokens")
            return _Scores(node, seen.factor, pads.pop() if pads else None, added, nodes)
        if seen.factor != 1:
            raise Unsupported("a mask of its scores that is not understood")
        nodes.append(node)
        at, other = _towards_product(graph, node)
        pads |= _what_is_added(graph, node, other, added, nodes)


def _towards_product(graph: Graph, node: Node) -> tuple[str, str]:
    """The operand of a sum that holds scores, and the other one."""
    for scores, other in (node.inputs, node.inputs[::-1]):
        seen = None if scores in graph.constants else view(graph, scores)
        made = None if seen is None else graph.producer.get(seen.root)
        if made is not None and made.op in ("MatMul", "Add") and any(n.op == "MatMul" for n in graph.behind(scores)):
            return scores, other
    raise Unsupported("a mask of its scores that is not understood")


def _what_is_added(graph: Graph, node: Node, tensor: str, added: list[tuple[Node, str]], nodes: list[Node]) -> set[int]:
    """The ids that ``tensor``, added by ``node``, excludes from the keys; ``added`` gets its constants."""
    if tensor in graph.constants:
        if graph.constants[tensor].any():
            added.append((node, tensor))
        return set()
    pad = masks.pad_of(graph, tensor)
    if pad is not None:
        nodes += graph.behind(tensor)
        return {pad}
    inner = graph.producer.get(tensor)
    both = (
        inner is not None and inner.op == "Min" and all(_hides(graph, t) for t in inner.inputs if t in graph.constants)
    )
    if inner is None or not (inner.op == "Add" or both):
        raise Unsupported("a mask of its scores that is not one of padding")
    nodes.append(inner)
    return set().union(*(_what_is_added(graph, node, t, added, nodes) for t in inner.inputs))


def _hides(graph: Graph, constant: str) -> bool:
    """Whether ``constant`` hides some scores and leaves the others alone, as `masks.unify` writes it."""
    value = graph.constants[constant]
    return bool(((value == 0) | (value == np.float32(masks.OURS))).all())


def _tables(graph: Graph, scores: _Scores, windows: int, heads: int) -> tuple[F32 | None, F32 | None]:
    """What is added to the scores: by head [heads, T, T], and by window [windows, T, T]."""
    bias, mask = None, None
    for node, name in scores.added:
        shape = graph.shapes[node.outputs[0]]
        value = np.broadcast_to(graph.constants[name].astype(np.float64), shape)
        table = value.reshape(windows, heads, *shape[-2:])
        if (table == table[:1]).all():
            bias = table[0] if bias is None else bias + table[0]
        elif (table == table[:, :1]).all():
            mask = table[:, 0] if mask is None else mask + table[:, 0]
        else:  # both in one table
            common = table[:1]
            own = table - common
            if not np.allclose(own, own[:, :1], atol=1e-4):
                raise Unsupported("a mask by window and head")
            bias = common[0] if bias is None else bias + common[0]
            mask = own[:, 0] if mask is None else mask + own[:, 0]
    found = [None if t is None else np.clip(t, _AWAY, -_AWAY).astype(np.float32) for t in (bias, mask)]
    return found[0], found[1]


# --- answers ----------------------------------------------------------------------------------------------------------


def _values(graph: Graph, softmax: Node) -> tuple[Node, list[Node]]:
    """The product of weights and values, and the operators before it.

    These are views, and torch's Where(IsNaN(p), 0, p), which covers rows without a key.
    """
    at, between = softmax.outputs[0], []
    for _ in range(8):
        readers = graph.consumers.get(at, [])
        if len(readers) == 2 and {r.op for r in readers} == {"IsNaN", "Where"}:
            guard, chosen = sorted(readers, key=lambda r: r.op)
            if chosen.inputs[0] != guard.outputs[0] or chosen.inputs[2] != at:
                break
            between += [guard, chosen]
            at = chosen.outputs[0]
        elif len(readers) == 1 and readers[0].op == "MatMul" and readers[0].inputs[0] == at:
            return readers[0], between
        elif len(readers) == 1 and readers[0].op in ("Reshape", "Identity", "Dropout", "Squeeze", "Unsqueeze"):
            between.append(readers[0])
            at = readers[0].outputs[0]
        else:
            break
    raise Unsupported("its answer is not multiplied by values")


def _joined(graph: Graph, tensor: str, windows: int, channels: int) -> tuple[str, list[Node]]:
    """The tensor [1, windows x T, C] that joins the heads' answers ``tensor`` side by side, and the views before it."""
    tokens, size = graph.shapes[tensor][-2:]
    answers = np.arange(np.prod(graph.shapes[tensor])).reshape(windows, -1, tokens, size)
    wanted = answers.transpose(0, 2, 1, 3).reshape(1, windows * tokens, channels)
    at, nodes = tensor, list[Node]()
    if graph.shapes[at] == wanted.shape and (answers.reshape(wanted.shape) == wanted).all():  # one head
        return at, nodes
    for _ in range(8):
        reader = graph.sole_consumer(at)
        if reader is None or not is_view(graph, reader):
            break
        nodes.append(reader)
        at = reader.outputs[0]
        if graph.shapes[at] == wanted.shape and (_seen(graph, at).index == wanted).all():
            return at, nodes[:-1]
    raise Unsupported("its heads are not joined side by side")
