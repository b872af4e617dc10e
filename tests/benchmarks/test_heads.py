"""The benchmark of whole heads, on a network that is made in a moment."""

from __future__ import annotations

import pytest

from benchmarks import heads, models
from calibration.importer import batched, simplify
from tests import small_models as small


def network() -> small.Net:
    net = small.Net(models.LITE0_SHAPE)
    net.conv(4, 3, strides=[8, 8])
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    return net


def test_peers_are_made_without_a_word(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    peers = heads.onnx_runtime_peers(batched(simplify(network().model())), 1)
    assert sorted(peers) == ["ONNX Runtime float", "ONNX Runtime int8"]
    assert peers["ONNX Runtime int8"]()[0].shape == (1, 4)
    assert caplog.records == []
    assert "WARNING" not in "".join(capfd.readouterr())


def test_operators_without_products_have_no_gops() -> None:
    head = heads.our_head(batched(simplify(network().model())), heads.SHAPE, 1)
    gops = {row["operator"]: row["GOPS"] for row in heads.time_by_kind("small", head, 1)}
    assert "-" in gops.values()
    assert any(isinstance(value, float) and value > 0 for value in gops.values())
