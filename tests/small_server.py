"""A server of hand-made plans that speaks the real protocol: for tests of the agent that need no model and no store."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from splitedge import errors
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.link.stream_server import install, serve_session
from splitedge.protocol import messages as m
from splitedge.protocol.frames import Frame, pack_topk
from tests.segment_builder import Builder

TOKEN = "small-token"
IMAGE = m.Preprocess("image", [16, 16, 3], resize=18, mean=[127.0], std=[128.0])
TENSOR = m.Preprocess("tensor", [16, 16, 3])


def segment_file(mode: str = "split", preprocess: m.Preprocess = IMAGE, seed: int = 0, softmax: bool = False) -> bytes:
    """A head of one or two layers whose golden answer holds: none ("server"), to [8, 8, 8] ("split"), or to [1, 1, 10] ("device")."""
    builder = Builder(preprocess.shape, seed, scale=1 / 128, zero_point=128)
    if mode == "split":
        builder.conv(builder.input, 8, (3, 3), (2, 2), (1, 1, 1, 1))
    elif mode == "device":
        out = builder.conv(builder.input, 10, (16, 16))
        if softmax:
            builder.append(seg.Softmax, [1, 1, 10], 0, 1 / 255, x=out, lo=0, hi=255)
    parsed = builder.finish(preprocess=preprocess)
    golden = seg.golden_input("seed", math.prod(preprocess.shape)).reshape(preprocess.shape)
    answer = hashlib.sha256(Head(parsed, check_golden=False).run(golden).tobytes()).hexdigest()
    header = builder.finish(preprocess=preprocess, model="small", golden=seg.Golden("seed", answer)).header
    return seg.build(header, builder.blob)


def make_plan(mode: str, data: bytes, *, name: str = "small", life: float = 3600.0, **changes: Any) -> m.Plan:
    """A plan of ``mode`` for the segment in ``data``."""
    header = seg.parse(data).header
    output = header.tensors[header.output]
    kind = {"server": "input", "split": "inside", "device": "output"}[mode]
    layer = header.ops[-1].name if header.ops else "input"
    low = -output.scale * output.zero_point
    codec = m.Codec("minmax", 4, (float(np.float32(low)),), (float(np.float32(255 * output.scale / 15)),))
    parts = m.Parts(time=0.006, fetch=0.0, energy=0.0, cost=0.0)
    guess = m.Prediction(
        device_ms=1.0,
        transfer_ms=2.0,
        queue_ms=0.0,
        server_ms=3.0,
        total_ms=6.0,
        energy_j=0.0,
        energy_source="unknown",
        drop_points=0.1,
        drop_low=0.0,
        drop_high=0.2,
        samples=100,
        noise=0.1,
        payload_bytes=296,
        float_bytes=2048,
        segment_bytes=len(data),
        objective=0.006,
        parts=parts,
    )
    fields: dict[str, Any] = {
        "id": hashlib.sha256(data + str(time.monotonic_ns()).encode()).hexdigest()[:16], "model": name, "bundle": "0" * 64, "mode": mode,
        "cut": m.Cut(1, layer, layer, output.shape, kind), "layers": [], "codec_share": 1.0, "head_share": 0.0, "ladder": [] if mode == "device" else [codec], "codec": 0,
        "rungs": [] if mode == "device" else [m.Rung(payload_bytes=296, noise=0.1, drop_points=0.1, drop_high=0.2)],
        "segment": m.SegmentRef(seg.digest(data), len(data)), "preprocess": header.preprocess, "prediction": guess, "runners_up": [],
        "considered": 1, "expires_unix": time.time() + life, "demand": m.Demand(), "labels": [f"label {i}" for i in range(1000)],
        "output": m.Output("logits", [1, math.prod(output.shape)] if mode == "device" else [1000]),
    }  # fmt: skip
    return m.Plan(**(fields | changes))


def expected_class(payload: bytes) -> int:
    """The class with which the server answers ``payload``."""
    return zlib.crc32(payload) % 1000


class SmallServer:
    """Serves ``plan`` (which a test may replace) on a free port of the loopback; ``async with`` starts it."""

    def __init__(self, mode: str = "split", preprocess: m.Preprocess = IMAGE, **changes: Any) -> None:
        self.data = segment_file(mode, preprocess)
        self.plan = make_plan(mode, self.data, **changes)
        self.plans: dict[str, m.Plan] = {}
        self.requests: list[m.PlanRequest] = []
        self.segments_served = self.frames = 0
        self.tail_s = self.plan_s = 0.0
        self.protocol = m.PROTOCOL_VERSION  # an older one: as a server that knows no other
        self.opens: list[m.Open] = []
        self.outline: m.Outline | None = None  # None: as a server of a version without outlines
        self.outlines_served = 0
        self.tokenizer, self.tokenizers_served = b"", 0
        self.away, self.refused = False, 0  # refuse streams; streams that were refused
        self.streams: set[asyncio.Transport] = set()
        self.refuse: errors.SplitEdgeError | None = None
        self.on_plan: Callable[[], object] = lambda: None

    async def __aenter__(self) -> SmallServer:
        app = web.Application(middlewares=[_errors], client_max_size=8 << 20)
        install(app)
        app.add_routes([
            web.get("/v1/models", self._models), web.post("/v1/plan", self._plan), web.get("/v1/segments/{sha256}", self._segment),
            web.post("/v1/probe", self._probe), web.get("/v1/outline", self._outline), web.get("/v1/stream", self._stream), web.get("/v1/version", self._version),
            web.get("/v1/models/{name}/tokenizer", self._tokenizer),
        ])  # fmt: skip
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def leave(self) -> None:
        """Cut all streams and take no new one until ``away`` is False again."""
        self.away = True
        for transport in self.streams:
            transport.abort()
        self.streams.clear()

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        self.frames += 1
        if self.refuse is not None:
            raise self.refuse
        await asyncio.sleep(self.tail_s)
        return pack_topk([(expected_class(bytes(frame.payload)), 0.75), (1, 0.25)]), int(self.tail_s * 1e6)

    async def _models(self, request: web.Request) -> web.Response:
        found = [
            m.ModelInfo(
                name=self.plan.model,
                bundle="0" * 64,
                metric="top1",
                samples=100,
                cuts=[self.plan.cut],
                unsupported=["Odd (node)"],
                preprocess=self.plan.preprocess,
                float_top1=None,
                tokenizer=self.plan.tokenizer,
            )
        ]
        return web.Response(body=m.encode(found), content_type="application/json")  # type: ignore[arg-type]

    async def _version(self, request: web.Request) -> web.Response:
        return web.Response(body=m.encode(m.ServerVersion("0", self.protocol)), content_type="application/json")

    async def _plan(self, request: web.Request) -> web.Response:
        asked = m.decode(await request.read(), m.PlanRequest)
        if asked.protocol != self.protocol:
            raise errors.ProtocolError(f"the agent speaks protocol {asked.protocol} and this server {self.protocol}")
        self.requests.append(asked)
        if asked.model != self.plan.model:
            raise errors.UnknownModelError(f"there is no model {asked.model!r}; `edge-agent models` lists them")
        self.plans[self.plan.id] = self.plan
        self.on_plan()
        await asyncio.sleep(self.plan_s)
        answer = msgspec.to_builtins(self.plan)
        if self.protocol < m.OUTPUTS_PROTOCOL:
            del answer["output"], answer["protocol"]
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _outline(self, request: web.Request) -> web.Response:
        self.outlines_served += 1
        if self.outline is None:
            raise web.HTTPNotFound
        return web.Response(body=m.encode(self.outline), content_type="application/json")

    async def _segment(self, request: web.Request) -> web.Response:
        self.segments_served += 1
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"} if start else {}
        return web.Response(body=self.data[start:], status=206 if start else 200, headers=headers)

    async def _tokenizer(self, request: web.Request) -> web.Response:
        self.tokenizers_served += 1
        return web.Response(body=self.tokenizer)

    async def _probe(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=bytes(int(request.query.get("down", "0"))))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.away:
            self.refused += 1
            raise errors.BusyError("the server is away; try again later")
        assert request.transport is not None
        self.streams.add(request.transport)
        return await serve_session(request, self._open)

    async def _open(self, asked: m.Open) -> SmallServer:
        self.opens.append(asked)
        if asked.plan not in self.plans:
            raise errors.UnknownPlanError("the server does not know this plan; ask for a new one")
        return self


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise errors.AuthError("the server refused the token; make one with `edge-server token`")
        return await handler(request)  # type: ignore[no-any-return]
    except errors.SplitEdgeError as error:
        return web.json_response({"error": error.to_wire()}, status=error.http_status)
