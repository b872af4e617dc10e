"""The instruction set: what is chosen from what a machine can do, on every machine that runs these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import isa

PI4 = frozenset({"fp", "asimd", "evtstrm", "crc32", "cpuid"})
PI5 = PI4 | {"asimddp", "atomics"}
V9 = PI5 | {"i8mm", "sve", "sve2"}


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions as on a 64-bit ARM."""
    monkeypatch.setattr(isa, "ARM", True)
    monkeypatch.setattr(isa, "X86", False)
    monkeypatch.setattr(isa, "ISAS", isa.ARM_ISAS)


@pytest.mark.parametrize(
    ("features", "best"),
    [(frozenset(), "neon"), (PI4, "neon"), (PI5, "dotprod"), (V9, "i8mm"), (V9 - {"asimddp"}, "neon")],
)
def test_an_arm_core_gets_the_fastest_set_that_it_has(features: frozenset[str], best: str) -> None:
    assert isa.best_arm(features) == best


@pytest.mark.usefixtures("arm")
@pytest.mark.parametrize("features", [PI4, PI5, V9])
def test_llvm_is_told_no_feature_that_the_core_lacks(features: frozenset[str]) -> None:
    told = isa.decide(features, "", numba_loaded=False).told
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
    assert "SPLITEDGE_ISA=i8mm is not available here" in refused.problem


@pytest.mark.usefixtures("arm")
def test_dot_products_stay_unused_on_arm_once_numba_is_there() -> None:
    """LLVM would abort on an instruction that it was not told of, and it is told when numba is imported."""
    choice = isa.decide(V9, "", numba_loaded=True)
    assert (choice.isa, choice.told) == ("neon", None)
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
