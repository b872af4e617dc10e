"""Machines and installations that splitedge refuses, each in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_agent import platform_check
from edge_agent.errors import ConfigError, PlatformError


def test_this_machine_is_accepted():
    platform_check.check()


def test_a_32_bit_python_is_refused_with_the_way_out():
    sentence = platform_check._width_problem(32, (1 << 31) - 1, "armv7l")
    assert "64-bit" in sentence
    assert "armv7l" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("version", "refused"), [((3, 9), True), ((3, 10), True), ((3, 11), False), ((4, 0), False)])
def test_an_old_python_is_refused(version, refused):
    assert bool(platform_check._python_problem(version)) is refused


def test_check_raises_what_a_problem_says(monkeypatch):
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    with pytest.raises(PlatformError, match="32-bit"):
        platform_check.check()


def test_the_other_distribution_named_kernels_is_refused(tmp_path, monkeypatch):
    info = tmp_path / "kernels-0.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PlatformError, match=r"'kernels' 0\.9\.0.*virtual environment"):
        platform_check.check()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("two\nlines: mend\t them"), 2, "edge-agent: two lines: mend them"),
        (RuntimeError("a\nb"), 70, "edge-agent: internal error: RuntimeError: a b; SPLITEDGE_DEBUG=1 shows more, please report it"),
        (KeyboardInterrupt(), 130, "edge-agent: interrupted"),
    ],
)  # fmt: skip
def test_an_error_ends_as_one_line_and_a_status(error, status, line, capsys, monkeypatch):
    monkeypatch.delenv("SPLITEDGE_DEBUG", raising=False)

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        platform_check.run("edge-agent", fail)
    assert left.value.code == status
    assert capsys.readouterr().err == line + "\n"
    monkeypatch.setenv("SPLITEDGE_DEBUG", "1")
    with pytest.raises(type(error)):
        platform_check.run("edge-agent", fail)


def test_a_reader_that_went_away_is_no_error_to_speak_of():
    code = (
        "from edge_agent.platform_check import run\nrun('edge-agent', lambda: [print('x' * 9999) for _ in range(999)])"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    with started.stderr:
        assert started.stderr.read() == ""
    assert started.wait(30) == 141


def test_it_loads_nothing_outside_the_standard_library():
    code = (
        "import sys; from edge_agent import platform_check; platform_check.check(); "
        "names = {m.partition('.')[0] for m in sys.modules if not m.startswith('__')}; "
        "print(sorted(n for n in names - sys.stdlib_module_names if n in ('numpy', 'numba', 'msgspec', 'rich', 'typer', 'kernels', 'aiohttp')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
