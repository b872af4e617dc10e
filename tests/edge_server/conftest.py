"""A tiny real network, calibrated once, and a device profile with round figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from calibration.accuracy import tail_runs
from device_profiles import schema
from device_profiles.measure import SHAPES, describe, one_operator
from device_profiles.predict import op_bytes, op_macs
from edge_server.commands.add import add
from edge_server.store.store import Store
from tests.edge_server.small_network import request_of, save_network


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny.onnx``, beside ``x.npy`` with 12 samples."""
    folder = tmp_path_factory.mktemp("network")
    save_network(folder / "tiny.onnx")
    np.save(folder / "x.npy", np.random.default_rng(4).normal(size=(12, 16, 16, 3)).astype(np.float32))
    return folder / "tiny.onnx"


@pytest.fixture(scope="session")
def _library(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "store"
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # tails of round figures, as the profile's: what is planned must not depend on the machine's load
        patch.setattr(
            tail_runs, "tail_ms", lambda model, graph, cut: 0.0 if cut.kind == "output" else 0.02 / (1 + cut.index)
        )
        add(folder, request_of(network))
    return folder


@pytest.fixture
def store(_library: Path, tmp_path: Path) -> Iterator[Store]:
    """A store of one's own that holds the model ``tiny``."""
    shutil.copytree(_library, tmp_path / "library")
    with Store(tmp_path / "library") as opened:
        yield opened


@pytest.fixture
def profile() -> dict[str, Any]:
    """A device profile: 10 multiply-accumulates or 2 bytes a nanosecond, 100 us for each operator."""
    kernels = []
    for kind, shape in SHAPES:
        header = one_operator(kind, shape).header
        macs, size = op_macs(header.ops[0], header), op_bytes(header.ops[0], header)
        time_us = macs / 10_000 if macs else size / 2_000
        kernels.append(schema.Kernel(kind, describe(kind, shape), shape, 1, macs, size, time_us, 0.5, 100))
    machine = schema.Machine(None, "test", "x86_64", [], "portable", 4, 4, 4, None, 1 << 33, 1 << 32, None, "test")
    made = schema.DeviceProfile(
        schema_version=schema.SCHEMA_VERSION,
        created="2026-01-03T10:00:00+00:00",
        quick=False,
        machine=machine,
        kernels=kernels,
        overhead=schema.Overhead(call_us=5.0, op_us=100.0),
        copy_gbps=9.5,
        warmup=None,
        condition=schema.Condition(None, None, None, None),
        power=schema.Power("declared", "", 2.0, 5.0),
        unmeasured={},
    )
    value: dict[str, Any] = msgspec.to_builtins(made)
    return value
