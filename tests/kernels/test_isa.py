"""The instruction set: what is chosen from what a machine can do, on every machine that runs these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import isa

PI4 = frozenset({"fp", "asimd", "evtstrm", "crc32", "cpuid"})
PI5 = PI4 | {"asimddp", "atomics"}
V9 = PI5 | {"i8mm", "sve", "sve2"}
HASWELL = frozenset({"avx", "avx2", "fma"})
ALDER_LAKE = HASWELL | {"avxvnni"}
CASCADE_LAKE = HASWELL | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions as on a 64-bit ARM."""
    monkeypatch.setattr(isa, "ARM", True)
    monkeypatch.setattr(isa, "X86", False)
    monkeypatch.setattr(isa, "ISAS", isa.ARM_ISAS)


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions as on x86-64."""
    monkeypatch.setattr(isa, "ARM", False)
    monkeypatch.setattr(isa, "X86", True)
    monkeypatch.setattr(isa, "ISAS", isa.X86_ISAS)


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize(
    ("features", "sets"),
    [
        (frozenset(), ["portable"]),
        (HASWELL, ["avx2", "portable"]),
        (ALDER_LAKE, ["avxvnni", "avx2", "portable"]),
        (CASCADE_LAKE, ["avx512vnni", "avx2", "portable"]),
        (CASCADE_LAKE - {"avx512vnni"}, ["avx2", "portable"]),
        (CASCADE_LAKE | ALDER_LAKE, ["avx512vnni", "avxvnni", "avx2", "portable"]),
    ],
)
def test_an_x86_core_may_use_the_sets_that_it_has_fastest_first(features: frozenset[str], sets: list[str]) -> None:
    assert isa.usable(features) == sets
    assert isa.best(features) == sets[0]


@pytest.mark.usefixtures("x86")
def test_a_set_below_the_best_is_refused_where_the_core_lacks_it() -> None:
    refused = isa.decide(CASCADE_LAKE, "avxvnni", numba_loaded=False)
    assert refused.isa == "avx512vnni"
    assert "avxvnni" in refused.problem


@pytest.mark.usefixtures("x86")
def test_llvm_is_told_of_a_lower_x86_set_and_of_nothing_above_it() -> None:
    choice = isa.decide(CASCADE_LAKE | ALDER_LAKE, "avxvnni", numba_loaded=False)
    assert choice.model is not None
    name, flags = choice.model
    assert (choice.isa, name) == ("avxvnni", "haswell")
    assert flags.endswith("+avxvnni")
    assert "avx512" not in flags
    assert isa.decide(ALDER_LAKE, "", numba_loaded=False) == isa.Choice("avxvnni", None)


@pytest.mark.usefixtures("arm")
@pytest.mark.parametrize(
    ("features", "best"),
    [(frozenset(), "neon"), (PI4, "neon"), (PI5, "dotprod"), (V9, "i8mm"), (V9 - {"asimddp"}, "neon")],
)
def test_an_arm_core_gets_the_fastest_set_that_it_has(features: frozenset[str], best: str) -> None:
    assert isa.best(features) == best


@pytest.mark.usefixtures("arm")
@pytest.mark.parametrize("features", [PI4, PI5, V9])
def test_llvm_is_told_no_feature_that_the_core_lacks(features: frozenset[str]) -> None:
    told = isa.decide(features, "", numba_loaded=False).model
    assert told is not None
    name, flags = told
    assert name == "generic"
    assert ("+dotprod" in flags) == ("asimddp" in features)
    assert ("+i8mm" in flags) == ("i8mm" in features)
    assert "sve" not in flags


@pytest.mark.usefixtures("arm")
def test_a_lower_arm_set_may_be_asked_for_and_a_higher_one_not() -> None:
    assert isa.decide(V9, "neon", numba_loaded=False) == isa.Choice("neon", ("generic", "+fp-armv8,+neon"))
    refused = isa.decide(PI5, "i8mm", numba_loaded=False)
    assert refused.isa == "dotprod"
    assert "i8mm" in refused.problem


@pytest.mark.usefixtures("arm")
def test_dot_products_stay_unused_on_arm_once_numba_is_there() -> None:
    """LLVM would abort on an instruction that it was not told of, and it is told when numba is imported."""
    choice = isa.decide(V9, "", numba_loaded=True)
    assert (choice.isa, choice.model) == ("neon", None)
    assert "numba was imported before kernels" in choice.problem


def test_features_are_those_that_all_cores_share(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd asimddp i8mm\n"
    )
    assert isa.cpuinfo_features(cpuinfo) == {"fp", "asimd", "asimddp"}
    assert isa.cpuinfo_features(tmp_path / "missing") == frozenset()


def test_the_choice_is_explained() -> None:
    text = isa.explain()
    assert text.startswith(isa.ISA)
    assert "the fastest" in text
