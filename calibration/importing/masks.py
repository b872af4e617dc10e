"""Converts padding masks to one form.

Exported models build masks in many ways, some with indices of the batch. So a mask is recognized by the values that it
computes for some ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.importing.graph import Graph, Node, drop_unread, reads

#: A mask hides a score if it adds at most this value. Our masks add `OURS`, which absorbs every float32 score.
AWAY: Final = -1e4
OURS: Final = -1e9

_PASSED: Final = {"Reshape", "Identity", "Dropout", "Mul", "Div", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class _Mask:
    """A padding mask.

    ``node`` adds ``tensor`` to the ``scores``, or replaces them with a constant where ``tensor`` equals ``taken``.
    """

    node: Node
    scores: str
    tensor: str
    taken: bool | None = None


def unify(model: onnx.ModelProto) -> None:
    """Replace every padding mask in ``model`` with Where(ids == pad, `OURS`, 0) of shape [1, 1, 1, T].

    What a mask adds where no token is padding, such as a bias by distance, becomes a constant that is added before it.
    The model's inputs are token ids [1, T]. Masks of other kinds, and those already in this form, stay unchanged.
    """
    graph = Graph.of(model)
    if not graph.takes_ids or graph.opset < 9:  # before opset 9 there is no Where
        return
    found = [mask for node in graph.nodes if node.op == "Softmax" and (mask := _mask_of(graph, node))]
    made: dict[int, str] = {}
    for mask in found:
        maker = graph.producer.get(mask.tensor)
        ours = (mask.tensor, *(maker.inputs if maker is not None and maker.op == "Min" else ()))
        if any(pad_of(graph, t) is not None for t in ours if t not in graph.constants):
            continue
        for pad in sorted(_pads(graph)):
            always = _always(model, graph, mask, pad)
            if always is not None:
                made[pad] = made.get(pad) or _prepend(model, graph, pad)
                _replace(model, mask, made[pad], always)
                break
    drop_unread(model.graph)


def pad_of(graph: Graph, mask: str) -> int | None:
    """The padding id that ``mask`` hides, if the mask has the form that `unify` creates; else None."""
    nodes = graph.behind(mask)
    if [n.op for n in nodes] != ["Equal", "Where", "Reshape"] or nodes[0].inputs[0] != graph.input:
        return None
    pad, yes, no = (graph.constants.get(t) for t in (nodes[0].inputs[1], *nodes[1].inputs[1:]))
    plain = nodes[1].inputs[0] == nodes[0].outputs[0] and pad is not None and pad.size == 1
    return int(pad) if pad is not None and plain and yes == np.float32(OURS) and no == 0 else None


def _mask_of(graph: Graph, softmax: Node) -> _Mask | None:
    """The mask on the scores of ``softmax``, if it depends on the ids only; else None."""
    node = graph.producer.get(softmax.inputs[0])
    while node is not None and node.op in _PASSED:
        node = graph.producer.get(next((t for t in node.inputs if t not in graph.constants), ""))
    for mask in () if node is None else _candidates(graph, node):
        products, ids = ({n.op for n in graph.behind(t)} for t in (mask.scores, mask.tensor))
        if "MatMul" in products and ids and "MatMul" not in ids and mask.scores in graph.shapes:
            return mask
    return None


def _candidates(graph: Graph, node: Node) -> list[_Mask]:
    if node.op == "Add":
        a, b = node.inputs
        return [_Mask(node, a, b), _Mask(node, b, a)]
    if node.op != "Where":
        return []
    condition, yes, no = node.inputs
    sides = ((no, yes, True), (yes, no, False))
    return [_Mask(node, scores, condition, taken) for scores, number, taken in sides if _is_away(graph, number)]


def _is_away(graph: Graph, name: str) -> bool:
    return name in graph.constants and bool((graph.constants[name] <= AWAY).all())


def _pads(graph: Graph) -> set[int]:
    """The nonnegative constants that Equal operators compare with: candidates for the padding id."""
    compared = [graph.constants[t] for n in graph.nodes if n.op == "Equal" for t in n.inputs if t in graph.constants]
    return {int(c.reshape(-1)[0]) for c in compared if c.size == 1 and c.reshape(-1)[0] >= 0}


def _always(model: onnx.ModelProto, graph: Graph, mask: _Mask, pad: int) -> NDArray[np.float32] | None:
    """What ``mask`` adds to the scores without padding, if else it hides exactly the keys whose id is ``pad``."""
    run, shape = _evaluator(model, graph.input, mask.tensor), graph.shapes[mask.scores]
    always = run(np.full((1, shape[-1]), pad + 1))
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 3, (1, shape[-1])) + pad
        hidden = np.broadcast_to(ids[0] == pad, shape)
        found, usual = (np.broadcast_to(value, shape) for value in (run(ids), always))
        away = found[hidden] == mask.taken if mask.taken is not None else found[hidden] <= AWAY
        if not (away.all() and (found[~hidden] == usual[~hidden]).all()):
            return None
    added = np.where(always == mask.taken, OURS, 0.0) if mask.taken is not None else always
    return np.maximum(added, OURS).astype(np.float32)


def _evaluator(model: onnx.ModelProto, ids: str, tensor: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that computes ``tensor`` from the token ``ids``."""
    wanted, nodes = {tensor}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(reads(node))
            nodes.append(node)
    weights = [t for t in model.graph.initializer if t.name in wanted]
    entry, out = (helper.make_tensor_value_info(t, TensorProto.UNDEFINED, None) for t in (ids, tensor))
    made = helper.make_graph(nodes[::-1], "mask", [entry], [out], weights)
    evaluator = ReferenceEvaluator(helper.make_model(made, opset_imports=model.opset_import))

    def run(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return np.asarray(evaluator.run(None, {ids: values})[0])

    return run


def _prepend(model: onnx.ModelProto, graph: Graph, pad: int) -> str:
    """Insert the mask of ``pad`` before all operators; returns its name."""
    ids, tokens = graph.input, graph.shapes[graph.input][-1]
    names = [f"{ids}@{part}{pad}" for part in ("pad", "padding", "away", "row", "mask")]
    constants = {
        names[0]: np.array(pad, np.int64),
        f"{names[2]}/yes": np.array(OURS, np.float32),
        f"{names[2]}/no": np.array(0, np.float32),
        f"{names[3]}/shape": np.array([1, 1, 1, tokens], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("Equal", [ids, names[0]], [names[1]], names[1]),
        helper.make_node("Where", [names[1], f"{names[2]}/yes", f"{names[2]}/no"], [names[2]], names[2]),
        helper.make_node("Reshape", [names[2], f"{names[3]}/shape"], [names[4]], names[4]),
    ]
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    return names[4]


def _replace(model: onnx.ModelProto, mask: _Mask, ours: str, always: NDArray[np.float32]) -> None:
    """Add ``always`` to the scores, then the mask ``ours``.

    A score that both hide is hidden once, so that rows without a visible key stay as they were.
    """
    out = mask.node.outputs[0]
    place = next(i for i, n in enumerate(model.graph.node) if out in n.output)
    hidden = always <= AWAY
    tables = {
        "always": np.where(hidden, np.float32(0), always),
        "far": np.where(hidden, np.float32(OURS), np.float32(0)),
    }
    scores, made = mask.scores, []
    for part, table in tables.items():
        if table.any():
            model.graph.initializer.append(numpy_helper.from_array(table, f"{out}@{part}"))
    if tables["always"].any():
        made.append(helper.make_node("Add", [scores, f"{out}@always"], [f"{out}@biased"], f"{out}@biased"))
        scores = f"{out}@biased"
    if tables["far"].any():
        made.append(helper.make_node("Min", [f"{out}@far", ours], [f"{out}@mask"], f"{out}@mask"))
        ours = f"{out}@mask"
    made.append(helper.make_node("Add", [scores, ours], [out], mask.node.name))
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*others[:place], *made, *others[place + 1 :]])
