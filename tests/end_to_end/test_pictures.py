"""Inputs that are sent whole as image files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from msgspec.structs import replace
from PIL import Image

from edge_agent import config
from edge_agent.runtime.agent import Agent
from edge_server.api import app
from edge_server.planning import device_plan
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from edge_server.tails.pool import TailPool
from splitedge import codec
from splitedge.codec import image_file
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import IMAGE_FORMATS, ImageFormat, Plan, PlanRequest
from tests.end_to_end.conftest import World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
async def test_a_picture_travels_as_an_image_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ImageFormat
) -> None:
    """The agent names the formats that it knows, and gets the answer of the pixels that the server decodes."""
    asked: list[PlanRequest] = []
    with Store(world.store) as store:
        catalog = Catalog(store)
        bundle = catalog.bundle("tiny")

        def planned(_: Catalog, request: PlanRequest, tails: TailPool) -> Plan:
            asked.append(request)
            plan = device_plan.make_plan(catalog, request, tails)
            plan = replace(plan, ladder=[bundle.codec(0, f"{kind}-90", 8)], rungs=plan.rungs[:1], codec=0)
            store.plans.put(plan)
            return plan

        monkeypatch.setattr(app, "make_plan", planned)
        async with TestServer(app.make_app(store)) as server:
            options = {
                "server": f"http://127.0.0.1:{server.port}", "token": world.token, "model": "tiny", "demand.mode": "server",
                "cache_dir": str(tmp_path / "cache"), "profile": str(world.profile), "demand.max_drop_points": 100.0,
            }  # fmt: skip
            async with Agent(config.load(options=options, environ={})) as agent:
                plan = agent._replanner.plan
                assert plan is not None
                payload = plan.engine.process(world.images[0].read_bytes()).payload
                result = await agent.infer(world.images[0])
        assert Image.open(io.BytesIO(payload)).format == IMAGE_FORMATS[kind].upper()
        values = codec.decode(payload, bundle.codec(0, f"{kind}-90", 8), bundle.cuts[0].shape)
        expected = catalog.tail(bundle, bundle.cuts[0]).run(values)
    assert set(image_file.available()) <= set(asked[0].tasks)
    assert result.payload_bytes == HEADER_BYTES + len(payload)
    assert result.top[0].index == int(expected.argmax())
