"""Frames through the real application by the agent's own client: plan, segment, head, codec, tail, answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from edge_server.api.app import make_app
from edge_server.store.store import Store
from splitedge import codec, errors
from splitedge.head import executor, preprocess
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.frames import Frame, unpack_topk
from splitedge.protocol.frames import encode as encode_frame
from splitedge.protocol.messages import Demand, LinkEstimate, Mode, Open, Plan, PlanRequest, encode
from tests import bad_frames
from tests.raising import raises

NEAR = LinkEstimate(rtt_ms=0.0, uplink_mbps=10_000.0, downlink_mbps=10_000.0)


@dataclass
class Served:
    client: TestClient[web.Request, web.Application]
    store: Store
    token: str
    profile: dict[str, Any]

    async def plan(self, keep: str) -> Plan:
        # the mode, or a machine that is busy would have the device do it all
        modes: dict[str, Mode] = {"nothing": "server", "fc": "device"}
        mode = modes.get(keep, "split")
        asked = PlanRequest(
            model="tiny", profile=self.profile, link=NEAR, demand=Demand(max_drop_points=100.0, keep=keep, mode=mode)
        )
        headers = {"Authorization": f"Bearer {self.token}"}
        response = await self.client.post("/v1/plan", data=msgspec.json.encode(asked), headers=headers)
        body = await response.read()
        if response.status != 200:
            raise errors.from_wire(msgspec.json.decode(body)["error"])
        return msgspec.json.decode(body, type=Plan)

    async def counted(self, family: str) -> dict[str, int]:
        """The counts of ``family`` by error."""
        async with self.client.get("/metrics", headers={"Authorization": f"Bearer {self.token}"}) as response:
            text = await response.text()
        return {
            code: int(n) for code, n in re.findall(rf'^splitedge_server_{family}{{code="(\w*)"}} (\d+)$', text, re.M)
        }

    def stream(self, plan: Plan, topk: int = 3) -> FrameStream:
        return FrameStream(str(self.client.make_url("")), self.token, plan.id, topk=topk, max_away_s=60)


@pytest_asyncio.fixture
async def served(store: Store, profile: dict[str, Any]) -> AsyncIterator[Served]:
    token = store.tokens.add("test")
    async with TestClient(TestServer(make_app(store))) as client:
        yield Served(client, store, token, profile)


def payload_of(store: Store, plan: Plan, x: np.ndarray, rung: int) -> bytes:
    """What the agent would send for input ``x``."""
    path = store.segments.path(plan.segment.sha256)
    assert path is not None
    head = executor.load(path.read_bytes())
    out = head.header.tensors[head.header.output]
    codes = head.run(preprocess.quantize_tensor(x, head.header.tensors[head.header.input]))
    return codec.encode_codes(codes, out.scale, out.zero_point, plan.ladder[rung])


def float_logits(store: Store, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(store.bundles.folder / "tiny" / "model.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})
    return np.asarray(y)[0]


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(11).normal(size=(16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("keep", ["nothing", "input", "body"])
async def test_answers_are_near_the_float_models_at_every_kind_of_cut(served: Served, x: np.ndarray, keep: str) -> None:
    plan = await served.plan(keep)
    async with served.stream(plan, topk=0) as stream:
        answer = await stream.send(payload_of(served.store, plan, x, 0), 0)
    expected = float_logits(served.store, x)
    assert np.abs(np.frombuffer(answer.payload, "<f4") - expected).max() < 0.1 * np.ptp(expected)
    assert answer.tail_us > 0


async def test_every_rung_of_the_ladder_is_answered(served: Served, x: np.ndarray) -> None:
    plan = await served.plan("input")
    async with served.stream(plan) as stream:
        sent = [stream.send(payload_of(served.store, plan, x, rung), rung) for rung in range(len(plan.ladder))]
        answers = await asyncio.gather(*sent)
    for answer in answers:
        pairs = unpack_topk(answer.payload)
        assert len(pairs) == 3
        assert 0 < sum(p for _, p in pairs) <= 1


@pytest.mark.parametrize("kind", bad_frames.KINDS)
async def test_frames_that_do_not_fit_the_plan_are_refused_and_counted_and_all_sessions_go_on(
    served: Served, x: np.ndarray, kind: str
) -> None:
    plan = await served.plan("input")
    shape = plan.cut.shape
    odd = msgspec.structs.replace(plan, id="odd", ladder=bad_frames.ladder(shape))
    served.store.plans.put(odd)
    frames = bad_frames.bad(kind, shape)
    async with served.stream(plan) as other, served.stream(odd) as stream:
        await other.ready()
        for index, payload in frames:
            with pytest.raises(errors.CodecError):
                await stream.send(payload, index)
        for index in range(len(odd.ladder)):
            assert (await stream.send(bad_frames.good(shape, index), index)).payload
        assert (await other.send(payload_of(served.store, plan, x, 0), 0)).payload
    counts = {"": len(odd.ladder) + 1, "codec": len(frames)}
    assert await served.counted("frames_total") == counts


async def test_a_frame_of_another_plan_is_refused(served: Served, x: np.ndarray) -> None:
    here, there = [await served.plan(keep) for keep in ("nothing", "body")]
    assert here.cut.shape != there.cut.shape
    async with served.stream(here) as stream:
        with pytest.raises(errors.CodecError):
            await stream.send(payload_of(served.store, there, x, 0), 0)
        assert (await stream.send(payload_of(served.store, here, x, 0), 0)).payload


@pytest.mark.parametrize("place", [0, 4, 20, 36, 40, -1])
async def test_a_damaged_frame_ends_its_session_and_no_other(served: Served, x: np.ndarray, place: int) -> None:
    plan = await served.plan("input")
    payload = payload_of(served.store, plan, x, 0)
    damaged = bytearray(encode_frame(Frame(0, 0, 0, payload)))
    damaged[place] ^= 1
    headers = {"Authorization": f"Bearer {served.token}"}
    async with served.stream(plan) as other:
        await other.ready()
        async with served.client.ws_connect("/v1/stream", headers=headers) as ws:
            await ws.send_str(encode(Open(plan.id)).decode())
            assert '"opened"' in (await ws.receive()).data
            await ws.send_bytes(bytes(damaged))
            assert '"protocol"' in (await ws.receive()).data
            await ws.receive()
        assert (await other.send(payload, 0)).payload
    assert (await served.counted("sessions_ended_total"))["protocol"] == 1


async def test_a_plan_of_a_replaced_model_is_unknown(served: Served) -> None:
    plan = await served.plan("input")
    manifest = served.store.bundles.folder / "tiny" / "bundle.json"
    files = {p.name: p.read_bytes() for p in manifest.parent.iterdir()}
    with served.store.bundles.create("tiny") as path:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data + b" " if name == "bundle.json" else data)
    async with served.stream(plan) as stream:
        with raises(errors.UnknownPlanError, reason="replaced"):
            await stream.send(b"", 0)


async def test_a_plan_that_sends_nothing_has_no_stream(served: Served) -> None:
    plan = await served.plan("fc")
    assert plan.mode == "device"
    async with served.stream(plan) as stream:
        with raises(errors.ProtocolError, reason="sends-nothing"):
            await stream.send(b"", 0)


async def test_a_wrong_token_is_refused(served: Served) -> None:
    plan = await served.plan("input")
    served.token = "se_wrong"
    async with served.stream(plan) as stream:
        with pytest.raises(errors.AuthError):
            await stream.send(b"", 0)


async def test_infeasible_demands_say_so_over_the_wire(served: Served) -> None:
    asked = PlanRequest(
        model="tiny", profile=served.profile, link=NEAR, demand=Demand(max_drop_points=100.0, max_latency_ms=1e-6)
    )
    headers = {"Authorization": f"Bearer {served.token}"}
    response = await served.client.post("/v1/plan", data=msgspec.json.encode(asked), headers=headers)
    error = errors.from_wire(msgspec.json.decode(await response.read())["error"])
    assert response.status == 409
    assert isinstance(error, errors.InfeasibleError)
    assert error.data["binding"] == ["max_latency_ms"]


async def test_models_are_listed(served: Served) -> None:
    response = await served.client.get("/v1/models", headers={"Authorization": f"Bearer {served.token}"})
    (model,) = await response.json()
    assert (model["name"], model["metric"], len(model["cuts"])) == ("tiny", "agreement", 5)


async def test_a_stopping_server_answers_what_is_in_flight(
    store: Store, profile: dict[str, Any], x: np.ndarray
) -> None:
    token = store.tokens.add("test")
    client = TestClient(TestServer(make_app(store)))
    await client.start_server()
    served = Served(client, store, token, profile)
    plan = await served.plan("input")
    payload = payload_of(store, plan, x, 0)
    async with served.stream(plan) as stream:
        await stream.send(payload, 0)
        sent = [asyncio.ensure_future(stream.send(payload, 0)) for _ in range(4)]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        await client.close()
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert all(not isinstance(o, BaseException) or isinstance(o, errors.LinkError) for o in outcomes)
