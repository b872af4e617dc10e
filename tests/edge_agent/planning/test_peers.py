"""Whether the server and the next board answer, asked before anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import ChainConfig, Settings
from edge_agent.planning import peers
from splitedge import errors
from tests.small_server import TOKEN, SmallServer


def settings(small: SmallServer, **changes: object) -> Settings:
    return Settings(**({"server": small.url, "token": TOKEN, "model": "small"} | changes))


@pytest.mark.parametrize("model", ["small", ""])
async def test_a_server_that_can_serve_is_no_error(model: str) -> None:
    async with SmallServer() as server:
        await peers.check(settings(server, model=model))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"server": "http://127.0.0.1:9"}, errors.UnreachableError), ({"token": "wrong"}, errors.AuthError), ({"token": "wrong", "model": ""}, errors.AuthError),
        ({"model": "absent"}, errors.UnknownModelError), ({"token": "", "token_file": "/nowhere/token"}, errors.ConfigError), ({"ca": "/nowhere/ca.pem"}, errors.ConfigError),
        ({"chain": ChainConfig(next="http://127.0.0.1:9")}, errors.UnreachableError),
    ],
)  # fmt: skip
async def test_what_stands_in_the_way_is_raised(changes: dict[str, object], error: type[errors.SplitEdgeError]) -> None:
    async with SmallServer() as server:
        with pytest.raises(error):
            await peers.check(settings(server, **changes))


async def test_the_next_board_is_asked_with_its_own_token(tmp_path: Path) -> None:
    async with SmallServer() as server, SmallServer() as board:
        for token, accepted in ((TOKEN, True), ("wrong", False)):
            chain = ChainConfig(next=board.url, token=token)
            if accepted:
                await peers.check(settings(server, chain=chain))
                continue
            with pytest.raises(errors.AuthError):
                await peers.check(settings(server, chain=chain))
