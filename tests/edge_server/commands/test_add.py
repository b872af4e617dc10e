"""`edge-server add` and its neighbours: what they make, and the one sentence that bad input gets."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from PIL import Image
from rich.console import Console

from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.export import tflite
from calibration.importing import importer
from calibration.importing.graph import Graph
from calibration.importing.importer import session
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import open_samples
from edge_server.commands.add import add, hardly_above_chance
from edge_server.commands.models import models, names, remove
from edge_server.commands.progress import WORDS
from edge_server.importing import preprocessing
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import make_plan
from edge_server.store.store import Store
from splitedge import errors
from splitedge.protocol.messages import Demand, LinkEstimate, PlanRequest, SegmentRef
from splitedge.report import explain
from tests.edge_server.small_network import request_of, save_network
from tests.raising import raises
from tests.small_models import Net


def run(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_server", *map(str, options)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


def last(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The last line of a command that failed with ``status``, after those of its phases."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one sentence of a command that failed with ``status``."""
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-server: ")
    return line


@pytest.mark.slow
def test_add_lists_the_cuts_and_models_the_model(network: Path, tmp_path: Path) -> None:
    done = run(
        "add", network, "--arrays", network.parent / "x.npy", "--name", "net", "--store", tmp_path, COLUMNS="150"
    )
    assert done.returncode == 0, done.stderr
    assert "net: where it can be split" in done.stdout
    assert "5 of 5 cuts are offered" in done.stdout
    assert "noise of whole heads" not in done.stdout
    assert f"edge-server token BOARD --store {tmp_path}" in done.stdout
    assert f"edge-server serve --store {tmp_path}" in done.stdout
    phases = [line.split("] ")[1].split(":")[0] for line in done.stderr.splitlines() if "] " in line]
    assert list(dict.fromkeys(phases)) == ["importing the model"] + [
        WORDS[phase]
        for phase in (
            "first look", "observe", "moments", "rounding", "answers", "histograms", "codecs of cuts", "noise of cuts",
            "sensitivity of layers", "trials", "segments", "tails", "patterns",
        )
    ]  # fmt: skip
    listed = run("models", "--store", tmp_path, COLUMNS="150")
    assert "16 x 16 x 3" in listed.stdout


@pytest.mark.slow
def test_an_unsupported_operator_is_named_and_limits_the_cuts(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(tmp_path / "norm.onnx", last="LpNormalization")
    add(tmp_path / "s", request_of(tmp_path / "norm.onnx", arrays=network.parent / "x.npy"))
    with Store(tmp_path / "s") as store:
        bundle = Bundle.open(store.bundles.path("norm"))
    assert bundle.unsupported == ["LpNormalization (body_last)"]
    assert [bundle.cuts[i].layer for i in bundle.offered][:2] == ["x", "stem"]
    assert "fc" not in [bundle.cuts[i].layer for i in bundle.offered]
    assert "not in the integer head: LpNormalization (body_last)" in capsys.readouterr().out


def added(store: Store, network: Path) -> tuple[Bundle, SegmentRef]:
    """The bundle of ``network``, added to ``store``, and a segment of it there."""
    add(store.folder, request_of(network, name="net"))
    made = Bundle.open(store.bundles.path("net"))
    return made, store.segments.put(b"old", made.sha256, 1, (8, 3))


@pytest.mark.slow
def test_adding_what_did_not_change_again_keeps_its_segments(network: Path, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        former, ref = added(store, network)
        add(tmp_path, request_of(network, name="net", replace=True))
        assert Bundle.open(store.bundles.path("net")).sha256 == former.sha256
        assert store.segments.path(ref.sha256) is not None


@pytest.mark.slow
def test_adding_again_replaces_the_model_and_its_segments(network: Path, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        _, ref = added(store, network)
        add(tmp_path, request_of(network, name="net", most=9, replace=True))
        assert Bundle.open(store.bundles.path("net")).samples == 9
        assert store.segments.path(ref.sha256) is None


def test_the_float_models_top1_is_shown_and_doubted_where_it_is_chance(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.load(network.parent / "x.npy")
    right = session(onnx.load(network)).run(None, {"x": x.transpose(0, 3, 1, 2)})[0].argmax(axis=1)
    np.save(tmp_path / "y.npy", right)
    add(tmp_path / "s", request_of(network, labels=str(tmp_path / "y.npy")))
    shown = capsys.readouterr().out
    assert "float top-1 on these 12 samples: 100.0 %" in shown
    assert "warning" not in shown
    np.save(tmp_path / "y.npy", (right + 1) % 10)
    add(tmp_path / "s", request_of(network, labels=str(tmp_path / "y.npy"), replace=True))
    shown = capsys.readouterr().out
    assert "float top-1 on these 12 samples: 0.0 %" in shown
    assert "warning: with 10 classes" in shown
    monkeypatch.setenv("COLUMNS", "150")
    models(tmp_path / "s")
    assert "(0.0 %)" in capsys.readouterr().out


def test_chance_is_not_thrice_itself_for_few_classes() -> None:
    assert hardly_above_chance(1000) == pytest.approx(0.003)
    assert hardly_above_chance(10) == pytest.approx(0.3)
    assert hardly_above_chance(2) == pytest.approx(0.625)


@pytest.mark.slow
def test_a_metric_that_the_labels_do_not_fit_is_refused(network: Path, tmp_path: Path) -> None:
    x = ["add", network, "--arrays", network.parent / "x.npy", "--store", tmp_path]
    assert "--metric top1 needs labels" in last(run(*x, "--metric", "top1"), errors.UsageError.exit_status)
    for metric in ("agreement", "cosine"):
        with raises(errors.UsageError, reason="metric-without-labels"):
            add(tmp_path, request_of(network, metric=metric, labels="labels.npy"))
    assert run(*x, "--metric", "sine").returncode == 2


@pytest.mark.slow
def test_a_plan_for_an_embedding_promises_its_cosine(
    network: Path, tmp_path: Path, profile: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path, request_of(network, metric="cosine"))
    assert "1 point (cosine)" in " ".join(capsys.readouterr().out.split())
    models(tmp_path)
    assert "cosine" in capsys.readouterr().out
    link, demand = LinkEstimate(80.0, 1.0, 1.0), Demand(max_drop_points=5.0, mode="split")
    with Store(tmp_path) as store:
        plan = make_plan(Catalog(store), PlanRequest(model="tiny", profile=profile, link=link, demand=demand))
    assert plan.metric == "cosine"
    assert 0 <= plan.prediction.drop_low <= plan.prediction.drop_points <= plan.prediction.drop_high <= 5.0
    Console(width=100).print(explain(plan, 100, "edge-agent plan"))
    assert "cosine drop" in capsys.readouterr().out


def test_removed_is_gone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    remove(store.folder, "tiny")
    models(store.folder)
    assert "tiny" not in capsys.readouterr().out.splitlines()[-1]
    with raises(errors.UnknownModelError, reason="unknown-model"):
        remove(store.folder, "tiny")


def test_a_damaged_model_can_be_removed(store: Store) -> None:
    (store.bundles.folder / "tiny" / "bundle.json").write_text("x")
    remove(store.folder, "tiny")
    assert store.bundles.names() == []


def test_images_are_preprocessed_as_told(tmp_path: Path) -> None:
    save_network(tmp_path / "net.onnx")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(1)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "photos" / f"{i}_{i % 2}.png")
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    options = {"mean": [127.0], "std": [128.0], "resize": 18, "fit": None}
    add(
        tmp_path / "s",
        request_of(
            tmp_path / "net.onnx", arrays=None, images=tmp_path / "photos", labels=r"_(\d)\.png$",
            class_names=tmp_path / "names.txt", options=options,
        ),
    )  # fmt: skip
    with Store(tmp_path / "s") as store:
        bundle = Bundle.open(store.bundles.path("net"))
    assert (bundle.metric, bundle.samples, bundle.labels[3]) == ("top1", 4, "class 3")
    assert bundle.preprocess.shape == [16, 16, 3]
    assert (bundle.preprocess.mean, bundle.preprocess.std, bundle.preprocess.resize) == ([127.0], [128.0], 18)


@pytest.mark.parametrize("preset", ["inception", "unit", "raw"])
def test_an_8_bit_input_implies_the_normalization(tmp_path: Path, preset: str) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for i in range(4):
        pixels = np.concatenate([np.full(1, 0), rng.integers(0, 256, 16 * 16 * 3 - 2), np.full(1, 255)])
        Image.fromarray(pixels.reshape(16, 16, 3).astype(np.uint8)).save(photos / f"{i}.png")
    save_network(tmp_path / "net.onnx")
    chosen = preprocessing.read(None, {"preset": preset, "resize": 16})
    model = importer.load(str(tmp_path / "net.onnx"))
    network = layers.build(Graph.of(model))
    samples = open_samples(photos, preprocessing.of_images(chosen, [16, 16, 3]))
    calibration = creation.calibrate(model, network, samples)
    head = lower(network, calibration, network.graph.output, 8)
    (tmp_path / "net.tflite").write_bytes(tflite.network(head.segment()))

    add(tmp_path / "s", request_of(tmp_path / "net.tflite", arrays=None, images=photos, options={"resize": 16}))

    with Store(tmp_path / "s") as store:
        made = Bundle.open(store.bundles.path("net")).preprocess
    assert (made.mean, made.std) == (chosen.mean, chosen.std)


def test_a_scale_that_calibration_measured_implies_nothing(tmp_path: Path) -> None:
    spec = preprocessing.read(None, {})
    for scale, zero in [(0.0187, 114), (1 / 127.5, 100), (1 / 50, 0)]:
        assert preprocessing.with_codes(spec, scale, zero) == spec
    told = preprocessing.read(None, {"mean": [1.0], "std": [2.0]})
    assert preprocessing.with_codes(told, 1 / 255, 0) == told


# --- bad input


def test_no_such_model_file(network: Path, tmp_path: Path) -> None:
    done = run("add", tmp_path / "no.onnx", "--arrays", network.parent, "--store", tmp_path / "s")
    assert "no.onnx does not exist" in last(done, 5)


def test_a_corrupt_onnx_file(network: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(network.read_bytes()[:500])
    done = run("add", tmp_path / "bad.onnx", "--arrays", network.parent / "x.npy", "--store", tmp_path / "s")
    assert "not a readable ONNX model" in last(done, 5)
    assert list((tmp_path / "s" / "bundles").iterdir()) == []


def test_a_label_that_is_no_class_of_the_model(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.full(12, 99999))
    place = network.parent / "x.npy"
    done = run("add", network, "--arrays", place, "--labels", tmp_path / "y.npy", "--store", tmp_path / "s")
    assert "y.npy: entry 0: class 99999 is out of range" in last(done, 3)


def test_samples_that_break_off_under_the_progress_bar(tmp_path: Path) -> None:
    save_network(tmp_path / "net.onnx")
    (tmp_path / "a.npy").write_bytes(b"x")
    np.save(tmp_path / "0.npy", np.zeros((16, 16, 3)))
    done = run("add", tmp_path / "net.onnx", "--arrays", tmp_path, "--store", tmp_path / "s")
    assert "a.npy is not a readable" in last(done, 3)


@pytest.mark.slow
@pytest.mark.torch
def test_a_corrupt_exported_program(network: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"not a model at all")
    done = run("add", tmp_path / "bad.pt2", "--arrays", network.parent / "x.npy", "--store", tmp_path / "s")
    assert "not a readable exported program" in last(done, 5)


def test_no_samples(network: Path, tmp_path: Path) -> None:
    assert "--images DIR" in sentence(run("add", network, "--store", tmp_path), 2)


def test_a_wrong_path_to_samples(network: Path, tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="no-folder"):
        add(tmp_path, request_of(network, arrays=tmp_path / "nowhere"))


def test_samples_of_the_wrong_shape(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), np.float32))
    with raises(errors.InputError, reason="other-shape"):
        add(tmp_path / "s", request_of(network, arrays=tmp_path / "x.npy"))


@pytest.mark.parametrize("text", ["", "a", "1,3,x", "1,,3", "0,3,4,4", "9999999,1"])
def test_an_input_shape_that_is_none(network: Path, tmp_path: Path, text: str) -> None:
    with raises(errors.UsageError, reason="not-a-shape"):
        add(tmp_path, request_of(network, input_shape=text))


def test_a_store_that_cannot_be_written(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("add", network, "--arrays", network.parent / "x.npy", "--store", tmp_path / "file")
    assert "is not a folder" in sentence(done, 12)


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    assert "'x'" in sentence(run("remove", "x", "--store", tmp_path), 11)


def test_a_missing_extra_is_named_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError(\"No module named 'onnx'\", name='onnx')")
    done = run("models", "--store", tmp_path / "s", PYTHONPATH=str(tmp_path))
    assert "pip install '.[server]'" in sentence(done, 4)


def test_a_defect_is_one_sentence_unless_asked_for_more(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise RuntimeError('broken')")
    environment = {"PYTHONPATH": str(tmp_path)}
    assert "internal error: RuntimeError: broken" in sentence(
        run("models", "--store", tmp_path / "s", **environment), 70
    )
    assert "Traceback" in run("models", "--store", tmp_path / "s", **environment, SPLITEDGE_DEBUG="1").stderr


# --- preprocessing


@pytest.mark.parametrize(("name", "text"), [("p.json", '{"mean": [1, 2, 3], "fit": "stretch"}'), ("p.toml", 'mean = [1, 2, 3]\nfit = "stretch"')])  # fmt: skip
def test_a_specification_is_json_or_toml_and_options_win(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    spec = preprocessing.read(tmp_path / name, {"fit": "crop", "resize": None})
    assert (spec.mean, spec.fit, spec.resize) == ([1.0, 2.0, 3.0], "crop", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not-json-or-toml"),
        ("[]", "not-a-table"),
        ('{"meen": [1]}', "not-a-specification"),
        ('{"mean": "1"}', "not-a-specification"),
        ("\xff", "not-json-or-toml"),
    ],
)
def test_a_specification_that_is_none_is_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="latin-1")
    with raises(errors.ConfigError, reason=reason):
        preprocessing.read(tmp_path / "p.json", {})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"std": [0.229, 0.224, 0.225]}, "small-std"),
        ({"std": [0.0]}, "small-std"),
        ({"mean": [1.0, 2.0]}, "numbers"),
        ({"mean": [float("nan")]}, "numbers"),
        ({"resize": 100}, "resize"),
        ({"resize": 8193}, "resize"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, object], complaint: str) -> None:
    with raises(errors.ConfigError, reason=complaint):
        preprocessing.of_images(preprocessing.read(None, {"preset": "unit"} | options), [224, 224, 3])


def test_a_vector_is_no_image() -> None:
    with raises(errors.UsageError, reason="no-image"):
        preprocessing.of_images(preprocessing.Spec(), [784])


# --- names, replacement, being stopped


def test_images_without_stated_preprocessing_are_refused_before_any_work(tmp_path: Path) -> None:
    with raises(errors.ConfigError, reason="no-normalization"):
        add(tmp_path / "s", request_of(tmp_path / "absent.onnx", arrays=None, images=tmp_path / "absent"))
    assert not (tmp_path / "s").exists()


def test_preprocessing_of_arrays_is_refused(network: Path, tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="only-for-images"):
        add(tmp_path / "s", request_of(network, options={"preset": "raw"}))


def test_a_model_is_not_replaced_unless_told_so_and_before_any_work(store: Store, tmp_path: Path) -> None:
    before = Bundle.open(store.bundles.path("tiny")).sha256
    with raises(errors.UsageError, reason="model-exists"):
        add(store.folder, request_of(tmp_path / "absent.onnx", name="tiny", arrays=tmp_path / "absent.npy"))
    assert Bundle.open(store.bundles.path("tiny")).sha256 == before


def test_a_model_that_appears_meanwhile_is_not_replaced_either(store: Store) -> None:
    with raises(errors.UsageError, reason="model-exists"), store.bundles.create("tiny", replace=False) as path:
        path.mkdir()
    assert Bundle.open(store.bundles.path("tiny")).name == "tiny"


def test_names_are_set_later_without_a_new_identity(store: Store, tmp_path: Path) -> None:
    catalog = Catalog(store)
    before = catalog.bundle("tiny")
    assert before.labels == []
    (tmp_path / "names.txt").write_bytes("\ufeffGrüße\r\n".encode() + b"".join(b"%d\r\n" % i for i in range(9)))
    names(store.folder, "tiny", tmp_path / "names.txt")
    after = catalog.bundle("tiny")  # of a catalog that is open already, as a server's
    assert (after.labels[0], len(after.labels), after.sha256) == ("Grüße", 10, before.sha256)
    (tmp_path / "names.txt").write_text("one\n")
    with raises(errors.InputError, reason="class-names"):
        names(store.folder, "tiny", tmp_path / "names.txt")
    with pytest.raises(errors.UnknownModelError):
        names(store.folder, "huge", tmp_path / "names.txt")


def test_names_that_were_set_outlive_a_replacement_unless_others_are_given(network: Path, tmp_path: Path) -> None:
    ours, theirs = [f"class {i}" for i in range(10)], [f"other {i}" for i in range(10)]
    for file, words in (("ours.txt", ours), ("theirs.txt", theirs)):
        (tmp_path / file).write_text("\n".join(words))
    add(tmp_path / "s", request_of(network, name="net"))
    names(tmp_path / "s", "net", tmp_path / "ours.txt")
    with Store(tmp_path / "s") as store:
        for given, wanted in ((None, ours), (None, ours), ("theirs.txt", theirs)):
            chosen = tmp_path / given if given else None
            add(tmp_path / "s", request_of(network, name="net", most=9, class_names=chosen, replace=True))
            assert Bundle.open(store.bundles.path("net")).labels == wanted


def test_damaged_names_are_one_sentence(store: Store) -> None:
    (store.bundles.path("tiny") / "names.json").write_text("[1]")
    with raises(errors.ModelError, reason="damaged", file="names.json"):
        Bundle.open(store.bundles.path("tiny"))


def test_models_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    models(store.folder, json=True)
    (info,) = json.loads(capsys.readouterr().out)
    assert (info["name"], info["offered"]) == ("tiny", Bundle.open(store.bundles.path("tiny")).offered)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_add_that_is_stopped_leaves_nothing(network: Path, tmp_path: Path, number: signal.Signals) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2000, 16, 16, 3)).astype(np.float32))
    command = [sys.executable, "-m", "edge_server", "add", network, "--arrays", tmp_path / "x.npy", "--store", tmp_path / "s"]  # fmt: skip
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if WORDS["observe"] in line:
            break
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert len([line for line in told.splitlines() if "] " not in line]) == 1
        assert list((tmp_path / "s" / "bundles").iterdir()) == []
    with Store(tmp_path / "s") as store:
        assert list(store.bundles.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase", ["answers", *(pytest.param(one, marks=pytest.mark.thorough) for one in ("trials", "patterns"))]
)
def test_an_add_that_is_killed_continues_with_the_same_command(network: Path, tmp_path: Path, phase: str) -> None:
    arrays = np.random.default_rng(0).normal(size=(400, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", arrays)
    command = ["add", network, "--arrays", tmp_path / "x.npy", "--name", "net", "--store", tmp_path / "s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_server", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if WORDS[phase] in line:
            break
    process.kill()
    process.communicate(timeout=60)
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert WORDS["observe"] not in done.stderr
    add(tmp_path / "whole", request_of(network, arrays=tmp_path / "x.npy", name="net"))
    bundles = []
    for folder in (tmp_path / "s", tmp_path / "whole"):
        with Store(folder) as store:
            bundles.append(Bundle.open(store.bundles.path("net")))
    killed, whole = (replace(one.manifest, tail_ms={}) for one in bundles)
    assert killed == whole


@pytest.mark.parametrize(
    "values", [np.zeros((3, 16, 16, 3)), np.full((20, 16, 16, 3), 1e-3), np.full((2, 16, 16, 3), 1e6)]
)
def test_samples_that_are_all_alike(network: Path, tmp_path: Path, values: Any) -> None:
    np.save(tmp_path / "x.npy", values)
    add(tmp_path / "s", request_of(network, arrays=tmp_path / "x.npy"))
    with Store(tmp_path / "s") as store:
        assert Bundle.open(store.bundles.path("tiny")).samples == len(values)


def test_a_model_that_no_plan_could_use_is_not_added(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(network.parent / "x.npy")[:1])
    with raises(errors.UsageError, reason="no-bit-widths"):
        add(tmp_path / "s", request_of(network, arrays=tmp_path / "x.npy", metric="cosine"))
    with Store(tmp_path / "s") as store:
        assert store.bundles.names() == []


def test_a_disk_that_is_full_is_one_sentence(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with raises(errors.StoreError, reason="cannot-write"):
        add(tmp_path / "s", request_of(network))
    assert list((tmp_path / "s" / "bundles").iterdir()) == []


@pytest.mark.slow
def test_a_model_that_no_head_computes_is_served_whole_and_says_why(
    tmp_path: Path, profile: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers beyond float32 inside, which the model itself bounds again."""
    net = Net([1, 3, 16, 16])
    net.conv(4, 3)
    net.add("Mul", net.last, net.constant([1000.0]))
    net.add("Exp")
    net.add("Clip", net.last, net.constant(0.0), net.constant(10.0))
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(7, 4)
    onnx.save(net.model(), tmp_path / "whole.onnx")
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.normal(size=(20, 16, 16, 3)).astype(np.float32))
    add(tmp_path / "s", request_of(tmp_path / "whole.onnx"))
    assert "the server runs the model whole" in " ".join(capsys.readouterr().out.split())
    link = LinkEstimate(80.0, 1.0, 1.0)
    with Store(tmp_path / "s") as store:
        bundle = Bundle.open(store.bundles.path("whole"))
        request = PlanRequest(model="whole", profile=profile, link=link, demand=Demand(max_drop_points=50.0))
        assert make_plan(Catalog(store), request).mode == "server"
        request = PlanRequest(
            model="whole", profile=profile, link=link, demand=Demand(max_drop_points=50.0, mode="device")
        )
        with raises(errors.InfeasibleError, whole=bundle.reasons[-1]):
            make_plan(Catalog(store), request)
    assert bundle.offered == [0]
