"""Half precision, double precision and whole numbers: the imported model is float32 and answers as the file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.importing import importer, precision
from calibration.importing.graph import Graph, inputs
from calibration.lowering import layers
from tests.cases import models
from tests.cases.build import File, unoptimized

SHAPE = (1, 3, 16, 16)
#: Rounding of each operator's results to half precision, relative to the greatest answer.
HALF = 5e-3


def in_type(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """``model`` with all real numbers of another type, input and output too."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


def with_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with half-precision weights and activations between a float32 input and output, as converters make it."""
    graph = in_type(model, TensorProto.FLOAT16).graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    out = graph.output[0].name
    graph.node[-1].output[0] = "half_out"
    graph.node[0].input[0] = "half_in"
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["half_in"], "cast_in", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["half_out"], [out], "cast_out", to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize(
    ("model", "room"),
    [
        (in_type(models.plain(opset=13), TensorProto.FLOAT16), HALF),
        (with_casts(models.plain(opset=13)), HALF),
        (in_type(models.plain(opset=13), TensorProto.DOUBLE), 1e-5),
    ],
    ids=["half", "half inside", "double"],
)
def test_other_real_numbers_become_float32(tmp_path: Path, model: onnx.ModelProto, room: float) -> None:
    onnx.save(model, tmp_path / "model.onnx")

    made = importer.load(str(tmp_path / "model.onnx"))

    assert inputs(made.graph)[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not precision.has_other_floats(made)
    assert "Cast" not in {node.op_type for node in made.graph.node}
    assert not layers.build(Graph.of(made)).unsupported
    own = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    (found,) = importer.session(made).run(None, {"x": x.astype(np.float32)})
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x.astype(own)})  # ONNX Runtime has no double convolution
    np.testing.assert_allclose(found, wanted, rtol=0, atol=room * np.abs(wanted).max())


def test_an_argmax_over_half_precision_yields_its_scores(tmp_path: Path) -> None:
    onnx.save(in_type(models.argmax_map(), TensorProto.FLOAT16), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"))
    assert Graph.of(made).shapes[Graph.of(made).output] == (1, 6, 16, 16)


def bytes_in() -> onnx.ModelProto:
    """A network on pixels of 8 bits, as TensorFlow's detectors are."""
    file = File(SHAPE, opset=13, element=TensorProto.UINT8)
    file.add("Cast", to=TensorProto.FLOAT)
    file.add("Mul", file.last, file.constant(1 / 255))
    models._conv(file)
    return models._classifier(file)


def test_pixels_of_8_bits_become_real_numbers(tmp_path: Path) -> None:
    model = bytes_in()
    onnx.save(model, tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"))
    x = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    (found,) = importer.session(made).run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(found, unoptimized(model, x), rtol=1e-4, atol=1e-5)
    assert not layers.build(Graph.of(made)).unsupported


def test_token_ids_of_32_bits_become_ids(tmp_path: Path) -> None:
    file = File([1, 5], opset=13, element=TensorProto.INT32)
    file.add("Gather", file.weight(9, 4), "x")
    model = file.model([1, 5, 4])
    onnx.save(model, tmp_path / "model.onnx")
    made = importer.load(str(tmp_path / "model.onnx"))
    ids = np.array([[3, 1, 8, 0, 2]])
    np.testing.assert_array_equal(
        importer.session(made).run(None, {"x": ids})[0], unoptimized(model, ids.astype(np.int32))
    )
