import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import links
from splitedge import errors
from tests.raising import raises

lacking = links.missing()
pytestmark = pytest.mark.thorough
emulated = pytest.mark.skipif(bool(lacking), reason=f"emulated links need {lacking}")


@emulated
@pytest.mark.slow
def test_a_link_has_the_rate_and_the_delay_that_were_asked_for_and_takes_new_ones_while_it_runs() -> None:
    with links.Network(2) as network:
        for mbps, rtt in ((8.0, 20.0), (64.0, 5.0)):
            network.link(0, 1, mbps=mbps, rtt_ms=rtt)
            assert_achieved(network, 0, 1, mbps, rtt)


@emulated
@pytest.mark.slow
def test_each_direction_and_each_pair_has_its_own_rate() -> None:
    with links.Network(3) as network:
        network.link(0, 1, mbps=4, back_mbps=40, rtt_ms=10)
        network.link(1, 2, mbps=12, rtt_ms=20)
        for a, b, mbps, rtt in ((0, 1, 4.0, 10), (1, 0, 40.0, 10), (1, 2, 12.0, 20)):
            assert_achieved(network, a, b, mbps, rtt)


def assert_achieved(network: links.Network, a: int, b: int, mbps: float, rtt: float) -> None:
    """Rate and round trip are within 15 % in one transfer of ten: others may hold this machine up, and bytes that pile up meanwhile look like a faster link."""
    for _ in range(10):
        found = links.achieved(network, a, b, mbps, 0.4)
        if found == (pytest.approx(mbps, rel=0.15), pytest.approx(rtt, rel=0.15)):
            return
    pytest.fail(f"asked for {mbps} Mbit/s and {rtt} ms, last had {found[0]:.1f} Mbit/s and {found[1]:.1f} ms")


@emulated
def test_nothing_is_left_of_a_network_whose_maker_was_killed() -> None:
    code = "import time\nfrom benchmarks.links import Network\nwith Network(2) as n:\n print(n._relay.pid, flush=True)\n time.sleep(60)"
    root = Path(links.__file__).parent.parent
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    with maker.stdout:
        relay = int(maker.stdout.readline())
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    for _ in range(200):
        if not Path(f"/proc/{relay}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the relay outlives its maker")


def test_without_the_rights_one_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with raises(errors.UsageError, reason="no-emulation"), links.Network(2):
        pass
