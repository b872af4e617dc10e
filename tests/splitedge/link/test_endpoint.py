"""What a failure means: whether trying again can help."""

from __future__ import annotations

import pytest

from splitedge import errors
from splitedge.link.endpoint import heals

OF_THE_SERVER = [errors.StoreError("its disk is full"), errors.SplitEdgeError("a fault"), errors.BusyError("later")]
OF_THE_DEMAND = [
    errors.UnknownModelError("absent"),
    errors.InfeasibleError("no plan"),
    errors.UsageError("no such layer"),
]


@pytest.mark.parametrize("error", OF_THE_SERVER)
def test_trouble_of_the_server_s_own_may_pass(error: errors.SplitEdgeError) -> None:
    assert heals(errors.from_wire(error.to_wire()))


@pytest.mark.parametrize("error", [*OF_THE_DEMAND, errors.AuthError("refused")])
def test_what_the_server_refuses_does_not(error: errors.SplitEdgeError) -> None:
    assert not heals(errors.from_wire(error.to_wire()))


def test_a_disk_of_this_machine_needs_somebody() -> None:
    assert not heals(errors.StoreError("the cache folder cannot be used"))
