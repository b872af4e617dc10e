"""Finds the cuts of a network: single tensors on which all later operators depend."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from calibration.importing.graph import Graph, short
from calibration.lowering.layers import Network, Reshape, Transpose
from splitedge.protocol.messages import Cut


@dataclass(frozen=True)
class Place:
    """A cut, and the reason if it is not offered to the planner.

    ``reachable``: an integer head can yield its tensor.
    """

    cut: Cut
    reachable: bool
    reason: str = ""

    @property
    def offered(self) -> bool:
        return not self.reason


def find(network: Network) -> list[Place]:
    """Every single-tensor cut in order, from the input (index 0) to the output.

    A tail may also need to know which tokens are padding. A tensor inside a layer, such as one before its activation,
    is not a cut.

    The planner is offered the input, the output, and those reachable cuts that are no wider than both neighbours, or
    narrower than every cut before them. Any other cut costs the device more than a neighbouring cut does, and saves
    nothing on the link.
    """
    tensors = _single_tensors(network)
    reachable = network.reachable()
    widths = [_width(network.graph, t) if t in reachable else math.inf for t in tensors]
    places = []
    for index, tensor in enumerate(tensors):
        shape = network.graph.stored_shape(tensor) if network.graph.storable(tensor) else []
        padding = network.padding if _reads_ids_behind(network.graph, tensor) else None
        cut = Cut(index, _layer(network, tensor), tensor, shape, _kind(index, len(tensors)), padding)
        reason = _blocker(network, tensor) if tensor not in reachable else _too_wide(network, tensors, widths, index)
        places.append(Place(cut, tensor in reachable, reason))
    return places


def unsupported(network: Network) -> list[str]:
    """The unsupported operators in order, as "OpType (node name)"; the reason if no operator is in a head."""
    if network.unsupported and not network.layers:
        reasons = list(dict.fromkeys(why for _, why in network.unsupported))
        if len(network.unsupported) == len(network.graph.nodes) and len(reasons) == 1:
            return reasons
    return [str(node) for node, _ in network.unsupported]


def _kind(index: int, count: int) -> Literal["input", "inside", "output"]:
    return "input" if index == 0 else "output" if index == count - 1 else "inside"


def _single_tensors(network: Network) -> list[str]:
    """The tensors after which no other tensor is needed, apart from padding marks.

    The order of operators does not matter for this property.
    """
    graph, marks = network.graph, network.marks()
    real = {layer.out for layer in network.alive()} | {t for node, _ in network.unsupported for t in node.outputs}
    nodes = [node for node in graph.nodes if not marks.issuperset(node.outputs)]
    left = Counter(t for node in nodes for t in set(node.inputs) - marks)
    left[graph.output] += 1
    live, found = {graph.input}, [graph.input]
    for node in nodes:
        for tensor in set(node.inputs) & live:
            left[tensor] -= 1
            if not left[tensor]:
                live.discard(tensor)
        live |= {t for t in node.outputs if left.get(t)}
        if len(live) == 1 and (live <= real or graph.output in live) and found[-1] not in live:
            found += live
    return found


def _reads_ids_behind(graph: Graph, tensor: str) -> bool:
    """Whether an operator between ``tensor`` and the output reads the token ids."""
    wanted = {graph.output}
    for node in reversed(graph.nodes):
        if (wanted - {tensor}) & set(node.outputs):
            wanted |= set(node.inputs)
    return graph.takes_ids and graph.input in wanted - {tensor}


def _width(graph: Graph, tensor: str) -> float:
    return math.prod(graph.shapes[tensor]) if tensor in graph.shapes else math.inf


def _layer(network: Network, tensor: str) -> str:
    if tensor == network.graph.input:
        return short(tensor)
    layer = network.made.get(tensor)
    return short(layer.name if layer else network.graph.producer[tensor].name)


def _blocker(network: Network, tensor: str) -> str:
    """The first unsupported operator on the way to ``tensor``."""
    graph = network.graph
    if tensor == graph.input:
        return "token ids are not sent as they are"
    needed = {tensor}
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
    blocking = next((f"{n}: {why}" for n, why in network.unsupported if needed & set(n.outputs)), "")
    return f"behind {blocking or 'an operator on constants that was not folded'}"


def _too_wide(network: Network, tensors: list[str], widths: list[float], index: int) -> str:
    if index in (0, len(tensors) - 1):
        return ""
    if isinstance(network.made[tensors[index]], Reshape | Transpose) and widths[index] == widths[index - 1]:
        return f"the same values as after {_layer(network, tensors[index - 1])}"
    if widths[index] < min(widths[:index]):
        return ""
    beside = index - 1 if widths[index - 1] < widths[index] else index + 1
    if widths[beside] < widths[index]:
        return f"wider than after {_layer(network, tensors[beside])}"
    return ""
