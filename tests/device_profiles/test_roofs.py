"""Bandwidth, peak and load on this very machine: units and order, never a figure."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from device_profiles import machine, measurement, power, roofs
from device_profiles.measurement import one_operator
from device_profiles.schema import Shape
from kernels import isa
from splitedge.head import Head


def test_bandwidths_of_copy_and_read_on_each_number_of_threads(monkeypatch):
    monkeypatch.setattr(roofs, "_BYTES_MOST", roofs._BYTES_LEAST)
    found = roofs.bandwidths(machine.machine(isa.ISA)[0], [1, 2])
    assert [(one.kind, one.threads) for one in found] == [("copy", 1), ("read", 1), ("copy", 2), ("read", 2)]
    assert all(0.01 < one.gbps < 10_000 for one in found)


def test_no_bandwidth_without_memory_for_it():
    found = msgspec.structs.replace(machine.machine(isa.ISA)[0], memory_available_bytes=64 << 20)
    assert roofs.bandwidths(found, [1]) == []


def test_the_peak_never_falls_with_more_threads():
    one, two = roofs.peaks([1, 2])
    assert (one.threads, two.threads) == (1, 2)
    assert 0 < one.gops <= two.gops


def test_the_speed_of_a_load_and_its_power():
    segment = one_operator("lut", Shape(56, 56, 144, 144))
    head, codes = Head(segment, check_golden=False), np.zeros((56, 56, 144), np.uint8)
    meter = power.PowerMeter("7 W", lambda: [7.0])
    assert 1 < roofs.speed(head, codes, 0.6, 0.2, meter) < 1e6
    assert meter.watts() == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (6, [1, 2, 3, 4, 6]), (12, [1, 2, 3, 4, 8, 12])]
)
def test_numbers_of_threads(most, counts):
    assert measurement.thread_counts(most) == counts
    assert measurement.thread_counts(most, quick=True) == sorted({1, most})
