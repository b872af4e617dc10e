"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.drawn import LONG

# Tests of kernels compile them, also where the package has a library: SPLITEDGE_KERNELS=library tests the library.
os.environ.setdefault("SPLITEDGE_KERNELS", "jit")
# The width of the terminal that starts the tests must not decide how wide the commands' output is.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).parent.parent

# The same examples at every run: a failure is the change's, and it comes again. `--hypothesis-profile=long` draws others.
settings.register_profile("usual", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "long", deadline=None, max_examples=LONG, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("usual")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one of them when the other has nothing more to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """The working tree."""
    return ROOT


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of labelled photographs with their labels.csv; skips where there is none."""
    folder = Path(os.environ.get("SPLITEDGE_PHOTOS") or ROOT.parent / "shared" / "data" / "photos")
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"no labelled photographs in {folder}: name a folder with a labels.csv in SPLITEDGE_PHOTOS")
    return folder
