"""The known board and the link for benchmarks that need a plan; times on the board are predictions with a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from device_profiles import known, predict
from splitedge.head.segment import Header
from splitedge.protocol.messages import LinkEstimate

BOARD: Final = "pi4"
LINK: Final = LinkEstimate(rtt_ms=20.0, uplink_mbps=10.0, downlink_mbps=20.0)


def heads_ms(headers: Sequence[Header]) -> list[float]:
    """Return the predicted milliseconds of each head on `BOARD`: the slow end of the band, on which plans count."""
    return predict.Heads(headers).ms(known.load(BOARD))
