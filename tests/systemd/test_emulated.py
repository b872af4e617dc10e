"""What `scripts/test-systemd arm64` leaves unproven is what it says, and settings that the unit really has."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.service.unit import DROP_INS, UnitOptions, render
from kernels import isa
from splitedge.settings import variable
from tests.systemd import emulated

UNIT = render(UnitOptions(Path("/opt/splitedge/current/bin/edge-agent"), token_file=Path("/etc/splitedge/token")))
SETTINGS = {line.partition("=")[0] + "=" for line in UNIT.splitlines() if "=" in line and line[0] != "#"}


@pytest.mark.parametrize("name", [*emulated.DROPPED, *emulated.UNENFORCED, *emulated.HALF_ENFORCED])
def test_the_unit_has_the_setting_and_the_notes_name_it(name):
    assert name in SETTINGS
    assert any(name in note for note in emulated.notes("cortex-a76"))


def test_the_drop_in_resets_what_is_dropped_and_passes_the_token_another_way():
    section, *lines = emulated.DROP_IN.splitlines()
    assert section == "[Service]"
    assert lines == [*emulated.DROPPED, f"Environment={variable('token_file')}={emulated.TOKEN}"]


def test_the_drop_in_belongs_to_the_unit_and_outlives_a_purge_of_it():
    place = Path(emulated.PLACE)
    assert place.parent.name == DROP_INS.name
    assert not place.is_relative_to(DROP_INS)


def test_the_processor_has_an_instruction_set_of_arm():
    assert emulated.ISA in isa.ARM_ISAS
