"""`edge-agent bench` as a user calls it: real workers, real runtimes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from calibration.importing.importer import batched, simplify
from device_profiles import power
from edge_agent.bench import cases, measuring, render, results
from edge_agent.bench.cases import Case, Model
from edge_agent.bench.results import Method, Result, Sustained
from edge_agent.cli import app
from edge_agent.commands import bench
from splitedge.errors import PlatformError, UsageError
from tests import small_models as small
from tests.edge_agent.bench.test_statistics import result, row
from tests.raising import raises

FAST = ["-r", "6", "--rounds", "2", "--delay", "0", "-t", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    net = small.Net([1, 3, 16, 16])
    net.conv(8, 3, 3, strides=[2, 2])
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(5, 8)
    onnx.save(batched(simplify(net.model())), path)
    return path


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "labels.csv").write_text("file,class\n" + "".join(f"{number}.png,1\n" for number in range(6)))
    return folder


def called(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_an_onnx_file_is_measured_by_every_backend(model, pictures, tmp_path):
    report = tmp_path / "report.json"
    status, text = called(
        "-m", str(model), *FAST, "-b", "native,onnxruntime,litert,onnxruntime-cuda", "--images", str(pictures),
        "--per-op", "-o", "json", "--report", str(report),
    )  # fmt: skip
    assert status == 0
    found = msgspec.json.decode(text, type=Result)
    rows = {(one.backend, one.precision): one for one in found.rows}
    assert "CUDAExecutionProvider" in rows["onnxruntime-cuda", ""].failure
    for key in (("native", "int8"), ("onnxruntime", "float32"), ("onnxruntime", "int8")):
        one = rows[key]
        assert one.failure == ""
        assert one.times.runs == 6
        assert len(one.times.rounds_ms) == 2
        assert one.phases.init_ms > 0
        assert one.memory.peak_mib >= one.memory.resident_mib > 0
        assert one.fidelity.frames == 3
        assert one.fidelity.cosine > 0.98
        assert one.operators
    assert rows["onnxruntime", "float32"].fidelity.cosine == pytest.approx(1.0)
    assert rows["native", "int8"].fidelity.top1_percent in (0, 100 / 3, 200 / 3, 100)
    shared = results.read(report)
    assert (shared.commit, len(shared.created)) == ("", 10)
    assert not any("/" in one.failure for one in shared.rows)


def test_a_file_that_its_backend_refuses_is_a_row(tmp_path):
    broken = tmp_path / "broken.segment"
    broken.write_bytes(b"nothing")
    status, text = called("-m", str(broken), *FAST, "-o", "json")
    (one,) = json.loads(text)["rows"]
    assert status == 1
    assert one["failure"]
    assert one["times"] is None


def test_a_backend_that_does_not_read_the_file_is_a_row(tmp_path):
    (tmp_path / "net.tflite").write_bytes(b"")
    found = cases.cases([cases.plain(str(tmp_path / "net.tflite"))], ["native"], [1])
    assert [(one.backend.name, one.file) for one in found] == [("native", None)]
    assert found[0].failure


def test_a_model_that_cannot_be_quantized_keeps_its_float_row(tmp_path, model):
    net = small.Net([1, 3, 8, 8])
    net.add("Conv", net.last, net.random_weight(4, 3, 3, 3))
    net.add("LpNormalization", axis=1)  # no operator of the integer head
    onnx.save(net.model(), tmp_path / "odd.onnx")
    (tmp_path / "files").mkdir()
    found = cases.exported(cases.plain(str(tmp_path / "odd.onnx")), tmp_path / "files")
    made = cases.cases([found], ["native", "onnxruntime"], [1])
    native = [one for one in made if one.backend.name == "native"]
    assert [one.file for one in native] == [None]
    assert "LpNormalization" in native[0].failure
    assert any(one.file is not None for one in made if one.backend.name == "onnxruntime")


def test_a_runtime_that_crashes_ends_only_its_row(model, monkeypatch):
    (good,) = cases.cases([Model("net", [model])], ["onnxruntime"], [1])
    bad = Case("net", good.backend, 1, model, "float32")
    ask = measuring.Worker.ask

    def crash(worker, **turn):
        if worker.case is bad:
            os.kill(worker.process.pid, signal.SIGILL)
        return ask(worker, **turn)

    monkeypatch.setattr(measuring.Worker, "ask", crash)
    made = measuring.measure([good, bad], Method(4, 0.0, 2, 0.0, 1), lambda _: None)
    assert (made[0].failure, made[0].times.runs) == ("", 4)
    assert "SIGILL" in made[1].failure
    assert made[1].times is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no-model"),
        (["-m", "no/such.onnx"], "no-file"),
        (["-m", "MODEL", "-b", "fast"], "no-backend"),
        (["-m", "MODEL", "-t", "0"], "threads"),
        (["-m", "MODEL", "--shape", "1,x"], "shape"),
        (["-m", "MODEL", "--sustained", "soon"], "duration"),
        (["-m", "MODEL", "--plot", "x.png"], "plot-without-sustained"),
        (["-m", "MODEL", "--images", "IMAGES", "--std", "0"], "normalization"),
        (["-m", "net.segment", "--images", "IMAGES"], "no-file"),
        (["-m", "SEGMENT", "--images", "IMAGES"], "no-float-model"),
    ],
)
def test_wrong_options_are_refused(arguments, reason, model, pictures):
    (pictures.parent / "net.segment").write_bytes(b"")
    places = {"MODEL": model, "IMAGES": pictures, "SEGMENT": pictures.parent / "net.segment"}
    given = [str(places.get(one, one)) for one in arguments]
    with raises(UsageError, reason=reason):
        called(*(given or ["--rounds", "2"]))


def test_power_without_a_sensor_is_refused(model, monkeypatch):
    monkeypatch.setattr(power, "find", lambda: None)
    with raises(PlatformError, reason="no-power-sensor"):
        called("-m", str(model), *FAST, "-b", "onnxruntime", "--power")


@pytest.mark.thorough
def test_power_of_a_run(model, monkeypatch):
    meter = power.PowerMeter("5 W", lambda: [5.0])
    monkeypatch.setattr(power, "find", lambda: meter)
    monkeypatch.setattr("edge_agent.bench.alone.POWER_S", 0.3)
    monkeypatch.setattr("edge_agent.bench.alone.IDLE_S", 0.1)
    status, text = called("-m", str(model), *FAST, "-b", "onnxruntime", "--power", "-o", "json")
    (first, *_) = json.loads(text)["rows"]
    assert status == 0
    assert first["power"]["watts"] == pytest.approx(5.0)
    assert first["power"]["joules"] > 0


@pytest.mark.thorough
def test_a_long_run_has_a_curve(model, tmp_path):
    plot = tmp_path / "curve.svg"
    status, text = called(
        "-m", str(model), *FAST, "-b", "onnxruntime", "--sustained", "2s", "--plot", str(plot), "-o", "json"
    )
    (first, *_) = json.loads(text)["rows"]
    assert status == 0
    assert len(first["sustained"]["per_second"]) >= 2
    assert plot.read_bytes().startswith(b"<?xml")


@pytest.mark.thorough
def test_single_stream_stops_at_its_queries(model):
    _, text = called(
        "-m", str(model), "-t", "1", "--rounds", "2", "--single-stream", "-b", "onnxruntime", "-o", "jsonl"
    )
    lines = [json.loads(line) for line in text.splitlines()]
    times = lines[0]["rows"][0]["times"]
    assert times["single_stream"] == "1,024 queries"
    assert times["runs"] == 1024


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert bench.duration(text) == seconds


# --- output -----------------------------------------------------------------------------------------------------------


def examples() -> Result:
    good = row([1.0, 2.0])
    good.sustained = Sustained(120.0, [10.0] * 60 + [5.0] * 60, ["61 s: under-voltage"], 10.0, 5.0)
    return result(good, row([], backend="litert", failure="LiteRT is not installed; run `pip install ai-edge-litert`"))


def test_formats_hold_the_same_rows():
    made = examples()
    table = list(csv.DictReader(io.StringIO(render.as_csv(made))))
    assert [one["backend"] for one in table] == ["native", "litert"]
    assert float(table[0]["p50 ms"]) == made.rows[0].times.p50_ms
    lines = [msgspec.json.decode(line, type=Result) for line in render.as_json_lines(made).splitlines()]
    assert [one.rows[0].backend for one in lines] == ["native", "litert"]
    assert msgspec.json.decode(render.as_json(made), type=Result) == made
    markdown = [line for line in render.markdown(made).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in markdown}) == 1
    assert len(markdown) == 4


def test_a_curve_has_the_heights_of_its_values():
    lines = render.curve([8.0] * 30 + [4.0] * 30, 70)
    assert len(lines) == 8
    assert all(len(line) <= 70 for line in lines)
    assert [len(lines[0]), len(lines[-1])] == [3 + 33, 3 + 66]
    assert set(lines[-1]) == {"0", " ", "│", "█"}


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [3.0], [1.0] * 1000])
def test_a_curve_of_any_length_fits(values):
    assert all(len(line) <= 40 for line in render.curve(values, 40))


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(model, monkeypatch):
    monkeypatch.setattr(render.importlib.util, "find_spec", lambda name: None)
    with raises(PlatformError, reason="no-matplotlib"):
        called("-m", str(model), "--sustained", "1h", "--plot", "x.png")


def test_the_published_schema_is_that_of_the_program():
    kept = Path(__file__).parents[3] / "docs/reference/bench.schema.json"
    assert json.loads(kept.read_text()) == results.schema()


def test_a_result_fits_the_published_schema():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(render.as_json(examples())), results.schema())


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "not-a-result"), ("{}", "not-a-result"), ("NEWER", "schema-version"), (None, "cannot-read")],
)
def test_other_files_are_no_results(text, reason, tmp_path):
    path = tmp_path / "result.json"
    if text is not None:
        newer = render.as_json(msgspec.structs.replace(examples(), schema_version=9))
        path.write_text(newer if text == "NEWER" else text)
    with raises(UsageError, reason=reason):
        results.read(path)


def test_compare_ends_with_1_for_a_slower_row(tmp_path):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, factor in zip(paths, (1.0, 1.1), strict=True):
        path.write_text(render.as_json(result(row([factor, 1.001 * factor, 0.999 * factor]))))
    assert called("compare", str(paths[0]), str(paths[1]))[0] == 1
    assert called("compare", str(paths[1]), str(paths[0]))[0] == 0
    status, text = called("compare", str(paths[0]), str(paths[0]), "--json")
    assert status == 0
    assert [one["verdict"] for one in json.loads(text)] == ["no change"]


def test_rows_of_contributed_results_fit_the_schema():
    for path in sorted((Path(__file__).parents[3] / "docs/results/contributed").glob("*.json")):
        assert results.read(path).commit == "", path
