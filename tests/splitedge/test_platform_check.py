"""Machines and installations that splitedge refuses, each in one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitedge import platform_check
from splitedge.errors import ConfigError, PlatformError, StoreError
from tests.raising import raises


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
    with raises(PlatformError, reason="32-bit"):
        platform_check.check()


@pytest.mark.parametrize("package", platform_check.PACKAGES[1:])
@pytest.mark.parametrize("content", ["__init__.py", "x.py"])
def test_a_foreign_package_in_the_place_of_one_of_ours_is_refused(package, content, tmp_path):
    """A regular package is refused; a plain folder (a namespace package) does not hide ours."""
    (tmp_path / package).mkdir()
    (tmp_path / package / content).write_text("")
    code = "from splitedge import platform_check; platform_check.run('edge-agent', lambda: None)"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == (PlatformError.exit_status if content == "__init__.py" else 0), done.stderr
    assert (package in done.stderr and str(tmp_path) in done.stderr) == (content == "__init__.py")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("two\nlines: mend\t them"), 2, "edge-agent: two lines: mend them"),
        (RuntimeError("a\nb"), 70, "edge-agent: internal error: RuntimeError: a b; SPLITEDGE_DEBUG=1 shows more, please report it"),
        (KeyboardInterrupt(), 130, "edge-agent: interrupted"),
        (ConfigError("a\x1b[31mb\udce9"), 2, "edge-agent: a\\x1b[31mb\\xe9"),
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
        "from splitedge.platform_check import run\nrun('edge-agent', lambda: [print('x' * 9999) for _ in range(999)])"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    with started.stderr:
        assert started.stderr.read() == ""
    assert started.wait(30) == 141


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), StoreError.exit_status, "/x/y"),
        (PermissionError(errno.EACCES, "Permission denied", b"/x/\xe9"), StoreError.exit_status, r"/x/\xe9"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreError.exit_status, "quota"),
        (MemoryError(), platform_check.OUT_OF_MEMORY, "memory"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), 2, r"caf\xe9"),
        (DeprecationWarning("old"), 2, "PYTHONWARNINGS"),
    ],
)
def test_what_the_system_refuses_is_no_internal_error(error, status, word, capsys, monkeypatch):
    monkeypatch.delenv("SPLITEDGE_DEBUG", raising=False)

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        platform_check.run("edge-agent", fail)
    said = capsys.readouterr().err
    assert left.value.code == status
    assert word in said
    assert "internal error" not in said


def program(body: str, prefix: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """``body`` as the work of a program, in a shell that began with ``prefix`` for its streams."""
    code = f"import sys\nfrom splitedge.platform_check import run\ndef work():\n    {body}\nrun('edge-agent', work)"
    command = ["bash", "-c", f'"$0" -c "$1" {prefix}', sys.executable, code]
    plain = {"PYTHONUNBUFFERED": "", "SPLITEDGE_DEBUG": "", "PYTHONIOENCODING": ""}
    return subprocess.run(command, env=os.environ | plain | environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "body", ["print('x')", "print('x' * 99999)", "print('x', flush=True)", "sys.stdout.buffer.write(b'x')"]
)
def test_a_full_standard_output_has_a_status_of_its_own(body, unbuffered):
    done = program(body, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr.count("\n")) == (platform_check.OUTPUT_FAILED, 1)
    assert "standard output" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_standard_error_that_cannot_be_written_ends_no_program():
    done = program("[print('x' * 999, file=sys.stderr) for _ in range(99)]; print('done')", "2>/dev/full")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert program("raise ValueError", "2>/dev/full").returncode == platform_check.INTERNAL_ERROR


def test_closed_streams_are_streams_into_nothing():
    work = "print('x'); print('x', file=sys.stderr); assert sys.stdin.read() == ''; open('/dev/null').close()"
    done = program(work, "<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"#=%. ~ *C caf\xe9 \u4e2d"), ("latin-1", r"#=%. ~ \xb0C caf\xe9 \u4e2d"), ("utf-8", r"█▒▓░ … °C caf\xe9 中")]
)  # fmt: skip
def test_a_terminal_without_unicode_shows_plain_signs(encoding, shown):
    done = program("sys.stdout.write('█▒▓░ … °C caf\\udce9 中')", "| od -An -v -tx1", PYTHONIOENCODING=encoding)
    assert bytes.fromhex(done.stdout) == shown.replace("\\xb0", "\xb0").encode(
        "utf-8" if encoding == "utf-8" else "latin-1"
    )


def test_a_status_that_the_work_returns_is_the_program_s():
    assert program("return 3").returncode == 3
    assert program("return None").returncode == 0


def test_numba_s_settings_in_the_working_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    platform_check.check()
    (tmp_path / ".numba_config.yaml").write_text("disable_jit: 1\n")
    with raises(PlatformError, reason="numba-config"):
        platform_check.check()


def test_it_loads_nothing_outside_the_standard_library():
    code = (
        "import sys; from splitedge import platform_check; platform_check.check(); "
        "names = {m.partition('.')[0] for m in sys.modules if not m.startswith('__')}; "
        "print(sorted(n for n in names - sys.stdlib_module_names if n in ('numpy', 'numba', 'msgspec', 'rich', 'typer', 'kernels', 'aiohttp')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
