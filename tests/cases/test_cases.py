"""Files that once were answered wrongly or crashed: each answers as it does unoptimized, or is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from calibration.bundle import creation
from calibration.importing import cuts, importer, outputs
from calibration.importing.graph import Graph, tail_model
from calibration.importing.sessions import DISABLED_OPTIMIZERS, EVERY, brief, disabled
from calibration.importing.signature import ArgMax
from calibration.lowering import layers
from calibration.samples.samples import Samples
from calibration.statistics.activations import Tap, to_onnx
from edge_server.tails.pool import LoadedTail
from splitedge import errors
from splitedge.head import answers
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests.cases import models
from tests.cases.build import File, unoptimized
from tests.raising import raises


def load(model: onnx.ModelProto, folder: Path, **options: object) -> onnx.ModelProto:
    onnx.save(model, folder / "model.onnx")
    return importer.load(str(folder / "model.onnx"), **options)  # type: ignore[arg-type]


def samples(model: onnx.ModelProto, count: int = 4) -> list[NDArray[np.float32]]:
    """[H, W, C], as frames have it."""
    shape = Graph.of(model).stored_shape("x")
    rng = np.random.default_rng(4)
    return [(rng.normal(size=shape) * (1 + i)).astype(np.float32) for i in range(count)]


def given(original: onnx.ModelProto, sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """A sample as the file takes it, alone in its batch."""
    dims = [d.dim_value for d in original.graph.input[0].type.tensor_type.shape.dim]
    one = sample[None] if dims[3] == 3 else to_onnx(sample[None])
    return np.repeat(one, max(1, dims[0]), axis=0)


def offered(model: onnx.ModelProto) -> list[list[int]]:
    return [place.cut.shape for place in cuts.find(layers.build(Graph.of(model))) if place.offered]


@pytest.mark.parametrize("name", models.ANSWERED)
def test_the_imported_model_answers_as_the_file_does(tmp_path: Path, name: str) -> None:
    original = models.ANSWERED[name]()
    model = load(original, tmp_path)
    run = importer.session(model)
    for x in samples(model):
        found = run.run(None, {"x": to_onnx(x[None])})[0]
        wanted = unoptimized(original, given(original, x))
        assert found.shape[0] == 1
        np.testing.assert_allclose(found.reshape(-1), wanted.reshape(-1)[: found.size], rtol=1e-4, atol=1e-5)
    known = original.opset_import[0].version > 8 and not original.opset_import[0].domain
    if known and "out of order" not in name:  # what onnx.reference can run
        wanted = ReferenceEvaluator(original).run(None, {"x": given(original, x)})[0]
        np.testing.assert_allclose(found.reshape(-1), wanted.reshape(-1)[: found.size], rtol=1e-3, atol=1e-4)


def test_the_newest_operator_set_is_read(tmp_path: Path) -> None:
    """Also where ONNX Runtime does not know it yet."""
    original = models.plain(opset=onnx.defs.onnx_opset_version(), ir=onnx.IR_VERSION)
    model = load(original, tmp_path)
    x = to_onnx(samples(model)[0][None])
    (wanted,) = ReferenceEvaluator(original).run(None, {"x": x})
    np.testing.assert_allclose(importer.session(model).run(None, {"x": x})[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [("n", "h", "w", 3), ("n", 16, "w", 3)])
def test_open_sizes_are_given_in_the_files_own_order(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    original = models.channels_last(shape)
    model = load(original, tmp_path, input_shape=[1, 16, 20, 3])
    assert Graph.of(model).stored_shape("x") == [16, 20, 3]
    x = np.random.default_rng(0).normal(size=(1, 16, 20, 3)).astype(np.float32)
    (found,) = importer.session(model).run(None, {"x": to_onnx(x)})
    np.testing.assert_allclose(found, unoptimized(original, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.REFUSED)
def test_what_no_import_can_put_right_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, data = models.REFUSED[name]
    with raises(errors.ModelError, **data):
        load(make(), tmp_path)


def test_an_optimizer_that_errs_stays_off_in_every_session_and_tail(tmp_path: Path) -> None:
    original = models.pad_max()
    model = load(original, tmp_path)
    graph = Graph.of(model)
    assert disabled(model) == ["Pad_Fusion"]
    x = samples(model)[0]
    inside = [t for t in graph.shapes if t not in (graph.input, graph.output)]
    values = next(Tap(model, graph, [graph.output, *inside]).over([x]))
    wanted = unoptimized(original, given(original, x))
    np.testing.assert_allclose(values[graph.output], wanted, rtol=1e-4, atol=1e-5)
    for tensor in inside:
        tail = tail_model(model, tensor, graph.shapes[tensor][1:])
        assert disabled(tail) == ["Pad_Fusion"]
        stored = values[tensor].transpose(0, 2, 3, 1) if values[tensor].ndim == 4 else values[tensor]
        found = LoadedTail(tail.SerializeToString(), graph.stored_shape(tensor)).run(stored[0])
        np.testing.assert_allclose(found, wanted[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_nothing_spoils_keeps_all_optimizers(tmp_path: Path) -> None:
    model = load(models.plain(), tmp_path)
    assert not [entry for entry in model.metadata_props if entry.key == DISABLED_OPTIMIZERS]


def test_two_steps_that_err_are_both_found() -> None:
    """Here whatever removes a batch norm counts as erring."""

    def norms(model: onnx.ModelProto) -> int:
        return sum(node.op_type == "BatchNormalization" for node in model.graph.node)

    original = small.resnet()
    made = importer._faithful(original, lambda model: norms(model) == norms(original) > 0)
    assert disabled(made) == ["ConvBNFusion"]


def test_without_a_culprit_no_optimizer_is_used() -> None:
    original = small.resnet()
    made = importer._faithful(original, lambda model: False)
    assert disabled(made) == [EVERY]
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in original.graph.node]
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(importer.session(made).run(None, {"x": x})[0], unoptimized(original, x))


def test_constants_among_the_inputs_change_nothing(tmp_path: Path) -> None:
    found = load(models.listed(), tmp_path)
    assert found.ir_version >= 4
    assert offered(found) == offered(load(models.listed(ir=4, listed=False), tmp_path))
    assert len(offered(found)) == 3


def test_a_picture_with_its_channels_last_is_cut_as_with_channels_first(tmp_path: Path) -> None:
    wanted = offered(load(models.channels_first(), tmp_path))
    assert wanted[0] == [16, 20, 3]
    assert offered(load(models.channels_last(), tmp_path)) == wanted
    assert offered(load(models.channels_last(("n", "h", "w", 3)), tmp_path, input_shape=[1, 16, 20, 3])) == wanted


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (1, 8, 8, 4), (1, 1, 5, 2)])
def test_an_input_that_the_model_turns_has_its_channels_last_whatever_its_sizes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    file = File(list(shape), opset=13)
    file.add("Transpose", perm=[0, 3, 1, 2])
    file.add("Conv", file.last, file.weight(5, shape[3], 1, 1))
    file.add("GlobalAveragePool")
    file.add("Flatten")
    original = file.model([1, 5])
    model = load(original, tmp_path)
    assert Graph.of(model).stored_shape("x") == list(shape[1:])
    x = np.random.default_rng(0).normal(size=shape[1:]).astype(np.float32)
    found = importer.session(model).run(None, {"x": to_onnx(x[None])})[0]
    np.testing.assert_allclose(found, unoptimized(original, x[None]), rtol=1e-4, atol=1e-5)


def test_planes_that_a_convolution_reads_are_no_picture(tmp_path: Path) -> None:
    file = File([1, 8, 20, 1])
    file.add("Conv", "x", file.weight(4, 8, 3, 1))
    file.add("GlobalAveragePool")
    model = load(file.model([1, 4, 1, 1]), tmp_path)
    assert Graph.of(model).stored_shape("x") == [20, 1, 8]


@pytest.mark.parametrize(("axes", "shape"), [([0], (1, 6, 16, 16)), (None, (1, 6, 16, 16))])
def test_an_output_without_its_batch_axis_gets_it_back(
    tmp_path: Path, axes: list[int] | None, shape: tuple[int, ...]
) -> None:
    file = File(models.SHAPE, opset=13)
    models._conv(file)
    file.add("Squeeze", file.last, *([file.ints(*axes)] if axes else []))
    original = file.model([6, 16, 16])
    model = load(original, tmp_path)
    x = samples(model)[0]
    found = importer.session(model).run(None, {"x": np.repeat(to_onnx(x[None]), 2, axis=0)})[0]
    assert found.shape == (2, *shape[1:])
    np.testing.assert_allclose(found[1], unoptimized(original, to_onnx(x[None])), rtol=1e-4, atol=1e-5)


def test_any_float_tensor_may_be_the_output(tmp_path: Path) -> None:
    original = models.whole_numbers()
    model = load(original, tmp_path, output="t2")
    x = to_onnx(samples(model)[0][None])
    wanted = onnx.ModelProto()
    wanted.CopyFrom(original)
    wanted.graph.output.append(helper.make_tensor_value_info("t2", TensorProto.FLOAT, None))
    np.testing.assert_allclose(
        importer.session(model).run(None, {"x": x})[0], unoptimized(wanted, x, "t2"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("behind", ["", "Cast", "Squeeze", "Unsqueeze"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_model_that_ends_in_an_argmax_yields_its_scores_and_says_so(
    tmp_path: Path, keepdims: int, behind: str
) -> None:
    file = File(models.SHAPE, opset=13)
    models._conv(file)
    file.add("ArgMax", axis=-3, keepdims=keepdims)
    if behind == "Cast":
        file.add("Cast", to=TensorProto.FLOAT)
    elif behind:
        file.add(behind, file.last, file.ints(*([1] if keepdims else [0])))
    original = file.model(None, TensorProto.FLOAT if behind == "Cast" else TensorProto.INT64)
    model = load(original, tmp_path)
    kept = bool(keepdims) and behind in ("", "Cast")
    assert outputs.recorded(model) == ArgMax(1, kept)
    x = to_onnx(samples(model)[0][None])
    scores, wanted = importer.session(model).run(None, {"x": x})[0], unoptimized(original, x)
    described = outputs.describe(scores, indices=outputs.recorded(model))
    assert described.shape == ([1, 16, 16] if kept else [16, 16])
    answer = answers.from_values(scores[0], described, 0).output
    np.testing.assert_array_equal(answer.reshape(-1), wanted.reshape(-1))


@pytest.mark.parametrize("to", [TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT16])
def test_indices_that_a_type_does_not_hold_are_not_taken_for_them(tmp_path: Path, to: int) -> None:
    classes = {TensorProto.BOOL: 3, TensorProto.INT8: 129, TensorProto.UINT8: 257, TensorProto.FLOAT16: 2050}[to]
    for count in (classes - 1, classes) if to != TensorProto.BOOL else (classes,):
        file = File(models.SHAPE, opset=13)
        file.add("Conv", "x", file.weight(count, 3, 1, 1))
        file.add("ArgMax", axis=1, keepdims=0)
        file.add("Cast", to=to)
        file.add("Cast", to=TensorProto.FLOAT)
        model = load(file.model([1, 16, 16]), tmp_path)
        assert (outputs.recorded(model) is not None) == (count < classes)


def test_a_topk_is_no_vector_of_classes(tmp_path: Path) -> None:
    file = File(models.SHAPE, opset=13)
    models._conv(file)
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add("TopK", file.last, file.ints(4), outputs=2)
    model = load(file.model([1, 4]), tmp_path)
    x = np.stack([to_onnx(one[None])[0] for one in samples(model, 8)])
    answers_ = importer.session(model).run(None, {"x": x})[0]
    assert outputs.of_model(model, answers_).kind == "tensor"


def test_an_argmax_over_the_batch_or_of_the_last_of_equals_yields_its_indices(tmp_path: Path) -> None:
    for attributes in ({"axis": 0}, {"axis": 1, "select_last_index": 1}):
        file = File(models.SHAPE, opset=13)
        models._conv(file)
        file.add("ArgMax", **attributes)
        original = file.model(None, TensorProto.INT64)
        model = load(original, tmp_path)
        x = to_onnx(samples(model)[0][None])
        (found,) = importer.session(model).run(None, {"x": x})
        assert found.dtype == np.float32
        assert outputs.recorded(model) is None
        np.testing.assert_array_equal(found, unoptimized(original, x))


def test_an_output_that_reads_no_input_is_refused(tmp_path: Path) -> None:
    original = models.plain()
    original.graph.output[0].name = "x"
    with raises(errors.ModelError, reason="constant-output"):
        load(original, tmp_path)


def test_an_output_whose_shape_depends_on_the_input_is_refused(tmp_path: Path) -> None:
    file = File(models.SHAPE)
    models._conv(file)
    file.add("Relu")
    file.add("NonZero")
    file.add("Cast", to=TensorProto.FLOAT)
    with raises(errors.ModelError, reason="output-shape"):
        load(file.model([4, "n"]), tmp_path)  # type: ignore[list-item]


def test_a_network_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    file = File(models.SHAPE)
    models._conv(file)
    file.add("RandomNormalLike")
    with raises(errors.ModelError, reason="random"):
        load(file.model([1, 6, 16, 16]), tmp_path)
    file = File(models.SHAPE)
    models._conv(file)
    x, off = file.last, file.constant(False, np.bool_)
    file.add("Not", off)
    file.add("Dropout", x, file.constant(0.5), file.last)  # turned on where no constant says so
    with raises(errors.ModelError, reason="random"):
        load(file.model([1, 6, 16, 16]), tmp_path)


def test_outputs_need_no_shape_in_the_file(tmp_path: Path) -> None:
    original = models.plain()
    original.graph.output[0].type.tensor_type.ClearField("shape")
    assert len(offered(load(original, tmp_path))) == 3


def with_weights_beside(folder: Path) -> Path:
    folder.mkdir()
    onnx.save(models.plain(), folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "weights"


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_weights_behind_a_link_are_to_be_copied(tmp_path: Path, link: str) -> None:
    weights = with_weights_beside(tmp_path / "model")
    weights.rename(tmp_path / "elsewhere")
    if link == "symbolic":
        weights.symlink_to(tmp_path / "elsewhere")
    else:
        weights.hardlink_to(tmp_path / "elsewhere")
    with raises(errors.ModelError, reason="linked-weights"):
        importer.load(str(tmp_path / "model" / "model.onnx"))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with_weights_beside(tmp_path / "model").unlink()
    with raises(errors.ModelError, reason="no-weights"):
        importer.load(str(tmp_path / "model" / "model.onnx"))


@pytest.mark.parametrize("name", ["model.onnx", "weights", "model.pt2"])
def test_a_git_lfs_pointer_is_told_from_a_broken_file(tmp_path: Path, name: str) -> None:
    with_weights_beside(tmp_path / "model")
    (tmp_path / "model" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with raises(errors.ModelError, reason="lfs-pointer", file=name):
        importer.load(str(tmp_path / "model" / ("model.pt2" if name == "model.pt2" else "model.onnx")))


def test_a_long_reason_keeps_its_end() -> None:
    said = brief(ValueError("beginning " + "x" * 1000 + " the reason"))
    assert said.startswith("beginning")
    assert said.endswith("the reason")
    assert len(said) <= 300


def test_answers_that_are_not_finite_end_the_import_of_no_model(tmp_path: Path) -> None:
    file = File(models.SHAPE)
    file.add("Log")
    models._conv(file)
    model = load(models._classifier(file), tmp_path)
    assert Graph.input_of(model).type.tensor_type.shape.dim[0].dim_param == importer.BATCH


def undefined(kind: str) -> onnx.ModelProto:
    """A network whose ``kind`` has no answer to some numbers."""
    file = File(models.SHAPE, opset=13)
    if kind == "Log":
        file.add(kind)
    models._conv(file)
    if kind == "Sqrt":
        file.add(kind)
    return models._classifier(file)


@pytest.mark.parametrize(("kind", "named"), [("Log", "not-finite-at-8-bits"), ("Sqrt", "not-finite")])
def test_what_has_no_answer_to_some_numbers_is_refused(tmp_path: Path, kind: str, named: str) -> None:
    model = load(undefined(kind), tmp_path)
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(1e-3, 1, (16, 16, 3)).astype(np.float32) for _ in range(4)]
    inputs = Samples(Preprocess("tensor", [16, 16, 3]), arrays)
    with raises(errors.ModelError, reason=named):
        creation.create(tmp_path / "b", "undefined", model, inputs, rounding="plain", metric="cosine")


def test_where_the_last_digits_decide_the_answer_nothing_is_left_out(tmp_path: Path) -> None:
    """A norm of planes that an input of zeros makes all but constant: every order of sums answers otherwise."""
    file = File(models.SHAPE, opset=13)
    models._conv(file)
    file.add("Mul", file.last, file.constant(1e-3))
    file.add("Add", file.last, file.constant(np.linspace(1, 100, 6).reshape(6, 1, 1)))
    file.add("InstanceNormalization", file.last, file.constant(np.ones(6)), file.constant(np.zeros(6)), epsilon=1e-12)
    file.add("Relu")
    assert disabled(load(models._classifier(file), tmp_path)) == []
