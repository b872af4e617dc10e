"""A bundle from its making to its parts."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import safetensors.numpy
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from calibration import parallel
from calibration.accuracy import evaluation, tail_runs, trials
from calibration.accuracy.evaluation import ACTIVATION_BITS, BATCH
from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.bundle.manifest import FORMAT, MANIFEST
from calibration.effort import EFFORTS
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, session, simplify
from calibration.rounding import packed_weights, rounder
from calibration.rounding.quantizer import Weights
from calibration.samples.samples import Samples
from calibration.statistics.activations import feed, to_onnx
from edge_server.tails.pool import LoadedTail
from splitedge import codec, errors, limits
from splitedge.codec import image_file
from splitedge.head import executor
from splitedge.head import segment as seg
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess
from tests import small_models as small
from tests import small_transformers as transformers
from tests.raising import raises

SHAPE = [16, 16, 3]
NAMES = [f"class {i}" for i in range(10)]
MAKERS = {"cnn": small.cnn, "resnet": small.resnet, "mobilenet": small.mobilenet, "mlp": small.mlp}


def samples(count: int = 24, labels: bool = True, shape: list[int] = SHAPE) -> Samples:
    rng = np.random.default_rng(5)
    arrays = [(rng.normal(size=shape) + rng.normal(size=shape[-1])).astype(np.float32) for _ in range(count)]
    return Samples(Preprocess("tensor", shape), arrays, rng.integers(0, 10, count) if labels else None)


def make(folder: Path, model: onnx.ModelProto, inputs: Samples | None = None, **options: object) -> Bundle:
    return creation.create(folder / "b", "net", batched(simplify(model)), inputs or samples(), **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("bundle"), small.resnet(), labels=NAMES)


@pytest.mark.parametrize("name", MAKERS)
def test_split_anywhere_the_answer_is_nearly_the_models(tmp_path: Path, name: str) -> None:
    model = batched(simplify(MAKERS[name]()))
    inputs = samples(shape=[64] if name == "mlp" else SHAPE)
    opened = make(tmp_path, model, inputs)
    whole = session(model)
    for index in opened.offered[:-1]:
        head = executor.load(opened.segment(index, 8))
        made_by = opened.codec(index, "minmax", 8)
        tail = opened.tail(index)
        assert tail
        run = session(onnx.load_from_string(tail))
        for x in list(inputs)[:3]:
            codes = head.run(quantize_tensor(x, head.input))
            payload = codec.encode_codes(codes, head.output.scale, head.output.zero_point, made_by)
            real = codec.decode(payload, made_by, codes.shape)
            found = run.run(None, {opened.cuts[index].tensor: to_onnx(real[None])})[0]
            wanted = whole.run(None, {"x": to_onnx(x[None])})[0]
            assert np.abs(found - wanted).max() < 0.25 * wanted.std() + 0.05


def test_what_a_split_network_answers_is_what_its_frames_bytes_give(made: Bundle) -> None:
    index, inputs = made.offered[1], samples()
    assert len(inputs) > evaluation.BATCH
    head, made_by = executor.load(made.segment(index, 4)), made.codec(index, "minmax", 2)
    tail = tail_runs.runner(onnx.load_from_string(made.tail(index)))
    for i, answer in enumerate(evaluation.split_outputs(head, made_by, tail, inputs)):
        codes = head.run(inputs.codes(i, head.input))
        payload = codec.encode_codes(codes, head.output.scale, head.output.zero_point, made_by)
        wanted = tail(codec.decode(payload, made_by, codes.shape)[None])[0]
        np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-5)


def test_every_layer_and_every_codec_of_an_offered_cut_has_its_noise(made: Bundle) -> None:
    last = made.offered[-1]
    assert list(made.layers) == made.weight_layers(last)
    for layer in made.layers.values():
        assert layer.weights > 0
        assert all(size <= layer.weights * b / 8 + 40 for size, b in zip(layer.coded_bytes, range(2, 9), strict=False))
        assert len(layer.noises) == len(layer.coded_bytes) == 14
        assert layer.coded_bytes[7:] == sorted(layer.coded_bytes[7:])
        assert layer.noises[7] > layer.noises[-1] > 0
        assert layer.noise.noise[0] > layer.noise.noise[2] > layer.noise.noise[-1] > 0
    assert list(made.cut_noises) == made.offered
    for cut, noise in made.cut_noises.items():
        plain = [
            c.bits for c in noise.codecs if not (c.work or c.rule == "hadamard")
        ]  # of few channels a rotation is none
        assert plain == ([] if cut == last else list(ACTIVATION_BITS))
        assert noise.head >= 0
        for one in noise.codecs:
            assert made.codec(cut, one.rule, one.bits).bits == one.bits
        assert not noise.codecs or noise.codecs[-1].noise > 2 * noise.head


def test_trials_run_from_hardly_any_noise_to_much(made: Bundle) -> None:
    tried = made.manifest.trials
    assert len(tried) == trials.TRIALS
    assert len({trial.cut for trial in tried}) > 1
    assert tried[-1].predicted > 100 * tried[0].predicted
    for trial in tried:
        assert list(trial.bits) == made.weight_layers(trial.cut)
        assert 0.1 < trial.measured / trial.predicted < 10
        assert trial.low <= trial.drop <= trial.high
    assert tried[0].agreement > 0.9
    assert made.accuracy.samples == 12  # the half of them that rounding has not seen
    assert 0 < made.accuracy.within(1.0) < made.accuracy.within(20.0)


def test_the_float_models_own_top1_is_kept(tmp_path: Path) -> None:
    model = batched(simplify(small.mlp()))
    inputs = samples(20, shape=[64])
    right = session(model).run(None, {"x": np.stack(list(inputs))})[0].argmax(axis=1)
    right[:5] = (right[:5] + 1) % 10
    opened = make(tmp_path, small.mlp(), Samples(inputs.preprocess, inputs.sources, right))
    assert opened.info().float_top1 == 75.0
    assert Bundle.open(opened.path).manifest.float_top1 == 75.0


@pytest.mark.parametrize("wrong", [-1, 10, 99999])
def test_a_label_that_is_no_output_of_the_model_is_refused(tmp_path: Path, wrong: int) -> None:
    inputs = samples(4, shape=[64])
    labelled = Samples(inputs.preprocess, inputs.sources, np.array([0, 9, wrong, wrong]))
    with raises(errors.InputError, reason="label-out-of-range", sample=2, value=wrong, classes=10, wrong=2):
        make(tmp_path, small.mlp(), labelled)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 9, 11])
def test_class_names_are_as_many_as_outputs(tmp_path: Path, count: int) -> None:
    with raises(errors.InputError, reason="class-names"):
        make(tmp_path, small.mlp(), samples(2, shape=[64]), labels=["x"] * count)


def test_without_labels_the_metric_is_agreement(tmp_path: Path) -> None:
    opened = make(tmp_path, small.cnn(), samples(labels=False))
    assert opened.metric == "agreement"
    assert opened.info().float_top1 is None
    assert opened.accuracy.metric == "agreement"
    assert all(t.drop == pytest.approx(100 * (1 - t.agreement)) for t in opened.manifest.trials)


def map_net() -> onnx.ModelProto:
    net = small.Net([1, 3, 16, 16])
    net.conv(8, 3)
    net.add("Relu")
    net.conv(4, 8, strides=[2, 2])
    return net.model()


@pytest.mark.slow
@pytest.mark.parametrize("maker", [small.cnn, map_net])
def test_embeddings_and_maps_are_judged_by_their_cosine(tmp_path: Path, maker: Callable[[], onnx.ModelProto]) -> None:
    opened = make(tmp_path, maker(), samples(), metric="cosine")
    assert (opened.metric, opened.accuracy.metric, opened.info().float_top1) == ("cosine", "cosine", None)
    assert Bundle.open(opened.path).manifest == opened.manifest
    assert opened.cuts[opened.offered[-1]].kind == "output"
    tried = opened.manifest.trials
    assert 0 < tried[0].drop < 0.5 < 1.0 < tried[-1].drop < 50
    assert all(t.low <= t.drop <= t.high for t in tried)
    assert all(t.drop <= opened.accuracy.at(t.predicted).high for t in tried)
    assert 0 < opened.accuracy.within(1.0) < opened.accuracy.within(20.0)


def test_only_top1_looks_at_labels(tmp_path: Path) -> None:
    inputs = samples(4, shape=[64])
    wrong = Samples(inputs.preprocess, inputs.sources, np.array([0, 9, 10, 99]))
    assert make(tmp_path, small.mlp(), wrong, metric="agreement").metric == "agreement"
    with raises(errors.UsageError, reason="no-labels"):
        make(tmp_path / "c", small.mlp(), samples(4, labels=False, shape=[64]), metric="top1")


@pytest.mark.parametrize("metric", ["auto", "agreement", "cosine"])
def test_a_model_with_one_output_value_is_refused(tmp_path: Path, metric: str) -> None:
    with raises(errors.ModelError, reason="one-output"):
        make(tmp_path, small.mlp(1), samples(4, labels=False, shape=[64]), metric=metric)
    assert list(tmp_path.iterdir()) == []


def test_opened_again_it_says_the_same(made: Bundle) -> None:
    again = Bundle.open(made.path)
    assert again.sha256 == made.sha256
    assert again.manifest == made.manifest
    for cut in made.offered:
        assert again.segment(cut, 4) == made.segment(cut, 4)
        assert again.header(cut).tensors == made.header(cut).tensors
        assert again.tail(cut) == made.tail(cut)
    assert again.labels == NAMES
    assert again.info().cuts == made.cuts


def test_a_header_alone_is_the_segments_but_for_its_golden_hash(made: Bundle) -> None:
    fresh = Bundle.open(made.path)
    for cut in made.offered:
        header = fresh.header(cut, 6)
        parsed = seg.parse(fresh.segment(cut, 6)).header
        parsed.golden = header.golden
        assert header == parsed
        assert header.weight_bits == 6
        assert header.cut == made.cuts[cut].layer


def test_a_segment_that_was_made_leaves_no_weights_behind(made: Bundle) -> None:
    made.segment(made.offered[-1], 8)
    gc.collect()
    assert not any(type(thing) is Weights for thing in gc.get_objects())


def test_a_segment_with_bits_of_its_own_for_each_layer(made: Bundle) -> None:
    cut = made.offered[-1]
    names = made.weight_layers(cut)
    mixed = dict(zip(names, [8, 3, 5, 2, 4, 7, 6], strict=True))
    head = executor.load(made.segment(cut, mixed))
    assert [op.bits for op in head.header.ops if isinstance(op, seg.Conv)] == list(mixed.values())
    assert made.header(cut, mixed).blob_bytes == head.header.blob_bytes
    assert made.segment(cut, mixed) == made.segment(cut, mixed)
    assert made.weight_layers(0) == []
    even = mixed | {names[0]: 9, names[1]: 15}
    ops = [op for op in executor.load(made.segment(cut, even)).header.ops if isinstance(op, seg.Conv)]
    assert ops[0].bits < 8
    assert [op.bits for op in ops[2:]] == list(mixed.values())[2:]
    with raises(errors.UsageError, reason="bits-of-layers"):
        made.segment(made.offered[1], mixed)
    with raises(errors.UsageError, reason="bits", bits=16):
        made.segment(cut, mixed | {names[0]: 16})


@pytest.mark.parametrize("name", MAKERS)
def test_stored_weights_are_those_that_were_rounded(tmp_path: Path, name: str) -> None:
    opened = make(tmp_path, MAKERS[name](), samples(shape=[64] if name == "mlp" else SHAPE))
    last = opened.offered[-1]
    for bits in range(2, 9):
        head = executor.load(opened.segment(last, bits))
        for out, op in zip(
            opened.weight_layers(last), [o for o in head.header.ops if isinstance(o, seg.Conv)], strict=True
        ):
            packed = safetensors.numpy.load_file(opened.path / packed_weights.FILE)[f"codes/{bits}/{out}"]
            blob = seg.parse(opened.segment(last, bits)).blob
            np.testing.assert_array_equal(blob[op.weight : op.weight + packed.size], packed)


def test_rounding_to_the_nearest_stores_nothing_and_loses_more_the_most_without_corrected_biases(
    tmp_path: Path, made: Bundle
) -> None:
    nearest, plain = (make(tmp_path / kind, small.resnet(), rounding=kind) for kind in ("nearest", "plain"))
    assert not (nearest.path / packed_weights.FILE).exists()
    assert plain.segment(plain.offered[-1], 3) != nearest.segment(nearest.offered[-1], 3)
    last = plain.offered[-1]
    run, inputs = session(batched(simplify(small.resnet()))), list(samples())

    def error(opened: Bundle) -> float:
        head = executor.load(opened.segment(last, 4))
        real = [
            head.output.scale * (head.run(quantize_tensor(x, head.input)).astype(float) - head.output.zero_point)
            for x in inputs
        ]
        wanted = [run.run(None, {"x": to_onnx(x[None])})[0][0] for x in inputs]
        return float(((np.array(real) - np.array(wanted)) ** 2).mean())

    assert error(made) < error(nearest) < error(plain)


class Counted(rounder.Rounder):
    """A rounder that says which layers it was made for, by their weights' shapes."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, weight: NDArray[np.float32], *more: Any) -> None:
        self.made.append(weight.shape)
        super().__init__(weight, *more)


@pytest.fixture
def rounded_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    monkeypatch.setattr(rounder, "Rounder", Counted)
    monkeypatch.setattr(Counted, "made", [])
    return Counted.made


def contents(opened: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in opened.path.iterdir()}


def with_other_last_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` whose last weights are a tenth greater."""
    last = [t for t in model.graph.initializer if len(t.dims) > 1][-1]
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * np.float32(1.1), last.name))
    return model


def test_only_what_changed_is_made_again(tmp_path: Path, rounded_shapes: list[tuple[int, ...]]) -> None:
    inputs = samples(12, shape=[64])
    first = make(tmp_path / "1", small.mlp(), inputs, cache=tmp_path / "cache")
    layers_made = sorted(rounded_shapes)
    assert len(layers_made) == len(first.layers) > 1
    rounded_shapes.clear()
    second = make(tmp_path / "2", small.mlp(), inputs, cache=tmp_path / "cache")
    assert rounded_shapes == []
    assert contents(second) == contents(first)
    changed = make(tmp_path / "3", with_other_last_weights(small.mlp()), inputs, cache=tmp_path / "cache")
    assert len(rounded_shapes) == 1
    assert rounded_shapes[0] in layers_made
    fresh = make(tmp_path / "4", with_other_last_weights(small.mlp()), inputs)
    assert replace(changed.manifest, tail_ms={}) == replace(fresh.manifest, tail_ms={})


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


PHASES = ["observe", "moments", "rounding", "answers", "histograms", "codecs of cuts", "noise of cuts", "sensitivity of layers", "trials", "segments", "tails"]  # fmt: skip


@pytest.mark.parametrize("make_model", [small.resnet, transformers.vit_model], ids=["u8", "f32"])
def test_a_calibration_that_was_killed_in_any_phase_continues(
    tmp_path: Path, make_model: Callable[[], onnx.ModelProto]
) -> None:
    """It computes no finished phase again, and the bundle is that of a calibration without interruption."""
    model = make_model()
    inputs = samples(16, shape=Graph.of(batched(simplify(model))).stored_shape("x"))
    whole = make(tmp_path / "whole", model, inputs)
    known = PHASES if make_model is small.resnet else PHASES[1:]
    for number, phase in enumerate([*known, None]):
        told: list[str] = []

        def progress(now: str, done: int, total: int, told: list[str] = told, phase: str | None = phase) -> None:
            told.append(now)
            if now == phase and done:
                raise Killed

        if phase is not None:
            with pytest.raises(Killed):
                make(tmp_path / f"{number}", model, inputs, cache=tmp_path / "cache", progress=progress)
        else:
            again = make(tmp_path / "again", model, inputs, cache=tmp_path / "cache", progress=progress)
        done = {"observe", "answers", "histograms"} & set(known[: max(0, number - 1)])
        assert not done & set(told), phase
        assert not list((tmp_path / f"{number}").glob("b*"))
    files = [{name: data for name, data in contents(one).items() if name != MANIFEST} for one in (whole, again)]
    assert files[0] == files[1]
    plain = [replace(one.manifest, tail_ms={}) for one in (whole, again)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("effort", ["quick", "normal", "best"])
def test_effort_limits_the_samples(tmp_path: Path, effort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], samples=10))
    found = make(tmp_path, small.mlp(), samples(16, shape=[64]), effort=effort)
    assert found.samples == (10 if effort == "quick" else 16)
    assert found.accuracy.samples == found.samples // 2
    assert len(found.manifest.trials) == EFFORTS[effort].trials


def test_a_bundle_does_not_depend_on_the_number_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        made = make(tmp_path / f"{cores}", batched(simplify(small.mobilenet())), samples(24))
        files = {name: data for name, data in contents(made).items() if name != "bundle.json"}
        found.append((files, replace(made.manifest, tail_ms={})))
    assert found[0] == found[1]


def test_what_is_kept_and_damaged_is_made_again(tmp_path: Path, rounded_shapes: list[tuple[int, ...]]) -> None:
    inputs = samples(12, shape=[64])
    first = make(tmp_path / "1", small.mlp(), inputs, cache=tmp_path / "cache")
    layers_made = sorted(rounded_shapes)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    rounded_shapes.clear()
    second = make(tmp_path / "2", small.mlp(), inputs, cache=tmp_path / "cache")
    assert sorted(rounded_shapes) == layers_made
    assert replace(second.manifest, tail_ms={}) == replace(first.manifest, tail_ms={})
    assert Bundle.open(first.path).segment(first.offered[-1], 4) == second.segment(second.offered[-1], 4)


def test_the_input_has_a_head_without_operators_and_the_output_no_tail(made: Bundle) -> None:
    head = executor.load(made.segment(0, 8))
    assert head.header.ops == []
    x = np.arange(768, dtype=np.uint8).reshape(SHAPE)
    np.testing.assert_array_equal(head.run(x), x)
    last = made.offered[-1]
    assert made.cuts[last].kind == "output"
    assert made.tail(last) is None
    assert made.tail_ms[last] == 0.0
    assert set(made.tail_ms) == set(made.offered)


def test_ranges_for_each_channel(made: Bundle) -> None:
    cut = made.offered[1]
    channels = made.cuts[cut].shape[-1]
    assert len(made.codec(cut, "mse-channel", 4).lo) == channels
    assert len(made.codec(cut, "mse", 4).lo) == 1
    assert made.counts(cut).shape == (channels, 256)


@pytest.mark.parametrize("kind", ["jpeg", *image_file.NAMED])
def test_a_picture_may_be_sent_as_an_image_file(tmp_path: Path, kind: str) -> None:
    if kind in image_file.NAMED and kind not in image_file.available():
        pytest.skip(f"this build of Pillow has no {kind}")
    rng = np.random.default_rng(3)
    files = []
    for i in range(8):
        noise = rng.normal(size=(4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.clip(128 + 50 * noise, 0, 255).astype(np.uint8)).save(files[-1])
    spec = Preprocess("image", SHAPE, 16, mean=[120.0, 125.0, 110.0], std=[60.0, 55.0, 65.0])
    opened = make(tmp_path, small.resnet(), Samples(spec, files))
    noises = {one.rule: one for one in opened.cut_noises[0].codecs}
    fine, coarse = noises[f"{kind}-95"], noises[f"{kind}-50"]
    assert fine.payload > coarse.payload
    assert fine.noise < coarse.noise
    assert (fine.work, fine.bits) == ({kind: 16 * 16 * 3}, 8)
    made_by = opened.codec(0, f"{kind}-95", 8)
    sizes = [len(codec.encode(opened_samples, made_by)) for opened_samples in Samples(spec, files)]
    assert fine.payload == pytest.approx(np.mean(sizes), rel=0.2)
    assert all(not one.rule.startswith(kind) for cut in opened.offered[1:] for one in opened.cut_noises[cut].codecs)
    with pytest.raises(errors.CodecError):
        opened.codec(opened.offered[1], f"{kind}-95", 8)


def test_tails_take_batches(made: Bundle) -> None:
    cut = made.cuts[made.offered[1]]
    tail = made.tail(cut.index)
    assert tail
    x = to_onnx(np.zeros((3, *cut.shape), np.float32))
    assert session(onnx.load_from_string(tail)).run(None, {cut.tensor: x})[0].shape == (3, 10)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    make(tmp_path, small.mlp(), samples(shape=[64]), progress=lambda *step: told.append(step))
    assert [p for i, (p, _, _) in enumerate(told) if i == 0 or told[i - 1][0] != p] == [
        "observe",
        "moments",
        "rounding",
        "answers",
        "histograms",
        "codecs of cuts",
        "noise of cuts",
        "sensitivity of layers",
        "trials",
        "segments",
        "tails",
    ]
    slow_to_begin = {"codecs of cuts", "noise of cuts", "sensitivity of layers", "trials"}
    for phase in {p for p, _, _ in told}:
        steps = [(done, total) for p, done, total in told if p == phase]
        total = steps[0][1]
        first = 0 if phase in slow_to_begin else 1
        wanted = [*range(BATCH, total, BATCH), total] if phase == "answers" else list(range(first, total + 1))
        assert steps == [(done, total) for done in wanted], phase


def test_an_unsupported_operator_at_the_input_still_makes_a_bundle(tmp_path: Path) -> None:
    net = small.Net([1, 3, 16, 16])
    net.add("LRN", "x", name="norm", size=3)
    net.conv(4, 3)
    net.add("GlobalAveragePool")
    opened = make(tmp_path, net.model(), samples(labels=False))
    assert opened.offered == [0]
    assert opened.unsupported == ["LRN (norm)"]
    assert set(opened.cut_noises) == {0}
    assert opened.layers == {}
    assert opened.accuracy.within(50.0) > 0
    with raises(errors.UsageError, reason="no-head"):
        opened.segment(1, 8)


def test_bad_requests_are_refused(made: Bundle) -> None:
    for cut in (-1, len(made.cuts)):
        with raises(errors.UsageError, reason="no-head"):
            made.segment(cut, 8)
    for bits in (1, 9):
        with raises(errors.UsageError, reason="bits", bits=bits):
            made.segment(0, bits)
    with raises(errors.UsageError, reason="no-head"):
        made.codec(len(made.cuts), "mse", 4)
    with raises(errors.CodecError, reason="unknown-clip-rule", rule="best"):
        made.codec(0, "best", 4)


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    with raises(errors.InputError, reason="other-shape"):
        make(tmp_path, small.cnn(), samples(shape=[3, 16, 16]))
    with raises(errors.InputError, reason="no-image"):
        make(tmp_path, small.mlp(), Samples(Preprocess("image", [64]), [tmp_path]))
    with raises(errors.InputError, reason="mean-and-std"):
        make(tmp_path, small.cnn(), Samples(Preprocess("image", SHAPE, std=[1.0, 0.0, 1.0]), [tmp_path]))
    assert list(tmp_path.iterdir()) == []


def test_samples_that_break_the_model_are_refused(tmp_path: Path) -> None:
    net = small.Net([1, 3, 16, 16])
    net.add("Div", "x", "x")
    net.conv(2, 3)
    zeros = Samples(Preprocess("tensor", SHAPE), [np.zeros(SHAPE, np.float32)])
    with raises(errors.ModelError, reason="not-finite"):
        make(tmp_path, net.model(), zeros)


@pytest.mark.parametrize("limit", ["MAX_MACS", "MAX_OPS"])
def test_a_model_that_agents_would_refuse_is_served_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(limits, limit, 2)
    check_whole(make(tmp_path / "b", small.cnn(), samples(4)))


def test_a_tensor_inside_that_is_not_finite_leaves_the_model_whole_on_the_server(tmp_path: Path) -> None:
    net = small.Net([1, *SHAPE[2:], *SHAPE[:2]])
    net.conv(4, 3)
    net.add("Relu")
    net.add("Mul", net.last, net.constant([1000.0]))
    net.add("Exp")
    net.add("Clip", net.last, net.constant(0.0), net.constant(10.0))
    made = make(tmp_path / "b", net.model(), samples(4))
    check_whole(made)
    assert "not finite" in made.unsupported[0] or "infinity" in made.unsupported[0]


def check_whole(made: Bundle) -> None:
    """Only the input is offered, one reason is kept, and the tail at the input answers as the model does."""
    assert made.offered == [0]
    assert len(made.unsupported) == 1
    assert all(made.reasons[1:])
    tail, cut = made.tail(0), made.cuts[0]
    assert tail is not None
    head = made.header(0)
    assert head.ops == []
    x = samples(1)[0]
    answer = LoadedTail(tail, cut.shape).run(x)
    (wanted,) = session(made._model).run(None, {"x": x.transpose(2, 0, 1)[None]})
    np.testing.assert_allclose(answer, wanted[0], rtol=1e-4, atol=1e-5)


def test_an_input_too_large_for_agents_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ARENA_BYTES", 2)
    with raises(errors.ModelError, reason="activations"):
        make(tmp_path, small.cnn(), samples(2))


def test_damage_is_noticed(made: Bundle, tmp_path: Path) -> None:
    for name in ("model.onnx", "stats.safetensors", "bundle.json"):
        copy = tmp_path / name
        copy.mkdir()
        for file in made.path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / name).write_bytes((copy / name).read_bytes()[:-7])
        with raises(errors.ModelError, reason="not-a-bundle" if name == "bundle.json" else "damaged"):
            Bundle.open(copy)
        (copy / name).unlink()
        with raises(errors.ModelError, reason="not-a-bundle"):
            Bundle.open(copy)


@pytest.mark.parametrize(("change", "reason"), [(-1, "format"), (1, "newer-format")])
def test_another_format_is_told_whatever_else_changed(tmp_path: Path, change: int, reason: str) -> None:
    (tmp_path / MANIFEST).write_text(f'{{"other": [], "format": {FORMAT + change}}}')
    with raises(errors.ModelError, reason=reason):
        Bundle.open(tmp_path)


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with raises(errors.StoreError, reason="cannot-write"):
            make(tmp_path, small.mlp(), samples(2, shape=[64]))
    assert list(tmp_path.iterdir()) == []
    make(tmp_path, small.mlp(), samples(2, shape=[64]))
    with raises(errors.StoreError, reason="exists"):
        make(tmp_path, small.mlp(), samples(2, shape=[64]))
    (tmp_path / "file").write_text("")
    with raises(errors.StoreError, reason="cannot-write"):
        creation.create(tmp_path / "file" / "b", "net", batched(simplify(small.mlp())), samples(2, shape=[64]))


def test_a_text_model_that_no_head_can_begin_is_refused(tmp_path: Path) -> None:
    """It looks up other positions for every text."""
    net = transformers.Encoder()
    places = net.add(
        "Gather", net.random_weight(60, transformers.WIDTH), net.add("Add", "x", net.constant(1, np.int64))
    )
    net.add("Add", net.nodes[0].output[0], places)
    graph = Graph.of(net.model())
    inputs = Samples(Preprocess("tensor", graph.stored_shape(graph.input)), [transformers.frame(graph)] * 4)
    with raises(errors.ModelError, reason="nothing-for-a-device"):
        creation.create(tmp_path / "b", "net", batched(simplify(net.model())), inputs)


def check_float16(opened: Bundle, cut: int) -> None:
    """Twice the bytes of 8 bits, and hardly any noise beside the head's."""
    noise = opened.cut_noises[cut]
    [found] = [one for one in noise.codecs if one.rule == codec.FLOAT]
    widest = noise.codecs[0]
    marks = 2 if opened.cuts[cut].padding is not None else 0
    assert (found.bits, found.payload - marks) == (16, 2 * (widest.payload - marks))
    assert found.noise < 1.01 * noise.head + 1e-6
    assert found.noise < widest.noise
    assert opened.codec(cut, codec.FLOAT, 16).bits == 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "encoder", "masked"])
def test_a_transformers_bundle_splits_it_anywhere(tmp_path: Path, kind: str) -> None:
    """Heads, codecs fitted to floats, tails, mixed bits: what a plan is made of."""
    model = (
        transformers.vit_model("fused", "mean", "conv")
        if kind == "vit"
        else transformers.encoder_model(kind == "masked")
    )
    graph = Graph.of(model)
    frames = [transformers.frame(graph, seed) for seed in range(24)]
    inputs = Samples(Preprocess("tensor", graph.stored_shape(graph.input)), frames)
    opened = creation.create(tmp_path / "b", "net", model, inputs)
    assert opened.offered[0] == (0 if kind == "vit" else 1)
    whole = session(model)
    for index in opened.offered[:-1]:
        noise = opened.cut_noises[index]
        widths = len(ACTIVATION_BITS)
        assert [one.bits for one in noise.codecs[:widths]] == list(ACTIVATION_BITS)
        assert noise.codecs[widths - 1].noise > noise.codecs[0].noise
        check_float16(opened, index)
        mixed = {name: 8 - i % 3 for i, name in enumerate(opened.weight_layers(index))}
        head = executor.load(opened.segment(index, mixed))
        tail = opened.tail(index)
        assert tail
        run = session(onnx.load_from_string(tail))
        made_by = opened.codec(index, noise.codecs[0].rule, 8)
        for x in frames[:3]:
            sent = head.run(x)
            arrived = codec.decode(codec.encode(sent, made_by), made_by, sent.shape)
            marked = {} if opened.cuts[index].padding is None else {"x": (x[None] != 0).astype(np.int64)}
            found = run.run(None, {opened.cuts[index].tensor: to_onnx(arrived[None]), **marked})[0]
            wanted = whole.run(None, feed(graph, x[None]))[0]
            assert np.corrcoef(found.reshape(-1), wanted.reshape(-1))[0, 1] > 0.99
    assert all(layer.noise.at(2) > layer.noise.at(5) > layer.noise.at(8) for layer in opened.layers.values())
    again = Bundle.open(tmp_path / "b")
    last = again.offered[-1]
    assert again.segment(last, 4) == opened.segment(last, 4)
