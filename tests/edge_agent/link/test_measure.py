import pytest

from edge_agent import limits
from edge_agent.link.measure import measure


class Line:
    """A link in virtual time: a round trip and two rates."""

    def __init__(self, rtt_s: float, up_mbps: float, down_mbps: float) -> None:
        self.rtt_s, self.up, self.down = rtt_s, up_mbps, down_mbps
        self.spent = 0.0
        self.largest = 0

    async def probe(self, up: int, down: int) -> float:
        seconds = self.rtt_s + up * 8e-6 / self.up + down * 8e-6 / self.down
        self.spent += seconds
        self.largest = max(self.largest, up, down)
        return seconds


@pytest.mark.parametrize("rtt_s", [0.0002, 0.02, 0.3])
@pytest.mark.parametrize("rate", [0.1, 1.0, 20.0, 300.0])
async def test_rates_and_round_trip_are_found_in_bounded_time(rtt_s, rate):
    line = Line(rtt_s, rate, 3 * rate)
    estimate = await measure(line.probe)
    assert estimate.rtt_ms == pytest.approx(rtt_s * 1e3)
    assert estimate.uplink_mbps == pytest.approx(rate, rel=0.01)
    assert estimate.downlink_mbps == pytest.approx(3 * rate, rel=0.01)
    assert line.largest <= limits.MAX_PROBE_BYTES
    assert line.spent < 5


async def test_a_transfer_no_slower_than_a_trip_gives_a_finite_rate():
    async def probe(up: int, down: int) -> float:
        return 0.001

    estimate = await measure(probe)
    assert 0 < estimate.uplink_mbps < 1e6
