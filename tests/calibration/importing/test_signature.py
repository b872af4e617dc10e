"""Models of several inputs and outputs become one of each; what cannot be made of token ids is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.importing import importer
from calibration.importing.graph import Graph
from splitedge.errors import ModelError
from tests import models
from tests import small_models as small
from tests.cases.build import File, unoptimized
from tests.raising import raises
from tests.small_transformers import TOKENS

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


def bert(opset: int = 13, dynamic: bool = False) -> str:
    return models.path(f"traced-bert-{opset}-{'dynamic' if dynamic else 'fixed'}")


def run(source: str, ids: np.ndarray) -> list[np.ndarray]:
    """The outputs of the file as its user would run it."""
    made = importer.session(onnx.load(source))
    fed = {NAMES[0]: ids, NAMES[1]: (ids != 0).astype(np.int64), NAMES[2]: np.zeros_like(ids)}
    return made.run(None, fed)


def padded(count: int = 3) -> np.ndarray:
    """Token ids of several lengths, padded with 0."""
    ids = np.random.default_rng(1).integers(1, 50, (count, TOKENS))
    return ids * (np.arange(TOKENS) < TOKENS - 2 - np.arange(count)[:, None])


@pytest.mark.parametrize("opset", [11, 13, 14, 17])
@pytest.mark.parametrize("dynamic", [False, True])
def test_mask_and_types_are_made_of_the_token_ids(opset: int, dynamic: bool) -> None:
    source = bert(opset, dynamic)
    model = importer.load(source, [1, TOKENS] if dynamic else None)
    ids = padded()
    found = importer.session(model).run(None, {"input_ids": ids})
    wanted = np.concatenate([run(source, one[None])[0] for one in ids])
    assert len(found) == 1
    np.testing.assert_allclose(found[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("pooled", 1)])
def test_one_of_several_outputs_is_kept(tmp_path: Path, name: str | None, index: int) -> None:
    source = bert()
    model = onnx.load(source)
    for node in model.graph.node:
        for i, out in enumerate(node.output):
            if out == model.graph.output[1].name:
                node.output[i] = "pooled"
    model.graph.output[1].name = "pooled"
    onnx.save(model, tmp_path / "model.onnx")
    kept = importer.load(str(tmp_path / "model.onnx"), output=name)
    found = importer.session(kept).run(None, {"input_ids": padded(1)})
    np.testing.assert_allclose(found[0], run(source, padded(1))[index], rtol=1e-3, atol=1e-4)


def test_an_output_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    onnx.save(small.mlp(), tmp_path / "model.onnx")
    with raises(ModelError, reason="unknown-output", outputs=[small.mlp().graph.output[0].name]):
        importer.load(str(tmp_path / "model.onnx"), output="logits")


def test_padding_may_have_another_id() -> None:
    source = bert()
    ids = np.where(padded(1) == 0, 7, padded(1))
    fed = {NAMES[0]: ids, NAMES[1]: (ids != 7).astype(np.int64), NAMES[2]: np.zeros_like(ids)}
    wanted = importer.session(onnx.load(source)).run(None, fed)[0]
    found = importer.session(importer.load(source, padding=7)).run(None, {"input_ids": ids})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_positions_count_from_zero(tmp_path: Path) -> None:
    words, places = (np.random.default_rng(i).normal(size=(9, 4)).astype(np.float32) for i in range(2))
    entries = [helper.make_tensor_value_info(n, TensorProto.INT64, [1, 5]) for n in ("ids", "position_ids")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 4])
    nodes = [
        helper.make_node("Gather", [table, ids], [f"{ids}/rows"])
        for table, ids in (("w", "ids"), ("p", "position_ids"))
    ]
    nodes.append(helper.make_node("Add", ["ids/rows", "position_ids/rows"], ["y"]))
    weights = [numpy_helper.from_array(words, "w"), numpy_helper.from_array(places, "p")]
    graph = helper.make_graph(nodes, "g", entries, [out], weights)
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx"
    )
    made = importer.load(str(tmp_path / "model.onnx"))
    ids = np.array([[3, 1, 8, 8, 0]])
    np.testing.assert_allclose(
        importer.session(made).run(None, {"ids": ids})[0][0], words[ids[0]] + places[:5], rtol=1e-5
    )


@pytest.mark.parametrize("kinds", [(TensorProto.INT64, TensorProto.INT64), (TensorProto.FLOAT, TensorProto.FLOAT)])
def test_two_inputs_of_which_neither_is_known_are_refused(tmp_path: Path, kinds: tuple[int, int]) -> None:
    names = ("left", "right") if kinds[0] == TensorProto.INT64 else ("image", "image_mask")
    entries = [helper.make_tensor_value_info(n, kind, [1, 4]) for n, kind in zip(names, kinds, strict=True)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    nodes = [
        helper.make_node("Add", list(names), ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "g", entries, [out])
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx"
    )
    with raises(ModelError, reason="inputs"):
        importer.load(str(tmp_path / "model.onnx"))


def test_the_ids_need_not_be_the_first_input(tmp_path: Path) -> None:
    source = bert()
    model = onnx.load(source)
    entries = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(entries[::-1])
    onnx.save(model, tmp_path / "model.onnx")
    assert Graph.of(importer.load(str(tmp_path / "model.onnx"))).input == "input_ids"


def recurrent() -> onnx.ModelProto:
    """Sound and a state, both scaled by a rate: outputs a score and the next state."""
    file = File([1, 8], opset=13)
    rate = file.add("Cast", "sr", to=TensorProto.FLOAT)
    scaled = file.add("Div", "x", rate)
    state = file.add("Tanh", file.add("Add", file.add("MatMul", scaled, file.weight(8, 4)), "state"))
    file.add("MatMul", state, file.weight(4, 3))
    model = file.model([1, 3], more=[state])
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 4]))
    model.graph.input.append(helper.make_tensor_value_info("sr", TensorProto.INT64, []))
    return model


def test_further_inputs_take_constant_values(tmp_path: Path) -> None:
    model = recurrent()
    onnx.save(model, tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    with raises(ModelError, reason="inputs", inputs=["x", "state", "sr"]):
        importer.load(path)
    with raises(ModelError, reason="unknown-input", input="rate"):
        importer.load(path, constants={"rate": 1})
    made = importer.load(path, constants={"state": 0.5, "sr": 16})
    x = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    given = {"x": x, "state": np.full((1, 4), 0.5, np.float32), "sr": np.array(16)}
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
    np.testing.assert_allclose(importer.session(made).run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "stored"), [([6], [6]), ([1, 2, 3, 4, 5], [24, 5]), ([1, 2, 1, 3, 2, 2], [12, 2])])
def test_an_input_of_other_axes_is_joined(tmp_path: Path, shape: list[int], stored: list[int]) -> None:
    file = File(shape, opset=13)
    file.add("Mul", "x", file.constant(np.arange(1, 1 + np.prod(shape)).reshape(shape)))
    file.add("Reshape", file.last, file.ints(1, -1))
    file.add("MatMul", file.last, file.weight(int(np.prod(shape)), 3))
    model = file.model([1, 3])
    onnx.save(model, tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"))
    assert Graph.of(made).stored_shape("x") == stored
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (found,) = importer.session(made).run(None, {"x": x.reshape(1, *stored)})
    np.testing.assert_allclose(found, unoptimized(model, x), rtol=1e-4, atol=1e-4)


def test_ids_and_marks_of_32_bits_are_tokens(tmp_path: Path) -> None:
    model = onnx.load(bert())
    for entry in model.graph.input:
        entry.type.tensor_type.elem_type = TensorProto.INT32
        name = entry.name
        for node in model.graph.node:
            for place, read in enumerate(node.input):
                node.input[place] = f"{name}@64" if read == name else read
        model.graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}@64"], to=TensorProto.INT64))
    onnx.save(model, tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"), [1, TOKENS])
    assert Graph.of(made).takes_ids


def branching() -> onnx.ModelProto:
    """2 x at a rate of 16, else 3 x or, at a rate of 8, -x; the branches use one name for their constants."""

    def branch(factor: float, inner: onnx.NodeProto | None = None) -> onnx.GraphProto:
        node = inner or helper.make_node("Mul", ["x", "k"], ["scaled"])
        constants = [] if inner else [numpy_helper.from_array(np.float32(factor), "k")]
        out = helper.make_tensor_value_info("other" if inner else "scaled", TensorProto.FLOAT, None)
        return helper.make_graph([node], f"by{factor}", [], [out], constants)

    deeper = helper.make_node("If", ["low"], ["other"], then_branch=branch(-1), else_branch=branch(3))
    nodes = [
        helper.make_node("Equal", ["sr", "high_rate"], ["high"]),
        helper.make_node("Equal", ["sr", "low_rate"], ["low"]),
        helper.make_node("If", ["high"], ["found"], then_branch=branch(2), else_branch=branch(0, deeper)),
        helper.make_node("Add", ["found", "k"], ["y"]),
    ]
    entries = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("sr", TensorProto.INT64, []),
    ]
    rates = [numpy_helper.from_array(np.array(v), n) for n, v in (("high_rate", 16), ("low_rate", 8))]
    rates.append(numpy_helper.from_array(np.float32(0.5), "k"))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "g", entries, [out], rates)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


@pytest.mark.parametrize(("rate", "factor"), [(16, 2), (8, -1), (44, 3)])
def test_a_constant_condition_takes_its_branch(tmp_path: Path, rate: int, factor: float) -> None:
    onnx.save(branching(), tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"), constants={"sr": rate})
    assert "If" not in {node.op_type for node in made.graph.node}
    x = np.array([[1, -2, 3, 4]], np.float32)
    np.testing.assert_array_equal(importer.session(made).run(None, {"x": x})[0], factor * x + 0.5)
