"""Boxes of detectors: decoding against plain loops, suppression and matching against slow twins, and hostile bytes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.protocol.messages import Columns, Detection
from splitedge.tasks import detection
from splitedge.tasks.detection import Boxes
from tests.raising import raises

F32 = NDArray[np.float32]
Corners = tuple[float, float, float, float]

NAMES = [one.name for one in dataclasses.fields(Boxes)]
CENTRES = Detection(Columns(0, 0, 4), Columns(0, 4, 3), score=0.5, iou=0.5)
ANY = Detection(Columns(0, 0, 4), Columns(0, 4, 60_000), points=Columns(0, 0, 6), most=limits.MAX_BOXES)


def table(*rows: list[float]) -> F32:
    return np.array(rows, np.float32)


def boxes(*found: tuple[int, float, Corners]) -> Boxes:
    return Boxes(
        np.array([one[0] for one in found], np.int64),
        np.array([one[1] for one in found], np.float32),
        np.array([one[2] for one in found], np.float32).reshape(-1, 4),
        np.zeros((len(found), 0, 2), np.float32),
    )


def overlap(a: Corners, b: Corners) -> float:
    """Intersection over union by its definition."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def random_boxes(seed: int, count: int, classes: int = 2) -> Boxes:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 0.7, (count, 2))
    corners = np.concatenate([corner, corner + random.uniform(0.1, 0.4, (count, 2))], axis=1)
    scores = np.sort(random.uniform(0, 1, count))[::-1]
    named = random.integers(0, classes, count)
    points = random.uniform(0, 1, (count, 3, 2))
    return Boxes(named, scores.astype(np.float32), corners.astype(np.float32), points.astype(np.float32))


# --- decoding -------------------------------------------------------------------------------------------------------


def test_centres_and_scores_become_corners_of_the_best_class() -> None:
    found = detection.decode([table([0.5, 0.4, 0.2, 0.4, 0.1, 0.9, 0.3], [0.5, 0.5, 0.1, 0.1, 0.2, 0.3, 0.4])], CENTRES)
    assert found.classes.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.corners.tolist()[0] == pytest.approx([0.4, 0.2, 0.6, 0.6])


def test_a_table_may_be_turned_and_its_coordinates_in_pixels() -> None:
    rows = table([320, 160, 64, 32, 0.1, 0.9, 0.3], [100, 100, 10, 10, 0.8, 0.1, 0.1])
    task = msgspec.structs.replace(
        CENTRES, boxes=Columns(0, 0, 4, turned=True), scores=Columns(0, 4, 3, turned=True), width=640, height=320
    )
    found = detection.decode([np.ascontiguousarray(rows.T)], task)
    assert found.classes.tolist() == [1, 0]
    assert found.corners.tolist()[0] == pytest.approx([0.45, 0.45, 0.55, 0.55])


def test_a_certainty_multiplies_the_scores() -> None:
    task = msgspec.structs.replace(CENTRES, scores=Columns(0, 5, 2), certainty=Columns(0, 4, 1), score=0.4)
    found = detection.decode([table([0.5, 0.5, 0.2, 0.2, 0.5, 0.1, 0.9], [0.5, 0.5, 0.2, 0.2, 0.4, 0.9, 0.1])], task)
    assert (found.classes.tolist(), found.scores.tolist()) == ([1], pytest.approx([0.45]))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_activations_are_those_of_the_field(activation: str) -> None:
    scores = table([1.0, -2.0, 0.5], [-3.0, 4.0, 0.0], [-3.0, -4.0, 9.0])
    corners = table([0, 0, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3], [0.4, 0.4, 0.5, 0.5])
    task = Detection(
        Columns(0, 0, 4),
        Columns(1, 0, 3),
        layout="corners",
        score=0.0,
        iou=1.0,
        activation=activation,  # type: ignore[arg-type]
    )
    found = detection.decode([corners, scores], task)
    wanted = []
    for row in scores.tolist():
        if activation == "sigmoid":
            each = [1 / (1 + math.exp(-value)) for value in row]
        else:
            each = [math.exp(value) / sum(map(math.exp, row)) for value in row][:-1]
        wanted.append((max(each), each.index(max(each))))
    assert sorted(zip(found.scores.tolist(), found.classes.tolist(), strict=True)) == [
        (pytest.approx(score), index) for score, index in sorted(wanted)
    ]


def test_classes_may_stand_in_a_table_of_their_own_and_y_before_x() -> None:
    task = Detection(
        Columns(0, 0, 4),
        Columns(2, 0, 1),
        layout="corners",
        rows_first=True,
        classes=Columns(1, 0, 1),
        score=0.5,
        iou=1.0,
    )
    places = table([0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6], [0, 0, 1, 1])
    found = detection.decode(
        [places, np.array([7, 70_000, -3], np.float32), np.array([0.9, 0.8, 0.2], np.float32)], task
    )
    assert found.classes.tolist() == [7, limits.MAX_CLASS]
    assert found.corners.tolist()[0] == pytest.approx([0.2, 0.1, 0.4, 0.3])


@pytest.mark.parametrize("exponential", [False, True])
def test_anchors_move_and_scale_boxes_and_points(exponential: bool) -> None:
    anchors = np.array([[0.5, 0.25, 0.5, 0.2]], "<f4")
    task = Detection(
        Columns(0, 0, 4),
        Columns(1, 0, 1),
        width=2.0,
        height=4.0,
        anchors=anchors.tobytes(),
        exponential=exponential,
        points=Columns(0, 4, 4),
        score=0.0,
    )
    found = detection.decode([table([0.4, 0.8, 1.0, 2.0, 0.2, 0.4, -0.6, 0.0]).reshape(1, 8), table([1.0])], task)
    width, height = (math.exp(0.5), math.exp(0.5)) if exponential else (0.5, 0.5)
    x, y, w, h = 0.5 + 0.2 * 0.5, 0.25 + 0.2 * 0.2, width * 0.5, height * 0.2
    assert found.corners.tolist()[0] == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    assert found.points[0].ravel().tolist() == pytest.approx([0.5 + 0.1 * 0.5, 0.25 + 0.1 * 0.2, 0.5 - 0.3 * 0.5, 0.25])


def test_an_image_without_anything_has_no_boxes_and_no_points() -> None:
    task = msgspec.structs.replace(CENTRES, scores=Columns(0, 4, 1), points=Columns(0, 5, 6))
    found = detection.decode([np.zeros((7, 11), np.float32)], task)
    assert (len(found), found.corners.shape, found.points.shape) == (0, (0, 4), (0, 3, 2))
    assert len(detection.unpack(detection.pack(found), task)) == 0


def test_the_grids_of_mediapipe_have_896_boxes() -> None:
    found = detection.grid_anchors(128, (8, 16, 16, 16), 2)
    assert found.shape == (896, 4)
    assert found[0].tolist() == found[1].tolist() == pytest.approx([0.5 / 16, 0.5 / 16, 1, 1])
    assert found[2].tolist() == pytest.approx([1.5 / 16, 0.5 / 16, 1, 1])
    assert (found[512:518] == found[512]).all()
    assert found[518].tolist() == pytest.approx([1.5 / 8, 0.5 / 8, 1, 1])


def test_an_answer_has_at_most_the_best_boxes() -> None:
    rows = [[0.05 + 0.1 * i, 0.5, 0.05, 0.05, 0.5 + 0.01 * i, 0, 0] for i in range(9)]
    found = detection.decode([table(*rows)], msgspec.structs.replace(CENTRES, most=3))
    assert found.scores.tolist() == pytest.approx([0.58, 0.57, 0.56])


# --- suppression and matching -----------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 12), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_suppression_equals_its_definition(seed: int, count: int, iou: float) -> None:
    one = random_boxes(seed, count)
    kept: list[int] = []
    for i in range(count):
        rivals = [k for k in kept if one.classes[k] == one.classes[i]]
        if all(overlap(tuple(one.corners[i].tolist()), tuple(one.corners[k].tolist())) <= iou for k in rivals):
            kept.append(i)
    corners, scores = one.corners.astype(np.float64), one.scores.astype(np.float64)
    assert detection.suppress(corners, scores, one.classes, iou).tolist() == kept


@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 5))
def test_matching_pairs_boxes_once_and_nearly_as_many_as_possible(seed: int, n: int, m: int) -> None:
    one, other = random_boxes(seed, n, 1), random_boxes(seed + 1, m, 1)
    good = [
        [overlap(tuple(a.tolist()), tuple(b.tolist())) >= detection.SAME for b in other.corners] for a in one.corners
    ]
    orders = itertools.permutations(range(max(n, m)), n)
    most = max((sum(j < m and good[i][j] for i, j in enumerate(order)) for order in orders), default=0)
    found = detection.matched(one, other)
    assert most / 2 <= found <= most
    assert found == detection.matched(other, one)


def test_only_boxes_of_one_class_match() -> None:
    place = (0.0, 0.0, 0.5, 0.5)
    assert detection.matched(boxes((0, 0.9, place)), boxes((0, 0.5, (0.0, 0.0, 0.5, 0.45)))) == 1
    assert detection.matched(boxes((0, 0.9, place)), boxes((1, 0.9, place))) == 0
    assert detection.matched(boxes((0, 0.9, place), (0, 0.8, place)), boxes((0, 0.9, place))) == 1
    assert detection.matched(boxes(), boxes((0, 0.9, place))) == 0


# --- bytes ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 20))
def test_packed_boxes_come_back(seed: int, count: int) -> None:
    one = random_boxes(seed, count)
    found = detection.unpack(detection.pack(one), ANY)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(one, name))


@given(st.binary(max_size=200))
def test_any_bytes_are_boxes_or_an_error(data: bytes) -> None:
    with suppress(errors.ProtocolError):
        found = detection.unpack(data, ANY)
        assert all(np.isfinite(getattr(found, name)).all() for name in NAMES)


def test_too_many_boxes_and_numbers_that_are_none_are_refused() -> None:
    many = random_boxes(0, limits.MAX_BOXES + 1)
    bad = dataclasses.replace(random_boxes(0, 2), scores=np.array([np.nan, 1], np.float32))
    for data in (detection.pack(many), detection.pack(bad), struct.pack("<HH", 0, limits.MAX_POINTS + 1)):
        with pytest.raises(errors.ProtocolError) as error:
            detection.unpack(data, ANY)
        assert error.value.data["reason"] == "answer-bytes"


# --- hostile descriptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": Columns(1, 0, 4)}, "boxes"),
        ({"boxes": Columns(-1, 0, 4)}, "boxes"),
        ({"boxes": Columns(0, 0, 3)}, "boxes"),
        ({"boxes": Columns(0, -1, 4)}, "boxes"),
        ({"scores": Columns(0, 4, 4)}, "boxes"),
        ({"scores": Columns(0, 4, 0)}, "boxes"),
        ({"scores": Columns(0, 4, 3, turned=True)}, "boxes"),
        ({"points": Columns(0, 0, 3)}, "boxes-range"),
        ({"most": 0}, "boxes-range"),
        ({"most": limits.MAX_BOXES + 1}, "boxes-range"),
        ({"width": 0.0}, "boxes-range"),
        ({"height": math.inf}, "boxes-range"),
        ({"score": math.nan}, "boxes-range"),
        ({"scores": Columns(0, 4, 1), "activation": "softmax"}, "boxes-range"),
        ({"iou": -0.1}, "boxes-range"),
        ({"score": 1.5}, "boxes-range"),
        ({"certainty": Columns(0, 4, 2)}, "boxes-range"),
        ({"classes": Columns(0, 5, 1)}, "boxes-range"),
        ({"anchors": bytes(16)}, "anchors"),
        ({"anchors": np.full((9, 4), np.nan, "<f4").tobytes()}, "anchors"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert detection.check(CENTRES, [[9, 7]]) == 9
    with pytest.raises(errors.ModelError) as error:
        detection.check(msgspec.structs.replace(CENTRES, **changes), [[9, 7]])
    assert error.value.data["reason"] == reason


@pytest.mark.parametrize(
    "changes", [{"most": 4}, {"scores": Columns(0, 4, 1)}, {"points": None}, {"points": Columns(0, 0, 4)}]
)
def test_an_answer_that_is_not_of_the_plans_task_is_refused(changes: dict[str, Any]) -> None:
    data = detection.pack(random_boxes(0, 5))
    assert len(detection.unpack(data, ANY)) == 5
    with raises(errors.ProtocolError, reason="answer-bytes"):
        detection.unpack(data, msgspec.structs.replace(ANY, **changes))


def test_logits_beyond_any_score_are_bounded_and_other_values_are_not() -> None:
    task = Detection(Columns(0, 0, 4), Columns(1, 0, 1), activation="sigmoid", score=0.5)
    assert detection.bounds(task, [[9, 4], [9, 1]]) == {1: (-8.0, 20.0)}
    assert detection.bounds(msgspec.structs.replace(task, activation="none"), [[9, 4], [9, 1]]) == {}
    assert detection.bounds(msgspec.structs.replace(task, scores=Columns(0, 4, 1)), [[9, 5]]) == {}
