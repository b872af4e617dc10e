"""`edge-agent profile` and its commands, and `edge-agent bench kernels`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from device_profiles import from_dict, known, load, measurement, save
from device_profiles.schema import Interval
from edge_agent.cli import app
from edge_agent.commands import profile as command
from edge_agent.profiling import backends
from splitedge.errors import ConfigError, UsageError
from tests.raising import raises
from tests.round_profile import round_profile

SEGMENT = str(backends.FILES / "int8.segment")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for name in ("SPLITEDGE_PROFILE", "SPLITEDGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def with_intervals(factor: float = 1.0):
    made = round_profile()
    for row in made.kernels:
        row.time_us *= factor
        row.interval = Interval(0.999 * row.time_us, 1.001 * row.time_us, 9, True)
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "board.json"
    save(with_intervals(), path)
    return path


def called(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--known", "pi4", "--json"],
        ["--known", "--json", "pi4"],
        ["--json", "--known", "pi4"],
        ["pi4", "--known", "--json"],
        ["pi4", "--json", "--known"],
    ],
)
def test_a_known_board_is_printed_wherever_its_name_stands(arguments):
    assert from_dict(json.loads(called("profile", *arguments)[1])) == known.load("pi4")


def test_a_name_alone_is_refused():
    with raises(UsageError, reason="measures-this-machine"):
        called("profile", "pi4")
    with raises(UsageError, reason="unknown-board"):
        called("profile", "--known", "pi9")


def test_show_prints_every_kernel_in_80_columns(file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, text = called("profile", "show", str(file))
    assert max(map(len, text.splitlines())) <= 80
    assert all(row.name in text for row in round_profile().kernels)
    _, text = called("profile", "show", str(file), "--json")
    assert from_dict(json.loads(text)) == load(file)


def test_show_takes_the_profile_in_use(file, monkeypatch):
    monkeypatch.setenv("SPLITEDGE_PROFILE", str(file))
    assert from_dict(json.loads(called("profile", "show", "--json")[1])) == load(file)
    monkeypatch.setenv("SPLITEDGE_PROFILE", str(file.with_name("none.json")))
    with raises(UsageError, reason="none-kept"):
        called("profile", "show")


def test_a_broken_configuration_matters_only_where_the_profile_in_use_is_asked_for(file, tmp_path):
    broken = tmp_path / "agent.toml"
    broken.write_text("nonsense = 1")
    assert called("profile", "show", str(file), "--config", str(broken))[0] == 0
    with pytest.raises(ConfigError):
        called("profile", "show", "--config", str(broken))


def test_a_file_that_is_no_profile_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with raises(ConfigError, reason="schema-version"):
        called("profile", "show", str(tmp_path / "x.json"))


def test_compare_ends_with_1_if_a_kernel_is_slower(file, tmp_path):
    slower = tmp_path / "slower.json"
    save(with_intervals(1.1), slower)
    assert called("profile", "compare", str(file), str(file))[0] == 0
    assert called("profile", "compare", str(slower), str(file))[0] == 0
    status, text = called("profile", "compare", str(file), str(slower), "--json")
    assert status == 1
    found = json.loads(text)
    assert {one["verdict"] for one in found} == {"slower"}
    assert found[0]["percent"] == pytest.approx(10.0)
    assert 9 < found[0]["low"] < 10 < found[0]["high"] < 11


@pytest.mark.parametrize(("form", "start"), [("md", "test, portable"), ("csv", "kernel,"), ("json", "{")])
def test_export(file, form, start):
    status, text = called("profile", "export", str(file), "-o", form)
    assert status == 0
    assert text.startswith(start)


def test_the_roofline_of_another_board_has_predicted_operators(file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plot = tmp_path / "roof.svg"
    _, text = called("profile", "roofline", str(file), "-m", SEGMENT, "--plot", str(plot))
    assert "int8.segment, predicted" in text
    assert max(len(line) for line in text.splitlines() if "written to" not in line) <= 80
    assert plot.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["-m", "net.onnx"], "no-segment"), (["--plot", "x.pdf"], "picture-format"), (["-t", "7"], "threads")],
)
def test_wrong_options_of_the_roofline_are_refused(file, arguments, reason):
    with raises(UsageError, reason=reason):
        called("profile", "roofline", str(file), *arguments)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_whole_profile_is_kept_and_its_roofline_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "KERNELS_S", 1.0)
    kept, out = tmp_path / "kept.json", tmp_path / "out.json"
    monkeypatch.setenv("SPLITEDGE_PROFILE", str(kept))
    status, _ = called("profile", "--keep", "--out", str(out), "--sustained", "1s")
    assert status == 0
    assert kept.read_bytes() == out.read_bytes()
    found = load(kept)
    assert [one.name for one in found.backends][:1] == ["native"]
    assert command.is_here(found)
    assert not command.is_here(known.load("pi5"))
    assert "int8.segment, measured" in called("profile", "roofline", "-m", SEGMENT)[1]


@pytest.mark.slow
def test_bench_kernels_has_a_row_for_each_number_of_threads(monkeypatch):
    monkeypatch.setattr(measurement, "KERNELS_S", 0.5)
    _, text = called("bench", "kernels", "-t", "1,2", "-o", "json")
    found = from_dict(json.loads(text))
    assert [one.threads for one in found.peaks] == [1, 2]
    assert len(found.kernels) == 2 * len(measurement.SHAPES)
    monkeypatch.setattr(measurement, "measure_kernels", lambda counts, progress: found)
    assert all(row.name in called("bench", "kernels")[1] for row in found.kernels)
    assert called("bench", "kernels", "-o", "csv")[1].startswith("kernel,")


def test_without_options_the_machine_is_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(command, "profile", lambda settings, options: asked.append(options))
    assert called("profile")[0] == 0
    assert [options.quick for options in asked] == [False]


def test_wrong_options_of_the_measurement_are_refused():
    for arguments, reason in (
        (["--quick", "--sustained", "5s"], "quick-and-sustained"),
        (["--sustained", "x"], "duration"),
    ):
        with raises(UsageError, reason=reason):
            called("profile", *arguments)
    with raises(UsageError, reason="threads"):
        called("bench", "kernels", "-t", "0")


def test_a_profile_without_intervals_is_not_compared(tmp_path, file):
    older = tmp_path / "older.json"
    save(round_profile(), older)
    with raises(UsageError, reason="not-comparable"):
        called("profile", "compare", str(older), str(file))
