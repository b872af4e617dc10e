"""Layers of networks that have planes and tokens, such as MobileViT: each part in the form that suits it.

Planes [1, C, H, W] are uint8 codes between the layers of `planes`, tokens [1, N, C] float32 rows between those of
`streams`. Where operators only move elements from one to the other, a head converts codes to values, or back, and
gathers the rows that stand for the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.importing.graph import STORED_AXES, Graph, Node
from calibration.lowering.layers import attention, planes, streams
from calibration.lowering.layers.network import (
    I64,
    Dequantize,
    Gather,
    Layer,
    Network,
    Quantize,
    Unsupported,
)
from calibration.lowering.layers.views import View, is_view, view


def is_mixed(graph: Graph) -> bool:
    """Whether ``graph`` has an attention over tokens."""
    for node in graph.nodes:
        if node.op == "Softmax":
            try:
                attention.match(graph, node)
            except Unsupported:
                continue
            return True
    return False


def build(graph: Graph) -> Network:
    """The layers of a graph with planes and tokens (`is_mixed`)."""
    network = Network(graph, [], [], {})
    work = _Work(network, streams.Work(network))
    for node in graph.nodes:
        if node.op == "Softmax" or (node.op != "Conv" and node.outputs and _are_tokens(graph, node.outputs[0])):
            work.tokens.find(node)
    for node in graph.nodes:
        work.convert(node)
    return network


def _are_tokens(graph: Graph, tensor: str) -> bool:
    shape = graph.shapes.get(tensor, ())
    return len(shape) == 3 and shape[0] == 1


@dataclass
class _Work:
    network: Network
    tokens: streams.Work

    def convert(self, node: Node) -> None:
        graph, network = self.network.graph, self.network
        if any(t in self.tokens.found for t in node.outputs):
            self._on_tokens(node)
        elif node in self.tokens.inside:
            return
        elif is_view(graph, node) and self._moves_to_another_form(node):
            return  # what reads it follows the moves
        elif _are_tokens(graph, node.outputs[0]) or self._reads_values(node):
            self._on_tokens(node)
        else:
            try:
                for tensor in node.inputs:
                    self._as_plane(tensor)
                planes.convert(network, node)
            except Unsupported as reason:
                network.unsupported.append((node, str(reason)))

    def _moves_to_another_form(self, node: Node) -> bool:
        """Whether a view leads from a plane to tokens, or back, or to neither."""
        graph, out = self.network.graph, node.outputs[0]
        seen = view(graph, out)
        if seen is None or (seen.root not in self.network.made and seen.root != graph.input):
            return True
        of_tokens = self.network.dtype(seen.root) == "f32"
        shape = graph.shapes[out]
        if len(shape) == 2 or len(node.outputs) > 1:
            return False
        in_place = graph.storable(node.inputs[0]) and graph.storable(out)
        return not in_place or of_tokens != (len(shape) == 3)

    def _reads_values(self, node: Node) -> bool:
        """Whether a vector is made of values, such as the mean of the tokens."""
        graph, network = self.network.graph, self.network
        if len(graph.shapes.get(node.outputs[0], ())) != 2:
            return False
        return any(t in network.made and network.dtype(t) == "f32" for t in self._roots(node))

    def _roots(self, node: Node) -> set[str]:
        seen = [view(self.network.graph, t) for t in node.inputs if t and t not in self.network.graph.constants]
        return {one.root for one in seen if one is not None} | set(node.inputs)

    def _on_tokens(self, node: Node) -> None:
        """Layers on tokens. Planes that they read are converted before them."""
        network = self.network
        before, failed = {id(layer): list(layer.inputs) for layer in network.layers}, len(network.unsupported)
        self.tokens.convert(node)
        if len(network.unsupported) > failed:
            return
        made = [layer for layer in network.layers if before.get(id(layer)) != layer.inputs]
        outs = {layer.out for layer in made}
        try:
            wanted = dict.fromkeys(t for layer in made for t in layer.inputs if t not in outs)
            needed = [layer for tensor in wanted for layer in self._as_tokens(tensor)]
        except Unsupported as reason:
            for layer in made:
                network.layers.remove(layer)
                del network.made[layer.out]
            network.unsupported.append((node, str(reason)))
            return
        if made:
            place = network.layers.index(made[0])
            network.layers[place:place] = needed

    def _as_tokens(self, tensor: str) -> list[Layer]:
        """The layers that make ``tensor`` [1, N, C] of a plane; none if there is one that yields it."""
        network, graph = self.network, self.network.graph
        if tensor in network.made and network.dtype(tensor) == "f32":
            return []
        seen = view(graph, tensor)
        if seen is None or tensor in network.made or not (seen.root in network.made or seen.root == graph.input):
            raise Unsupported("it reads something else than tokens or a plane")
        if network.dtype(seen.root) == "f32":
            rows = _row_numbers(seen.index, graph.shapes[seen.root][-1], seen)
            return self._kept(Gather(f"{tensor}/rows", tensor, [seen.root], rows))
        stored = graph.stored_shape(seen.root)
        rows = _row_numbers(_stored_places(graph, seen.root)[seen.index], stored[-1], seen)
        values, count = f"{seen.root}@values", int(np.prod(stored[:-1]))
        whole = len(rows) == count and bool((rows == np.arange(count)).all())
        shape = [count, stored[-1]]
        if whole:
            return self._kept(Dequantize(f"{tensor}/values", tensor, [seen.root], shape))
        found: list[Layer] = []
        if values not in network.made:
            found += self._kept(Dequantize(f"{seen.root}/values", values, [seen.root], shape))
        return found + self._kept(Gather(f"{tensor}/rows", tensor, [values], rows))

    def _as_plane(self, tensor: str) -> None:
        """Add the layers that make the codes of ``tensor`` [1, C, H, W] of tokens, unless one yields them."""
        network, graph = self.network, self.network.graph
        if not tensor or tensor in graph.constants or tensor == graph.input or tensor in network.made:
            return
        seen = view(graph, tensor)
        if seen is None or seen.root not in network.made or network.dtype(seen.root) != "f32":
            return
        if not graph.storable(tensor):
            raise Unsupported("a tensor of unknown shape, or not of 2 to 4 axes with a batch of 1")
        index = seen.index[0].transpose([axis - 1 for axis in STORED_AXES[seen.index.ndim]])
        rows = _row_numbers(index, graph.shapes[seen.root][-1], seen)
        x, count = seen.root, int(np.prod(graph.shapes[seen.root][:-1]))
        if len(rows) != count or (rows != np.arange(count)).any():
            x = f"{tensor}@pixels"
            network.layers += self._kept(Gather(f"{tensor}/rows", x, [seen.root], rows))
        network.layers += self._kept(Quantize(f"{tensor}/codes", tensor, [x], graph.stored_shape(tensor)))

    def _kept(self, layer: Layer) -> list[Layer]:
        self.network.made[layer.out] = layer
        return [layer]


def _stored_places(graph: Graph, tensor: str) -> I64:
    """The place of each element of ``tensor``, by its place in ONNX order, in the stored order."""
    shape = graph.shapes[tensor]
    stored = np.arange(int(np.prod(shape))).reshape(graph.stored_shape(tensor))
    axes = STORED_AXES[len(shape)]
    found: I64 = stored.transpose([axes.index(axis) for axis in range(1, len(shape))]).reshape(-1)
    return found


def _row_numbers(index: I64, wide: int, seen: View) -> I64:
    """The numbers of the rows of ``wide`` elements that ``index`` [..., wide] shows. Raises `Unsupported`."""
    if seen.factor != 1 or index.shape[-1] != wide:
        raise Unsupported("it moves something else than whole tokens")
    rows = index.reshape(-1, wide)
    if (rows[:, 0] % wide).any() or not (rows == rows[:, :1] + np.arange(wide)).all():
        raise Unsupported("it moves something else than whole tokens")
    return rows[:, 0] // wide
