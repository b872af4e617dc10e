"""Open bundles of a store that others change meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_server.store.catalog import Catalog
from edge_server.store.store import Store
from splitedge import errors


class Hasty(Store):
    """A store whose bundles another process removes as soon as they were found."""

    def bundle_path(self, name: str) -> Path:
        path = super().bundle_path(name)
        shutil.rmtree(path)
        return path


def test_a_model_removed_while_it_is_opened_is_unknown(store: Store) -> None:
    with Hasty(store.folder) as hasty, pytest.raises(errors.UnknownModelError, match="no model named 'tiny'"):
        Catalog(hasty).bundle("tiny")


def test_a_model_removed_while_models_are_listed_is_left_out(store: Store) -> None:
    with Hasty(store.folder) as hasty:
        assert Catalog(hasty).models() == []
