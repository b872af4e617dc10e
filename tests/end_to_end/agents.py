"""An agent in this process, beside a server in it too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestServer

from edge_agent import config
from edge_agent.runtime.agent import Agent
from edge_server.api.app import make_app
from edge_server.store.store import Store
from tests.end_to_end.conftest import World


@asynccontextmanager
async def agent_of(world: World, store: Path, tmp_path: Path, name: str, **options: Any) -> AsyncIterator[Agent]:
    with Store(store) as opened:
        async with TestServer(make_app(opened)) as server:
            common = {
                "server": f"http://127.0.0.1:{server.port}", "token": options.get("token") or (store / "token").read_text(), "model": name,
                "cache_dir": str(tmp_path / "cache"), "profile": str(world.profile), "demand.max_drop_points": 100.0,
            }  # fmt: skip
            async with Agent(config.load(options=common | options, environ={})) as agent:
                yield agent
