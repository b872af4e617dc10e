"""A plan in use on a board, the first of a chain or a later one."""

from __future__ import annotations

import time
from typing import Final

from edge_agent.runtime.engine import Engine
from edge_agent.runtime.frame_queue import Gate
from splitedge.link.adaptation import Adaptation
from splitedge.link.stream_client import FrameStream, LinkState

AHEAD: Final = 2  # frames between the gate and the link: one in the head, one coded and next to go


class InUse:
    """Its engine; its stream and what adapts it, None where the answer is made here; and the gate before them."""

    def __init__(self, engine: Engine, stream: FrameStream | None, adaptation: Adaptation | None) -> None:
        self.engine, self.stream, self.adaptation = engine, stream, adaptation
        self.gate = Gate(AHEAD)

    def choose(self, late_s: float) -> int:
        """The rung for the frame that is coded now; in the worker's thread. ``late_s``: who waits so long at the gate waits too long."""
        if self.adaptation is None:
            return self.engine.codec
        now = time.monotonic()
        return self.adaptation.choose(now, self.gate.waiting(now - late_s))

    @property
    def failed(self) -> bool:
        """Whether the stream ended for good."""
        return self.stream is not None and self.stream.state is LinkState.FAILED
