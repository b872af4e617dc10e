"""The benchmark of coverage on networks made here: what it says of one that goes in, of one that does not, of a broken file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import coverage
from calibration.importing.graph import Graph
from splitedge import errors
from tests import small_models as small
from tests.raising import raises


def whole() -> onnx.ModelProto:
    return small.cnn()


def stopped() -> onnx.ModelProto:
    """A convolution, an operator that no head has, and a convolution of as many products."""
    net = small.Net([1, 4, 8, 8])
    net.conv(4, 4)
    net.add("LRN", size=3, name="norm")
    net.conv(4, 4)
    return net.model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, model in (("whole", whole()), ("stopped", stopped())):
        onnx.save(model, tmp_path / f"{name}.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    return tmp_path


def test_rows_tell_how_deep_a_head_goes_and_what_stops_it(folder: Path) -> None:
    deep, half = (coverage.measure(folder / f"{name}.onnx", quick=True) for name in ("whole", "stopped"))
    assert (deep["imported"], deep["reach %"], deep["stopped by"]) == (True, 100.0, "")
    assert min(deep["device"], deep["split"]) > 0.99
    assert (half["imported"], half["reach %"], half["device"]) == (True, 50.0, None)
    assert half["stopped by"].startswith("LRN: ")
    assert half["split"] > 0.99


@pytest.mark.thorough
def test_a_table_of_all_networks_with_what_was_not_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out.json"
    coverage.main(["--models", str(folder), "--json", str(out), "--only", "broken", "stopped", "whole", "--quick"])
    found = json.loads(out.read_text())
    assert [row["imported"] for row in found["rows"]] == [False, True, True]
    assert found["rows"][0]["stopped by"]
    assert found["summary"]["coverage.imported_percent"] == pytest.approx(200 / 3)
    assert found["summary"]["coverage.mean_reach_percent"] == pytest.approx(50)
    assert found["summary"]["coverage.full_reach"] == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_folder_without_the_network_says_how_to_make_it(tmp_path: Path) -> None:
    with raises(errors.UsageError, reason="missing-network"):
        coverage.main(["--models", str(tmp_path)])


def test_products_of_two_activations_and_of_transposed_convolutions_count() -> None:
    net = small.Net([1, 4, 6])
    net.add("Transpose", "x", perm=[0, 2, 1])
    net.add("MatMul", "x", net.last)
    graph = Graph.of(net.model())
    assert [coverage.products(graph, node) for node in graph.nodes] == [0, 4 * 4 * 6]
    net = small.Net([1, 3, 5, 5])
    net.add("ConvTranspose", "x", net.random_weight(3, 2, 2, 2), strides=[2, 2])
    graph = Graph.of(net.model())
    assert coverage.products(graph, graph.nodes[0]) == 25 * 3 * 2 * 4


def test_smooth_inputs_have_neighbours_that_are_alike() -> None:
    x = coverage.smooth([64, 64, 3], np.random.default_rng(0))
    beside = np.corrcoef(x[:, 1:, 0].reshape(-1), x[:, :-1, 0].reshape(-1))[0, 1]
    assert x.shape == (64, 64, 3)
    assert 0.4 < beside < 0.95
