"""What an answer holds, by the kind of the model's output, and that bytes and values say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import errors
from splitedge.head import answers
from splitedge.protocol.messages import Greatest, Output

LOGITS = Output("logits", [3])
SCORES = Output("scores", [4])
MAP = Output("tensor", [2, 3, 4])


def test_logits_go_through_a_softmax():
    (first, p), (second, q) = answers.best(np.array([[0.0, 1000.0, 999.0]], np.float32), 2, LOGITS)
    assert (first, second) == (1, 2)
    assert p == pytest.approx(1 / (1 + np.exp(-1)))
    assert p + q == pytest.approx(1)


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_probabilities_and_scores_stay_as_they_are(kind):
    values = np.array([0.884, 0.809, 0.046, 0.018], np.float32)
    assert answers.best(values, 9, Output(kind, [4])) == tuple(enumerate(values.tolist()))


def test_equal_values_come_in_the_order_of_their_index():
    assert [i for i, _ in answers.best(np.zeros(5, np.float32), 9, Output("logits", [5]))] == [0, 1, 2, 3, 4]


def test_a_tensor_is_answered_whole_whatever_was_asked_for():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for topk in (0, 5):
        payload = answers.pack(values, MAP, topk)
        answered = answers.unpack(payload, MAP, topk)
        assert answered.pairs == ()
        np.testing.assert_array_equal(answered.output, values)


def test_classes_come_with_the_whole_output_where_it_is_asked_for():
    values = np.array([1.0, 3.0, 2.0], np.float32)
    answered = answers.unpack(answers.pack(values, LOGITS, 0), LOGITS, 0)
    np.testing.assert_array_equal(answered.output, values)
    assert answered.pairs == answers.best(values, answers.SHOWN, LOGITS)
    assert answers.unpack(answers.pack(values, LOGITS, 2), LOGITS, 2).output is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_an_error_never_an_answer(value):
    with pytest.raises(errors.ModelError):
        answers.pack(np.array([1.0, value, 0.0], np.float32), LOGITS, 2)


@given(st.binary(max_size=200), st.sampled_from([LOGITS, SCORES, MAP]), st.integers(0, 5))
def test_any_bytes_are_an_answer_or_a_breach_of_the_protocol(payload, output, topk):
    try:
        answered = answers.unpack(payload, output, topk)
    except (errors.ProtocolError, errors.ModelError):
        return
    assert (answered.output is None) == (output.has_classes and topk > 0)


def test_indices_are_those_of_the_greatest_scores():
    output = Output("tensor", [3, 4], Greatest(0, [2, 3, 4]))
    scores = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    scores[:, 0, 0] = 1.0  # of equal scores the first
    payload = answers.pack(scores, output, 5)
    assert len(payload) == 4 * 12
    answered = answers.unpack(payload, output, 5)
    assert answered.output.dtype == np.int64
    np.testing.assert_array_equal(answered.output, scores.argmax(axis=0))
    np.testing.assert_array_equal(answers.from_values(scores, output, 0).output, scores.argmax(axis=0))
    stored = np.ascontiguousarray(scores.transpose(1, 2, 0))
    np.testing.assert_array_equal(answers.to_onnx_order(stored, output), scores)


def test_a_plane_of_the_head_comes_in_onnx_order():
    stored = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(answers.to_onnx_order(stored, MAP), stored.transpose(2, 0, 1))
    assert answers.to_onnx_order(np.zeros((1, 1, 3), np.float32), LOGITS).shape == (3,)


def test_probabilities_are_the_softmax_of_logits_and_other_kinds_themselves():
    rows = np.array([[0.0, np.log(3.0)], [1000.0, 1000.0]], np.float32)
    np.testing.assert_allclose(answers.probabilities(rows, "logits"), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(answers.probabilities(rows, "scores"), rows)
