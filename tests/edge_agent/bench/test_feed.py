"""Inputs for models: noise and frames in the layout and the codes that a model takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends import OPEN, Port
from edge_agent.bench import feed
from splitedge.errors import InputError, UsageError
from tests.raising import raises

F32, U8, I8, I64 = (np.dtype(kind) for kind in (np.float32, np.uint8, np.int8, np.int64))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.sampled_from([F32, U8, I8]))
def test_a_frame_in_both_layouts_holds_the_same_values(channels, height, width, dtype):
    values = np.random.default_rng(0).normal(size=(height, width, channels)).astype(np.float32)
    scale, zero = (1.0, 0) if dtype == F32 else (0.05, 3)
    last = Port("x", (1, height, width, channels), dtype, scale, zero)
    first = Port("x", (1, channels, height, width), dtype, scale, zero)
    (one,) = feed.frame([last], values)
    (two,) = feed.frame([first], values)
    assert one.dtype == two.dtype == dtype
    if last.shape != first.shape:
        assert np.array_equal(one[0], np.moveaxis(two[0], 0, -1))
    if dtype != F32:
        ends = np.iinfo(dtype)
        codes = [min(ends.max, max(ends.min, round(float(np.float64(v) / scale)) + zero)) for v in values.reshape(-1)]
        assert one.reshape(-1).tolist() == codes


@pytest.mark.parametrize(
    ("port", "least", "most"),
    [(Port("x", (2, 3), F32), -9, 9), (Port("x", (9,), U8), 0, 255), (Port("x", (9,), I8), -128, 127),
     (Port("input_ids", (1, 8), I64), 1, 99), (Port("attention_mask", (1, 8), I64), 1, 1), (Port("token_type_ids", (1, 8), I64), 0, 0)],
)  # fmt: skip
def test_noise_is_in_the_range_of_its_port(port, least, most):
    (made,) = feed.noise([port])
    assert made.shape == port.shape
    assert made.dtype == port.dtype
    assert made.min() >= least
    assert made.max() <= most


def test_open_dimensions_take_the_given_shape_and_that_of_the_first_input():
    ports = [Port("ids", (1, OPEN), I64), Port("mask", (1, OPEN), I64)]
    assert [port.shape for port in feed.resolved(ports, [1, 12])] == [(1, 12), (1, 12)]


@pytest.mark.parametrize("shape", [None, [1, 2, 3], [2, 5], [1, 0]])
def test_a_shape_that_is_missing_or_does_not_fit_is_refused(shape):
    with raises(UsageError, reason="shape"):
        feed.resolved([Port("ids", (1, OPEN), I64)], shape)


def test_a_frame_of_another_shape_or_for_several_inputs_is_refused():
    with raises(InputError, reason="other-shape"):
        feed.frame([Port("x", (1, 3, 8, 8), F32)], np.zeros((9, 8, 3), np.float32))
    with raises(InputError, reason="several-inputs"):
        feed.frame([Port("x", (1,), F32), Port("y", (1,), F32)], np.zeros(1, np.float32))
