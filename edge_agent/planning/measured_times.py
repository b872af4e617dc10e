"""What heads, and frames beside them, really took on this device: kept beside the profile, sent with the next plan request, which they refine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import msgspec

from device_profiles import DeviceProfile, predict
from splitedge import errors, limits
from splitedge.protocol.messages import SENDING, LinkEstimate, Plan

T = TypeVar("T")


class _Found(NamedTuple):
    ms: float
    unix: float  # when


class Timings:
    """Milliseconds of the head, by the segment's SHA-256, and by other names; in the file ``path``, or nowhere if that is None. `SENDING` is to ``server``."""

    def __init__(self, path: Path | None, server: str = "") -> None:
        self._path, self._sending = path, f"{SENDING} {server}"
        self._kept = _read(path) if path else {}
        self._last: dict[str, deque[float]] = {}

    def add(self, segment: str, ms: float) -> None:
        """A frame took ``ms`` through the head ``segment``."""
        self._last.setdefault(self._name(segment), deque(maxlen=limits.LAST)).append(ms)

    def forget(self, segment: str) -> None:
        """What frames took there says nothing any more."""
        self._last.pop(self._name(segment), None)
        self._kept.pop(self._name(segment), None)

    def known(self) -> dict[str, float]:
        """The medians, those of earlier runs where this one has too few frames; the last `limits.MAX_MEASURED` segments. `SENDING` for `limits.SENDING_AGE`."""
        now = time.time()
        for segment, times in self._last.items():
            if len(times) >= limits.TELLING:
                self._kept.pop(segment, None)
                self._kept[segment] = _Found(median(times), now)
                if segment == self._sending:  # or old frames would keep it young
                    times.clear()
        fresh = {
            name: found
            for name, found in self._kept.items()
            if not name.startswith(SENDING) or 0 <= now - found.unix <= limits.SENDING_AGE
        }
        self._kept = dict(list(fresh.items())[-limits.MAX_MEASURED :])
        return {
            SENDING if name == self._sending else name: found.ms
            for name, found in self._kept.items()
            if name == self._sending or not name.startswith(SENDING)
        }

    def _name(self, segment: str) -> str:
        return self._sending if segment == SENDING else segment

    def save(self) -> None:
        """Write what is known. Raises `errors.StoreError`."""
        if self._path is None or not self.known():
            return
        try:
            part = self._path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(self._kept))
            part.replace(self._path)
        except OSError as error:
            raise errors.StoreError(
                f"{self._path} cannot be written ({error.strerror}); free space, make it writable, or set `cache_dir`"
            ) from error


def _read(path: Path) -> dict[str, _Found]:
    """What was kept; nothing where there is no such file, or one that another version or a broken disk wrote: it is measured anew."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(limits.MAX_TIMINGS_BYTES), type=dict[str, _Found])
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    except OSError as error:
        raise errors.StoreError(
            f"{path} cannot be read ({error.strerror}); make it readable, or set `cache_dir`"
        ) from error


class Sending:
    """What the frames of a plan take beyond profile and link to be coded, sent and answered: processors that wait for a turn, programs that wake up, what
    `codec.STAGES` do not tell. ``link`` was measured for the plan at the time ``since``, of `time.monotonic`.
    """

    def __init__(self, plan: Plan, profile: DeviceProfile, link: LinkEstimate, since: float) -> None:
        self._coding_ms = [predict.coding_ms(one, plan.cut.shape, profile) for one in plan.ladder]
        self._link, self._until = link, since + limits.LEARNT

    def expected_ms(self, rung: int, payload_bytes: int) -> float:
        """To code, send and answer a frame, by profile and link."""
        return self._coding_ms[rung] + payload_bytes * 8e-3 / self._link.uplink_mbps + self._link.rtt_ms

    def beyond_ms(self, rung: int, payload_bytes: int, took_ms: float) -> float | None:
        """Of a frame that was alone on its way and took so long, without what the server took; None where the link may have changed since."""
        if time.monotonic() > self._until:
            return None
        return max(0.0, took_ms - self.expected_ms(rung, payload_bytes))


class Turns:
    """What a worker's turns take that does one frame after another: all that keeps it from the next frame, be it the frame's work or the programs'."""

    def __init__(self) -> None:
        self._free = 0.0  # when the last turn ended, of `time.perf_counter`

    def run(self, asked: float, work: Callable[[], T]) -> tuple[T, float]:
        """What ``work`` returns, and the milliseconds of its turn: from when it was ``asked`` for and the turn before had ended, to its end."""
        found = work()
        begun, self._free = max(asked, self._free), time.perf_counter()
        return found, 1e3 * (self._free - begun)
