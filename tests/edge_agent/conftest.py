"""A profile, and settings that name a small server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import device_profiles
from edge_agent.config import Settings
from tests.round_profile import round_profile
from tests.small_server import TOKEN, SmallServer


@pytest.fixture(scope="session")
def profile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of `round_profile`."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    device_profiles.save(round_profile(), path)
    return path


@pytest.fixture
def settings(tmp_path: Path, profile_file: Path) -> Callable[..., Settings]:
    """``settings(server, **changes)``: those of an agent of ``server``, with a cache of its own."""

    def make(small: SmallServer, **changes: object) -> Settings:
        cache = str(tmp_path / "cache")
        fields = {
            "server": small.url,
            "token": TOKEN,
            "model": "small",
            "cache_dir": cache,
            "profile": str(profile_file),
        }
        return Settings(**(fields | changes))

    return make
