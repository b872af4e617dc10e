"""Tensors that live at once never share a byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calibration.lowering.memory_plan import Extent, plan
from splitedge.head.segment import ALIGN

EXTENTS = st.lists(
    st.builds(lambda size, first, span: Extent(size, first, first + span), st.integers(1, 1000), st.integers(0, 20), st.integers(0, 6)),
    max_size=30,
)  # fmt: skip


@given(EXTENTS)
def test_live_tensors_never_overlap(extents: list[Extent]) -> None:
    offsets, size = plan(extents)
    owned = [(o, o + -(-e.size // ALIGN) * ALIGN) for o, e in zip(offsets, extents, strict=True)]
    assert all(o % ALIGN == 0 and end <= size for o, end in owned)
    for i, a in enumerate(extents):
        for j, b in enumerate(extents[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert owned[i][1] <= owned[j][0] or owned[j][1] <= owned[i][0]


@given(EXTENTS)
def test_a_plan_is_no_larger_than_all_tensors_and_no_smaller_than_the_fullest_step(extents: list[Extent]) -> None:
    _, size = plan(extents)
    rounded = [-(-e.size // ALIGN) * ALIGN for e in extents]
    steps = {e.first for e in extents}
    fullest = max(
        (sum(r for r, e in zip(rounded, extents, strict=True) if e.first <= s <= e.last) for s in steps), default=0
    )
    assert fullest <= size <= sum(rounded)


def test_a_chain_needs_two_places() -> None:
    offsets, size = plan([Extent(64, i, i + 1) for i in range(10)])
    assert size == 128
    assert set(offsets) == {0, 64}


def test_nothing_takes_nothing() -> None:
    assert plan([]) == ([], 0)
