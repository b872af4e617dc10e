import pytest

from splitedge import limits
from splitedge.link.probe import measure


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
    frame = 65_536 * 8e-3  # what 64 KiB take, in ms, after the round trip, which is not known to a hundredth
    assert frame / estimate.uplink_mbps == pytest.approx(frame / rate, rel=0.01, abs=10 * rtt_s)
    assert frame / estimate.downlink_mbps == pytest.approx(frame / (3 * rate), rel=0.01, abs=10 * rtt_s)
    assert line.largest <= limits.MAX_PROBE_BYTES
    assert line.spent < 5


async def test_a_transfer_no_slower_than_a_trip_gives_a_finite_rate():
    async def probe(up: int, down: int) -> float:
        return 0.001

    estimate = await measure(probe)
    assert 0 < estimate.uplink_mbps < 1e6


class StartingLine(Line):
    """A link whose TCP begins with ten packets and doubles what it sends in each round trip, up or down; what it has reached it keeps."""

    def __init__(self, rtt_s: float, up_mbps: float, down_mbps: float) -> None:
        super().__init__(rtt_s, up_mbps, down_mbps)
        self.window = {"up": 14480.0, "down": 14480.0}

    async def probe(self, up: int, down: int) -> float:
        waited = 0.0
        for way, size, mbps in (("up", up, self.up), ("down", down, self.down)):
            window = sent = self.window[way]
            while sent < size:
                waited += max(0.0, self.rtt_s - window * 8e-6 / mbps)
                window *= 2
                sent += window
            self.window[way] += size if size > self.window[way] / 2 else 0
        self.spent += waited
        return waited + await super().probe(up, down)


@pytest.mark.parametrize("rtt_s", [0.02, 0.2])
@pytest.mark.parametrize("rate", [0.25, 1.0, 4.0, 16.0, 250.0])
async def test_slow_start_on_a_distant_link_is_not_taken_for_a_slow_one(rtt_s, rate):
    line = StartingLine(rtt_s, rate, rate)
    estimate = await measure(line.probe)
    frame = 20_000 * 8e-3  # what 20 kB take, in ms, after the round trip
    assert frame / estimate.uplink_mbps == pytest.approx(frame / rate, rel=0.1, abs=1)
    assert frame / estimate.downlink_mbps == pytest.approx(frame / rate, rel=0.1, abs=1)
    assert line.spent < 7


async def test_a_round_trip_that_stalled_does_not_hide_a_fast_link():
    line, asked = Line(0.2, 250.0, 250.0), 0

    async def probe(up: int, down: int) -> float:
        nonlocal asked
        asked += 1
        return await line.probe(up, down) + (0.15 if asked == 3 else 0.0)

    estimate = await measure(probe)
    assert 150_000 * 8e-3 / estimate.uplink_mbps < 0.1 * estimate.rtt_ms
