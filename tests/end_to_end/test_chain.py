"""Board, board and server: real stages, a real server, real sockets; and the same as processes, of which one is killed."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from msgspec.structs import replace
from PIL import Image

from edge_agent import config
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.stage_server import StageServer
from edge_server.api.app import make_app
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import codec, errors, limits
from splitedge.head import answers, executor
from splitedge.link.http_client import ServerClient
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Open, Plan, encode
from tests import bad_frames
from tests.end_to_end.conftest import World, end
from tests.raising import raises

BEARER = "stage-token"


@dataclass
class Boards:
    """A server, a stage before it, and what the first board's settings are."""

    world: World
    server: str
    stage: StageServer
    store: Store
    folder: Path

    def settings(self, **options: Any) -> config.Settings:
        ours = {"chain.next": self.stage.url, "chain.token": BEARER, "chain.spread": True, "chain.exact": True}
        return settings(self.world, self.folder / "first", self.server, **ours | {"model": "tiny"} | options)

    @asynccontextmanager
    async def first(self, **options: Any) -> AsyncIterator[Agent]:
        async with Agent(self.settings(**options)) as agent:
            yield agent


def settings(world: World, cache: Path, server: str, **options: Any) -> config.Settings:
    common = {
        "server": server, "token": world.token, "cache_dir": str(cache), "profile": str(world.profile), "demand.max_drop_points": 100.0,
        "demand.keep": "input", "demand.max_away_s": 20.0, "threads": 1,
    }  # fmt: skip
    return config.load(options=common | options, environ={})


@pytest_asyncio.fixture
async def boards(world: World, tmp_path: Path) -> AsyncIterator[Boards]:
    with Store(world.store) as store:
        async with TestServer(make_app(store)) as server:
            url = f"http://127.0.0.1:{server.port}"
            stage = StageServer(settings(world, tmp_path / "second", url, **{"stage.port": 0, "stage.token": BEARER}))
            await stage.start()
            try:
                yield Boards(world, url, stage, store, tmp_path)
            finally:
                await stage.close()


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(count)]


async def test_answers_are_those_of_the_integer_network_in_one_piece(boards: Boards) -> None:
    """Bits: the last integer stage sends the codes of one head from the input to its cut, and the server's tail answers those."""
    async with boards.first() as agent:
        results = [await agent.infer(frame) for frame in frames(4)]
        plan = agent.plan
        assert plan is not None
        assert plan.stage is not None
        assert len(plan.stage.route) == 2
        last = boards.store.plans.get(plan.stage.downstream)
        bits = {}
        for one, start in ((plan, 0), (last, plan.cut.index)):
            begun, cut, widths = boards.store.segments.known(one.bundle, [one.segment.sha256])[one.segment.sha256]
            assert (begun, cut) == (start, one.cut.index)
            bits |= dict(zip(Catalog(boards.store).bundle("tiny").weight_layers(cut, start), widths, strict=True))
        catalog = Catalog(boards.store)
        bundle = catalog.bundle("tiny")
        whole = executor.load(bundle.segment(last.cut.index, bits))
        tail, exact = catalog.tail(bundle, last.cut), bundle.exact_codec(last.cut.index)
        assert last.ladder == [exact]
        for frame, result in zip(frames(4), results, strict=True):
            codes = whole.run(agent._replanner.plan.engine._codes(frame)[0])  # type: ignore[union-attr]
            values = codec.decode(codes.tobytes(), exact, codes.shape)
            wanted = answers.pack(tail.run(values), bundle.output, 5)
            told = b"".join(np.uint32(t.index).tobytes() + np.float32(t.probability).tobytes() for t in result.top)
            assert told == wanted
    assert boards.stage.counters.answered == 4
    assert boards.stage.status()["plan"]["start"] == plan.cut.layer


async def test_a_stage_takes_frames_by_every_codec_of_the_ladder(boards: Boards) -> None:
    """Rotations, entropy stages and the like too: what it decodes goes through its segment and to the server as any other."""
    async with boards.first(**{"chain.exact": False}) as agent:
        assert agent.plan is not None
        assert agent._replanner.plan is not None
        kinds = set()
        for rung, made in enumerate(agent.plan.ladder):
            encoded = agent._replanner.plan.engine.process(frames(1)[0], lambda rung=rung: rung)  # type: ignore[misc]
            [running] = boards.stage._plans.open.values()
            assert running.encode(Frame(0, rung, 0, encoded.payload)).payload
            kinds |= {frozenset(codec.work(made, [1]))}
        assert len(kinds) > 1, "the ladder has nothing but packed codecs"


async def test_a_stage_takes_a_picture_that_comes_as_jpeg(boards: Boards) -> None:
    """It computes from the input on, on the pixels that come out of the JPEG."""
    catalog = Catalog(boards.store)
    bundle = catalog.bundle("tiny")
    made = bundle.codec(0, "jpeg-80", 8)
    async with boards.first() as agent:
        plan = agent.plan
        assert plan is not None
        assert plan.stage is not None
        last = boards.store.plans.get(plan.stage.downstream)
        assert last.stage is not None
        cut = last.cut.index
        segment = bundle.segment(cut, 8)
        widths = (8,) * len(bundle.weight_layers(cut))
        ref = boards.store.segments.put(segment, bundle.sha256, cut, widths)
        stage = replace(last.stage, upstream="picture", start=bundle.cuts[0], incoming=[made])
        boards.store.plans.put(replace(last, id="rest", segment=ref, stage=stage, preprocess=bundle.preprocess))
        first = replace(plan.stage, downstream="rest")
        boards.store.plans.put(replace(plan, id="picture", cut=bundle.cuts[0], ladder=[made], stage=first))
        head = executor.load(segment)
        rows = np.linspace(0, 255, 16).astype(np.uint8)
        picture = np.stack([np.add.outer(rows // 2, rows // 2), np.tile(rows, (16, 1)), np.tile(rows[:, None], 16)], -1)
        payload = codec.encode_codes(picture, head.input.scale, head.input.zero_point, made)
        assert payload[:2] == b"\xff\xd8"
        async with FrameStream(boards.stage.url, BEARER, "picture") as stream:
            answer = await stream.send(payload, 0)
    pixels = np.asarray(Image.open(io.BytesIO(payload)))
    assert 0 < np.abs(pixels.astype(int) - picture).max() < 64
    exact = bundle.exact_codec(cut)
    codes = head.run(pixels)
    tail = catalog.tail(bundle, last.cut)
    values = codec.decode(codes.tobytes(), exact, codes.shape)
    assert answer.payload == answers.pack(tail.run(values), bundle.output, 5)


async def test_many_frames_at_once_are_all_answered_and_the_link_is_bounded(boards: Boards) -> None:
    async with boards.first() as agent:
        results = await asyncio.gather(*(agent.infer(frame) for frame in frames(24)))
        assert len({tuple(t.index for t in r.top) for r in results}) > 1
        assert agent.counters.answered == boards.stage.counters.answered == 24
        timing = results[0].timing
        assert timing.tail_ms > 0
        parts = (
            timing.wait_ms + timing.preprocess_ms + timing.head_ms + timing.encode_ms + timing.link_ms + timing.queue_ms
        )
        assert timing.total_ms == pytest.approx(parts + timing.tail_ms, rel=0.05, abs=0.5)


async def test_a_second_start_of_the_first_board_needs_nothing_of_the_stage(boards: Boards) -> None:
    for _ in range(limits.STAGE_PLANS + 1):
        async with boards.first() as agent:
            await agent.infer(frames(1)[0])
    assert len(boards.stage._plans.open) <= limits.STAGE_PLANS
    assert boards.stage.counters.answered == limits.STAGE_PLANS + 1


async def test_a_stage_from_another_plan_is_refused_and_counted(boards: Boards) -> None:
    """The last stage's own plan, which nobody follows; one of the whole server; and one that was made for another board."""
    async with boards.first() as agent:
        assert agent.plan is not None
        assert agent.plan.stage is not None
        first, last = agent.plan.id, agent.plan.stage.downstream
    for plan_id, kind in (
        (last, errors.ProtocolError),
        ("x" * 24, errors.UnknownPlanError),
        ("y" * 200, errors.ProtocolError),
    ):
        before = boards.stage.refused.total()
        async with FrameStream(boards.stage.url, BEARER, plan_id, max_away_s=5) as stream:
            with pytest.raises(kind):
                await stream.ready()
        await until(lambda before=before: boards.stage.refused.total() > before)  # type: ignore[misc]
    other = StageServer(settings(boards.world, boards.folder / "third", boards.server, **{"stage.port": 0}))
    await other.start()
    try:
        async with FrameStream(other.url, None, first, max_away_s=5) as stream:
            with raises(errors.ProtocolError, reason="other-board"):
                await stream.ready()
        await until(lambda: other.refused["protocol"] == 1)
    finally:
        await other.close()
    async with FrameStream(boards.server, boards.world.token, first, max_away_s=5) as stream:
        with raises(errors.ProtocolError, reason="other-board"):
            await stream.ready()


async def test_malformed_frames_end_the_session_and_no_other(boards: Boards) -> None:
    async with boards.first() as agent:
        assert agent.plan is not None
        plan = agent.plan.id
        headers = {"Authorization": f"Bearer {BEARER}"}
        for nonsense in (b"", b"SE", bytes(64), b"SE\x01\x01" + bytes(36)):
            before = boards.stage.refused["protocol"]
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.ws_connect(boards.stage.url + "/v1/stream") as ws,
            ):
                await ws.send_str(encode(Open(plan)).decode())
                assert '"opened"' in (await ws.receive()).data
                await ws.send_bytes(nonsense)
                assert '"failed"' in (await ws.receive()).data
            await until(lambda before=before: boards.stage.refused["protocol"] == before + 1)  # type: ignore[misc]
        await agent.infer(frames(1)[0])


@pytest.mark.parametrize("kind", bad_frames.KINDS)
async def test_frames_that_do_not_fit_the_plan_are_refused_and_counted_and_all_sessions_go_on(
    boards: Boards, kind: str
) -> None:
    async with boards.first() as agent:
        odd, shape = put_odd_plans(boards.store, agent.plan)
        sent = bad_frames.bad(kind, shape)
        async with FrameStream(boards.stage.url, BEARER, odd) as stream:
            for index, payload in sent:
                with pytest.raises(errors.CodecError):
                    await stream.send(payload, index)
            assert boards.stage.counters.failed == {"codec": len(sent)}
            for index in range(len(bad_frames.ladder(shape))):
                assert (await stream.send(bad_frames.good(shape, index), index)).payload
            assert stream.stats.refused == len(sent)
        await agent.infer(frames(1)[0])
    assert boards.stage.refused == {}


def put_odd_plans(store: Store, plan: Plan | None) -> tuple[str, list[int]]:
    """The id of a plan like ``plan``, the next board's plan having the ladder of `bad_frames`, and the shape of what that board takes."""
    assert plan is not None
    assert plan.stage is not None
    last = store.plans.get(plan.stage.downstream)
    assert last.stage is not None
    shape = last.stage.start.shape
    stage = replace(last.stage, upstream="odd", incoming=bad_frames.ladder(shape))
    store.plans.put(replace(last, id="odder", stage=stage))
    store.plans.put(replace(plan, id="odd", stage=replace(plan.stage, downstream="odder")))
    return "odd", shape


async def test_only_those_with_the_token_get_in(boards: Boards) -> None:
    for path in ("/v1/stage", "/v1/stream", "/v1/probe"):
        async with aiohttp.ClientSession() as http, http.get(boards.stage.url + path) as response:
            assert response.status == 401
    assert boards.stage.refused == {"auth": 3}
    async with aiohttp.ClientSession() as http, http.get(boards.stage.url + "/healthz") as response:
        assert response.status == 200


async def test_a_chain_that_leads_back_to_itself_is_refused(boards: Boards) -> None:
    boards.stage.settings.chain.next, boards.stage.settings.chain.token = boards.stage.url, BEARER
    async with ServerClient(boards.stage.url, BEARER) as client:
        with raises(errors.ProtocolError, reason="chain-length"):
            await client.stages(1)


async def test_when_the_server_forgets_the_plan_the_first_board_asks_for_another(boards: Boards) -> None:
    async with boards.first() as agent:
        old = agent.plan
        assert old is not None
        with boards.store._database.transaction() as db:
            db.execute("DELETE FROM plans")
        [running] = boards.stage._plans.open.values()
        running.stream._connection._transport.abort()  # type: ignore[union-attr]
        await until(lambda: running.failed)
        await agent.infer(frames(1)[0])
        assert agent.plan is not None
        assert agent.plan.id != old.id
        assert boards.stage.counters.failed == {"unknown_plan": 1}


async def test_a_later_link_that_changed_for_good_leads_to_a_new_plan_and_loses_no_frame(boards: Boards) -> None:
    async with boards.first() as agent:
        [running] = boards.stage._plans.open.values()
        assert agent.plan is not None
        old = agent.plan.id
        running.adaptation._changed.value = True  # type: ignore[union-attr]
        await agent.infer(frames(1)[0])
        assert agent.plan.id == old  # so soon it is not worth the measurement
        running.since -= limits.REPLAN_LEAST
        await asyncio.gather(*(agent.infer(frame) for frame in frames(8)))
        assert agent.plan.id != old
        assert boards.stage.counters.failed == {"unknown_plan": 1}
        assert agent.counters.answered == 9


def test_a_stage_that_others_could_reach_unprotected_is_refused(world: World, tmp_path: Path) -> None:
    with raises(errors.ConfigError, reason="open-to-others", token=False, tls=False):
        StageServer(settings(world, tmp_path, "http://127.0.0.1:1", **{"stage.port": 0, "stage.host": "0.0.0.0"}))
    with raises(errors.ConfigError, reason="cert-and-key"):
        StageServer(settings(world, tmp_path, "http://127.0.0.1:1", **{"stage.port": 0, "stage.cert": "x"}))
    with raises(errors.ConfigError, reason="open-to-others", token=True, tls=False):
        StageServer(
            settings(
                world, tmp_path, "http://127.0.0.1:1", **{"stage.port": 0, "stage.host": "10.0.0.1", "stage.token": "t"}
            )
        )


# --- processes


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.02)


async def start(environment: dict[str, str], *options: str) -> tuple[Process, str]:
    """`edge-agent run` with its local API's URL, once it says that it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_agent",
        "run",
        "--port",
        "0",
        *options,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env=environment,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(120):
            while line := (await process.stderr.readline()).decode():
                lines.append(line)
                if "ready" in line:
                    return process, next(said.split()[-1] for said in lines if "local API listens" in said)
    except TimeoutError:
        await end(process)
    raise AssertionError("the agent was not ready; it printed:\n" + "".join(lines))


async def infer(http: aiohttp.ClientSession, url: str, image: bytes) -> str:
    """How a frame ended: "answered" or an error's code."""
    async with http.post(f"{url}/v1/infer", data=image) as response:
        document = json.loads(await response.read())
    return "answered" if "top" in document else str(document["error"]["code"])


@pytest.mark.slow
async def test_a_stage_that_is_killed_and_started_again_loses_no_frame(
    world: World, serving: Any, tmp_path: Path
) -> None:
    async with serving() as server:
        port = str(free_port())
        stage_env = world.environment(server, tmp_path / "second", SPLITEDGE_MODEL="", SPLITEDGE_STAGE_TOKEN=BEARER)
        first_env = world.environment(
            server, tmp_path / "first", SPLITEDGE_CHAIN_NEXT=f"http://127.0.0.1:{port}", SPLITEDGE_CHAIN_TOKEN=BEARER,
            SPLITEDGE_CHAIN_SPREAD="true", SPLITEDGE_DEMAND_MAX_AWAY_S="60",
        )  # fmt: skip
        stage, _ = await start(stage_env, "--stage-port", port)
        first, url = await start(first_env)
        try:
            image = world.images[0].read_bytes()
            async with aiohttp.ClientSession() as http:
                assert await infer(http, url, image) == "answered"
                tasks = []
                for i in range(60):
                    tasks.append(asyncio.create_task(infer(http, url, image)))
                    await asyncio.sleep(0.02)
                    if i == 20:
                        stage.kill()
                        await end(stage)
                        stage, _ = await start(stage_env, "--stage-port", port)
                ends = [*await asyncio.gather(*tasks), await infer(http, url, image)]
                async with http.get(f"{url}/v1/status") as response:
                    status = json.loads(await response.read())
            told = status["frames"]
            assert told["answered"] + sum(told["dropped"].values()) + sum(told["failed"].values()) == 62
            assert ends.count("answered") == told["answered"] - 1
            assert ends[-1] == "answered"
            assert set(ends) <= {"answered", "busy"}
            assert status["reconnects_total"] >= 1
        finally:
            await end(first)
            await end(stage)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
