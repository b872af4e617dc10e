"""A device profile of round figures: tests of what uses profiles need none of this machine, whose measurement takes most of a minute."""

from __future__ import annotations

from device_profiles import DeviceProfile, schema
from device_profiles.measurement import SHAPES, describe, one_operator
from device_profiles.predict import op_bytes, op_macs


def round_kernels() -> list[schema.Kernel]:
    """Every kernel at 10 multiply-accumulates or 2 bytes a nanosecond."""
    kernels = []
    for kind, shape in SHAPES:
        header = one_operator(kind, shape).header
        macs, size = op_macs(header.ops[0], header), op_bytes(header.ops[0], header)
        time_us = macs / 10_000 if macs else size / 2_000
        kernels.append(schema.Kernel(kind, describe(kind, shape), shape, 1, macs, size, time_us, 0.5, 100))
    return kernels


def round_profile() -> DeviceProfile:
    """A board with `round_kernels` and 100 us for each operator."""
    machine = schema.Machine(None, "test", "x86_64", [], "portable", 4, 4, 4, None, 1 << 33, 1 << 32, None, "test")
    return DeviceProfile(
        schema_version=schema.SCHEMA_VERSION,
        created="2026-01-03T10:00:00+00:00",
        quick=False,
        machine=machine,
        kernels=round_kernels(),
        overhead=schema.Overhead(call_us=5.0, op_us=100.0),
        copy_gbps=9.5,
        warmup=None,
        condition=schema.Condition(None, None, None, None),
        power=schema.Power("declared", "", 2.0, 5.0),
        unmeasured={},
    )
