"""An agent that holds a segment of a model fetches the next one from a real server as an upgrade, or whole where that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from edge_agent.planning import downloads
from edge_agent.planning.disk_cache import DiskCache
from edge_server.api.app import make_app
from edge_server.store.store import Store
from kernels.reference import pack_bits
from splitedge.head import segment as seg
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import Plan
from tests.segment_builder import Builder
from tests.small_server import make_plan


def built(bits: int) -> bytes:
    """Large enough that the upgrade is smaller: the same weights at 4 and at 6 bits."""
    builder = Builder([1, 1, 100], seed=3)
    builder.conv(builder.input, 200, bits=bits)
    made = builder.finish(model="net", cut="conv0")
    conv = made.header.ops[0]
    assert isinstance(conv, seg.Conv)
    fine = np.random.default_rng(0).normal(31, 9, 20_000).clip(0, 62).astype(np.uint8)
    coarse = np.rint((fine.astype(float) - 31) / 31 * 7 + 7).astype(np.uint8)
    multiplier = np.full(200, 0.001 if bits == 6 else 0.001 * 31 / 7, np.float32)
    packed = pack_bits(fine if bits == 6 else coarse, bits)
    blob = made.blob.copy()
    blob[conv.multiplier : conv.multiplier + 800] = multiplier.view(np.uint8)
    blob[: packed.size] = packed
    return seg.build(made.header, blob.tobytes())


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
async def test_a_board_fetches_what_its_segment_lacks(tmp_path: Path, damaged: bool) -> None:
    few, many = built(4), built(6)
    cache, said = DiskCache(tmp_path / "cache"), list[str]()
    held = cache.directory / f"{seg.digest(few)}.segment"
    held.write_bytes(few)
    with Store(tmp_path / "store") as store:
        plan = planned(store, many)
        store.segments.put(few, "b", 1, (4,))
        if damaged:
            held.write_bytes(few[:-40] + bytes(40))
        async with serving(store) as client:
            assert await downloads.segment(client, cache, plan, said.append) == many
        made = store.segments.upgrade_path(plan.segment.sha256, seg.digest(few))
        assert made is not None
        assert made.stat().st_size < 0.6 * len(many)
        assert cache.held()[0] == plan.segment.sha256


async def test_a_server_that_has_forgotten_what_is_held_sends_the_whole(tmp_path: Path) -> None:
    few, many = built(4), built(6)
    cache = DiskCache(tmp_path / "cache")
    (cache.directory / f"{seg.digest(few)}.segment").write_bytes(few)
    with Store(tmp_path / "store") as store:
        plan = planned(store, many)
        async with serving(store) as client:
            assert await downloads.segment(client, cache, plan, lambda _: None) == many


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[ServerClient]:
    """A client of a server on ``store``."""
    async with (
        TestServer(make_app(store, auth=False)) as server,
        ServerClient(str(server.make_url("/")), None) as client,
    ):
        yield client


def planned(store: Store, data: bytes) -> Plan:
    plan = make_plan("split", data, name="net")
    assert store.segments.put(data, "b", 1, (6,)) == plan.segment
    return plan
