"""The log of who is served and who is refused."""

from __future__ import annotations

import logging

import pytest
from aiohttp.test_utils import TestClient, TestServer

from edge_server.api import access_log
from edge_server.api.app import make_app
from edge_server.store.store import Store
from splitedge import limits


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "x", 1, text, (), None)


def test_a_flood_of_lines_is_cut_and_counted() -> None:
    now = [0.0]
    bound = access_log.RateBound(lambda: now[0])
    passed = [bound.filter(record("x")) for _ in range(3 * limits.LOG_LINES)]
    assert sum(passed) == limits.LOG_LINES
    assert all(passed[: limits.LOG_LINES])
    now[0] = limits.LOG_PERIOD
    later = record("after")
    assert bound.filter(later)
    assert f"{2 * limits.LOG_LINES} lines" in later.getMessage()
    now[0] *= 2
    quiet = record("after")
    assert bound.filter(quiet)
    assert quiet.getMessage() == "after"


async def test_who_is_refused_is_logged_by_address_and_reason(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, access_log.log.name)
    async with TestClient(TestServer(make_app(store))) as client:
        assert (await client.get("/v1/models")).status == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer se_guess"})).status == 401
        token = store.tokens.add("kitchen")
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/v1/models", headers=bearer)).status == 200
        assert (await client.get("/v1/outline?model=n%0Ao", headers=bearer)).status == 404
    lines = [line.getMessage() for line in caplog.records if line.name == access_log.log.name]
    assert len(lines) == 3
    assert all("127.0.0.1" in line and "\n" not in line and token not in line for line in lines)
    assert "no valid token" in lines[0]
    assert "kitchen" in lines[2]
    assert "/v1/outline" in lines[2]
