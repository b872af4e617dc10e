"""What a model's output is, told by its shape and what the float model answers."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.importing import outputs
from calibration.importing.signature import ArgMax
from splitedge import errors
from splitedge.protocol.messages import Greatest, Output

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(16, 10)).astype(np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
EMBEDDING = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (LOGITS, "logits"),
        (LOGITS - 30, "logits"),  # as log-probabilities are
        (np.maximum(LOGITS, 0), "logits"),
        (SOFTMAX, "probabilities"),
        (SOFTMAX.reshape(16, 10, 1, 1), "probabilities"),
        (np.eye(10, dtype=np.float32), "probabilities"),
        (1 / (1 + np.exp(-LOGITS)), "scores"),
        (EMBEDDING, "tensor"),
        (RANDOM.normal(size=(4, 6, 16, 16)).astype(np.float32), "tensor"),
        (SOFTMAX.reshape(16, 2, 5), "tensor"),
        (LOGITS.reshape(16, 1, 10, 1), "logits"),
    ],
)
def test_shape_and_values_tell_the_kind(values, kind):
    assert outputs.kind(values) == kind
    assert outputs.describe(values) == Output(kind, list(values.shape[1:]))


def test_names_or_labels_make_a_vector_classes_and_the_cosine_makes_it_an_embedding():
    assert outputs.describe(EMBEDDING, classes=True).kind == "logits"
    assert outputs.describe(LOGITS, embedding=True).kind == "tensor"
    assert outputs.describe(LOGITS, embedding=True, classes=True).kind == "logits"
    assert outputs.describe(SOFTMAX, embedding=True).kind == "probabilities"


def test_an_argmax_of_a_map_is_answered_in_indices_and_one_of_a_vector_in_classes():
    planes = RANDOM.normal(size=(2, 6, 5, 4)).astype(np.float32)
    assert outputs.describe(planes, indices=ArgMax(1, False)) == Output("tensor", [5, 4], Greatest(0, [6, 5, 4]))
    assert outputs.describe(planes, indices=ArgMax(3, False)) == Output("tensor", [6, 5], Greatest(2, [6, 5, 4]))
    assert outputs.describe(planes, indices=ArgMax(1, True)).shape == [1, 5, 4]
    assert outputs.describe(LOGITS, indices=ArgMax(1, True)) == Output("logits", [10])


def test_an_argmax_over_another_axis_than_the_classes_is_answered_in_indices():
    assert outputs.describe(LOGITS.reshape(16, 1, 10), indices=ArgMax(1, True)) == Output(
        "tensor", [1, 10], Greatest(0, [1, 10])
    )
    assert outputs.describe(EMBEDDING, indices=ArgMax(1, True)).kind == "logits"


def test_what_a_topk_yields_has_no_classes():
    assert outputs.describe(-np.sort(-LOGITS, axis=1), ranked=True).kind == "tensor"
    assert outputs.describe(-np.sort(-SOFTMAX, axis=1), ranked=True, classes=True).kind == "tensor"


def test_the_kind_that_was_asked_for_wins():
    assert outputs.describe(LOGITS, "tensor").kind == "tensor"
    assert outputs.describe(SOFTMAX, "logits").kind == "logits"


def test_a_map_has_no_classes():
    with pytest.raises(errors.InputError):
        outputs.describe(np.zeros((2, 3, 4, 5), np.float32), "probabilities")


def test_an_answer_that_no_frame_holds_is_refused():
    with pytest.raises(errors.ModelError):
        outputs.describe(np.zeros((1, 21, 513, 513), np.float32))
