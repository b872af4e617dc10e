"""Frame times measured on this device. They are kept beside the profile and refine the next plan request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import msgspec

from device_profiles import DeviceProfile, predict
from edge_agent.config import Settings
from edge_agent.planning import disk_cache
from splitedge import limits
from splitedge.protocol.messages import LinkEstimate, MeasuredTimes, Plan

T = TypeVar("T")

_SENDING, _OVERHEAD = "sending", "beside"  # names in the file; every other name is a segment's SHA-256


class _Kept(NamedTuple):
    ms: float
    unix: float  # when it was measured


class TimeLog:
    """Recent frame times of this process and the medians of earlier ones.

    They are kept in the JSON file ``path``; None keeps none.

    Sending times belong to ``server``. The file holds those of every server.
    """

    def __init__(self, path: Path | None, server: str = "") -> None:
        self._path, self._sending = path, f"{_SENDING} {server}"
        found = disk_cache.read_json(path, dict[str, _Kept], limits.MAX_TIMINGS_BYTES) if path else None
        self._kept = found or {}
        self._recent: dict[str, deque[float]] = {}

    def add_head(self, segment: str, ms: float) -> None:
        """A frame took ``ms`` in the head with the SHA-256 ``segment``."""
        self._add(segment, ms)

    def add_overhead(self, ms: float) -> None:
        """A frame took ``ms`` on this device beside head and codec."""
        self._add(_OVERHEAD, ms)

    def add_sending(self, ms: float) -> None:
        """Sending a frame and receiving its answer took ``ms`` more than predicted."""
        self._add(self._sending, ms)

    def forget_sending(self) -> None:
        """Discard the sending times: the link has changed."""
        self._recent.pop(self._sending, None)
        self._kept.pop(self._sending, None)

    def medians(self) -> MeasuredTimes:
        """The medians of this process, or of earlier ones where it has too few frames; at most `limits.MAX_MEASURED`,
        the newest.
        """
        self._update()
        others = {name: one.ms for name, one in self._kept.items()}
        overhead, sending = others.pop(_OVERHEAD, None), others.pop(self._sending, None)
        heads = {name: ms for name, ms in others.items() if not name.startswith(_SENDING)}
        return MeasuredTimes(heads, sending, overhead)

    def save(self) -> None:
        """Write the medians to the file. Raises `errors.StoreError`."""
        self._update()
        if self._path is not None and self._kept:
            disk_cache.write(self._path, msgspec.json.encode(self._kept))

    def _add(self, name: str, ms: float) -> None:
        self._recent.setdefault(name, deque(maxlen=limits.MEDIAN_WINDOW)).append(ms)

    def _update(self) -> None:
        """Turn recent times into kept medians, newest last, and drop sending times older than `limits.SENDING_AGE`."""
        now = time.time()
        for name, times in self._recent.items():
            if len(times) >= limits.MEDIAN_FRAMES:
                self._kept.pop(name, None)
                self._kept[name] = _Kept(median(times), now)
                if name == self._sending:  # else every update would renew the age of old frames
                    times.clear()
        fresh = {
            name: kept
            for name, kept in self._kept.items()
            if not name.startswith(_SENDING) or 0 <= now - kept.unix <= limits.SENDING_AGE
        }
        self._kept = dict(list(fresh.items())[-limits.MAX_MEASURED :])


def time_log(settings: Settings) -> TimeLog:
    """The times of this build of the kernels.

    Not kept for a profile that the settings name: it may be another machine's.
    """
    return TimeLog(None if settings.profile else disk_cache.build_file(settings, "timings"), settings.server)


class SendingModel:
    """The predicted time to encode, send and answer a frame of a plan, to compare with measured times.

    The difference holds what profile and link do not tell: scheduling, wake-ups, the rest of encoding. ``link`` was
    measured for the plan at ``since`` (`time.monotonic`). It counts as known for `limits.LEARNING_TIME`.
    """

    def __init__(self, plan: Plan, profile: DeviceProfile, link: LinkEstimate, since: float) -> None:
        self._coding_ms = [predict.coding_ms(one, plan.cut.shape, profile) for one in plan.ladder]
        self._link, self._until = link, since + limits.LEARNING_TIME

    def predicted_ms(self, rung: int, payload_bytes: int) -> float:
        """Milliseconds for a frame of ``payload_bytes`` encoded with ``rung``, by profile and link."""
        return self._coding_ms[rung] + payload_bytes * 8e-3 / self._link.uplink_mbps + self._link.rtt_ms

    def excess_ms(self, rung: int, payload_bytes: int, took_ms: float) -> float | None:
        """Milliseconds above the prediction of a frame that was alone on the link, without the server's time; None if
        the link may have changed.
        """
        if time.monotonic() > self._until:
            return None
        return max(0.0, took_ms - self.predicted_ms(rung, payload_bytes))


class TurnTimer:
    """Times the turns of a worker thread that runs one frame after another: all that keeps the thread from the next
    frame.
    """

    def __init__(self) -> None:
        self._free = 0.0  # end of the last turn, of `time.perf_counter`

    def run(self, asked: float, work: Callable[[], T]) -> tuple[T, float]:
        """The result of ``work``, and the milliseconds of its turn: from ``asked`` or the end of the turn before,
        whichever is later.
        """
        found = work()
        begun, self._free = max(asked, self._free), time.perf_counter()
        return found, 1e3 * (self._free - begun)
