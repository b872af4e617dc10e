"""What-if planning: a plan for a known board or for given link values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from device_profiles.band import times
from device_profiles.render import band_words
from device_profiles.schema import DeviceProfile
from splitedge.protocol.messages import LinkEstimate
from splitedge.terminal import wrap


@dataclass(frozen=True)
class WhatIf:
    """Assumptions of a plan: a known ``board`` with its profile instead of this machine, and the values of the link
    in ``given``. ``device_ms``: the board's time in the plan.
    """

    board: str | None
    profile: DeviceProfile | None
    link: LinkEstimate
    given: list[str]
    device_ms: float = 0.0

    def document(self) -> dict[str, Any]:
        """JSON values: the board with the origin of each field of its profile, the band of its time, and the link with
        the origin of each value.
        """
        marks = {field: "given" if field in self.given else "measured" for field in LinkEstimate.__struct_fields__}
        found: dict[str, Any] = {"link": msgspec.to_builtins(self.link), "link_marks": marks, "board": self.board}
        if self.profile is not None:
            found |= {"title": self.profile.machine.board, "marks": msgspec.to_builtins(self.profile.origins)}
            band = times(self.device_ms, self.profile)
            found |= {"pace": self.profile.pace, "device_ms": band and band._asdict()}
        return found

    def words(self, width: int) -> RenderableType:
        """The assumptions, and that the times of a known board are predictions."""
        title = "\n".join(wrap(f"What if: {self._board()}, {self._link()}", width))
        parts = [Text(title, style="bold yellow")]
        if self.profile is not None:
            note = f"This board was not measured: all times are predictions. Sources: edge-agent profile --known {self.board}"
            parts.append(Text("\n".join(wrap(note, width)), style="yellow"))
            parts += [Text("\n".join(wrap(line, width)), "yellow") for line in band_words(self.device_ms, self.profile)]
        return Group(*parts)

    def _board(self) -> str:
        return "this machine" if self.profile is None else f"{self.board} ({self.profile.machine.board})"

    def _link(self) -> str:
        units = {"uplink_mbps": "{:g} Mbit/s up", "downlink_mbps": "{:g} Mbit/s down", "rtt_ms": "{:g} ms round trip"}
        values = {name: words.format(round(getattr(self.link, name), 2)) for name, words in units.items()}
        origin = {True: "given", False: "measured"}
        return ", ".join(f"{value} ({origin[name in self.given]})" for name, value in values.items())
