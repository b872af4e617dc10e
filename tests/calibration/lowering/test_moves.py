"""Operators that only move elements: what a head makes of chains of them is what ONNX Runtime does, element for element."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calibration.importing.graph import Graph
from calibration.importing.sessions import unoptimized
from calibration.lowering import layers
from calibration.lowering.layers import moves
from calibration.lowering.lower import Calibration, lower
from calibration.statistics.activations import Quantization, to_onnx
from splitedge.head import segment as seg
from tests import small_models as small


def split_up(draw: st.DrawFn, size: int, parts: int) -> list[int]:
    """``size`` as a product of ``parts`` numbers."""
    found = []
    for _ in range(parts - 1):
        found.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= found[-1]
    return [*found, size]


@st.composite
def chains(draw: st.DrawFn) -> small.Net:
    """Reshapes to any number of axes, transpositions, slices and gathers, from and to a plane or rows."""
    shape = [1, *draw(st.lists(st.integers(1, 6), min_size=3, max_size=3))]
    net = small.Net(shape)
    net.last = "x"
    for _ in range(draw(st.integers(1, 4))):
        size, kind = math.prod(shape), draw(st.sampled_from(["reshape", "transpose", "slice"]))
        if kind == "reshape":
            shape = [1, *split_up(draw, size, draw(st.integers(1, 5)))]
            net.add("Reshape", net.last, net.constant(shape, np.int64))
        elif kind == "transpose":
            perm = [0, *draw(st.permutations(range(1, len(shape))))]
            shape = [shape[axis] for axis in perm]
            net.add("Transpose", net.last, perm=perm)
        else:
            axis = draw(st.integers(1, len(shape) - 1))
            start = draw(st.integers(0, shape[axis] - 1))
            step = draw(st.integers(1, 3))
            numbers = [net.constant([n], np.int64) for n in (start, 1000, axis, step)]
            net.add("Slice", net.last, *numbers)
            shape = [*shape[:axis], len(range(start, shape[axis], step)), *shape[axis + 1 :]]
    if len(shape) > 4:
        net.add("Reshape", net.last, net.constant([1, *split_up(draw, math.prod(shape), 3)], np.int64))
    return net


def moved(net: small.Net) -> tuple[np.ndarray, np.ndarray, list[seg.AnyOp]]:
    """What the head and what ONNX Runtime make of codes, in ONNX order, and the head's operators."""
    model = net.model()
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    shape = network.graph.stored_shape("x")
    codes = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    whole = lower(network, Calibration({"x": Quantization(1.0, 0)}, {}), network.graph.output, 8)
    found = whole.head().run(codes)
    session = unoptimized(model)
    wanted = session.run(None, {"x": to_onnx(codes[None].astype(np.float32))})[0]
    found = found.transpose(2, 0, 1) if found.ndim == 3 else found
    return found.reshape(wanted.shape), wanted, whole.header.ops


@given(chains())
def test_chains_of_movements_equal_onnx_runtime(net: small.Net) -> None:
    assume(not layers.build(Graph.of(net.model())).unsupported)  # more loops than two copies have
    found, wanted, ops = moved(net)
    np.testing.assert_array_equal(found, wanted)
    assert len([op for op in ops if not isinstance(op, seg.Reshape)]) <= 2


@pytest.mark.parametrize(
    ("sizes", "steps"), [([2, 3, 4], [12, 4, 1]), ([2, 3], [1, 2]), ([5], [0]), ([3, 2, 2], [0, 7, 2]), ([1], [0])]
)
def test_loops_yield_the_indices_that_they_come_from(sizes: list[int], steps: list[int]) -> None:
    index = 5 + sum(
        np.arange(n).reshape([-1 if j == i else 1 for j in range(len(sizes))]) * step
        for i, (n, step) in enumerate(zip(sizes, steps, strict=True))
    )
    found = moves.loops(np.broadcast_to(index, sizes).reshape(-1))
    assert found is not None
    start, made, strides = found
    assert start == 5
    assert len(made) <= len(sizes)
    again = np.array([start + sum(i * s for i, s in zip(at, strides, strict=True)) for at in np.ndindex(*made)])
    np.testing.assert_array_equal(again, np.broadcast_to(index, sizes).reshape(-1))


@pytest.mark.parametrize("index", [[0, 1, 3, 4, 2], [3, 2, 1], [0, 1, 0, 2]])
def test_uneven_and_backward_indices_have_no_loops(index: list[int]) -> None:
    assert moves.loops(np.array(index)) is None


def test_five_loops_become_two_copies() -> None:
    net = small.Net([1, 12, 3, 5])
    net.add("DepthToSpace", "x", blocksize=2, mode="CRD")
    found, wanted, ops = moved(net)
    np.testing.assert_array_equal(found, wanted)
    assert [type(op) for op in ops] == [seg.View, seg.View]
