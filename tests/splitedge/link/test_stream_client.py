import asyncio
import dataclasses
import logging
import time

import aiohttp
import pytest
from aiohttp import web

from splitedge import errors, limits
from splitedge.link import endpoint, stream_client
from splitedge.link.stream_client import FrameStream, LinkState
from splitedge.protocol import frames
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Open, encode
from tests.raising import expect, raises

from .conftest import Relay, Tail, serving, stream_app

QUICK = {"heartbeat_s": 0.1, "silence_s": 1.0, "backoff_first_s": 0.02, "backoff_max_s": 0.1}


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def balanced(stream: FrameStream) -> bool:
    s = stream.stats
    return s.accepted == s.answered + s.refused + s.aged + s.failed + s.in_flight


async def until(condition, timeout=30.0):
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def send_all(stream: FrameStream, count: int, payload: bytes = b"x") -> list:
    return await asyncio.gather(*(stream.send(payload, 0) for _ in range(count)), return_exceptions=True)


async def test_frames_are_answered_and_counted():
    tail = Tail()
    async with serving(stream_app(tail)) as url, FrameStream(url, "secret", "plan", topk=3, window=4) as stream:
        answers = await asyncio.gather(*(stream.send(bytes([i]) * 1000, 1) for i in range(20)))
        assert [bytes(a.payload[:1]) for a in answers] == [bytes([i]) for i in range(20)]
        assert answers[0].tail_us == 10
        assert tail.opened == [Open("plan", topk=3, window=4)]
        assert dataclasses.replace(stream.stats, rtt_ms=None) == stream_client.Stats(
            accepted=20, answered=20, sent=20, payload_bytes_up=20_000
        )
        assert stream.stats.rtt_ms > 0
    assert stream.state is LinkState.CLOSED


async def test_frames_are_pipelined_up_to_the_window():
    tail = Tail(gate=asyncio.Event())
    async with (
        serving(stream_app(tail, workers=100)) as url,
        FrameStream(url, "secret", "plan", window=5) as stream,
        asyncio.TaskGroup() as group,
    ):
        sends = [group.create_task(stream.send(b"x", 0)) for _ in range(12)]
        await until(lambda: tail.at_once == 5)
        await asyncio.sleep(0.05)
        assert tail.at_once == 5
        assert stream.stats.accepted == 5
        tail.gate.set()
        await asyncio.gather(*sends)
        assert tail.most_at_once == 5
        assert tail.seen == list(range(12))


async def test_large_frames_keep_bytes_in_flight_bounded():
    tail = Tail(gate=asyncio.Event())
    payload = bytes(limits.MAX_FRAME_BYTES)
    async with serving(stream_app(tail)) as url, FrameStream(url, "secret", "plan") as stream:
        sends = asyncio.gather(*(stream.send(payload, 0) for _ in range(3)))
        await until(lambda: tail.at_once == 2)
        assert stream.stats.accepted == 2
        tail.gate.set()
        assert [len(a.payload) for a in await sends] == [len(payload)] * 3


async def test_an_oversize_frame_is_refused_before_it_is_sent():
    async with serving(stream_app(Tail())) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.ProtocolError, reason="frame-too-large"):
            await stream.send(bytes(limits.MAX_FRAME_BYTES + 1), 0)
        assert stream.stats.accepted == 0


async def test_a_refusal_is_raised_as_its_own_error_and_the_stream_goes_on():
    def act(frame):
        if frame.codec == 9:
            raise errors.CodecError("codec 9 is not on the ladder", codec=9)

    async with serving(stream_app(Tail(act))) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.CodecError, codec=9) as caught:
            await stream.send(b"x", 9)
        assert caught.value.data == {"codec": 9}
        await stream.send(b"x", 0)
        assert (stream.stats.refused, stream.stats.answered) == (1, 1)


async def test_a_defect_of_the_handler_is_logged_and_told_without_details(caplog):
    def act(frame):
        raise ZeroDivisionError("private")

    async with serving(stream_app(Tail(act))) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.SplitEdgeError, reason="internal") as caught:
            await stream.send(b"x", 0)
    assert "private" not in str(caught.value)
    assert "ZeroDivisionError: private" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("key", ["self", "message"])
async def test_a_refusal_with_hostile_data_is_raised_and_the_stream_goes_on(key):
    def act(frame):
        error = errors.CodecError("no")
        error.data = {key: 1}
        raise error

    tail = Tail(act)
    async with serving(stream_app(tail)) as url, FrameStream(url, "secret", "plan") as stream:
        with pytest.raises(errors.CodecError) as caught:
            await asyncio.wait_for(stream.send(b"x", 0), 5)
        assert caught.value.data == {key: 1}
        tail.act = lambda frame: None
        await stream.send(b"x", 0)
        assert stream.stats.reconnects == 0


# --- errors that do not heal


async def test_a_redirect_is_not_followed_with_frames_or_token():
    tail = Tail()
    async with serving(stream_app(tail)) as elsewhere:

        async def redirect(request):
            raise web.HTTPTemporaryRedirect(f"{elsewhere}/v1/stream")

        app = web.Application()
        app.router.add_get("/v1/stream", redirect)
        async with serving(app) as url, FrameStream(url, "secret", "plan") as stream:
            with raises(errors.ProtocolError, reason="http-status", status=307):
                await stream.send(b"x", 0)
    assert tail.opened == []


async def test_a_wrong_token_fails_what_is_in_flight_at_once():
    async with serving(stream_app(Tail())) as url, FrameStream(url, "wrong", "plan") as stream:
        results = await send_all(stream, 3)
        assert [type(r) for r in results] == [errors.AuthError] * 3
        with raises(errors.AuthError, reason="token"):
            await stream.send(b"x", 0)
        assert stream.state is LinkState.FAILED
        assert stream.stats.failed == 3
        assert balanced(stream)


async def test_an_unknown_plan_fails_what_is_in_flight_at_once():
    async with serving(stream_app(Tail())) as url, FrameStream(url, "secret", "other") as stream:
        with raises(errors.UnknownPlanError, plan="other") as caught:
            await stream.send(b"x", 0)
        assert caught.value.data == {"plan": "other"}


async def test_a_server_without_streams_is_named():
    async with serving(web.Application()) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.ProtocolError, reason="no-such-path", path="/v1/stream"):
            await stream.send(b"x", 0)


async def test_bad_bytes_from_the_server_fail_the_stream():
    async def stream(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive()
        await ws.send_bytes(b"SE" + bytes(100))
        await ws.receive()
        return ws

    app = web.Application()
    app.router.add_get("/v1/stream", stream)
    async with serving(app) as url, FrameStream(url, "secret", "plan") as stream:
        with pytest.raises(errors.ProtocolError):
            await stream.send(b"x", 0)


async def test_a_server_that_refuses_our_bytes_fails_the_stream():
    async def stream(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.close(code=1009)
        return ws

    app = web.Application()
    app.router.add_get("/v1/stream", stream)
    async with serving(app) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.ProtocolError, reason="refused"):
            await stream.send(b"x", 0)


async def test_a_defect_of_the_stream_itself_leaves_no_caller_waiting(monkeypatch):
    async def broken(self, http):
        await asyncio.sleep(0.05)
        raise ZeroDivisionError

    monkeypatch.setattr(FrameStream, "_dial", broken)
    stream = await FrameStream("http://127.0.0.1:9", "secret", "plan").__aenter__()
    with raises(errors.SplitEdgeError, reason="internal"):
        await stream.send(b"x", 0)
    with pytest.raises(ZeroDivisionError):
        await stream.__aexit__(None, None, None)


async def test_a_defect_while_a_refusal_is_read_leaves_no_caller_waiting(monkeypatch):
    def broken(value):
        raise ZeroDivisionError

    def act(frame):
        raise errors.CodecError("no")

    async with serving(stream_app(Tail(act))) as url:
        stream = await FrameStream(url, "secret", "plan").__aenter__()
        await stream.ready()
        monkeypatch.setattr(errors, "from_wire", broken)
        with raises(errors.SplitEdgeError, reason="internal"):
            await asyncio.wait_for(stream.send(b"x", 0), 5)
        assert stream.stats.failed == 1
        assert balanced(stream)
        with pytest.raises(ZeroDivisionError):
            await stream.__aexit__(None, None, None)


# --- the server is not there


async def test_a_server_that_is_down_is_unreachable_after_the_time_allowed():
    async with FrameStream("http://127.0.0.1:9", "secret", "plan", max_away_s=0.2, **QUICK) as stream:
        with raises(errors.UnreachableError, reason="refused"):
            await stream.send(b"x", 0)
        with pytest.raises(errors.UnreachableError):  # at once from now on
            await asyncio.wait_for(stream.send(b"x", 0), 0.1)
        assert stream.stats.failed == 1


async def test_a_server_that_comes_late_gets_the_frame(unused_tcp_port):
    async with FrameStream(f"http://127.0.0.1:{unused_tcp_port}", "secret", "plan", **QUICK) as stream:
        send = asyncio.create_task(stream.send(b"x", 0))
        await asyncio.sleep(0.1)
        async with serving(stream_app(Tail()), port=unused_tcp_port):
            assert (await send).payload == b"x"


async def test_ready_waits_for_a_late_server_and_raises_for_none(unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with FrameStream(url, "secret", "plan", max_away_s=0.1, **QUICK) as stream:
        with pytest.raises(errors.UnreachableError):
            await stream.ready()
    async with FrameStream(url, "secret", "plan", **QUICK) as stream:
        ready = asyncio.create_task(stream.ready())
        await asyncio.sleep(0.1)
        async with serving(stream_app(Tail()), port=unused_tcp_port):
            await ready
            assert stream.state is LinkState.STREAMING


async def test_a_certificate_nobody_signed_is_refused_at_once(server_tls):
    async with serving(stream_app(Tail()), server_tls) as url, FrameStream(url, "secret", "plan") as stream:
        with raises(errors.UnreachableError, reason="certificate"):
            await stream.send(b"x", 0)
        assert stream.state is LinkState.FAILED


async def test_a_known_authority_is_accepted(server_tls, ca_file):
    async with (
        serving(stream_app(Tail()), server_tls) as url,
        FrameStream(url, "secret", "plan", ssl=endpoint.tls_context(ca_file)) as stream,
    ):
        payloads = [bytes([i]) * 300_000 for i in range(10)]
        answers = await asyncio.gather(*(stream.send(p, 0) for p in payloads))
        assert [a.payload for a in answers] == payloads


# --- the connection breaks


async def test_frames_in_flight_are_sent_again_after_a_cut():
    tail = Tail(gate=asyncio.Event())
    async with (
        serving(stream_app(tail)) as url,
        Relay(port_of(url)) as relay,
        FrameStream(relay.url, "secret", "plan", window=4, **QUICK) as stream,
    ):
        sends = asyncio.create_task(send_all(stream, 10))
        await until(lambda: stream.stats.sent == 4)
        relay.cut()
        tail.gate.set()
        answers = await sends
        assert all(a.payload == b"x" for a in answers)
        assert stream.stats.answered == stream.stats.accepted == 10
        assert stream.stats.resent == 4
        assert stream.stats.sent == 14
        assert stream.stats.reconnects == 1
        assert balanced(stream)


async def test_many_cuts_lose_no_frame():
    async with (
        serving(stream_app(Tail())) as url,
        Relay(port_of(url)) as relay,
        FrameStream(relay.url, "secret", "plan", **QUICK) as stream,
    ):

        async def cut():
            while True:
                await asyncio.sleep(0.05)
                relay.cut()

        cutting = asyncio.create_task(cut())
        results = []
        while stream.stats.reconnects < 5:
            results += await send_all(stream, 20, bytes(50_000))
        cutting.cancel()
        assert all(isinstance(r, frames.Answer) for r in results)
        assert stream.stats.answered == stream.stats.accepted == len(results)
        assert balanced(stream)


async def test_a_silent_link_is_noticed_and_every_frame_accounted_for():
    tail = Tail()
    async with (
        serving(stream_app(tail, heartbeat_s=0.1, silence_s=1.0)) as url,
        Relay(port_of(url)) as relay,
        FrameStream(relay.url, "secret", "plan", window=3, frame_age_s=0.3, **QUICK) as stream,
    ):
        await stream.send(b"x", 0)
        relay.swallow = True
        results = await send_all(stream, 3, bytes(3_000_000))
        assert {type(r) for r in results} <= {
            errors.LinkLostError,
            errors.AgedError,
        }  # on the link, or behind one that is
        assert stream.stats.aged == 3
        await until(lambda: stream.state is not LinkState.STREAMING)
        relay.swallow = False
        relay.cut()
        assert (await stream.send(b"y", 0)).payload == b"y"
        assert stream.stats.reconnects == 1
        assert stream.stats.accepted == 5
        assert balanced(stream)


async def test_cuts_and_silence_under_tls_lose_no_frame(server_tls, ca_file):
    app = stream_app(Tail(), heartbeat_s=0.1, silence_s=1.0)
    async with serving(app, server_tls) as url, Relay(port_of(url)) as relay:
        address, tls = relay.url.replace("http:", "https:"), endpoint.tls_context(ca_file)
        async with FrameStream(address, "secret", "plan", ssl=tls, **QUICK) as stream:
            sends = asyncio.create_task(send_all(stream, 10, bytes(2_000_000)))
            await until(lambda: stream.stats.answered >= 1)
            relay.cut()
            await until(lambda: stream.stats.answered >= 5)
            relay.swallow = True
            await until(lambda: stream.state is LinkState.WAITING)
            relay.swallow = False
            assert all(isinstance(r, frames.Answer) for r in await sends)
            assert stream.stats.answered == stream.stats.accepted == 10
            assert balanced(stream)


async def test_a_frame_slower_than_the_silence_allowed_gets_through():
    async with (
        serving(stream_app(Tail(), heartbeat_s=0.1, silence_s=3.0)) as url,
        Relay(port_of(url), up_rate=20_000) as relay,
        FrameStream(relay.url, "secret", "plan", **QUICK | {"silence_s": 3.0}) as stream,
    ):  # a loaded machine pauses for a second at times, which must not count as silence
        assert len((await stream.send(bytes(80_000), 0)).payload) == 80_000
        assert (stream.stats.sent, stream.stats.reconnects) == (1, 0)


async def test_frames_survive_a_silence_that_ends_in_time():
    async with (
        serving(stream_app(Tail(), heartbeat_s=0.1, silence_s=1.0)) as url,
        Relay(port_of(url)) as relay,
        FrameStream(relay.url, "secret", "plan", window=3, **QUICK) as stream,
    ):
        await stream.send(b"x", 0)
        relay.swallow = True
        sends = asyncio.create_task(send_all(stream, 6, bytes(100_000)))
        await until(lambda: stream.state is LinkState.WAITING)
        relay.swallow = False
        assert all(isinstance(r, frames.Answer) for r in await sends)
        assert balanced(stream)


async def test_a_server_away_too_long_fails_frames_until_it_is_back(unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with FrameStream(url, "secret", "plan", max_away_s=0.3, **QUICK) as stream:
        async with serving(stream_app(Tail()), port=unused_tcp_port):
            await stream.send(b"x", 0)
        results = await send_all(stream, 12)
        for result in results:
            expect(result, errors.LinkLostError, reason="away")
        async with serving(stream_app(Tail()), port=unused_tcp_port):
            await until(lambda: stream.state is LinkState.STREAMING)
            await stream.send(b"x", 0)
        assert stream.stats.answered == 2
        assert balanced(stream)


async def test_an_idle_stream_stays_open():
    async with (
        serving(stream_app(Tail(), heartbeat_s=0.1, silence_s=1.0)) as url,
        FrameStream(url, "secret", "plan", **QUICK) as stream,
    ):
        await stream.send(b"x", 0)
        await asyncio.sleep(1.0)
        assert stream.state is LinkState.STREAMING
        assert stream.stats.reconnects == 0


async def test_a_stopping_server_answers_what_it_has_and_the_agent_dials_again(unused_tcp_port):
    tail = Tail(gate=asyncio.Event())
    async with FrameStream(f"http://127.0.0.1:{unused_tcp_port}", "secret", "plan", **QUICK) as stream:
        async with serving(stream_app(tail), port=unused_tcp_port):
            send = asyncio.create_task(stream.send(b"x", 0))
            await until(lambda: tail.at_once == 1)
            asyncio.get_running_loop().call_later(0.1, tail.gate.set)
        assert (await send).payload == b"x"
        assert stream.stats.resent == 0
        async with serving(stream_app(tail), port=unused_tcp_port):
            await stream.send(b"x", 0)
        assert balanced(stream)


# --- ageing and the end


async def test_a_frame_ages_out_and_its_late_answer_is_dropped():
    tail = Tail(gate=asyncio.Event())
    async with serving(stream_app(tail)) as url, FrameStream(url, "secret", "plan", frame_age_s=0.1) as stream:
        with raises(errors.LinkLostError, reason="no-answer"):
            await stream.send(b"x", 0)
        tail.gate.set()
        await until(lambda: stream.stats.late == 1)
        await stream.send(b"x", 0)
        assert (stream.stats.aged, stream.stats.answered) == (1, 1)
        assert balanced(stream)


async def test_a_frame_that_waited_too_long_on_the_server_never_reaches_the_tail():
    tail = Tail(gate=asyncio.Event())
    async with (
        serving(stream_app(tail, workers=1)) as url,
        FrameStream(url, "secret", "plan", frame_age_s=0.3) as stream,
    ):
        await until(lambda: stream.state is LinkState.STREAMING)
        await send_all(stream, 3)
        tail.gate.set()
        await until(lambda: stream.stats.late == stream.stats.sent)
        assert stream.stats.aged == 3
        assert tail.seen in ([0], [])


async def test_a_cancelled_caller_leaves_the_account_in_balance():
    tail = Tail(gate=asyncio.Event())
    async with serving(stream_app(tail)) as url, FrameStream(url, "secret", "plan") as stream:
        send = asyncio.create_task(stream.send(b"x", 0))
        await until(lambda: tail.at_once == 1)
        send.cancel()
        tail.gate.set()
        await until(lambda: stream.stats.answered == 1)
        assert balanced(stream)


async def test_leaving_a_stream_on_a_dead_link_does_not_hang(monkeypatch):
    monkeypatch.setattr(limits, "CLOSE_TIMEOUT", 0.2)
    async with serving(stream_app(Tail())) as url, Relay(port_of(url)) as relay:
        start = time.monotonic()
        async with FrameStream(relay.url, "secret", "plan") as stream:
            await stream.send(b"x", 0)
            relay.swallow = True
            send = asyncio.create_task(stream.send(bytes(5_000_000), 0))
            await until(lambda: stream.stats.sent == 2)
        with raises(errors.LinkLostError, reason="closed-before-answer"):
            await send
        assert stream.stats.failed == 1
        assert time.monotonic() - start < 5
        with raises(errors.LinkLostError, reason="closed"):
            await stream.send(b"x", 0)


@pytest.mark.parametrize("when", ["waiting for an answer", "shaking hands on a dead link"])
async def test_leaving_a_stream_may_be_cancelled_and_leaves_nothing_behind(monkeypatch, when):
    dead = when != "waiting for an answer"
    if dead:
        monkeypatch.setattr(limits, "CLOSE_TIMEOUT", 0.3)
    tail = Tail(gate=asyncio.Event())
    sends = []

    async def use(stream, relay):
        async with stream:
            await stream.ready()
            relay.swallow = dead
            sends.append(asyncio.create_task(stream.send(bytes(5_000_000), 0)))
            await until(lambda: tail.at_once == 1 or (dead and stream.stats.sent == 1))

    async with serving(stream_app(tail)) as url, Relay(port_of(url)) as relay:
        stream = FrameStream(relay.url, "secret", "plan")
        leaving = asyncio.create_task(use(stream, relay))
        await until(lambda: stream.state is LinkState.CLOSED if dead else tail.at_once == 1)
        await asyncio.sleep(0.02)
        leaving.cancel()
        await asyncio.sleep(0.02)
        tail.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert stream.state is LinkState.CLOSED
        assert stream._runner.done()
        with raises(errors.LinkLostError, reason="closed-before-answer"):
            await asyncio.wait_for(sends[0], 5)
        assert balanced(stream)


def test_every_state_but_closed_leads_to_closed():
    for state, following in stream_client.TRANSITIONS.items():
        assert (LinkState.CLOSED in following) is (state is not LinkState.CLOSED)


# --- a hostile or broken agent, on the wire


def raw_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(ws_response_class=stream_client._Socket)


async def dial_raw(http: aiohttp.ClientSession, url: str) -> aiohttp.ClientWebSocketResponse:
    return await http.ws_connect(f"{url}/v1/stream", headers={"Authorization": "Bearer secret"}, max_msg_size=0)


async def test_an_oversize_message_is_refused_on_its_header(caplog):
    """Only the header and one byte are sent: a server that waited for the message would not answer."""
    async with serving(stream_app(Tail(), silence_s=30.0)) as url, raw_session() as http:
        ws = await dial_raw(http, url)
        await ws.send_bytes(encode(Open("plan")))  # wrong type as well: control is text
        message = await ws.receive(timeout=5)
        assert "failed" in message.data
        await ws.close()
        ws = await dial_raw(http, url)
        await ws.send_str(encode(Open("plan")).decode())
        await ws.receive(timeout=5)
        length = (limits.MAX_FRAME_BYTES + 4096).to_bytes(8, "big")
        ws.transport.write(b"\x82\xff" + length + b"mask" + b"x")
        message = await ws.receive(timeout=5)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1009


async def test_an_agent_that_says_nothing_is_dropped(caplog):
    caplog.set_level(logging.INFO, "splitedge.link.stream_server")
    async with serving(stream_app(Tail(), heartbeat_s=0.05, silence_s=0.2)) as url, raw_session() as http:
        ws = await dial_raw(http, url)
        message = await ws.receive(timeout=5)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSE)
        await until(lambda: "session ended" in caplog.text)


async def test_a_websocket_ping_is_answered():
    async with serving(stream_app(Tail())) as url, raw_session() as http:
        ws = await http.ws_connect(f"{url}/v1/stream", headers={"Authorization": "Bearer secret"}, autoping=False)
        await ws.ping(b"here?")
        message = await ws.receive(timeout=5)
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"here?")
        await ws.close()


async def test_a_slow_long_message_is_no_silence():
    """One frame takes longer than the silence allowed, a piece at a time."""
    tail = Tail()
    async with serving(stream_app(tail, heartbeat_s=0.1, silence_s=1.0)) as url, raw_session() as http:
        ws = await dial_raw(http, url)
        await ws.send_str(encode(Open("plan")).decode())
        await ws.receive(timeout=5)
        message = frames.encode(Frame(0, 0, 0, bytes(1000)))
        raw = b"\x82\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message
        for start in range(0, len(raw), 100):
            ws.transport.write(raw[start : start + 100])
            await asyncio.sleep(0.15)
        await until(lambda: tail.seen == [0])
        await ws.close()


async def test_an_agent_that_does_not_read_makes_the_server_hold_few_answers(monkeypatch):
    monkeypatch.setattr(limits, "MAX_INFLIGHT_BYTES", 2_000_000)

    class Long(Tail):
        async def answer(self, frame):
            await super().answer(frame)
            return bytes(1_000_000), 10

    tail = Long()
    async with serving(stream_app(tail)) as url, raw_session() as http:
        ws = await dial_raw(http, url)
        await ws.send_str(encode(Open("plan", window=40)).decode())
        await ws.receive(timeout=5)
        for seq in range(40):
            await ws.send_bytes(frames.encode(Frame(seq, 0, 0, b"")))
        await until(lambda: len(tail.seen) >= 4)
        await asyncio.sleep(0.2)
        assert len(tail.seen) < 25  # some lie in the kernel's buffers
        answers = [frames.parse((await ws.receive(timeout=5)).data) for _ in range(40)]
        assert sorted(answer.seq for answer in answers) == list(range(40))
        await ws.close()


async def test_an_agent_that_exceeds_its_window_is_told_so():
    tail = Tail(gate=asyncio.Event())
    async with serving(stream_app(tail)) as url, raw_session() as http:
        ws = await dial_raw(http, url)
        await ws.send_str(encode(Open("plan", window=1)).decode())
        await ws.receive(timeout=5)
        for seq in range(2):
            await ws.send_bytes(frames.encode(Frame(seq, 0, 0, b"")))
        message = await ws.receive(timeout=5)
        assert "window" in message.data
        await ws.close()
