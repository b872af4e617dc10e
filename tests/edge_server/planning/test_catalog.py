"""Open models of a store that other processes change meanwhile, and the tables that stay in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_server.planning import catalog as module
from edge_server.planning.catalog import Catalog
from edge_server.store.bundles import Bundles
from edge_server.store.store import Store
from splitedge import errors


class Hasty(Bundles):
    """Bundles that another process removes as soon as they were found."""

    def path(self, name: str) -> Path:
        path = super().path(name)
        shutil.rmtree(path)
        return path


@pytest.fixture
def hasty(store: Store) -> Store:
    store.bundles = Hasty(store._database, store.bundles.folder)
    return store


def test_a_model_removed_while_it_is_opened_is_unknown(hasty: Store) -> None:
    with pytest.raises(errors.UnknownModelError):
        Catalog(hasty).bundle("tiny")


def test_a_model_removed_while_models_are_listed_is_left_out(hasty: Store) -> None:
    assert Catalog(hasty).models() == []


def test_the_least_recently_used_table_makes_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLES", 2)
    catalog, bundles = Catalog(store), {}
    for name in ("a", "b", "c"):
        shutil.copytree(store.bundles.path("tiny"), store.bundles.folder / name)
        bundles[name] = catalog.bundle(name)
        bundles[name].sha256 = name * 64  # three models, as far as the catalog can see
    first = {name: catalog.table(bundles[name]) for name in ("a", "b")}
    assert catalog.table(bundles["a"]) is first["a"]
    catalog.table(bundles["c"])
    assert catalog.table(bundles["a"]) is first["a"]
    assert catalog.table(bundles["b"]) is not first["b"]
