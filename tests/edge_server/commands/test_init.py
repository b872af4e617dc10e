"""`edge-server init`: what it makes once, what it shows each time, what it leaves alone."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge_agent import config as agent_config
from edge_server import certificate
from edge_server.cli import app
from edge_server.store.store import Store
from splitedge import errors
from tests.raising import raises

TOKEN = re.compile(r"\bse_[\w-]{43}(?![\w-])")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "SPLITEDGE_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(*options: str) -> Result:
    result = CliRunner().invoke(app, ["init", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def folder(home: Path) -> Path:
    return home / ".config/splitedge"


def store(home: Path) -> Path:
    return home / ".local/share/splitedge/server"


def agent_toml(screen: str, home: Path) -> agent_config.Settings:
    """The settings that a board has which follows the screen: its lines in its agent.toml, in its home folder."""
    lines = [line for line in screen.splitlines() if re.match(r"\w+ = ", line)]
    path = home / "agent.toml"
    path.write_text("\n".join(lines))
    return agent_config.load(path, environ={})


def test_the_screen_is_24_lines_of_80_columns_and_shows_the_token_once(home: Path) -> None:
    lines = run().stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    (token,) = TOKEN.findall("\n".join(lines))
    with Store(store(home)) as opened:
        assert opened.tokens.holder(token) == "board"


def test_a_board_that_follows_the_screen_has_working_settings(home: Path) -> None:
    screen = run("--name", "Server.Example").stdout
    settings = agent_toml(screen, home)
    assert settings.server == "https://server.example:8470"
    assert agent_config.path_of(settings.ca) == certificate.paths(folder(home))[0]
    (save,) = (line for line in screen.splitlines() if TOKEN.search(line))
    subprocess.run(["sh", "-c", save], cwd=folder(home), check=True)
    assert (folder(home) / "token").stat().st_mode & 0o777 == 0o600
    with Store(store(home)) as opened:
        assert opened.tokens.holder(agent_config.token(settings, {})) == "board"


def test_the_certificate_holds_this_machine_and_the_names_given(home: Path) -> None:
    run("--name", "server.example", "--name", "[2001:db8::1]")
    names = certificate.read(folder(home)).names
    assert names[:2] == ("server.example", "2001:db8::1")
    assert {"localhost", "127.0.0.1", "::1", socket.gethostname().lower().partition(".")[0]} <= set(names)


@pytest.mark.thorough
def test_the_shown_command_serves(home: Path) -> None:
    lines = run("--store", str(home / "my store")).stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("edge-server serve"))
    words = shlex.split(" ".join(line.rstrip("\\") for line in lines[start:]).replace("~", str(home)))
    assert words[words.index("--store") + 1] == str(home / "my store")
    command = [sys.executable, "-m", "edge_server", *words[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("edge-server ready on https://0.0.0.0:")
        process.terminate()


def test_a_second_run_changes_nothing_and_shows_the_same_without_a_token(home: Path) -> None:
    first = run("--name", "server.example").stdout
    before = {path.name: path.read_bytes() for path in folder(home).iterdir()}
    again = run()
    assert {path.name: path.read_bytes() for path in folder(home).iterdir()} == before
    assert not TOKEN.search(again.output)
    assert agent_toml(first, home) == agent_toml(again.stdout, home)
    assert first.splitlines()[-3:] == again.stdout.splitlines()[-3:]
    assert max(map(len, again.stdout.splitlines())) <= 80
    assert run("--name", "server.example").stdout == again.stdout
    with Store(store(home)) as opened:
        assert [token.name for token in opened.tokens.all()] == ["board"]


def test_a_name_that_the_certificate_lacks_is_an_error_until_it_is_renewed(home: Path) -> None:
    run()
    before = (folder(home) / "server.pem").read_bytes()
    with raises(errors.UsageError, reason="name-not-certified", names=["server.example"]):
        run("--name", "server.example")
    assert (folder(home) / "server.pem").read_bytes() == before
    assert not TOKEN.search(run("--name", "server.example", "--renew").output)
    assert certificate.read(folder(home)).names[0] == "server.example"


def test_renewal_says_which_names_are_gone(home: Path) -> None:
    run("--name", "old.example")
    assert "old.example" in run("--renew").stderr
    assert "old.example" not in certificate.read(folder(home)).names


def test_renewal_repairs_a_certificate_that_is_not_whole(home: Path) -> None:
    run()
    (folder(home) / "server.key").unlink()
    with raises(errors.ConfigError, reason="half-missing"):
        run()
    run("--renew")
    assert certificate.read(folder(home))


def test_a_certificate_that_lacks_an_address_of_this_machine_is_reported(home: Path) -> None:
    certificate.make(folder(home), ["old.example"])
    result = run()
    assert "127.0.0.1" in result.stderr
    assert agent_toml(result.stdout, home).server == "https://old.example:8470"


def test_the_only_model_is_shown(home: Path, network: Path) -> None:
    from edge_server.commands.add import add
    from tests.edge_server.small_network import request_of

    add(store(home), request_of(network))
    assert agent_toml(run().stdout, home).model == "tiny"


def test_another_folder_token_and_port(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITEDGE_SERVE_PORT", "9000")
    screen = run("--folder", str(home / "a b"), "--token", "kitchen", "--name", "::5").stdout
    assert certificate.read(home / "a b").names[0] == "::5"
    assert agent_toml(screen, home).server == "https://[::5]:9000"
    (token,) = TOKEN.findall(screen)
    with Store(store(home)) as opened:
        assert opened.tokens.holder(token) == "kitchen"


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--name", "a b"], "host-name"), (["--token", "../x"], "name"), (["--name", ""], "host-name")],
)
def test_a_wrong_option_makes_nothing(home: Path, options: list[str], reason: str) -> None:
    with raises(errors.UsageError, reason=reason):
        run(*options)
    assert not folder(home).exists()
    assert not store(home).exists()


def test_a_token_that_cannot_be_printed_is_revoked(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "edge_server", "init"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode != 0
    with Store(store(home)) as opened:
        assert opened.tokens.all() == []


def test_hundreds_of_names_still_fit_one_screen(home: Path) -> None:
    lines = run(*(word for i in range(200) for word in ("--name", f"server-{i}.example"))).stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
