"""What the figures of low_bit are made of."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import low_bit
from benchmarks.low_bit import BITS, DEFAULT, DS_ACIQ, NAIVE, PACKED, Case, Outcome
from calibration.importing.graph import Graph
from calibration.samples.samples import Samples
from splitedge import codec
from splitedge.errors import UsageError
from splitedge.protocol.messages import Preprocess
from tests.raising import raises

WIDTH = 16


def test_bytes_are_interpolated_where_the_curve_first_reaches_the_error():
    curve = [(10.0, 0.1), (20.0, 0.01), (30.0, 0.02), (40.0, 0.001)]
    assert low_bit.needed(curve, 0.2) == 10
    assert low_bit.needed(curve, 0.01) == pytest.approx(20)
    assert low_bit.needed(curve, math.sqrt(0.1 * 0.01)) == pytest.approx(math.sqrt(10 * 20))
    assert low_bit.needed(curve, 1e-9) == 40


def outcome(error: float, size: float, accuracy: float = 50.0) -> Outcome:
    return Outcome(error, accuracy, math.nan, size)


def test_figures_are_against_the_best_of_the_ds_aciqs():
    of = {(variant, bits): outcome(0.3 / bits, 100.0 * bits) for variant in DS_ACIQ for bits in BITS}
    of |= {(DS_ACIQ[1], bits): outcome(0.2 / bits, 100.0 * bits, 60.0) for bits in BITS}
    of |= {(NAIVE, bits): outcome(0.9, 100.0 * bits, 40.0) for bits in BITS}
    of |= {(DEFAULT, bits): outcome(0.1 / bits, 50.0 * bits) for bits in BITS} | {(PACKED, 2): outcome(0.05, 200)}
    found = low_bit.figures("lite0", {"cut": of})
    assert found["lite0.ds_aciq_over_naive_2bit_points"] == pytest.approx(20)
    assert found["lite0.error_vs_ds_aciq_2bit"] == pytest.approx(0.5)
    assert found["lite0.worst_vs_naive_points"] == pytest.approx(10)
    assert found["lite0.bytes_vs_ds_aciq"] == pytest.approx((100 / 200 * 100 / 300 * 100 / 400) ** (1 / 3))


def test_against_naive_chance_is_told_from_what_is_sure():
    def of(right: int) -> Outcome:
        return Outcome(0.1, right, math.nan, 10, np.arange(100) < right)

    cuts = {"one": 90, "other": 50}
    found = {cut: {(NAIVE, bits): of(89) for bits in BITS} for cut in cuts}
    for cut, right in cuts.items():
        found[cut] |= {(DEFAULT, bits): of(right) for bits in BITS} | {(DEFAULT, 8): of(88)}
    told = low_bit.against_naive(found)
    assert told["compared_with_naive"] == 2 * len(BITS)
    assert told["worst_vs_naive_points"] == pytest.approx(-39)
    assert told["surely_worse_than_naive"] == len(BITS) - 1
    assert told["surely_better_than_naive"] == 0


def test_a_bundle_offers_coded_families_between_its_rates_and_rotations_at_its_widths():
    values = np.random.default_rng(0).normal(size=(40, 16, 8)).astype(np.float32)
    made = codec.fit_samples(values, "pca", 2)
    offered = {
        (family, bits)
        for family in (*low_bit.OURS, NAIVE)
        for bits in (0.5, 2, 3, 6)
        if low_bit._offered(family, bits, made, values)
    }
    assert offered == {
        *((family, bits) for family in ("mse", "mse-channel", NAIVE) for bits in (0.5, 2, 3, 6)),
        *((family, bits) for family in ("hadamard", "entropy", "pca") for bits in (2, 3)),
    }
    assert not low_bit._offered("pca", 2, made, values[:1])  # too few rows for so many channels


def network() -> onnx.ModelProto:
    """Two products with a ReLU between them."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n)
        for s, n in (((32, WIDTH), "a"), ((WIDTH, 5), "b"))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["first"], "first"),
        helper.make_node("Relu", ["first"], ["held"], "held"),
        helper.make_node("MatMul", ["held", "b"], ["y"], "last"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 32), ("y", 5))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.slow
def test_a_small_network_is_measured_at_its_cut_and_the_default_is_not_worse_than_naive():
    rng = np.random.default_rng(1)

    def samples(count: int) -> Samples:
        return Samples(
            Preprocess("tensor", [32]), list(rng.normal(size=(count, 32)).astype(np.float32)), np.zeros(count, np.int64)
        )

    model = network()
    case = Case("small", model, samples(60), samples(40), samples(60), (Graph.of(model).output,), low_bit.by_logits)
    found = low_bit.measure(case, None)
    assert found
    for of in found.values():
        assert of[DEFAULT, 2].error < of[NAIVE, 2].error
        assert of[NAIVE, 8].error < of[NAIVE, 2].error
        assert of[NAIVE, 2].bytes == 4
    rows = low_bit.table("small", found, low_bit.planned(case, found))
    assert {"codec", "bits", "bytes", "error", "accuracy", "planned"} <= set(rows[0])
    assert all(row["planned"] == row["accuracy"] for row in rows)  # there is but one cut
    assert low_bit.describe(case, found) == "small: all 1 cuts; fitted to 60 samples, chosen by 40, evaluated on 60"


def test_networks_and_data_that_are_not_there_are_named():
    with raises(UsageError, reason="unknown-network"):
        low_bit.main(["--networks", "lenet"])
    with raises(UsageError, reason="no-photographs"):
        low_bit.main(["--networks", "lite0"])
