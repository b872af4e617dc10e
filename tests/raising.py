"""Tests tell errors apart by type and data, never by their words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from splitedge.errors import SplitEdgeError

Error = TypeVar("Error", bound=SplitEdgeError)


@contextmanager
def raises(kind: type[Error], /, **data: object) -> Iterator[pytest.ExceptionInfo[Error]]:
    """As `pytest.raises`, for an error of exactly ``kind`` that holds this ``data`` among its own."""
    with pytest.raises(kind) as caught:
        yield caught
    expect(caught.value, kind, **data)


def expect(error: BaseException | None, kind: type[SplitEdgeError], /, **data: object) -> None:
    """Assert that ``error`` is one of exactly ``kind`` that holds this ``data`` among its own."""
    assert type(error) is kind, repr(error)
    assert isinstance(error, SplitEdgeError)
    found = {key: error.data[key] for key in data if key in error.data}
    assert found == data, f"{error.data} of {error!r}"
