"""The agent against a real server of the protocol, with hand-made plans: see tests/small_server.py."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import device_profiles
from device_profiles import DeviceProfile
from edge_agent.config import DemandConfig, LinkConfig
from edge_agent.inputs import sources
from edge_agent.planning import streams
from edge_agent.planning.plan_check import check_plan
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.agent_plan import AgentPlan
from edge_agent.runtime.results import phases
from kernels import warm
from splitedge import codec, errors, limits
from splitedge.head import load, preprocess
from splitedge.head import segment as seg
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.messages import Codec, Output, Rung
from tests.raising import raises
from tests.segment_builder import Builder
from tests.small_server import IMAGE, TENSOR, TOKEN, SmallServer, expected_class, make_plan, segment_file


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8))


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def payload(server: SmallServer, image: Image.Image) -> bytes:
    """What the agent must send for ``image``, step by step."""
    head = load(server.data)
    codes = preprocess.pixels_to_codes(preprocess.prepare_image(image, IMAGE), preprocess.code_table(IMAGE, head.input))
    return codec.encode_codes(head.run(codes), head.output.scale, head.output.zero_point, server.plan.ladder[0])


@pytest.mark.parametrize("mode", ["split", "server"])
async def test_bytes_a_picture_and_an_array_of_it_give_the_same_answer(settings, mode):
    async with SmallServer(mode) as server, Agent(settings(server)) as agent:
        expected = payload(server, picture())
        for frame in (png(), picture(), np.asarray(picture())):
            result = await agent.infer(frame)
            assert result.top[0].index == expected_class(expected)
            assert result.top[0].label == f"label {expected_class(expected)}"
            assert (result.mode, result.plan) == (mode, server.plan.id)
            assert result.payload_bytes == len(expected) + 40
        assert agent.counters.answered == server.frames == 3


async def test_a_path_is_a_file_of_an_image_or_an_array(settings, tmp_path):
    (tmp_path / "picture").write_bytes(png())
    np.save(tmp_path / "picture.npy", np.asarray(picture()))
    async with SmallServer() as server, Agent(settings(server)) as agent:
        expected = expected_class(payload(server, picture()))
        for name in ("picture", "picture.npy"):
            assert (await agent.infer(tmp_path / name)).top[0].index == expected
        assert agent.queue.bytes == 0


@pytest.mark.parametrize(
    ("what", "reason"), [("missing", "unreadable"), ("folder", "unreadable"), ("large", "too-large")]
)
async def test_a_path_that_cannot_be_a_frame_is_named_and_counted(settings, tmp_path, monkeypatch, what, reason):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "large":
        path.write_bytes(png())
        monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 100)
        monkeypatch.setattr(sources.read_bounded, "__defaults__", (100,))
    async with SmallServer() as server, Agent(settings(server)) as agent:
        with raises(errors.InputError, reason=reason, name=str(path)):
            await agent.infer(path)
        assert agent.counters.failed["input"] == 1
        assert agent.queue.bytes == 0
        assert server.frames == 0


async def test_a_files_name_as_a_str_is_refused_and_the_error_names_the_way(settings, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    async with SmallServer() as server, Agent(settings(server)) as agent:
        with raises(errors.InputError, reason="file-name"):
            await agent.infer(str(tmp_path / "a.png"))
        assert agent.counters.failed == {"input": 1}


async def test_without_a_model_nothing_is_asked_or_measured(settings):
    async with SmallServer() as server:
        with pytest.raises(errors.ConfigError) as caught:
            await Agent(settings(server, model="")).start()
    assert caught.value.data["key"] == "model"
    assert server.requests == []


async def test_a_board_is_measured_only_where_a_server_can_serve_the_model(settings, monkeypatch, profile_file):
    measured = []

    def measure(**_: object) -> DeviceProfile:
        measured.append(True)
        return device_profiles.load(profile_file)

    monkeypatch.setattr(device_profiles, "measure", measure)
    async with SmallServer() as server:
        for changes in ({"server": "http://127.0.0.1:9"}, {"token": "wrong"}, {"model": "absent"}):
            agent = Agent(settings(server, profile="", **changes))
            with pytest.raises(errors.SplitEdgeError):
                await agent.start()
            await agent.close()
        assert measured == []
        async with Agent(settings(server, profile="")) as agent:
            assert agent.ready
        assert measured == [True]


async def test_a_times_stages_sum_to_its_total_and_hold_the_servers_share(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.tail_s = 0.02
        timing = (await agent.infer(png())).timing
        assert sum(value for _, value in phases(timing)) == pytest.approx(timing.total_ms)
        assert timing.tail_ms == pytest.approx(20)


@pytest.mark.parametrize("softmax", [False, True])
async def test_a_whole_model_on_the_device_sends_nothing(settings, softmax):
    async with SmallServer("device") as server:
        server.data = segment_file("device", softmax=softmax)
        kind = "probabilities" if softmax else "logits"
        server.plan = make_plan("device", server.data, output=Output(kind, [10]))
        async with Agent(settings(server)) as agent:
            result = await agent.infer(png())
            head = load(server.data)
            codes = preprocess.pixels_to_codes(
                preprocess.prepare_image(picture(), IMAGE), preprocess.code_table(IMAGE, head.input)
            )
            real = (head.run(codes).astype(float) - head.output.zero_point).reshape(-1) * head.output.scale
            wanted = real if softmax else np.exp(real - real.max()) / np.exp(real - real.max()).sum()
            assert result.top[0].index == int(np.argmax(wanted))
            assert result.top[0].probability == pytest.approx(wanted.max(), abs=1e-5)
            assert (result.payload_bytes, result.timing.link_ms < 5) == (0, True)
            assert server.frames == 0


async def test_a_raw_tensor_of_the_right_shape_is_taken_and_another_names_both_shapes(settings):
    async with SmallServer(preprocess=TENSOR) as server, Agent(settings(server)) as agent:
        await agent.infer(np.zeros((16, 16, 3), np.float32))
        with raises(errors.InputError, reason="other-frame", shape=[16, 16], wanted=[16, 16, 3]):
            await agent.infer(np.zeros((16, 16), np.float32))
        with raises(errors.InputError, reason="other-frame", dtype="float32"):
            await agent.infer(np.zeros((16, 16, 3)))
        with raises(errors.InputError, reason="no-image"):
            await agent.infer(png())
        with raises(errors.InputError, reason="not-finite"):
            await agent.infer(np.full((16, 16, 3), np.nan, np.float32))
        assert agent.counters.failed == {"input": 4}


async def test_bad_images_fail_one_by_one_and_are_counted(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        for bad in (b"", b"not an image", png()[:200], np.zeros((3, 3), np.uint8)):
            with pytest.raises(errors.InputError):
                await agent.infer(bad)
        await agent.infer(png())
        assert (agent.counters.failed["input"], agent.counters.answered) == (4, 1)


async def test_frames_overlap_and_the_event_loop_keeps_ticking(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.tail_s = 0.05
        await agent.infer(png())
        slow = agent._replanner.plan.engine.process

        def slower(*given: object) -> object:
            time.sleep(0.05)
            return slow(*given)

        agent._replanner.plan.engine.process = slower
        done, ticks = asyncio.Event(), 0

        async def tick() -> int:
            nonlocal ticks
            while not done.is_set():
                await asyncio.sleep(0.001)
                ticks += 1
            return ticks

        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(agent.infer(png(i)) for i in range(6)))
        done.set()
        assert await ticking > 20


async def test_the_frame_beyond_the_queue_is_refused_and_counted(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        agent.queue.max_frames = 2
        server.tail_s = 0.1
        ended = await asyncio.gather(*(agent.infer(png(i)) for i in range(5)), return_exceptions=True)
        assert sum(isinstance(end, errors.BusyError) for end in ended) == 3
        assert (agent.counters.answered, agent.counters.dropped["queue_full"]) == (2, 3)
        assert (agent.queue.frames, agent.queue.bytes) == (0, 0)


async def test_a_cancelled_frame_is_counted_as_dropped(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.tail_s = 0.3
        task = asyncio.create_task(agent.infer(png()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert agent.counters.dropped == {"cancelled": 1}
        assert agent.counters.total == 1


async def test_what_the_server_refuses_reaches_the_caller_and_the_next_frame_is_answered(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.refuse = errors.ModelError("the tail does not like this", reason="told-to")
        with raises(errors.ModelError, reason="told-to"):
            await agent.infer(png())
        server.refuse = None
        await agent.infer(png())
        assert agent.counters.failed == {"model": 1}


async def test_a_forgotten_plan_is_replaced_and_no_frame_is_lost(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        await agent.infer(png())
        server.plans.clear()
        server.plan = make_plan("split", server.data)
        server.refuse = errors.UnknownPlanError("forgotten")
        old = agent.plan

        server.on_plan = lambda: setattr(server, "refuse", None)
        results = await asyncio.gather(*(agent.infer(png(i)) for i in range(4)))
        assert {result.plan for result in results} == {server.plan.id}
        assert agent.plan is not old
        assert len(server.requests) == 2
        assert agent.counters.answered == 5


async def test_when_a_forgotten_plan_cannot_be_replaced_every_frame_fails_and_the_server_is_asked_once(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.refuse = errors.UnknownPlanError("forgotten")
        server.plan = make_plan("split", server.data, name="another")
        ended = await asyncio.gather(*(agent.infer(png(i)) for i in range(5)), return_exceptions=True)
        assert {type(end) for end in ended} == {errors.UnknownModelError}
        assert len(server.requests) == 2
        assert agent.counters.failed == {"unknown_model": 5}


async def test_closing_in_the_middle_of_a_new_plan_leaves_nothing_running(settings):
    async with SmallServer() as server:
        agent = await Agent(settings(server)).__aenter__()
        server.refuse, server.plan_s = errors.UnknownPlanError("forgotten"), 30.0
        asked = asyncio.Event()
        server.on_plan = asked.set
        frame = asyncio.create_task(agent.infer(png()))
        await asyncio.wait_for(asked.wait(), 10)
        await agent.close()
        with pytest.raises(errors.LinkError):
            await frame
        assert not agent.ready
        assert agent.counters.total == 1


@pytest.fixture
def closed(monkeypatch):
    """The streams that were closed, in their order."""
    closed: list[FrameStream] = []
    leave = FrameStream.__aexit__

    async def spy(stream, *why):
        closed.append(stream)
        await leave(stream, *why)

    monkeypatch.setattr(FrameStream, "__aexit__", spy)
    return closed


async def test_closing_just_as_a_new_plan_is_ready_closes_every_stream_once(settings, monkeypatch, closed):
    async with SmallServer() as server:
        agent = await Agent(settings(server)).__aenter__()
        old, arrived, opened = agent._replanner.plan, asyncio.Event(), [agent._replanner.plan.stream]

        async def prepare(known: object) -> AgentPlan:
            await arrived.wait()
            opened.append(await streams.frame_stream(agent.settings, old.engine.plan).__aenter__())
            return AgentPlan(old.engine, opened[-1])

        monkeypatch.setattr(agent._replanner, "_prepare", prepare)
        asked = asyncio.create_task(agent._replanner.replace(old))
        await asyncio.sleep(0.01)
        arrived.set()
        await agent.close()
        await asyncio.gather(asked, return_exceptions=True)
        assert not agent.ready
        assert sorted(map(id, closed)) == sorted(map(id, opened))
        with raises(errors.LinkLostError, reason="stopped"):
            await agent._replanner.replace(old)


async def test_a_stream_that_cannot_be_closed_does_not_keep_the_others_open(settings, closed):
    async with SmallServer() as server:
        agent = await Agent(settings(server)).__aenter__()
        good, broken = agent._replanner.plan, AgentPlan(agent._replanner.plan.engine, agent._replanner.plan.stream)

        fault = RuntimeError("a fault of ours")

        async def fail(seconds: float) -> None:
            await asyncio.sleep(0.05)
            raise fault

        async def slow(seconds: float) -> None:
            await asyncio.sleep(0.1)

        broken.drained, good.drained = fail, slow
        agent._replanner.retiring.add(broken)
        with pytest.raises(RuntimeError) as caught:
            await agent.close()
        assert caught.value is fault
        assert closed == [good.stream]
        assert agent._pipeline._thread._shutdown


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_while_the_link_is_down_it_is_not_ready_and_loss_and_return_are_told_once(settings):
    heard: list[str] = []
    async with SmallServer() as server, Agent(settings(server), on_link=lambda text, _: heard.append(text)) as agent:
        assert (agent.ready, agent.state, heard) == (True, "ready", [])
        server.leave()
        await until(lambda: not agent.ready)
        assert agent.state.startswith("the link to the server is down: ")
        assert agent.gauges()["ready"] == 0
        refused = server.refused
        await until(lambda: server.refused > refused + 2)
        assert len(heard) == 1
        server.away = False
        await until(lambda: agent.ready)
        assert agent.state == "ready"
        assert (await agent.infer(png())).mode == "split"
    assert heard == [heard[0], "the link to the server is back"]
    assert heard[0].startswith("the link to the server is down")


@pytest.mark.parametrize(("at_once", "told"), [(1, True), (3, False)])
async def test_what_sending_takes_beside_is_told_with_the_next_plan_by_frames_that_were_alone(settings, at_once, told):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        for _ in range(6):
            await asyncio.gather(*[agent.infer(png()) for _ in range(at_once)])
        first, server.plan = agent.plan.id, make_plan("device", server.data)
        server.plans.clear()
        server.leave()
        server.away = False
        await until(lambda: agent.plan.id != first)
        before, after = (request.measured for request in server.requests)
    assert before == {}
    assert after["beside"] > 0
    assert ("sending" in after) == told
    assert not told or 0 <= after["sending"] < 1000


async def test_a_plan_that_the_server_forgot_is_replaced_without_a_frame(settings):
    heard: list[str] = []
    async with SmallServer() as server, Agent(settings(server), on_link=lambda text, _: heard.append(text)) as agent:
        first, server.plan = agent.plan.id, make_plan("split", server.data)
        server.plans.clear()
        server.leave()
        server.away = False
        await until(lambda: agent.plan.id != first)
        assert agent.ready
    assert len(heard) == 2


async def test_a_device_that_sends_nothing_is_ready_without_its_server(settings):
    async with SmallServer("device") as server, Agent(settings(server)) as agent:
        server.leave()
        await asyncio.sleep(0.05)
        assert agent.ready


async def test_reconnects_only_grow_while_a_plan_is_replaced(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        old = agent._replanner.plan
        old.stream.stats.reconnects = 5
        async with old.use():
            await agent._replanner.replace(old)
            assert agent.gauges()["reconnects_total"] == 5
            old.stream.stats.reconnects = 6
            assert agent.gauges()["reconnects_total"] == 6
        while agent._replanner.retiring:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert agent.gauges()["reconnects_total"] == 6


async def test_an_expired_plan_is_renewed_while_the_old_one_serves(settings, monkeypatch):
    monkeypatch.setattr(limits, "REPLAN_LEAST", 0.05)
    async with SmallServer(life=0.01) as server, Agent(settings(server)) as agent:
        first = agent.plan.id
        server.plan = make_plan("split", server.data)
        async with asyncio.timeout(60):
            while agent.plan.id == first:
                await agent.infer(png())
        assert (await agent.infer(png())).plan == server.plan.id
        assert not agent.counters.failed
        assert server.requests[1].held == [server.plan.segment.sha256]
        assert server.segments_served == 1


async def test_when_no_new_plan_can_be_had_the_old_one_serves_on(settings, monkeypatch):
    monkeypatch.setattr(limits, "REPLAN_LEAST", 0.05)
    async with SmallServer(life=0.01) as server, Agent(settings(server)) as agent:
        server.plan = make_plan("split", server.data, name="another")
        async with asyncio.timeout(60):
            while "no new plan" not in agent.state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await agent.infer(png())).mode == "split"
        assert agent.ready


@pytest.mark.parametrize(
    ("mode", "keep", "allowed"),
    [
        ("server", "nothing", True), ("server", "input", False), ("server", "conv0", False), ("split", "input", True),
        ("split", "conv0", True), ("split", "a-later-layer", False), ("device", "a-later-layer", True), ("device", "input", True),
    ],
)  # fmt: skip
async def test_a_plan_that_would_send_what_must_stay_is_refused_before_a_frame_is_sent(settings, mode, keep, allowed):
    async with SmallServer(mode) as server:
        agent = Agent(settings(server, demand=DemandConfig(keep=keep)))
        if allowed:
            async with agent:
                await agent.infer(png())
        else:
            with raises(errors.PlanError, reason="keep-forbids"):
                await agent.__aenter__()
            assert server.frames == 0
        assert server.requests[0].demand.keep == keep


def test_a_head_that_only_moves_bytes_about_does_not_keep_the_input(settings):
    builder = Builder(IMAGE.shape, scale=1 / 128, zero_point=128)
    builder.append(seg.Transpose, [16, 16, 3], 128, 1 / 128, x=builder.input, perm=[1, 0, 2])
    header = builder.finish(preprocess=IMAGE).header
    plan = make_plan("split", seg.build(header, builder.blob))
    with raises(errors.PlanError, reason="keep-forbids"):
        check_plan(plan, header, DemandConfig(keep="input"))


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 1},
        {"codec": -1},
        {"ladder": []},
        {"rungs": []},
        {"mode": "device"},
        {"mode": "server"},
        {"preprocess": TENSOR},
    ],
)
async def test_a_plan_that_does_not_fit_itself_is_refused(settings, changes):
    async with SmallServer() as server:
        for name, value in changes.items():
            setattr(server.plan, name, value)
        with pytest.raises(errors.PlanError):
            await Agent(settings(server)).__aenter__()
        assert server.frames == 0


async def test_nothing_of_a_frame_stays_on_disk(settings, tmp_path):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        await agent.infer(png())
    assert sorted(path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()) == [".segment"]


async def test_a_damaged_segment_in_the_cache_is_fetched_again(settings, tmp_path):
    async with SmallServer() as server:
        async with Agent(settings(server)):
            pass
        (path,) = (tmp_path / "cache").glob("*.segment")
        for damage in (server.data[:100], server.data[:-1] + b"x"):
            path.write_bytes(damage)
            async with Agent(settings(server)) as agent:
                await agent.infer(png())
            assert path.read_bytes() == server.data
        assert server.segments_served == 3


async def test_a_server_that_sends_a_wrong_segment_is_one_sentence(settings):
    async with SmallServer() as server:
        server.data = server.data[:-1] + bytes([server.data[-1] ^ 1])
        with pytest.raises(errors.SegmentError) as caught:
            await Agent(settings(server)).__aenter__()
        assert caught.value.exit_status == 7


async def test_a_hostile_segment_with_the_right_hash_is_refused_by_the_verifier(settings):
    async with SmallServer() as server:
        parsed = seg.parse(server.data)
        parsed.header.tensors[1].offset = 1 << 40
        server.data = seg.build(parsed.header, parsed.blob.tobytes())
        server.plan.segment.sha256, server.plan.segment.size = seg.digest(server.data), len(server.data)
        with pytest.raises(errors.SegmentError):
            await Agent(settings(server)).__aenter__()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"token": "wrong"}, errors.AuthError), ({"model": "absent"}, errors.UnknownModelError), ({"model": ""}, errors.ConfigError),
        ({"server": "http://127.0.0.1:9"}, errors.UnreachableError), ({"cache_dir": "/proc/nowhere"}, errors.StoreError),
        ({"profile": "/nowhere/profile.json"}, errors.ConfigError), ({"ca": "/nowhere/ca.pem"}, errors.ConfigError),
        ({"server": "http://10.255.255.1:1"}, errors.UsageError),
    ],
)  # fmt: skip
async def test_what_stands_in_the_way_of_a_start_is_said_and_leaves_nothing_running(settings, changes, error):
    async with SmallServer() as server:
        with pytest.raises(error) as caught:
            await Agent(settings(server, **changes)).__aenter__()
        assert "\n" not in str(caught.value)


async def test_the_profile_is_measured_once_for_these_kernels_and_kept(settings, tmp_path, monkeypatch, profile_file):
    measured = []

    def measure(*, quick: bool) -> DeviceProfile:
        measured.append(quick)
        return device_profiles.load(profile_file)

    monkeypatch.setattr(device_profiles, "measure", measure)
    async with SmallServer() as server:
        for _ in range(2):
            async with Agent(settings(server, profile="")):
                pass
        assert measured == [True]
        (kept,) = (tmp_path / "cache").glob("profile-*.json")
        kept.write_text("{}")
        async with Agent(settings(server, profile="")):
            pass
        assert measured == [True, True]
        assert server.requests[2].profile == device_profiles.to_dict(device_profiles.load(profile_file))


@pytest.mark.parametrize("named", [False, True])
async def test_a_kept_profile_is_brought_up_to_date_and_a_named_one_is_not(settings, tmp_path, profile_file, named):
    old = device_profiles.load(profile_file)
    old.machine.memory_available_bytes, old.condition.mhz_max = 1, 12.5
    fingerprint = warm.fingerprint()
    path = tmp_path / "cache" / f"profile-{fingerprint}.json"
    path.parent.mkdir()
    device_profiles.save(old, path)
    async with SmallServer() as server, Agent(settings(server, profile=str(path) if named else "")):
        sent = device_profiles.from_dict(server.requests[0].profile)
    assert (sent.machine.memory_available_bytes == 1) == (sent.condition.mhz_max == 12.5) == named
    assert (sent.kernels, sent.machine.isa) == (old.kernels, old.machine.isa)


async def test_before_the_start_and_after_the_end_frames_fail_with_a_sentence(settings):
    async with SmallServer() as server:
        agent = Agent(settings(server))
        with raises(errors.UnreachableError, reason="not-ready"):
            await agent.infer(png())
        async with agent:
            await agent.infer(png())
        with raises(errors.UnreachableError, reason="not-ready", state="stopped"):
            await agent.infer(png())
        assert agent.counters.total == 3


async def test_frames_in_flight_are_answered_when_the_agent_closes(settings):
    async with SmallServer() as server:
        async with Agent(settings(server)) as agent:
            server.tail_s = 0.1
            tasks = [asyncio.create_task(agent.infer(png(i))) for i in range(3)]
            await asyncio.sleep(0.03)
        assert [type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)] == ["Result"] * 3


async def test_status_tells_the_plan_and_the_counts_and_no_secret(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        await agent.infer(png())
        status = agent.status()
        assert status["ready"]
        assert status["frames"]["answered"] == 1
        assert status["plan"]["activation_bits"] == "4"
        assert TOKEN not in repr(status)


def with_ladder(server: SmallServer) -> None:
    """A plan of three rungs for ``server``: 8, 4 and 2 bits."""
    one = server.plan.ladder[0]
    span = one.scale[0] * 15
    server.plan.ladder = [Codec("minmax", bits, one.lo, (span / ((1 << bits) - 1),)) for bits in (8, 4, 2)]
    server.plan.rungs = [
        Rung(payload_bytes=40 + 64 * bits, noise=0.1 / bits, drop_points=0.1, drop_high=0.2) for bits in (8, 4, 2)
    ]
    server.plan.codec = 2


@pytest.mark.parametrize(("bits", "found"), [(0, 2), (2, 2), (5, 4), (32, 8)])
async def test_a_fixed_controller_sends_with_the_codec_that_it_is_told(settings, bits, found):
    async with SmallServer() as server:
        with_ladder(server)
        link = LinkConfig(controller="fixed", bits=bits)
        async with Agent(settings(server, link=link)) as agent:
            result = await agent.infer(png())
            assert (result.bits, result.payload_bytes) == (found, 40 + 64 * found)
            assert agent.status()["link"]["bits"] == found


async def test_on_a_wide_link_frames_become_as_accurate_as_the_ladder_allows(settings):
    async with SmallServer() as server:
        with_ladder(server)
        slowly = settings(server, demand=DemandConfig(min_rate_fps=10.0))
        async with Agent(slowly) as agent, asyncio.timeout(60):
            while (await agent.infer(png())).bits != 8:  # noqa: ASYNC110
                await asyncio.sleep(0.005)  # a rate that the link can hold
            status, gauges = agent.status()["link"], agent.gauges()
            assert (status["controller"], status["rung"], status["rungs"], status["holds"]) == ("adaptive", 0, 3, True)
            assert status["uplink_mbps"] > 0
            assert (gauges["link_bits"], gauges["link_overloads_total"]) == (8.0, 0.0)


async def test_frames_that_wait_too_long_are_dropped_and_counted_with_their_reason(settings):
    async with SmallServer() as server:
        async with Agent(settings(server, link=LinkConfig(max_age_ms=300.0))) as agent:
            assert (await agent.infer(png())).mode == "split"
            slow = agent._replanner.plan.engine.process

            def slower(*given: object) -> object:
                time.sleep(0.4)
                return slow(*given)

            agent._replanner.plan.engine.process = slower
            found = await asyncio.gather(*(agent.infer(png()) for _ in range(6)), return_exceptions=True)
        assert {type(f) for f in found} == {errors.AgedError}
        assert agent.counters.dropped == {"aged": 6}
        assert agent.counters.total == 7


def adapted(agent: Agent, *, changed: bool, holds: bool) -> None:
    adaptation = agent._replanner.plan.adaptation
    adaptation._changed.value, adaptation._holds.value = changed, holds


async def test_a_link_that_changed_for_good_leads_to_a_plan_for_it_as_it_is(settings, monkeypatch):
    monkeypatch.setattr(limits, "REPLAN_LEAST", 0.2)
    monkeypatch.setattr(limits, "LINK_PERIOD", 0.02)
    heard: list[str] = []
    async with SmallServer() as server, Agent(settings(server), on_link=lambda text, _: heard.append(text)) as agent:
        first = agent.plan.id
        await asyncio.sleep(0.1)
        assert len(server.requests) == 1
        server.plan = make_plan("split", server.data)
        known = agent._replanner.plan.adaptation.estimate(time.monotonic())
        adapted(agent, changed=True, holds=False)
        await until(lambda: agent.plan.id != first)
        assert server.requests[1].link.uplink_mbps == pytest.approx(known.uplink_mbps)
        assert "too little even for the cheapest codec" in heard[0]
        await until(lambda: len(heard) == 2)
        assert heard[1] == "the link carries enough again"


@pytest.mark.parametrize(
    ("allowed", "grain_ms", "plans"), [(True, 1.0, 1 + limits.MISMATCH_REPLANS), (False, 1.0, 1), (True, 1e6, 1)]
)
async def test_frames_that_tell_otherwise_than_the_plan_lead_to_others_but_not_for_ever(
    settings, monkeypatch, allowed, grain_ms, plans
):
    for name, value in {"LINK_PERIOD": 0.02, "LEARNING_TIME": 0.1, "MISMATCH_MS": grain_ms}.items():
        monkeypatch.setattr(limits, name, value)
    async with SmallServer() as server:
        server.tail_s = 0.02  # of 6 ms for the whole frame by its plan
        async with Agent(settings(server, link=LinkConfig(replan=allowed))) as agent:
            for _ in range(30):
                await agent.infer(png())
            await asyncio.sleep(0.3)
            assert len(server.requests) == plans
            assert agent.counters.answered == 30
            server.plans.clear()  # a plan that is lost later on is replaced as ever, though no frame asks
            server.leave()
            server.away = False
            await until(lambda: len(server.requests) > plans and agent.ready)


async def test_a_changed_link_leads_to_no_plan_where_the_settings_forbid_it(settings, monkeypatch):
    monkeypatch.setattr(limits, "REPLAN_LEAST", 0.01)
    monkeypatch.setattr(limits, "LINK_PERIOD", 0.01)
    async with SmallServer() as server, Agent(settings(server, link=LinkConfig(replan=False))) as agent:
        adapted(agent, changed=True, holds=True)
        await asyncio.sleep(0.1)
        assert len(server.requests) == 1


async def test_when_no_plan_can_be_had_for_a_changed_link_the_old_one_serves_on(settings, monkeypatch):
    monkeypatch.setattr(limits, "REPLAN_LEAST", 0.05)
    monkeypatch.setattr(limits, "LINK_PERIOD", 0.01)
    async with SmallServer() as server, Agent(settings(server)) as agent:
        server.plan = make_plan("split", server.data, name="another")
        adapted(agent, changed=True, holds=True)
        await until(lambda: "no new plan for the changed link" in agent.state)
        assert (await agent.infer(png())).mode == "split"


async def test_a_head_that_hangs_is_noticed(settings, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_STUCK", 0.05)
    hangs = threading.Event()
    async with SmallServer() as server, Agent(settings(server)) as agent:
        plan = agent._replanner.plan
        assert plan is not None
        monkeypatch.setattr(plan.engine, "process", lambda *_: hangs.wait(30))
        waiting = asyncio.create_task(agent.infer(np.zeros((16, 16, 3), np.uint8)))
        try:
            assert agent.alive
            async with asyncio.timeout(60):
                while agent.alive:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            hangs.set()
        await asyncio.wait({waiting})
        waiting.exception()
        assert agent.alive
