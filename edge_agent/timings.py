"""What heads, and frames beside them, really took on this device: kept beside the profile, sent with the next plan request, which they refine."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, TypeVar

import msgspec

from device_profiles import DeviceProfile, predict
from edge_agent import codec, errors, limits
from edge_agent.protocol.messages import SENDING, LinkEstimate, Plan

T = TypeVar("T")

_LEAST: Final = 5  # frames before a median counts
_LAST: Final = 50  # frames that it is taken over


class _Found(NamedTuple):
    ms: float
    unix: float  # when


class Timings:
    """Milliseconds of the head, by the segment's SHA-256, and by other names; in the file ``path``, or nowhere if that is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept = _read(path) if path else {}
        self._last: dict[str, deque[float]] = {}

    def add(self, segment: str, ms: float) -> None:
        """A frame took ``ms`` through the head ``segment``."""
        self._last.setdefault(segment, deque(maxlen=_LAST)).append(ms)

    def known(self) -> dict[str, float]:
        """The medians, those of earlier runs where this one has too few frames; the last `limits.MAX_MEASURED` segments. `SENDING` for `limits.SENDING_AGE`."""
        now = time.time()
        for segment, times in self._last.items():
            if len(times) >= _LEAST:
                self._kept.pop(segment, None)
                self._kept[segment] = _Found(median(times), now)
                if segment == SENDING:  # or old frames would keep it young
                    times.clear()
        if SENDING in self._kept and not 0 <= now - self._kept[SENDING].unix <= limits.SENDING_AGE:
            del self._kept[SENDING]
        self._kept = dict(list(self._kept.items())[-limits.MAX_MEASURED :])
        return {segment: found.ms for segment, found in self._kept.items()}

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
    """What the frames of a plan take beyond prediction to be coded, sent and answered: processors that wait for a turn, programs that wake up, what
    `codec.STAGES` do not tell. ``link`` is what was measured for the plan just now.
    """

    def __init__(self, plan: Plan, profile: DeviceProfile, link: LinkEstimate) -> None:
        self._codec, chosen = plan.codec, plan.ladder[plan.codec]
        stages = sum(
            amount * profile.overhead.stage_ns.get(stage, 0.0)
            for stage, amount in codec.work(chosen, plan.cut.shape).items()
        )
        self._coding_ms = predict.encode_ms(math.prod(plan.cut.shape), profile) + 1e-6 * stages
        self._link, self._until = link, time.monotonic() + limits.LEARNT

    def beyond_ms(self, rung: int, payload_bytes: int, took_ms: float) -> float | None:
        """Of a frame that was alone on its way and took so long to be coded, sent and answered, without what the server took; None where it does not tell:
        its codec was not the plan's, or the link may have changed since.
        """
        if rung != self._codec or time.monotonic() > self._until:
            return None
        return max(0.0, took_ms - self._coding_ms - payload_bytes * 8e-3 / self._link.uplink_mbps - self._link.rtt_ms)


class Turns:
    """What a worker's turns take that does one frame after another: all that keeps it from the next frame, be it the frame's work or the programs'."""

    def __init__(self) -> None:
        self._free = 0.0  # when the last turn ended, of `time.perf_counter`

    def run(self, asked: float, work: Callable[[], T]) -> tuple[T, float]:
        """What ``work`` returns, and the milliseconds of its turn: from when it was ``asked`` for and the turn before had ended, to its end."""
        found = work()
        begun, self._free = max(asked, self._free), time.perf_counter()
        return found, 1e3 * (self._free - begun)
