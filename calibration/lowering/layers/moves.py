"""Operators that only move elements, as the cheapest layer: nothing to do, a transposition, or one or two strided copies.

The tensor where the movement begins may lie several operators back, and tensors between may have any number of axes:
what counts is which element of the stored beginning each stored element of the result is. So a transposition there and
back costs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from calibration.importing.graph import STORED_AXES, Node
from calibration.lowering.layers import views
from calibration.lowering.layers.network import I64, Layer, Network, Reshape, Transpose, Unsupported, View

#: Most loops of a strided copy.
MOST: Final = 4
_SHORT: Final = 4096  # elements
#: Most loops that two copies are sought for.
_MOST_OF_TWO: Final = 7


def moved(network: Network, node: Node) -> list[Layer]:
    """The layers of the outputs of ``node`` that a head can store.

    The others get none, because an operator behind ``node`` may give them a shape that a head can store. Raises
    `Unsupported`.
    """
    graph = network.graph
    found: list[Layer] = []
    for out in node.outputs:
        if out in network.made:  # part of a layer already, such as a norm
            continue
        if out not in graph.shapes or views.move_of(graph, node, out) is None:
            raise Unsupported("a tensor of unknown shape, or indices that are not constant")
        if out == graph.output and not graph.storable(out):
            raise Unsupported("an answer that is not of 2 to 4 axes with a batch of 1")
        if graph.storable(out) and (out in graph.consumers or out == graph.output):
            found += _layers(network, node, out)
    return found


def broadcast(network: Network, name: str, tensor: str, shape: Sequence[int], out: str) -> Layer:
    """The layer ``out`` that repeats ``tensor`` to the ONNX ``shape``. Raises `Unsupported`."""
    graph = network.graph
    before = graph.shapes[tensor]
    index = np.broadcast_to(stored_indices(before), shape)
    return _one(name, out, tensor, _stored(index), graph.stored_shape(tensor), stored_shape(shape))


def reordered(network: Network, name: str, tensor: str, before: Sequence[int], out: str) -> list[Layer]:
    """The layers of ``out``, whose elements are those of ``tensor`` in ONNX order; ``before``: its ONNX shape."""
    after = network.graph.shapes[out]
    index = stored_indices(before).reshape(after)
    return _made(name, out, tensor, _stored(index), stored_shape(before), stored_shape(after))


def selected(network: Network, name: str, tensor: str, index: I64, out: str) -> list[Layer]:
    """The layers of ``out``, whose elements are those of ``tensor`` at the stored places ``index`` (ONNX order)."""
    graph = network.graph
    return _made(name, out, tensor, _stored(index), graph.stored_shape(tensor), graph.stored_shape(out))


def stored_shape(shape: Sequence[int]) -> list[int]:
    """The stored shape of a tensor of the ONNX ``shape``."""
    return [shape[axis] for axis in STORED_AXES[len(shape)]]


def stored_indices(shape: Sequence[int]) -> I64:
    """For each element of a tensor of the ONNX ``shape``, its place in the stored order."""
    axes = STORED_AXES[len(shape)]
    stored: I64 = np.arange(math.prod(shape)).reshape([shape[axis] for axis in axes])
    found: I64 = stored.transpose([axes.index(axis) for axis in range(1, len(shape))])[None]
    return found


def _stored(index: I64) -> I64:
    """``index`` [1, ...] in ONNX order, flat in the stored order."""
    flat: I64 = index[0].transpose([axis - 1 for axis in STORED_AXES[index.ndim]]).reshape(-1)
    return flat


def _layers(network: Network, node: Node, out: str) -> list[Layer]:
    graph = network.graph
    roots = list(_roots(network, out))
    if not roots:
        raise Unsupported("a tensor of unknown shape, or not of 2 to 4 axes with a batch of 1")
    for root, index in reversed(roots):
        try:
            return _made(node.name, out, root, _stored(index), graph.stored_shape(root), graph.stored_shape(out))
        except Unsupported:
            continue
    raise Unsupported("it moves elements in an order that two strided copies cannot make")


def _roots(network: Network, out: str) -> Iterator[tuple[str, I64]]:
    """The stored tensors that ``out`` is a movement of, the nearest first, and their places in ``out`` (ONNX order).

    A tensor that another operator reads too ends the search: a head that ends there must not be bypassed.
    """
    graph, at = network.graph, out
    moves: list[views.Move] = []
    while at in graph.producer:
        node = graph.producer[at]
        move = views.move_of(graph, node, at)
        if move is None:
            return
        moves.append(move)
        at = node.inputs[0]
        held = at in network.made or at not in graph.producer or views.move_of(graph, graph.producer[at], at) is None
        if graph.storable(at) and held:
            index = stored_indices(graph.shapes[at])
            for each in reversed(moves):
                index = each(index)
            yield at, index
            if graph.sole_consumer(at) is None:
                return


def _made(name: str, out: str, root: str, index: I64, before: list[int], after: list[int]) -> list[Layer]:
    """The layers that take the elements ``index`` of ``root`` (stored shape ``before``) as ``after``."""
    found = loops(index)
    if found is None:
        raise Unsupported("it moves elements at uneven distances, or backwards")
    start, sizes, steps = found
    for perm in itertools.permutations(range(len(before))) if index.size == math.prod(before) else ():
        shape = [before[axis] for axis in perm]
        strides = [math.prod(before[axis + 1 :]) for axis in perm]
        if (start, sizes, steps) != (0, *_joined(shape, strides)):
            continue
        if perm == tuple(range(len(before))):
            return [Reshape(name, out, [root], after)]
        if shape == after:
            return [Transpose(name, out, [root], list(perm))]
        turned = f"{out}@turned"
        return [Transpose(name, turned, [root], list(perm)), Reshape(name, out, [turned], after)]
    if len(sizes) <= MOST:
        return [View(name, out, [root], start, sizes, steps, after)]
    first, second = _two(sizes, steps)
    between = f"{out}@between"
    return [
        View(name, between, [root], start, *first, [math.prod(first[0])]),
        View(name, out, [between], 0, *second, after),
    ]


def _one(name: str, out: str, root: str, index: I64, before: list[int], after: list[int]) -> Layer:
    layers = _made(name, out, root, index, before, after)
    if len(layers) > 1:
        raise Unsupported("it repeats elements in more than four loops")
    return layers[0]


def loops(index: I64) -> tuple[int, list[int], list[int]] | None:
    """Start, sizes and steps of the fewest nested loops that yield ``index``; None if there are none with steps >= 0."""
    start, rows = int(index[0]), index
    sizes: list[int] = []
    steps: list[int] = []
    while len(rows) > 1:
        step = int(rows[1] - rows[0])
        ends = np.flatnonzero(np.diff(rows[:_SHORT]) != step)  # most innermost loops are short
        ends = ends if len(ends) else np.flatnonzero(np.diff(rows) != step)
        size = int(ends[0]) + 1 if len(ends) else len(rows)
        if step < 0 or len(rows) % size:
            return None
        blocks = rows.reshape(-1, size)
        if (blocks - blocks[:, :1] != step * np.arange(size)).any():
            return None
        sizes.insert(0, size)
        steps.insert(0, step)
        rows = blocks[:, 0]
    return start, sizes or [1], steps or [0]


def _two(sizes: list[int], steps: list[int]) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    """Sizes and steps of two copies that together make one of more loops. Raises `Unsupported`."""
    count = len(sizes)
    for order in itertools.permutations(range(count)) if count <= _MOST_OF_TWO else ():
        first = _joined([sizes[i] for i in order], [steps[i] for i in order])
        own = {axis: math.prod(sizes[i] for i in order[place + 1 :]) for place, axis in enumerate(order)}
        second = _joined(sizes, [own[i] for i in range(count)])
        if max(len(first[0]), len(second[0])) <= MOST:
            return first, second
    raise Unsupported("it moves elements in too many loops")


def _joined(sizes: Sequence[int], steps: Sequence[int]) -> tuple[list[int], list[int]]:
    """The loops of more than one turn, neighbours joined where they are one."""
    found: list[tuple[int, int]] = []
    for size, step in zip(sizes, steps, strict=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            found[-1] = (found[-1][0] * size, step)
        else:
            found.append((size, step))
    found = found or [(1, 0)]
    return [size for size, _ in found], [step for _, step in found]
