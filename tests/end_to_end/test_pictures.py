"""Inputs that are sent whole as image files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

from edge_server.api import app
from edge_server.planning import device_plan
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from edge_server.tails.pool import TailPool
from splitedge import codec
from splitedge.codec import image_file
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import IMAGE_FORMATS, ImageFormat, Plan, PlanRequest
from tests.end_to_end.agents import agent_of
from tests.end_to_end.conftest import World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
async def test_a_picture_travels_as_an_image_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ImageFormat
) -> None:
    """The agent names the formats that it knows, and gets the answer of the pixels that the server decodes."""
    asked: list[PlanRequest] = []

    def planned(catalog: Catalog, request: PlanRequest, tails: TailPool) -> Plan:
        asked.append(request)
        plan = device_plan.make_plan(catalog, request, tails)
        made = catalog.bundle("tiny").codec(0, f"{kind}-90", 8)
        plan = replace(plan, ladder=[made], rungs=plan.rungs[:1], codec=0)
        catalog.store.plans.put(plan)
        return plan

    monkeypatch.setattr(app, "make_plan", planned)
    options = {"token": world.token, "demand.mode": "server"}
    async with agent_of(world, world.store, tmp_path, "tiny", **options) as agent:
        plan = agent._replanner.plan
        assert plan is not None
        payload = plan.engine.process(world.images[0].read_bytes()).payload
        result = await agent.infer(world.images[0])
    assert Image.open(io.BytesIO(payload)).format == IMAGE_FORMATS[kind].upper()
    with Store(world.store) as store:
        catalog = Catalog(store)
        bundle = catalog.bundle("tiny")
        values = codec.decode(payload, bundle.codec(0, f"{kind}-90", 8), bundle.cuts[0].shape)
        expected = catalog.tail(bundle, bundle.cuts[0]).run(values)
    assert set(image_file.available()) <= set(asked[0].tasks)
    assert result.payload_bytes == HEADER_BYTES + len(payload)
    assert result.top[0].index == int(expected.argmax())
