"""The roofline: intensities and roofs by hand, and a chart whose points are where they belong."""

from __future__ import annotations

import dataclasses

import pytest

from device_profiles.schema import Bandwidth, Peak
from edge_agent.profiling import backends, roofline
from edge_agent.profiling.roofline import Point, Roof, Roofline
from splitedge.errors import UsageError
from splitedge.head import executor
from splitedge.head import segment as seg
from tests.edge_agent.commands.test_warm import transformer
from tests.raising import raises
from tests.round_profile import round_profile

REFERENCE = (backends.FILES / "int8.segment").read_bytes()


def profile():
    made = round_profile()
    made.peaks, made.bandwidths = [Peak(1, 30.0)], [Bandwidth("copy", 1, 8.0), Bandwidth("read", 1, 5.0)]
    return made


def test_the_roofs_and_kernels_of_a_profile():
    found = roofline.roofline(profile())
    assert found.roofs == [Roof(1, 30.0, 5.0)]
    assert found.exact
    dense = next(one for one in found.kernels if one.kind == "dense")
    assert dense.gops == pytest.approx(20.0)  # 10 products a nanosecond
    assert dense.intensity == pytest.approx(2 * 1280 * 1000 / (1280 + 1000 + 1280 * 1000))
    assert {one.kind for one in found.kernels} == {"pointwise", "depthwise", "conv", "dense"}


def test_without_peaks_the_best_kernel_takes_their_place():
    found = roofline.roofline(round_profile())
    assert not found.exact
    assert found.roofs == [Roof(1, pytest.approx(20.0), 9.5)]


def test_a_number_of_threads_that_was_not_measured_is_refused():
    with raises(UsageError, reason="threads"):
        roofline.roofline(profile(), 3)


def test_the_bound_is_the_lower_of_both():
    roof = Roof(1, 30.0, 5.0)
    assert [roof.at(x) for x in (1.0, 6.0, 60.0)] == [5.0, 30.0, 30.0]
    assert Roof(1, 30.0, None).at(0.1) == 30.0


def built(made: seg.Segment) -> bytes:
    return seg.build(made.header, made.blob.tobytes())


@pytest.mark.parametrize("make", [lambda: seg.parse(REFERENCE), transformer])
def test_products_are_those_of_the_executor(make):
    segment = make()
    head = executor.Head(segment, check_golden=False)
    frame = seg.golden_frame(segment.header)
    assert [roofline.products(op, segment.header) for op in segment.header.ops] == [
        one.macs for one in head.profile(frame, 1)
    ]


def test_the_bytes_of_a_linear_layer_count_floats_and_weights():
    header = transformer().header
    op = next(op for op in header.ops if isinstance(op, seg.Linear))
    rows, channels = header.tensors[op.x].shape
    outs = header.tensors[op.out].shape[-1]
    assert roofline.moved(op, header) == 4 * rows * channels + 4 * rows * outs + channels * outs


def test_the_operators_of_a_model_are_measured_or_predicted():
    measured = roofline.measured(REFERENCE, profile(), 1)
    predicted = roofline.predicted(REFERENCE, profile(), 1)
    assert [(one.name, one.kind, one.intensity) for one in measured] == [
        (one.name, one.kind, one.intensity) for one in predicted
    ]
    assert {one.kind for one in measured} == {"pointwise", "depthwise", "conv", "dense"}
    assert all(one.gops > 0 and one.us > 0 for one in measured + predicted)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_points_are_drawn_below_their_roof(width):
    found = Roofline(
        [Roof(1, 10.0, 1.0)], [Point("a", "conv", 1.0, 0.5, 1.0), Point("b", "depthwise", 100.0, 9.0, 1.0)], True, []
    )
    lines = roofline.chart(found, width)
    assert max(map(len, lines)) <= width
    rows = {letter: [i for i, line in enumerate(lines) if letter in line.partition("│")[2]] for letter in "cd="}
    (conv,), (depthwise,) = rows["c"], rows["d"]
    roof = min(rows["="])
    assert roof < conv
    assert roof <= depthwise < conv
    assert lines[conv].index("c") < lines[depthwise].index("d")
    assert lines[roof].rstrip().endswith("=")


def test_a_model_s_operators_are_capitals_and_a_table():
    found = dataclasses.replace(
        roofline.roofline(profile()),
        operators=roofline.predicted(REFERENCE, profile(), 1),
        model="net",
        source="predicted",
    )
    text = "\n".join(roofline.chart(found, 80))
    assert {"P", "D", "C", "F"} <= set(text)
    assert "net, predicted" in "\n".join(roofline._legend(found, 80))
    assert len(roofline._table(found, 80)) == 1  # 12 operators with products: none is left out


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_picture(form, start):
    pytest.importorskip("matplotlib")
    assert roofline.draw(roofline.roofline(profile()), form).startswith(start)
