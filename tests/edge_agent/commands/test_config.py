"""`edge-agent config`: what it prints and writes, in this process; on a terminal, as a process."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent import config
from edge_agent.commands import config as command
from splitedge import errors
from splitedge.platform_check import printable
from tests.raising import raises


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's configuration, which does not exist yet. No other settings."""
    for name in [name for name in os.environ if name.startswith("SPLITEDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home/splitedge"


@pytest.fixture
def write(home: Path) -> Callable[[str], Path]:
    """``write(text)``: the file of the configuration."""

    def make(text: str) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        (home / "agent.toml").write_text(text)
        return home / "agent.toml"

    return make


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def once(text: str) -> Path:
    """The path of a file that can be read once, as the shell's `<(command)`."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    return Path(f"/dev/fd/{reading}")


# --- show


def test_the_file_is_read_once(capsys):
    command.show(once('model = "m"\n'), {}, json=True)
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert (rows["model"]["value"], rows["model"]["origin"]) == ("m", "file")
    assert command.check(once('model = "m"\n'), {}) == 0
    assert command.check(once('token = "no token"\nmodel = "m"\n'), {}) == errors.ConfigError.exit_status


def test_every_setting_is_shown_with_its_source(write, monkeypatch, capsys):
    path = write('model = "m"\ntoken = "sesame"\nserver = "https://me:secret@h"\n')
    monkeypatch.setenv("SPLITEDGE_DEMAND_MAX_DROP_POINTS", "2.0000001")
    options = {"api.port": 9, "demand.max_latency_ms": None}
    command.show(None, options, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(path)
    rows = {row["key"]: row for row in found["settings"]}
    assert list(rows) == [one.key for one in config.reference()]
    sources = {
        key: (row["value"], row["origin"], row["name"]) for key, row in rows.items() if row["origin"] != "default"
    }
    assert sources == {
        "server": ("https://***@h", "file", str(path)),
        "token": ("***", "file", str(path)),
        "model": ("m", "file", str(path)),
        "demand.max_drop_points": (2.0000001, "variable", "SPLITEDGE_DEMAND_MAX_DROP_POINTS"),
        "api.port": (9, "option", "--port"),
    }
    assert (rows["stage.token"]["value"], rows["demand.max_latency_ms"]["value"]) == ("", None)

    command.show(None, options, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()) for line in lines} >= {
        ("file:", str(path)), ("demand",), ("model", "file", "m"), ("token", "file", "***"), ("api.port", "--port", "9"),
        ("demand.max_drop_points", "SPLITEDGE_DEMAND_MAX_DROP_POINTS", "2.0000001"), ("demand.max_latency_ms", "default", "no", "limit"),
        ("link.replan", "default", "true"), ("reuse.max_age_s", "default", "2"),
    }  # fmt: skip
    assert max(len(line) for line in lines if str(path) not in line) <= 80
    assert not any("sesame" in line or "secret" in line for line in lines)


def test_without_a_file_it_says_so(capsys):
    command.show(None, {}, json=False)
    assert capsys.readouterr().out.splitlines()[0].split() == ["file:", "none"]


# --- check


def test_a_good_configuration_is_ok(write, capsys):
    path = write('model = "m"')
    assert command.check(None, {}) == 0
    assert capsys.readouterr().out.split() == ["ok:", str(path)]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ('topk = "x"\nmodel = 3\n[api]\nprot = 1\n', {"api.port": -1}, ["topk", "model", "api.prot", "--port"]),
        ('server = "x"\n[chain]\nnext = "y"\n', {}, ["`server`", "`chain.next`"]),
        ("topk =", {}, ["TOML"]),
        ("", {}, ["model"]),
        ('ca = "/nowhere/ca"\ntoken_file = "/nowhere/t"\nprofile = "/nowhere/p"\n', {"model": "m"}, ["/t", "/ca", "/p"]),
        ('model = "m"\n', {"stage.port": 1}, ["stage.port"]),
        ("[stage]\nport = 1\nhost = '0.0.0.0'\n", {}, ["0.0.0.0"]),
        ("model = 'm'\nca = '~nobody-of-this-name/ca'\n", {}, ["home"]),
    ],
)  # fmt: skip
def test_each_problem_is_a_line(write, capsys, text, options, words):
    path = write(text)
    assert command.check(path, options) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == len(words)
    assert all(any(word in line for line in lines) for word in words), lines
    assert all(line.startswith("edge-agent: ") for line in lines)


# --- init


def test_options_and_comments_are_written_and_tokens_go_to_files_of_their_own(home, capsys):
    given = {
        "server": "https://h",
        "token": "sesame",
        "model": "m",
        "chain.next": "https://b:1",
        "chain.token": "open",
        "topk": None,
    }
    command.init(None, given, replace=False)
    assert {path.name: path.read_text() for path in home.iterdir() if path.name != "agent.toml"} == {
        "token": "sesame\n", "chain-token": "open\n",
    }  # fmt: skip
    assert [mode(home / name) for name in ("token", "chain-token")] == [0o600, 0o600]
    settings = config.load()
    assert (settings.server, settings.model, settings.token) == ("https://h", "m", "")
    assert (config.token(settings), config.chain_token(settings)) == ("sesame", "open")
    assert "sesame" not in (home / "agent.toml").read_text() + "".join(capsys.readouterr())


def test_a_relative_path_of_an_option_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.init(Path("a.toml"), {"ca": "server.pem", "profile": "~/p.json", "chain.ca": ""}, replace=False)
    settings = config.load(tmp_path / "a.toml")
    assert (settings.ca, settings.chain.ca) == (str(tmp_path / "server.pem"), "")
    assert settings.profile == str(Path.home() / "p.json")


@pytest.mark.parametrize("name", ["agent.toml", "token"])
def test_a_file_that_exists_is_replaced_only_on_request(home, name):
    home.mkdir(parents=True)
    (home / name).write_text("model = 'mine'")
    (home / name).chmod(0o644)
    with raises(errors.UsageError, reason="exists", files=[str(home / name)]):
        command.init(None, {"token": "sesame"}, replace=False)
    assert [path.name for path in home.iterdir()] == [name]
    assert (home / name).read_text() == "model = 'mine'"
    command.init(None, {"token": "sesame"}, replace=True)
    assert config.token(config.load()) == "sesame"
    assert mode(home / "token") == 0o600


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"token": "two words"}, "not-a-token"),
        ({"token": "t", "token_file": "/f"}, "token-and-file"),
        ({"server": "h"}, "not-a-url"),
        ({"api.port": -1}, "value"),
        ({"ca": "/\udcff"}, "not-utf8"),
    ],
)
def test_wrong_options_write_nothing(home, options, reason):
    with pytest.raises(errors.UsageError) as caught:
        command.init(None, {"stage.token": "t"} | options, replace=False)
    assert caught.value.data["reason"] == reason
    assert not home.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with raises(errors.StoreError, reason="cannot-write"):
        command.init(tmp_path / "file/agent.toml", {}, replace=False)


def on_a_terminal(answers: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of `edge-agent config init` on a terminal where somebody types ``answers``."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edge_agent", "config", "init", *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_controls
    )
    os.close(theirs)
    shown, last = b"", b""
    lines = answers.splitlines(keepends=True)
    while True:
        if not select.select([ours], [], [], 10)[0]:
            if (
                last == b"\x03"
            ):  # between the prompt and the read of Python's `input` an interrupt does not end the read
                os.write(ours, last)
            continue
        try:
            got = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        shown += got
        if not got:
            break
        if shown.endswith((b"]: ",)) and lines:
            last = lines.pop(0).encode()
            os.write(ours, last)
    os.close(ours)
    return process.wait(60), shown.decode()


def _controls() -> None:
    """Make standard input the controlling terminal, which signals come from. Interrupts are not ignored, as they are in
    tests that run in the background of a script.
    """
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_on_a_terminal_it_asks_and_asks_again(home):
    status, shown = on_a_terminal("h\nhttps://h\n/etc/ca.pem\ntwo words\nsesame\nlite0\n")
    assert status == 0, shown
    settings = config.load()
    assert (settings.server, settings.ca, settings.model) == ("https://h", "/etc/ca.pem", "lite0")
    assert config.token(settings) == "sesame"
    assert "sesame" not in shown


@pytest.mark.slow
def test_what_is_given_is_not_asked_and_an_empty_answer_is_the_default(home):
    status, shown = on_a_terminal("\n", "--server", "http://127.0.0.1:1", "--token-file", "/nowhere/token")
    assert status == 0, shown
    assert config.load() == config.Settings(server="http://127.0.0.1:1", token_file="/nowhere/token")


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "status"), [("\x04", 2), ("\x03", 130)])
def test_an_end_of_the_input_and_an_interrupt_write_nothing(home, typed, status):
    ended, shown = on_a_terminal(typed)
    assert ended == status, shown
    assert "Traceback" not in shown
    assert "internal" not in shown
    assert not home.exists()


# --- set and unset


def test_a_change_keeps_permissions_links_and_comments(write, tmp_path, capsys):
    path = write("# mine\n[api]\nport = 1 # local\n")
    path.chmod(0o640)
    (tmp_path / "link.toml").symlink_to(path)
    command.change(tmp_path / "link.toml", "api.port", "2")
    assert path.read_text() == "# mine\n[api]\nport = 2 # local\n"
    assert (mode(path), (tmp_path / "link.toml").is_symlink()) == (0o640, True)
    command.change(None, "api.port", None)
    assert path.read_text() == "# mine\n[api]\n# port = 2 # local\n"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("allow_insecure", "true", True), ("link.max_age_ms", "20", 20.0), ("model", "3", "3"), ("link.max_age_ms", "null", None),
        ("ca", "", ""), ("demand.mode", "split", "split"), ("server", "https://h", "https://h"),
    ],
)  # fmt: skip
def test_text_becomes_a_value_of_the_setting(write, key, text, value):
    write("model = 'm'\n")
    command.change(None, key, text)
    *sections, name = key.split(".")
    holder = getattr(config.load(), sections[0]) if sections else config.load()
    assert getattr(holder, name) == value


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("nothing", "1", "unknown-key"), ("nothing", None, "unknown-key"), ("api", "1", "unknown-key"), ("topk", "many", "value"),
        ("server", "h", "not-a-url"), ("token", "sesame", "secret"), ("stage.token", "sesame", "secret"), ("link.bits", "2", "cannot-edit"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_refused_and_the_file_stays(write, key, text, reason):
    path = write("link = {bits = 3}\ntoken = 'old' # mine\n")
    before = path.stat()
    with raises(errors.ConfigError, reason=reason, key=key) as caught:
        command.change(None, key, text)
    assert "sesame" not in printable(caught.value.message)
    assert path.read_text() == "link = {bits = 3}\ntoken = 'old' # mine\n"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_wrong_value_can_be_mended_and_a_broken_file_cannot(write):
    path = write("topk = 'x'\nprot = 1\n")
    command.change(None, "topk", "3")
    assert path.read_text() == "topk = 3\nprot = 1\n"
    write("topk = \n")
    with raises(errors.ConfigError, reason="not-toml"):
        command.change(None, "topk", "3")


def test_a_change_needs_a_file(tmp_path):
    with raises(errors.ConfigError, reason="no-file"):
        command.change(None, "topk", "3")
    with raises(errors.ConfigError, reason="unreadable"):
        command.change(tmp_path / "absent.toml", "topk", "3")


def test_a_variable_that_hides_the_change_is_told(write, monkeypatch, capsys):
    write("")
    monkeypatch.setenv("SPLITEDGE_TOPK", "7")
    command.change(None, "topk", "3")
    assert "SPLITEDGE_TOPK" in capsys.readouterr().err
