"""The benchmark of whole heads, on a network that is made in a moment."""

from __future__ import annotations

import pytest

from benchmarks import heads, restricted, rivals
from benchmarks.restricted import OURS
from calibration.export import tflite
from calibration.importing.importer import batched, simplify
from kernels import isa
from splitedge.head import load
from tests import small_models as small


def network() -> small.Net:
    net = small.Net([1, 3, 64, 64])
    net.conv(4, 3, strides=[8, 8])
    net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    return net


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    model = batched(simplify(network().model()))
    return {OURS: heads.our_segment(model, [64, 64, 3])} | rivals.quantized(model)


def test_every_runtime_gets_a_row_and_a_ratio(files: dict[str, bytes]) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT has no package for this system")
    tables = heads.Tables(repeats=2)
    heads.whole_network(tables, "net", "A network", files | {rivals.LITERT: tflite.network(files[OURS])})
    first = [row["runtime"] for row in tables.rows if row["threads"] == 1]
    assert first == [OURS, rivals.FLOAT, rivals.INT8, rivals.LITERT]
    for name in ("ms", "ratio_ort_int8", "ratio_ort_float", "ratio_litert", "peak_share"):
        assert tables.summary[f"net.{name}_1t"] > 0
    assert tables.summary["net.peak_share_1t"] < 1
    assert [row["network"] for row in tables.memory] == ["A network"]
    assert tables.summary["net.arena_mib"] > 64 * 64 * 3 / 2**20


def test_only_operators_with_products_have_a_share_of_the_peak(files: dict[str, bytes]) -> None:
    head = load(files[OURS])
    timings = head.profile(rivals.noise(head)[0], 1)
    macs = sum(timing.macs for timing in timings)
    assert macs == 8 * 8 * 4 * 27
    kinds = {row["operator"]: row for row in heads.by_kind("net", timings, best=1.0)}
    assert kinds["pool"]["GOPS"] == kinds["pool"]["share of peak %"] == "-"
    conv = kinds["conv"]
    assert (
        conv["share of peak %"] == pytest.approx(100 * conv["GOPS"]) == pytest.approx(100 * 2 * macs / conv["us"] / 1e3)
    )
    assert sum(row["share %"] for row in kinds.values()) == pytest.approx(100)


def test_every_operator_is_shown_with_its_shape(files: dict[str, bytes]) -> None:
    head = load(files[OURS])
    rows = heads.by_layer(head, head.profile(rivals.noise(head)[0], 1), best=1000.0)
    assert [row["kind"] for row in rows] == ["conv", "pool", "reshape"]
    assert rows[0]["shape"] == "64x64x3 3x3/8 > 8x8x4"
    assert rows[0]["share of peak %"] == pytest.approx(rows[0]["GOPS"] / 10)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(isa.ISA == "portable", reason="there is no lower instruction set")
def test_a_lower_instruction_set_is_timed_beside_onnx_runtime(files: dict[str, bytes]) -> None:
    name = isa.lower()[0]
    times = restricted.timed(name, {"net": files}, 4)
    assert {runtime: len(taken) for runtime, taken in times["net"].items()} == {OURS: 4, rivals.FLOAT: 4}
    tables = heads.Tables(repeats=4)
    heads.whole_network(tables, "net", "A network", files)
    heads.lower_sets(tables, {"net": ("A network", files)}, quick=True)
    runtimes = [row["runtime"] for row in tables.rows if row["threads"] == 1]
    assert runtimes[-1].startswith(f"{OURS}, ")
    assert runtimes[-1].endswith(" only")
    assert tables.summary[f"net.ratio_ort_float_{name}_1t"] > 0


def test_sets_below_the_machines_own_are_all_slower_ones() -> None:
    assert isa.ISA not in isa.lower()
    assert isa.ISA == "portable" or isa.lower()[-1] == "portable"
