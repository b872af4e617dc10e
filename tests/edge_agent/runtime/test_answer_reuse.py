"""Answers that serve twice: the rules without a network, then the agent against a small server."""

from __future__ import annotations

import asyncio
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import LinkConfig, ReuseConfig, Settings
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.answer_reuse import AnswerReuse, Comparison, coded, deviation, distance
from splitedge import errors
from splitedge.head.answers import Answered
from splitedge.protocol.messages import Codec, Rung
from tests.drawn import drawn
from tests.edge_agent.runtime.test_agent import png, until
from tests.small_server import SmallServer, expected_class, make_plan

SHAPE = (6, 5, 8)
LASTING = ReuseConfig(threshold=0.1, max_age_s=3600.0)


def codes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)


def apart(near: np.ndarray, far: np.ndarray) -> float:
    return distance(near, far, deviation(far))


# --- the distance


def test_equal_frames_are_0_apart_others_about_2_and_the_means_of_the_channels_1():
    one, two = codes(0), codes(1)
    assert apart(one, one) == 0
    assert 1.5 < apart(two, one) < 2.5
    wide = np.zeros((2, 1, 3), np.uint8)
    wide[0], wide[1] = (10, 20, 30), (30, 60, 90)
    assert apart(np.broadcast_to(np.uint8([20, 40, 60]), wide.shape), wide) == 1


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32), st.booleans())
@drawn(50)
def test_it_is_what_whole_numbers_say(rows, channels, seed, ends):
    rng = np.random.default_rng(seed)
    one, two = rng.choice((0, 1, 254, 255) if ends else 256, (2, rows, channels)).astype(np.uint8)
    gaps = sum((int(a) - int(b)) ** 2 for a, b in zip(one.reshape(-1), two.reshape(-1), strict=True))
    columns = [one[:, c].tolist() for c in range(channels)] if rows > 1 else [one.reshape(-1).tolist()]
    spread = sum(len(v) * sum(x * x for x in v) - sum(v) ** 2 for v in columns) / len(columns[0])
    assert deviation(one) == pytest.approx(spread, abs=1e-6)
    assert apart(two, one) == pytest.approx(gaps / spread if spread else math.inf if gaps else 0.0)


def test_a_frame_of_nothing_is_near_only_to_itself():
    flat = np.full((300, 300, 3), 77, np.uint8)
    other = flat.copy()
    other[3, 4, 1] += 1
    assert deviation(flat) == 0
    assert (apart(flat, flat), apart(other, flat)) == (0, math.inf)


def test_a_vector_deviates_from_the_mean_of_all():
    assert deviation(np.uint8([[10, 20, 30]])) == 200
    assert deviation(np.uint8([10, 20, 30])) == 200


def test_floats_are_coded_row_by_row_so_that_one_great_token_hides_no_change():
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(20, 16)).astype(np.float32)
    stream[0] *= 1000
    changed = stream.copy()
    changed[10:] = rng.normal(size=(10, 16))
    assert coded(stream).shape == stream.shape
    assert 0.7 < apart(coded(changed), coded(stream)) < 1.3
    assert apart(coded(stream + np.float32(1e-3)), coded(stream)) < 1e-3
    assert coded(codes()) is not None
    assert (coded(codes()) == codes()).all()


# --- what is kept, and for how long


def answered(reuse: AnswerReuse, tensor: np.ndarray, now: float, pairs: tuple[tuple[int, float], ...]) -> Comparison:
    """A frame that is looked at, sent and answered."""
    seen = reuse.compare(tensor, now)
    assert seen.reused is None
    reuse.keep(seen, Answered(pairs), 100)
    return seen


def nearly(tensor: np.ndarray, by: int = 3) -> np.ndarray:
    return np.where(tensor > 127, tensor - by, tensor + by).astype(np.uint8)


def test_a_near_frame_gets_the_answer_and_a_far_one_does_not():
    reuse = AnswerReuse(LASTING)
    assert reuse.compare(codes(), 0.0).distance is None
    answered(reuse, codes(), 0.0, ((7, 0.5),))
    near, far = reuse.compare(nearly(codes()), 0.1), reuse.compare(codes(1), 0.1)
    assert near.reused is not None
    assert (near.reused.answer.pairs, near.reused.sent_bytes) == (((7, 0.5),), 100)
    assert 0 < near.distance < 0.1
    assert (far.reused, far.distance > 1) == (None, True)


def test_an_answer_is_given_only_within_the_threshold():
    far = apart(nearly(codes()), codes())
    for threshold, serves in ((far, True), (np.nextafter(far, 0.0), False)):
        reuse = AnswerReuse(ReuseConfig(threshold=threshold))
        answered(reuse, codes(), 0.0, ())
        assert (reuse.compare(nearly(codes()), 0.0).reused is not None) == serves


def test_an_answer_serves_so_many_times_and_then_a_frame_is_sent_whatever_it_looks_like():
    reuse = AnswerReuse(ReuseConfig(threshold=0.1, max_run=3))
    answered(reuse, codes(), 0.0, ())
    assert [reuse.compare(codes(), 0.0).reused is not None for _ in range(5)] == [True, True, True, False, False]
    answered(reuse, codes(), 0.0, ())
    assert reuse.compare(codes(), 0.0).reused is not None


def test_an_answers_age_is_that_of_its_frame_however_late_it_came():
    reuse = AnswerReuse(ReuseConfig(threshold=0.1, max_age_s=2.0))
    seen = reuse.compare(codes(), 10.0)
    reuse.keep(seen, Answered(()), 100)  # at 11.9, say
    assert reuse.compare(codes(), 12.0).reused is not None
    late = reuse.compare(codes(), 12.01)
    assert (late.reused, late.distance) == (None, 0.0)


def test_slow_drift_is_seen_although_each_frame_is_nearly_the_one_before():
    reuse, first, last = AnswerReuse(LASTING), codes(0), codes(1)
    frames = [np.rint(first + (last - first.astype(float)) * t / 200).astype(np.uint8) for t in range(201)]
    assert max(apart(b, a) for a, b in itertools.pairwise(frames)) < 0.001
    sent = []
    for t, frame in enumerate(frames):
        seen = reuse.compare(frame, 0.0)
        if seen.reused is None:
            sent.append(t)
            reuse.keep(seen, Answered(((t, 1.0),)), 1)
        else:
            assert apart(frame, frames[seen.reused.answer.pairs[0][0]]) <= LASTING.threshold
    assert 3 <= len(sent) <= 20


def test_of_answers_that_come_out_of_order_the_later_frames_stays():
    reuse = AnswerReuse(LASTING)
    first, second = reuse.compare(codes(1), 0.0), reuse.compare(codes(2), 0.1)
    reuse.keep(second, Answered(((2, 1.0),)), 1)
    reuse.keep(first, Answered(((1, 1.0),)), 1)
    assert reuse.compare(codes(1), 0.2).reused is None
    assert reuse.compare(codes(2), 0.2).reused.answer.pairs == ((2, 1.0),)


def test_what_was_said_before_a_break_serves_no_more_and_what_was_on_its_way_is_not_kept():
    reuse = AnswerReuse(LASTING)
    answered(reuse, codes(), 0.0, ())
    on_way = reuse.compare(codes(1), 0.1)
    reuse.forget()
    assert reuse.compare(codes(), 0.2).reused is None
    reuse.keep(on_way, Answered(()), 1)
    assert reuse.compare(codes(1), 0.3).reused is None
    answered(reuse, codes(2), 0.4, ())
    assert reuse.compare(codes(2), 0.5).reused is not None


# --- the agent


def classes(results: list[object]) -> list[int]:
    return [result.top[0].index for result in results]


async def test_without_the_setting_every_frame_is_sent(settings):
    async with SmallServer() as server, Agent(settings(server)) as agent:
        results = [await agent.infer(png()) for _ in range(3)]
        assert (server.frames, agent.counters.answered, agent.counters.reused) == (3, 3, 0)
        assert {(result.cached, result.distance) for result in results} == {(False, None)}


@pytest.mark.parametrize("mode", ["split", "server"])
async def test_a_frame_seen_before_is_answered_without_sending(settings, mode):
    async with SmallServer(mode) as server, Agent(settings(server, reuse=LASTING)) as agent:
        first, again, other = [await agent.infer(png(seed)) for seed in (0, 0, 1)]
        assert (first.cached, again.cached, other.cached) == (False, True, False)
        assert again.top == first.top
        assert again.top is not first.top
        assert other.top != first.top
        assert (again.payload_bytes, again.bits, again.saved_bytes) == (0, 0, first.payload_bytes)
        assert (first.distance, again.distance, other.distance > 0.1) == (None, 0.0, True)
        assert server.frames == agent.counters.answered == 2
        assert (agent.counters.reused, agent.counters.saved_bytes) == (1, first.payload_bytes)
        assert (await agent.infer(png(1))).top == other.top


async def test_a_model_that_stays_on_the_device_sends_nothing_anyway(settings):
    async with SmallServer("device") as server, Agent(settings(server, reuse=LASTING)) as agent:
        assert not any([(await agent.infer(png())).cached for _ in range(2)])
        assert (agent.counters.answered, agent.counters.reused) == (2, 0)


async def test_it_does_not_matter_at_how_many_bits_the_frames_would_go(settings):
    async with SmallServer() as server:
        one = server.plan.ladder[0]
        span = one.scale[0] * 15
        server.plan.ladder = [Codec("minmax", bits, one.lo, (span / ((1 << bits) - 1),)) for bits in (8, 2)]
        server.plan.rungs = [
            Rung(payload_bytes=40 + 64 * bits, noise=0.1 / bits, drop_points=0.1, drop_high=0.2) for bits in (8, 2)
        ]
        async with Agent(settings(server, reuse=LASTING, link=LinkConfig(controller="fixed", bits=2))) as agent:
            first = await agent.infer(png())
            agent._replanner.plan.adaptation.choose = lambda *_: 0
            again, other = await agent.infer(png()), await agent.infer(png(1))
        assert (first.bits, again.bits, other.bits) == (2, 0, 8)
        assert (again.cached, again.saved_bytes) == (True, 40 + 128)


async def test_only_an_answer_is_kept(settings):
    async with SmallServer() as server, Agent(settings(server, reuse=LASTING)) as agent:
        server.refuse = errors.ModelError("the tail does not like this")
        for _ in range(2):
            with pytest.raises(errors.ModelError):
                await agent.infer(png())
        server.refuse = None
        assert not (await agent.infer(png())).cached
        assert (await agent.infer(png())).cached
        assert (agent.counters.answered, agent.counters.reused, agent.counters.failed) == (1, 1, {"model": 2})


async def test_a_new_plan_begins_with_nothing(settings):
    async with SmallServer() as server, Agent(settings(server, reuse=LASTING)) as agent:
        await agent.infer(png())
        server.plan = make_plan("split", server.data, labels=["another"] * 1000)
        await agent._replanner.replace(agent._replanner.plan)
        result = await agent.infer(png())
        assert (result.cached, result.distance, result.top[0].label) == (False, None, "another")


async def test_a_server_that_was_away_is_asked_anew(settings):
    async with SmallServer() as server, Agent(settings(server, reuse=LASTING)) as agent:
        await agent.infer(png())
        server.leave()
        await until(lambda: not agent.ready)
        server.away = False
        await until(lambda: agent.ready)
        assert not (await agent.infer(png())).cached
        assert (await agent.infer(png())).cached
        assert server.frames == 2


async def test_frames_on_their_way_at_once_are_all_sent_and_the_last_of_them_serves(settings):
    async with SmallServer() as server, Agent(settings(server, reuse=LASTING)) as agent:
        server.tail_s = 0.3
        results = await asyncio.gather(*(agent.infer(png(i % 2)) for i in range(4)))
        assert server.frames == 4
        assert classes(results)[0] == classes(results)[2]
        assert agent._replanner.plan.reuse._oldest == 4
        repeated = await asyncio.gather(*(agent.infer(png(1)) for _ in range(6)))
        assert all(result.cached for result in repeated)
        assert set(classes(repeated)) == {classes(results)[3]}


@pytest.mark.parametrize("seed", range(3))
async def test_every_frame_ends_once_and_no_scene_gets_anothers_answer(settings, seed):
    """Scenes of some frames each, several at once, while the server refuses, callers give up, and some frames are no pictures."""
    rng = random.Random(seed)
    async with SmallServer() as server, Agent(settings(server, reuse=LASTING)) as agent:
        wanted = {scene: expected_class(agent._replanner.plan.engine.process(png(scene)).payload) for scene in range(4)}
        server.tail_s, asked = 0.005, 0
        for _ in range(25):
            server.refuse = errors.ModelError("not now") if rng.random() < 0.2 else None
            scenes = [rng.randrange(4) if rng.random() < 0.3 else 0 for _ in range(4)]
            tasks = [asyncio.create_task(agent.infer(png(scene))) for scene in scenes]
            tasks.append(asyncio.create_task(agent.infer(b"no picture")))
            asked += len(tasks)
            if rng.random() < 0.2:
                await asyncio.sleep(0)
                tasks[0].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            answers = {
                (s, end.top[0].index)
                for s, end in zip(scenes, ended, strict=False)
                if not isinstance(end, BaseException)
            }
            assert answers <= set(wanted.items())
        counters = agent.counters
        assert counters.total == asked
        assert (
            counters.answered + counters.reused + sum(counters.dropped.values()) + sum(counters.failed.values())
            == asked
        )
        assert min(counters.answered, counters.reused, counters.failed["model"], counters.failed["input"]) > 0
        assert counters.saved_bytes == counters.reused * (counters.payload_bytes // counters.answered)


def test_it_is_off_unless_asked_for():
    assert Settings().reuse.threshold == 0
