"""`edge-server token`: printed once and alone, listed by name, revoked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_server.cli import app
from edge_server.store.store import Store
from splitedge import errors
from tests.raising import raises


def run(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["token", "--store", str(folder), *options], catch_exceptions=False)
    if isinstance(result.exception, errors.SplitEdgeError):
        raise result.exception
    assert result.exit_code == 0
    return result.output


def test_a_token_is_printed_alone_and_lets_in(tmp_path: Path) -> None:
    token = run(tmp_path, "board-1").strip()
    with Store(tmp_path) as store:
        assert store.tokens.holder(token)


def test_names_are_listed_and_tokens_are_not(tmp_path: Path) -> None:
    token = run(tmp_path, "board-1").strip()
    listed = run(tmp_path, "--list")
    assert listed.startswith("board-1\t20")
    assert token not in listed


def test_a_revoked_token_is_useless(tmp_path: Path) -> None:
    token = run(tmp_path).strip()
    run(tmp_path, "--revoke")
    with Store(tmp_path) as store:
        assert not store.tokens.holder(token)
    with raises(errors.UsageError, reason="unknown-token"):
        run(tmp_path, "--revoke")


@pytest.mark.parametrize("options", [["token", "--stoer"], ["serve", "--port", "many"], ["add"]])
def test_a_command_line_that_is_none_ends_with_2(options: list[str]) -> None:
    assert CliRunner().invoke(app, options).exit_code == 2


def test_numbers_that_are_none_are_one_sentence() -> None:
    with raises(errors.UsageError, reason="not-numbers"):
        CliRunner().invoke(app, ["add", "x.onnx", "--mean", "a,b"], catch_exceptions=False)
