"""The measurement on this very machine: complete, honest about gaps, never a figure asserted."""

from __future__ import annotations

import hashlib
import time
from statistics import median

import numpy as np
import pytest

from device_profiles import from_dict, measure, measurement, predict, rounds, to_dict
from device_profiles.machine import usable_threads
from device_profiles.measurement import SHAPES, one_operator
from device_profiles.predict import best_threads
from device_profiles.schema import KINDS, Shape
from kernels.isa import ISA
from splitedge.errors import SegmentError
from splitedge.head import Head, segment
from tests import reference_head
from tests.raising import raises


@pytest.fixture(scope="module")
def quick():
    steps = []
    return measure(quick=True, declared_watts=6.5, progress=lambda *step: steps.append(step)), steps


def test_a_quick_profile_is_complete_and_may_travel(quick):
    profile, _ = quick
    counts = sorted({1, usable_threads()})
    assert [(row.threads, row.kind, row.shape) for row in profile.kernels] == [
        (n, *shape) for n in counts for shape in SHAPES
    ]
    assert {row.kind for row in profile.kernels} == set(KINDS)
    assert all(row.runs >= 3 * rounds.LEAST and row.time_us > 0 for row in profile.kernels)
    assert all(row.interval.low_us <= row.time_us <= row.interval.high_us for row in profile.kernels)
    assert (profile.bandwidths, profile.peaks, profile.load, profile.backends) == ([], [], None, [])
    assert profile.machine.isa == ISA
    assert profile.chosen["instruction set"].startswith(f"{ISA}, ")
    assert profile.chosen["threads"].startswith(f"{best_threads(profile)}: ")
    assert from_dict(to_dict(profile)) == profile


def test_coding_a_value_takes_longer_than_a_cycle_and_less_than_a_millionth_of_a_second(quick):
    assert 0.01 < quick[0].overhead.value_ns < 1000


def test_what_was_not_measured_is_said(quick):
    profile, _ = quick
    assert profile.warmup is None
    assert "kernel warm-up" in profile.unmeasured
    for value, name in (
        (profile.condition.temperature_c, "temperature"),
        (profile.condition.throttling, "throttling"),
        (profile.copy_gbps, "memory copy"),
        (profile.machine.board, "board"),
    ):
        assert (value is None) == (name in profile.unmeasured)


def test_declared_power_is_marked_as_such(quick):
    profile, _ = quick
    assert (profile.power.source, profile.power.load_watts) == ("declared", 6.5)
    assert "power" not in profile.unmeasured


def test_progress_counts_every_step_to_its_end(quick):
    _, steps = quick
    totals = {total for _, total, _ in steps}
    assert len(totals) == 1
    assert [done for done, _, _ in steps] == list(range(totals.pop() + 1))
    assert steps[-1][2] == "done"


@pytest.mark.thorough
@pytest.mark.slow
def test_a_whole_profile_measures_the_start_in_a_new_process():
    profile = measure()
    assert profile.warmup is not None
    assert profile.warmup.warm_s is not None or "warm start" in profile.unmeasured
    assert (profile.warmup.cold_s is None) == ("cold start" in profile.unmeasured)
    counts = measurement.thread_counts(usable_threads())
    assert [one.threads for one in profile.peaks] == counts
    assert [one.threads for one in profile.bandwidths if one.kind == "read"] == counts
    assert profile.copy_gbps == next(one.gbps for one in profile.bandwidths if one.kind == "copy")
    assert profile.load.seconds > 2
    assert 0 < profile.load.burst_gops < 100_000
    assert 0 < profile.load.sustained_gops < 100_000
    if profile.power.source == "unknown":
        assert "power" in profile.unmeasured


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_a_measured_segment_is_one_that_a_server_could_send(kind, shape):
    made = one_operator(kind, shape)
    again = segment.parse(segment.build(made.header, made.blob.tobytes()))
    assert again.header == made.header
    codes = np.random.default_rng(5).integers(0, 256, (shape.h, shape.w, shape.c), np.uint8)
    answer = Head(again, check_golden=False).run(codes)
    assert list(answer.shape) == made.header.tensors[1].shape
    assert len(np.unique(answer)) > 1


def test_a_chain_has_as_many_operators_as_asked():
    header = one_operator("lut", Shape(1, 1, 64, 64), chain=5).header
    assert [(op.x, op.out) for op in header.ops] == [(i, i + 1) for i in range(5)]


@pytest.mark.slow
def test_this_machine_is_predicted_within_reason(quick):
    """A bound against wrong units and forgotten terms, not a claim of accuracy."""
    one = one_operator("conv", Shape(28, 28, 96, 96, k=3), chain=4)
    head = Head(one, check_golden=False)
    codes = np.zeros((28, 28, 96), np.uint8)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        head.run(codes)
        times.append(time.perf_counter() - start)
    predicted = predict.head_ms(one.header, quick[0])
    assert 0.25 < predicted / (median(times) * 1000) < 4


def test_the_known_answers_are_those_of_the_slow_twin():
    for (kind, shape), answer in zip(measurement.CHECKED, measurement.ANSWERS, strict=True):
        one = measurement.checked_segment(kind, shape, answer)
        output = reference_head.run(one, segment.golden_frame(one.header))[one.header.output]
        assert hashlib.sha256(output.tobytes()).hexdigest() == answer
        assert len(np.unique(output)) >= 10  # values that tell a wrong kernel from a right one


def test_the_kernels_of_this_machine_give_the_known_answers(monkeypatch):
    measurement.check_kernels()
    monkeypatch.setattr(measurement, "ANSWERS", (*measurement.ANSWERS[:-1], "0" * 64))
    with raises(SegmentError, reason="golden-answer"):
        measurement.check_kernels()
