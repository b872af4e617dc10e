"""Matches an attention among the operators of a graph: channels of queries, keys and values, and masked tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.importing import masks
from calibration.importing.graph import Graph, Node
from calibration.lowering.layers.network import I64, Unsupported
from calibration.lowering.layers.views import View, is_view, view


@dataclass
class Part:
    """Queries, keys or values: the channels [heads, D] of the tensor ``root`` [1, T, N] for each head."""

    root: str
    channels: I64


@dataclass
class Match:
    """An attention with the output ``out`` [1, T, heads x D], computed by ``nodes``.

    Tokens with the id ``pad`` are not keys (None: all tokens are).
    """

    name: str
    out: str
    parts: tuple[Part, Part, Part]
    factor: float
    pad: int | None
    nodes: list[Node]


def match(graph: Graph, softmax: Node) -> Match:
    """The attention around ``softmax``. Raises `Unsupported`."""
    if softmax.attrs.get("axis", -1) not in (-1, len(graph.shapes.get(softmax.outputs[0], ())) - 1):
        raise Unsupported("it runs over other axes than the channels alone")
    inner, pad, masking = _scores(graph, softmax.inputs[0])
    product = graph.producer.get(inner.root)
    values, weighing = _values(graph, softmax)
    if product is None or product.op != "MatMul" or not inner.is_plain():
        raise Unsupported("its input is not a product of queries and keys")
    views = [_seen(graph, t) for t in (*product.inputs, values.inputs[1])]
    query, key, value = views
    key.index = key.index.swapaxes(-1, -2)
    parts = (_part(graph, query), _part(graph, key), _part(graph, value))
    if value.factor != 1 or len({p.channels.shape for p in parts}) > 1:
        raise Unsupported("queries, keys and values of different shapes")
    out, joining = _joined(graph, values.outputs[0], parts[0].channels.size)
    nodes = [
        softmax,
        product,
        values,
        *masking,
        *weighing,
        *joining,
        *inner.nodes,
        *query.nodes,
        *key.nodes,
        *value.nodes,
    ]
    return Match(product.name, out, parts, inner.factor * query.factor * key.factor, pad, nodes)


def _seen(graph: Graph, tensor: str) -> View:
    found = view(graph, tensor)
    if found is None:
        raise Unsupported("an attention of unknown shape")
    return found


def _part(graph: Graph, seen: View) -> Part:
    """The part that ``seen`` [1, heads, T, D] or [heads, T, D] shows.

    It must take the same channels of every token of a tensor [1, T, N].
    """
    shape = graph.shapes[seen.root]
    index = seen.index.reshape(-1, *seen.index.shape[-2:])
    if len(shape) != 3 or shape[0] != 1 or shape[1] != index.shape[1]:
        raise Unsupported("an attention over something else than the tokens")
    channels = index[:, :1]
    if not (index == channels + shape[2] * np.arange(shape[1])[:, None]).all() or channels.max() >= shape[2]:
        raise Unsupported("an attention whose heads mix tokens and channels")
    return Part(seen.root, channels[:, 0])


def _scores(graph: Graph, tensor: str) -> tuple[View, int | None, list[Node]]:
    """The scores without their mask, the masked token id, and the operators of the mask."""
    seen = _seen(graph, tensor)
    node = graph.producer.get(seen.root)
    if node is None or node.op != "Add":
        return seen, None, []
    outer = seen.nodes
    for scores, mask in (node.inputs, node.inputs[::-1]):
        inner = None if scores in graph.constants else _seen(graph, scores)
        made = None if inner is None else graph.producer.get(inner.root)
        if inner is not None and made is not None and made.op == "MatMul" and seen.is_plain() and seen.factor == 1:
            pad, nodes = _padding(graph, mask)
            return inner, pad, [node, *outer, *nodes]
    raise Unsupported("a mask of its scores that is not understood")


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


def _joined(graph: Graph, tensor: str, channels: int) -> tuple[str, list[Node]]:
    """The tensor [1, T, C] that joins the heads' answers ``tensor`` side by side, and the views before it."""
    heads, tokens, size = np.arange(np.prod(graph.shapes[tensor])).reshape(-1, *graph.shapes[tensor][-2:]).shape
    wanted = (
        np.arange(heads * tokens * size).reshape(heads, tokens, size).transpose(1, 0, 2).reshape(1, tokens, channels)
    )
    at, nodes = tensor, []
    for _ in range(8):
        reader = graph.sole_consumer(at)
        if reader is None or not is_view(graph, reader):
            break
        nodes.append(reader)
        at = reader.outputs[0]
        if graph.shapes[at] == wanted.shape and (_seen(graph, at).index == wanted).all():
            return at, nodes[:-1]
    raise Unsupported("its heads are not joined side by side")


def _padding(graph: Graph, mask: str) -> tuple[int | None, list[Node]]:
    """The token id that the additive ``mask`` excludes from the keys, and the mask's operators.

    The id is None if the mask excludes nothing.
    """
    if mask in graph.constants:
        if graph.constants[mask].any():
            raise Unsupported("a mask that does not depend on the token ids")
        return None, []
    pad = masks.pad_of(graph, mask)
    if pad is None:
        raise Unsupported("a mask of its scores that is not one of padding")
    return pad, graph.behind(mask)
