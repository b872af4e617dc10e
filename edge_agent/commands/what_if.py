"""What-if planning: the known board and the link values that a plan was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from device_profiles.schema import DeviceProfile
from splitedge.protocol.messages import LinkEstimate


@dataclass(frozen=True)
class WhatIf:
    """What a plan was asked for in place of this machine and its link: a known ``board`` with its profile, and the ``given`` values of the link."""

    board: str | None
    profile: DeviceProfile | None
    link: LinkEstimate
    given: list[str]

    def document(self) -> dict[str, Any]:
        """JSON values: the board with the origin of each field of its profile, and the link with the origin of each value."""
        marks = {field: "given" if field in self.given else "measured" for field in LinkEstimate.__struct_fields__}
        found: dict[str, Any] = {"link": msgspec.to_builtins(self.link), "link_marks": marks, "board": self.board}
        if self.profile is not None:
            found |= {"title": self.profile.machine.board, "marks": msgspec.to_builtins(self.profile.origins)}
        return found

    def words(self) -> RenderableType:
        """What is assumed, and that times for a board that is not here are predictions."""
        parts = [Text(f"What if: {self._board()}, {self._link()}", style="bold yellow")]
        if self.profile is not None:
            told = f"Nobody measured this board: all times are predictions. Sources: edge-agent profile --known {self.board}"
            parts.append(Text(told, style="yellow"))
        return Group(*parts)

    def _board(self) -> str:
        return "this machine" if self.profile is None else f"{self.board} ({self.profile.machine.board})"

    def _link(self) -> str:
        units = {"uplink_mbps": "{:g} Mbit/s up", "downlink_mbps": "{:g} Mbit/s down", "rtt_ms": "{:g} ms round trip"}
        values = {name: words.format(round(getattr(self.link, name), 2)) for name, words in units.items()}
        origin = {True: "given", False: "measured"}
        return ", ".join(f"{value} ({origin[name in self.given]})" for name, value in values.items())
