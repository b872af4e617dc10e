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
from edge_server.commands.add import add
from edge_server.store.store import Store
from tests.edge_server.small_network import request_of, save_network
from tests.round_profile import round_profile


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
    """The device profile of `round_profile`, as a request holds it."""
    value: dict[str, Any] = msgspec.to_builtins(round_profile())
    return value
