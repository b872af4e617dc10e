"""Masks of padding come in one form, however an export builds them; other masks stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration.importing import importer, masks
from calibration.importing.graph import Graph
from tests.small_transformers import TOKENS, WIDTH, Encoder


def kept(net: Encoder) -> str:
    """The mask that a library is given: 1 where the id is not 0."""
    return net.add("Cast", net.add("Not", net.add("Equal", "x", net.constant(0, np.int64))), to=TensorProto.INT64)


def subtracted(net: Encoder) -> str:
    wide = net.add("Cast", net.add("Unsqueeze", kept(net), net.constant([1, 2], np.int64)), to=TensorProto.FLOAT)
    lacking = net.add("Sub", net.constant(1.0), wide)
    return net.add("Mul", lacking, net.constant(np.finfo(np.float32).min))


def indexed(net: Encoder) -> str:
    """By places in the flattened mask of all texts, of which the first is meant."""
    flat = net.add("Reshape", net.add("Cast", kept(net), to=TensorProto.BOOL), net.constant([-1], np.int64))
    places = net.constant(np.arange(TOKENS).reshape(1, 1, 1, TOKENS), np.int64)
    wide = net.add("Expand", net.add("Gather", flat, places), net.constant([1, 1, TOKENS, TOKENS], np.int64))
    return net.add("Where", wide, net.constant(0.0), net.constant(-np.inf))


class Filled(Encoder):
    """Scores are replaced where a token is padding, and not added to."""

    def add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attrs: object) -> str:
        if op == "Softmax":
            hidden = super().add(
                "Unsqueeze", super().add("Equal", "x", self.constant(0, np.int64)), self.constant([1, 2], np.int64)
            )
            wide = super().add("Expand", hidden, self.constant([1, 1, TOKENS, TOKENS], np.int64))
            inputs = (super().add("Where", wide, self.constant(np.finfo(np.float32).min), inputs[0]),)
        return super().add(op, *inputs, name=name, outputs=outputs, **attrs)


def encoder(form: str) -> onnx.ModelProto:
    net = Filled(seed=8) if form == "filled" else Encoder(seed=8)
    stream = net.last
    mask = {"subtracted": subtracted, "indexed": indexed}[form](net) if form != "filled" else ""
    net.last = stream
    net.block(mask)
    net.block(mask)
    return net.model()


def ids(count: int) -> np.ndarray:
    random = np.random.default_rng(3)
    return random.integers(1, 50, (count, TOKENS)) * (np.arange(TOKENS) < random.integers(1, TOKENS, (count, 1)))


@pytest.mark.parametrize("form", ["subtracted", "indexed", "filled"])
def test_masks_of_padding_become_one(form: str) -> None:
    original = encoder(form)
    simple = importer.simplify(original)
    graph = Graph.of(simple)
    adding = [n for n in graph.nodes if n.op == "Add" and masks.pad_of(graph, n.inputs[1]) == 0]
    assert len(adding) == 2
    assert len({n.inputs[1] for n in adding}) == 1
    assert sum(n.op == "Equal" for n in graph.nodes) == 1
    wanted = [importer.session(original).run(None, {"x": one[None]})[0] for one in ids(4)]
    again = importer.simplify(simple)
    assert sorted(n.op_type for n in again.graph.node) == sorted(n.op_type for n in simple.graph.node)
    opened = importer.batched(simple)
    assert opened.graph.input[0].type.tensor_type.shape.dim[0].dim_param == importer.BATCH
    found = importer.session(opened).run(None, {"x": ids(4)})[0]
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("other", ["queries", "half"])
def test_masks_that_hide_something_else_stay(other: str) -> None:
    net = Encoder(seed=8)
    stream = net.last
    axes, away = ([1, 3], -1e9) if other == "queries" else ([1, 2], -5e3)
    wide = net.add("Unsqueeze", net.add("Equal", "x", net.constant(0, np.int64)), net.constant(axes, np.int64))
    mask = net.add("Where", wide, net.constant(away), net.constant(0.0))
    net.last = stream
    net.block(mask)
    before = net.model()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    masks.unify(after)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]


def test_models_without_ids_are_left_alone() -> None:
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, WIDTH])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, WIDTH])
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", [entry], [leave])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    before = model.SerializeToString()
    masks.unify(model)
    assert model.SerializeToString() == before
