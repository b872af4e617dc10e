"""Limits of published runs: counted by hand for one layer, and monotone in clock, threads and bandwidth."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.published import networks, roofline
from benchmarks.published.data import Board, Measurement
from benchmarks.published.networks import Builder

BOARD = Board("a board", "a", "cortex-a72", 4, 1000.0, 1024, 0, 4.0, "estimated: for this test")


def row(threads: int = 1, precision: str = "int8", runtime: str = "tflite", network: str = "one") -> Measurement:
    return Measurement("a", threads, network, precision, runtime, 1.0, "measured", 2024, "test")  # type: ignore[arg-type]


@pytest.fixture
def one(monkeypatch):
    """The network "one" is the layers that the test gives."""

    def put(net: Builder) -> None:
        monkeypatch.setattr(networks, "layers", lambda name: tuple(net.layers))

    monkeypatch.setattr(networks, "weights", lambda name: sum(layer.weights for layer in networks.layers(name)))
    monkeypatch.setattr(networks, "largest_tensor", lambda name: 0)
    return put


@pytest.mark.parametrize(
    ("precision", "runtime", "a_cycle"),
    [("int8", "tflite", 8), ("fp32", "tflite", 4), ("fp16", "tflite", 4), ("int8", "ncnn", 16), ("fp32", "ncnn", 16)],
)
def test_a_window_of_three_is_limited_by_the_products_of_its_instructions(one, precision, runtime, a_cycle):
    one(Builder(28, 28, 128).conv(128, 3))
    found = roofline.limits(row(1, precision, runtime), BOARD)
    assert found.seconds["conv3"] == pytest.approx(28 * 28 * 128 * 9 * 128 / a_cycle / 1e9)
    assert found.total == found.seconds["conv3"]
    assert found.memory == 0


def test_weights_that_no_cache_holds_come_over_the_one_bus_whatever_the_threads(one):
    one(Builder(1, 1, 4096).dense(4096))
    expected = (4096 * 4096 / 4e9) + (2 * 4096 / 16 / 1e9)  # weights from memory, activations from the first cache
    found = roofline.limits(row(), BOARD)
    assert found.seconds["dense"] == pytest.approx(expected)
    assert found.memory == pytest.approx(4096 * 4096 / 4e9)
    assert roofline.limits(row(4), BOARD).total == pytest.approx(4096 * 4096 / 4e9 + roofline.TEAM_S, rel=0.01)


def test_activations_move_at_the_rate_of_the_smallest_cache_that_holds_them(one):
    times = []
    for side in (32, 128, 1024):  # 2 x 8 KiB, 2 x 128 KiB, 2 x 8 MiB
        net = Builder(side, side, 8)
        one(net)
        net._rest(net.size, 0)
        times.append(roofline.limits(row(), BOARD).total / net.size)
    assert times == pytest.approx([2 / 16e9, 2 / 8e9, 2 / 4e9])


@pytest.mark.parametrize("network", networks.NAMES)
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_faster_board_is_never_slower(network, precision):
    def total(threads: int = 1, **changes: float) -> float:
        return roofline.limits(
            row(threads, precision, network=network), msgspec.structs.replace(BOARD, **changes)
        ).total

    assert total() > total(mhz=2000.0) > 0
    assert total() >= total(copy_gbps=8.0)
    assert total() >= total(l2_kib=1 << 15)
    assert total() > total(4) > total() / 4
