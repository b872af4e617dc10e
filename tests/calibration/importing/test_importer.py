"""Where models come from, what is folded, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto

from calibration.importing import importer
from calibration.importing.graph import Graph
from splitedge import errors, limits
from tests import small_models as small
from tests.raising import raises


def saved(model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return str(path)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    made = importer.session(model)
    return made.run(None, {made.get_inputs()[0].name: x})[0]


def test_onnx_file_keeps_its_answers_and_takes_batches(tmp_path: Path) -> None:
    for make in (small.cnn, small.mlp, small.resnet, small.mobilenet):
        original = make()
        model = importer.load(saved(original, tmp_path))
        shape = Graph.of(model).shapes["x"]
        x = np.random.default_rng(0).normal(size=(3, *shape[1:])).astype(np.float32)
        wanted = np.concatenate([run(original, x[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(run(model, x), wanted, rtol=1e-4, atol=1e-4)


def test_batch_norms_and_constants_are_folded(tmp_path: Path) -> None:
    model = importer.load(saved(small.resnet(), tmp_path))
    assert not {"BatchNormalization", "Constant", "Identity"} & {n.op_type for n in model.graph.node}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("absent.onnx", "no-file"),
        ("absent.pt2", "no-file"),
        ("nothing", "not-a-model"),
        ("no_such_package.module:make", "no-input-shape"),
    ],
)
def test_sources_that_are_none(source: str, said: str) -> None:
    with raises(errors.ModelError, reason=said):
        importer.load(source)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("model.onnx", "not-onnx"), pytest.param("model.pt2", "not-an-exported-program", marks=pytest.mark.torch)],
)
def test_corrupt_files_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    whole = small.cnn().SerializeToString()
    for data in (b"", b"not a model at all", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(data)
        with raises(errors.ModelError, reason=reason):
            importer.load(str(tmp_path / name))


def test_a_model_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MODEL_BYTES", 1000)
    with raises(errors.ModelError, reason="too-large"):
        importer.load(saved(small.cnn(), tmp_path))


@pytest.mark.parametrize(("damage", "reason"), [("grown", "too-large"), ("missing", "no-weights")])
def test_weights_beside_the_model_that_do_not_fit_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, reason: str
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small.cnn(), path, save_as_external_data=True, location="weights", size_threshold=0)
    importer.load(str(path))
    if damage == "missing":
        (tmp_path / "weights").unlink()
    else:
        monkeypatch.setattr(limits, "MAX_MODEL_BYTES", (tmp_path / "weights").stat().st_size)
    with raises(errors.ModelError, reason=reason):
        importer.load(str(path))


def test_a_model_too_large_to_be_serialized_is_one_sentence() -> None:
    class TooLarge:
        metadata_props = ()

        def SerializeToString(self) -> bytes:  # what protobuf does above 2 GiB
            raise EncodeError("Failed to serialize proto")

    with raises(errors.ModelError, reason="cannot-run"):
        importer.session(TooLarge())


def test_open_dimensions_need_a_shape(tmp_path: Path) -> None:
    net = small.Net([0, 3, 0, 0])
    for axis, name in ((0, "n"), (2, "h"), (3, "w")):
        net.input.type.tensor_type.shape.dim[axis].Clear()
        net.input.type.tensor_type.shape.dim[axis].dim_param = name
    net.conv(4, 3)
    net.add("GlobalAveragePool")
    path = saved(net.model(), tmp_path)
    with raises(errors.ModelError, reason="open-dimensions"):
        importer.load(path)
    assert Graph.of(importer.load(path, [1, 3, 10, 12])).stored_shape("x") == [10, 12, 3]
    for wrong, reason in (
        ([1, 4, 10, 12], "other-shape"),
        ([3, 10, 12], "input-shape"),
        ([2, 3, 10, 12], "input-shape"),
    ):
        with raises(errors.ModelError, reason=reason):
            importer.load(path, wrong)


def test_models_with_other_inputs_are_refused(tmp_path: Path) -> None:
    texts = small.mlp()
    texts.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with raises(errors.ModelError, reason="input-type"):
        importer.load(saved(texts, tmp_path))


def test_a_model_that_mixes_its_batch_stays_at_one(tmp_path: Path) -> None:
    net = small.Net([1, 8])
    net.add("ReduceMean", "x", net.constant([0], np.int64), keepdims=1)
    net.gemm(4, 8)
    model = importer.load(saved(net.model(), tmp_path))
    assert Graph.input_of(model).type.tensor_type.shape.dim[0].dim_value == 1


def test_an_unsupported_operator_does_not_break_the_import(tmp_path: Path) -> None:
    net = small.Net([1, 3, 8, 8])
    net.add("InstanceNormalization", "x", net.constant([1, 1, 1]), net.constant([0, 0, 0]))
    assert importer.load(saved(net.model(), tmp_path)).graph.node
