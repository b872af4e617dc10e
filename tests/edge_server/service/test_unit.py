"""The systemd unit of the server: accepted by systemd itself, hardened, and safe against odd paths."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from edge_server.cli import app
from edge_server.config import ServeConfig
from edge_server.service.unit import SERVICE, UnitOptions, render
from splitedge.errors import ConfigError
from tests.raising import raises

EXPOSURE = 20  # systemd-analyze's tenths: at most 2.0 of 10, where 10 is a service without any protection
CERTIFIED = ServeConfig("0.0.0.0", cert="/etc/splitedge/server.pem", key="/etc/splitedge/server.key")

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed: the unit is not checked by systemd",
)


def analyze(unit: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / SERVICE.unit
    path.write_text(unit)
    command = ["systemd-analyze", *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def options_in(folder: Path, **changes: Any) -> UnitOptions:
    folder.mkdir(exist_ok=True)
    executable = folder / "edge-server"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    return UnitOptions(executable, **{"serve": CERTIFIED, **changes})


def in_store(folder: Path) -> dict[str, Any]:
    """Changes for a service that runs as the owner of a given store."""
    return {"store": folder / "store", "user": "daemon"}


@needs_systemd_analyze
@pytest.mark.parametrize("folder", ["plain", "with a space", "100%", "dollar$HOME", "tilde~ümlaut"])
@pytest.mark.parametrize("owned", [False, True])
def test_systemd_accepts_the_unit(tmp_path: Path, folder: str, owned: bool) -> None:
    place = tmp_path / folder
    serve = ServeConfig(cert=str(place / "server.pem"), key=str(place / "server.key"))
    options = options_in(place, serve=serve, **(in_store(place) if owned else {}))
    done = analyze(render(options), tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("compiles", [False, True])
def test_the_unit_is_hardened_below_the_stated_exposure(tmp_path: Path, owned: bool, compiles: bool) -> None:
    options = options_in(tmp_path, compiles=compiles, **(in_store(tmp_path) if owned else {}))
    threshold = EXPOSURE if compiles else EXPOSURE - 1
    done = analyze(render(options), tmp_path, "security", "--no-pager", "--offline=true", f"--threshold={threshold}")
    assert done.returncode == 0, done.stdout


def test_it_notifies_restarts_and_runs_as_a_user_of_its_own() -> None:
    lines = render(UnitOptions(Path("/opt/splitedge/bin/edge-server"), CERTIFIED)).splitlines()
    for line in (
        "Type=notify", "Restart=on-failure", "StartLimitIntervalSec=0", "RestartPreventExitStatus=2 4 243", "WatchdogSec=30", "DynamicUser=yes",
        "StateDirectory=splitedge-server", "CacheDirectory=splitedge-server", "After=network-online.target", "RemoveIPC=yes",
        "LoadCredential=server.pem:/etc/splitedge/server.pem", "LoadCredential=server.key:/etc/splitedge/server.key",
    ):  # fmt: skip
        assert line in lines
    assert "ProtectHome=yes" in lines


def test_a_given_store_is_writable_for_its_owner_and_the_owners_other_programs_are_left_alone() -> None:
    lines = render(UnitOptions(Path("/bin/s"), store=Path("/srv/store"), user="anna")).splitlines()
    assert {"User=anna", "ReadWritePaths=/srv/store", "RemoveIPC=no"} <= set(lines)
    assert not [line for line in lines if line.startswith(("DynamicUser", "StateDirectory="))]


@pytest.mark.parametrize(
    "serve", [CERTIFIED, ServeConfig("::", 9000, auth=False, insecure=True, quiet=True), ServeConfig()]
)
def test_the_server_understands_its_command_line(serve: ServeConfig) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", render(UnitOptions(Path("/bin/edge-server"), serve)), re.MULTILINE)
    _, command, *words = shlex.split(line)
    group: Any = typer.main.get_command(app)
    given = group.commands[command].make_context(command, words).params
    assert given["store"] == "/var/lib/splitedge-server"
    assert (given["serve_host"], given["serve_port"]) == (serve.host, serve.port)
    for name in ("auth", "insecure", "quiet"):
        default = getattr(ServeConfig(), name)
        assert (default if given[f"serve_{name}"] is None else given[f"serve_{name}"]) == getattr(serve, name)
    folder = SERVICE.credentials
    assert given["serve_cert"] == (str(folder / "server.pem") if serve.cert else None)
    assert given["serve_key"] == (str(folder / "server.key") if serve.key else None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (UnitOptions(Path("bin/edge-server")), "not-absolute"),
        (UnitOptions(Path("/bin/a\nUser=root")), "control-character"),
        (UnitOptions(Path("/bin/a"), ServeConfig(host='0" --insecure "')), "quotes"),
        (UnitOptions(Path("/bin/a"), ServeConfig(cert="server.pem", key="/k")), "not-absolute"),
        (UnitOptions(Path("/bin/a"), store=Path("/srv\n"), user="a"), "control-character"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused(options: UnitOptions, reason: str) -> None:
    with raises(ConfigError, reason=reason):
        render(options)


def named(text: str) -> UnitOptions:
    """Options in which every text is ``text``."""
    serve = ServeConfig(text, cert=f"/etc/{text}", key=f"/etc/{text}")
    return UnitOptions(Path("/bin/s"), serve, store=Path("/srv") / text, user="a")


PLAIN = render(named("x"))


@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_no_value_adds_a_line_to_the_unit(name: str) -> None:
    try:
        unit = render(named(name))
    except ConfigError:
        return
    assert unit.count("\n") == PLAIN.count("\n")
    assert len(re.findall(r"^ExecStart=", unit, re.MULTILINE)) == 1
