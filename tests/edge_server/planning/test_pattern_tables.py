"""The planner's table of a bundle, and its patterns in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from calibration.bundle.bundle import Bundle
from edge_server.planner import Table
from edge_server.planning import pattern_tables
from edge_server.planning.pattern_tables import build_table, load_or_build_table
from edge_server.store.store import Store


@pytest.fixture
def bundle(store: Store) -> Bundle:
    return Bundle.open(store.bundles.path("tiny"))


def found_anew(store: Store, bundle: Bundle) -> bool:
    """Whether `load_or_build_table` has to find patterns; what it answers is the table all the same."""
    heard: list[int] = []
    made, expected = load_or_build_table(store, bundle, lambda done, _: heard.append(done)), build_table(bundle)
    for field in dataclasses.fields(Table):
        np.testing.assert_equal(getattr(made, field.name), getattr(expected, field.name))
    return bool(heard)


def test_a_model_is_added_with_its_patterns(store: Store, bundle: Bundle) -> None:
    assert not found_anew(store, bundle)


def test_patterns_that_are_not_there_are_found_and_kept(store: Store, bundle: Bundle) -> None:
    store.forget(bundle.sha256)
    assert [found_anew(store, bundle) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x[:-1] + b"?", lambda x: b"?" + x[1:], lambda _: b""])
def test_damaged_patterns_are_found_and_kept_anew(
    store: Store, bundle: Bundle, damage: Callable[[bytes], bytes]
) -> None:
    store.patterns.put(bundle.sha256, damage(store.patterns.get(bundle.sha256) or b""))
    assert [found_anew(store, bundle) for _ in range(2)] == [True, False]


def test_patterns_for_other_levels_are_not_used(store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_tables, "DROPS", pattern_tables.DROPS[:-9])
    assert [found_anew(store, bundle) for _ in range(2)] == [True, False]
