"""What a stage refuses before anything is computed; tests/end_to_end/test_chain.py has the rest, with real boards and a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config
from edge_agent.commands.run import run
from edge_agent.runtime.stage_plans import check_stage
from edge_agent.runtime.stage_server import check_exposure
from splitedge import errors
from splitedge.protocol.messages import Cut, Stage, StageTime
from tests.raising import raises
from tests.small_server import make_plan, segment_file

CUT = Cut(0, "x", "x", [16, 16, 3], "input")
ROUTE = [
    StageTime(
        device=name,
        start="x",
        cut="y",
        weight_bits=8.0,
        activation_bits=8,
        device_ms=1.0,
        sending_ms=1.0,
        rtt_ms=1.0,
        payload_bytes=100,
    )
    for name in ("first", "second")
]


def settings(**options: object) -> config.Settings:
    return config.load(options=options, environ={})


def stage(**changes: object) -> Stage:
    codec = make_plan("split", segment_file()).ladder[0]
    fields = {
        "device": "second",
        "start": CUT,
        "incoming": [codec],
        "upstream": "p1",
        "downstream": "",
        "route": ROUTE,
        "rate_fps": 1.0,
    }
    return Stage(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"upstream": "p0"}, "other-plan"),
        ({"device": "third"}, "other-board"),
        ({"incoming": []}, "inconsistent"),
        ({"route": ROUTE[:1]}, "inconsistent"),
    ],
)
def test_a_plan_of_another_place_is_a_protocol_error(changes: dict[str, object], reason: str) -> None:
    data = segment_file()
    check_stage(make_plan("split", data, stage=stage()), "p1", "second")
    with raises(errors.ProtocolError, reason=reason):
        check_stage(make_plan("split", data, stage=stage(**changes)), "p1", "second")


def test_a_plan_that_is_of_no_chain_is_a_protocol_error() -> None:
    with pytest.raises(errors.ProtocolError):
        check_stage(make_plan("split", segment_file()), "p1", "second")


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        ({}, "a token and without TLS"),
        ({"stage.token": "t"}, "TLS"),
        ({"stage.cert": "c", "stage.key": "k"}, "a token"),
    ],
)
def test_beyond_this_machine_a_stage_wants_token_and_tls(options: dict[str, object], lacks: str) -> None:
    found = settings(**{"stage.port": 0, "stage.host": "192.0.2.1"} | options)
    with raises(errors.ConfigError, reason="open-to-others"):
        check_exposure(found, config.stage_token(found))
    check_exposure(settings(**{"stage.port": 0} | options), config.stage_token(found))
    check_exposure(settings(**{"allow_insecure": True, "stage.host": "192.0.2.1"} | options), config.stage_token(found))


async def test_a_board_is_a_stage_or_has_callers_of_its_own() -> None:
    with raises(errors.ConfigError, reason="model-and-stage", key="stage.port"):
        await run(settings(**{"model": "small", "stage.port": 0}))


def test_tokens_of_neighbours_come_from_settings_or_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    assert config.chain_token(settings(**{"chain.token": "given"})) == "given"
    assert config.stage_token(settings(**{"stage.token_file": str(tmp_path / "token")})) == "from-a-file"
    assert config.chain_token(settings()) == config.stage_token(settings()) == ""
    with raises(errors.ConfigError, reason="token-unreadable"):
        config.chain_token(settings(**{"chain.token_file": str(tmp_path / "none")}))


def test_the_address_of_the_next_board_is_a_url() -> None:
    with raises(errors.ConfigError, reason="not-a-url", key="chain.next"):
        settings(**{"chain.next": "board2:8472"})
