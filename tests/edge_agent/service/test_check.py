"""What the installation of the service looks at before it changes anything: real files, a real server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.service import check
from edge_agent.service.unit import CREDENTIALS, UnitOptions
from splitedge import errors
from tests.raising import raises
from tests.small_server import TOKEN, SmallServer

Write = Callable[..., UnitOptions]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write(text)``: the options of a service with that configuration. Whether others may read a file of this test depends on the machine, so here it
    is whether the file is there.
    """
    monkeypatch.setattr(check, "unreachable", lambda path: "" if path.is_file() else "no such file or directory")

    def make(text: str, token: bool = True) -> UnitOptions:
        (tmp_path / "agent.toml").write_text(text)
        (tmp_path / "token").write_text(TOKEN + "\n")
        (tmp_path / "edge-agent").write_text("")
        return UnitOptions(tmp_path / "edge-agent", tmp_path / "agent.toml", tmp_path / "token" if token else None)

    return make


async def examine(options: UnitOptions, **environ: str) -> check.Findings:
    return await asyncio.to_thread(check.examine, options, environ)


async def test_settings_that_the_server_accepts_have_no_problem(write):
    async with SmallServer() as server:
        assert await examine(write(f'server = "{server.url}"\nmodel = "small"')) == check.Findings()
        assert (
            await examine(
                write(f'server = "{server.url}"', token=False), SPLITEDGE_MODEL="small", SPLITEDGE_TOKEN=TOKEN
            )
            == check.Findings()
        )


async def test_a_server_that_is_away_is_a_note(write):
    found = await examine(write('server = "http://127.0.0.1:9"\nmodel = "small"'))
    assert found.problems == []
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("model", "token", "environ", "words"),
    [
        ("smal", True, {}, ["'smal'", "small"]),
        ("small", True, {"SPLITEDGE_TOKEN": "another"}, ["token"]),
        ("small", False, {}, ["no token", "--token-file"]),
    ],
    ids=["misspelt model", "refused token", "no token"],
)
async def test_what_the_server_refuses_is_a_problem(write, model, token, environ, words):
    async with SmallServer() as server:
        found = await examine(write(f'server = "{server.url}"\nmodel = "{model}"', token=token), **environ)
    assert len(found.problems) == 1
    assert all(word in found.problems[0] for word in words)


async def test_without_a_token_only_a_server_on_this_machine_may_be_away(write):
    found = await examine(write('server = "https://192.0.2.1:1"\nmodel = "small"', token=False))
    assert "no token" in found.problems[0]
    assert not (await examine(write('server = "http://127.0.0.1:9"\nmodel = "small"', token=False))).problems


@pytest.mark.parametrize(
    "key",
    ["ca", "token_file", "profile", "chain.ca", "chain.token_file", "stage.token_file", "stage.cert", "stage.key"],
)
@pytest.mark.parametrize("path", ["~/x", "x", "/nowhere/x", *(str(home / "x") for home in check.HOMES)])
async def test_a_path_that_the_service_cannot_read_is_named_with_its_key(write, key, path):
    section, _, name = key.rpartition(".")
    found = await examine(write(f'{f"[{section}]" if section else ""}\n{name} = "{path}"', token=False))
    assert len(found.problems) == 1
    assert f"`{key}`" in found.problems[0]
    assert path in found.problems[0]


def test_a_home_folder_may_hold_files_where_the_unit_shows_it(write, monkeypatch):
    monkeypatch.setattr(check, "unreachable", lambda path: "")
    options = write("")
    assert check._unusable("ca", str(check.HOMES[0] / "ca.pem"), options)
    assert not check._unusable("ca", str(check.HOMES[0] / "ca.pem"), replace(options, home_visible=True))


async def test_the_token_that_systemd_hands_over_need_not_be_readable(write):
    async with SmallServer() as server:
        options = write(f'server = "{server.url}"\nmodel = "small"\ntoken_file = "/nowhere/x"')
        assert await examine(options) == check.Findings()
        found = await examine(options, SPLITEDGE_TOKEN_FILE="/nowhere/y")
    assert "/nowhere/y" in found.problems[0]


async def test_credentials_of_systemd_are_not_looked_for_before_it_makes_them(write):
    text = f'server = "http://127.0.0.1:9"\n[stage]\nport = 1\nhost = "0.0.0.0"\ncert = "{CREDENTIALS}/c"\nkey = "{CREDENTIALS}/k"\ntoken_file = "{CREDENTIALS}/t"'
    assert not (await examine(write(text))).problems


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = [", ["TOML"]),
        ("", ["model"]),
        ('model = "m"\n[stage]\nport = 1', ["stage.port"]),
        ('cache_dir = "/srv/cache"\nmodel = "m"', ["`cache_dir`", "/var/cache/splitedge"]),
        ('[stage]\nport = 1\nhost = "0.0.0.0"', ["stage.token_file"]),
        ('server = "http://192.0.2.1:1"\nmodel = "m"', ["unencrypted"]),
    ],
)
async def test_settings_that_no_service_can_run_with_are_refused(write, text, words):
    found = await examine(write(text))
    assert len(found.problems) == 1
    assert all(word in found.problems[0] for word in words)


async def test_files_that_do_not_hold_what_they_should_are_all_named(write, tmp_path):
    (tmp_path / "x").write_text("neither a certificate nor a profile")
    x = tmp_path / "x"
    found = await examine(write(f'ca = "{x}"\nprofile = "{x}"\nmodel = "m"\n[chain]\nca = "{x}"\ntoken_file = "{x}"'))
    assert len(found.problems) == 4


async def test_missing_files_of_the_installation_come_first(write, tmp_path):
    options = write('model = "m"')
    options.config.unlink()
    (tmp_path / "token").unlink()
    found = await examine(options)
    assert len(found.problems) == 2
    assert str(options.config) in found.problems[0]
    assert str(options.token_file) in found.problems[1]
    found = await examine(replace(options, executable=Path("/nowhere/edge-agent")))
    assert "/opt/splitedge" in found.problems[0]


def test_reach_is_judged_by_the_permission_bits(tmp_path):
    assert check.unreachable(Path("/etc/passwd")) == ""
    assert check.unreachable(Path("/etc/shadow")) != ""
    assert check.unreachable(Path("/etc/nothing-of-this-name")) == "no such file or directory"
    assert check.unreachable(Path("/etc")) != ""
    assert "own /tmp" in check.unreachable(Path("/tmp"))
    (tmp_path / "loop").symlink_to("loop")
    assert "links" in check.unreachable(tmp_path / "loop")


def test_variables_are_read_as_systemd_reads_them(tmp_path):
    path = tmp_path / "agent.env"
    assert check.environment(path) == {}
    path.write_text('# a comment\n; another\n\nSPLITEDGE_MODEL=m\r\n SPLITEDGE_TOKEN = "a b=c" \nnothing\n')
    assert check.environment(path) == {"SPLITEDGE_MODEL": "m", "SPLITEDGE_TOKEN": "a b=c"}
    path.write_bytes(b"\xef\xbb\xbfSPLITEDGE_MODEL=m")
    with raises(errors.ConfigError, reason="not-plain-text"):
        check.environment(path)
    assert os.environ.get("SPLITEDGE_MODEL") is None
