"""What heads, and frames beside them, really took on this device: kept beside the profile, sent with the next plan request, which they refine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import msgspec

from edge_agent import errors, limits

T = TypeVar("T")

_LEAST: Final = 5  # frames before a median counts
_LAST: Final = 50  # frames that it is taken over


class Timings:
    """Milliseconds of the head, by the segment's SHA-256; in the file ``path``, or nowhere if that is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept = _read(path) if path else {}
        self._last: dict[str, deque[float]] = {}

    def add(self, segment: str, ms: float) -> None:
        """A frame took ``ms`` through the head ``segment``."""
        self._last.setdefault(segment, deque(maxlen=_LAST)).append(ms)

    def known(self) -> dict[str, float]:
        """The medians, those of earlier runs where this one has too few frames; the last `limits.MAX_MEASURED` segments."""
        for segment, times in self._last.items():
            if len(times) >= _LEAST:
                self._kept.pop(segment, None)
                self._kept[segment] = median(times)
        self._kept = dict(list(self._kept.items())[-limits.MAX_MEASURED :])
        return dict(self._kept)

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


def _read(path: Path) -> dict[str, float]:
    """What was kept; nothing where there is no such file, or one that another version or a broken disk wrote: it is measured anew."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(limits.MAX_TIMINGS_BYTES), type=dict[str, float])
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    except OSError as error:
        raise errors.StoreError(
            f"{path} cannot be read ({error.strerror}); make it readable, or set `cache_dir`"
        ) from error


class Turns:
    """What a worker's turns take that does one frame after another: all that keeps it from the next frame, be it the frame's work or the programs'."""

    def __init__(self) -> None:
        self._free = 0.0  # when the last turn ended, of `time.perf_counter`

    def run(self, asked: float, work: Callable[[], T]) -> tuple[T, float]:
        """What ``work`` returns, and the milliseconds of its turn: from when it was ``asked`` for and the turn before had ended, to its end."""
        found = work()
        begun, self._free = max(asked, self._free), time.perf_counter()
        return found, 1e3 * (self._free - begun)
