"""A model's operators timed on this device before any of its weights are here.

What a head takes depends on the shapes of its operators and not on its weights. So the server sends the longest head's header alone, a few kB; the
head runs with constants of zero, and as the heads of a network are beginnings of each other, one run tells the time of all of them. Single operators
in a profile are timed apart from each other and stand for others like them; this is the very sequence that frames go through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol.messages import Outline, Rehearsal

SECONDS: Final = 0.5  # for whole runs, and again for runs operator by operator
LEAST, MOST = 5, 50  # runs
GROUPS: Final = 5  # of them,
PAUSE_S: Final = 0.25  # and what lies between two: a bad moment of a processor that others share lasts for a second
APART: Final = 1.25  # a head that takes so many times longer or shorter than was rehearsed contradicts the rehearsal
#: Of a head's constants: as they are in the file, unpacked, and packed for the kernels.
_COPIES: Final = 4


def memory_bytes(outline: Outline) -> int:
    """What `rehearse` takes at most. Raises `errors.SegmentError` for an outline that is none."""
    header = _header(outline)
    return _COPIES * header.blob_bytes + header.arena_bytes


def rehearse(outline: Outline, threads: int) -> Rehearsal:
    """Run the head that ``outline`` describes on so many ``threads``: a second of work and one of pauses, or twice five runs. Blocks; compiles kernels that
    are not in the cache.

    Raises `errors.SegmentError` for an outline that is none.
    """
    header = _header(outline)
    head = Head(seg.Segment(header, np.zeros(header.blob_bytes, np.uint8)), check_golden=False, threads=threads)
    frame = seg.golden_frame(header)
    head.run(frame)
    groups: list[float] = []
    apart: list[list[float]] = []
    for group in range(GROUPS):
        time.sleep(PAUSE_S if group else 0.0)
        groups.append(_whole_ms(head, frame))
        runs = max(LEAST, min(MOST, int(1e3 * SECONDS / max(groups[-1], 1e-3)))) // GROUPS
        apart += [[one.us for one in head.profile(frame, 1)] for _ in range(runs)]
    whole, shares = sorted(groups)[GROUPS // 4], _shares(apart)
    return Rehearsal(outline.bundle, [whole * share for share in accumulate(shares)])


def _whole_ms(head: Head, frame: NDArray[Any]) -> float:
    """Median milliseconds of a group of runs."""
    times: list[float] = []
    while len(times) < LEAST // GROUPS or (sum(times) < 1e3 * SECONDS / GROUPS and len(times) < MOST // GROUPS):
        start = time.perf_counter()
        head.run(frame)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def _shares(runs: list[list[float]]) -> list[float]:
    """Of each operator in the time of all, from the quicker half of ``runs``. Means: where processes share a core in slices a short operator
    mostly is done within one, and its median knows nothing of the slices of others.
    """
    quick = sorted(runs, key=sum)[: (len(runs) + 1) // 2]
    means = [fmean(times) for times in zip(*quick, strict=True)]
    total = max(sum(means), 1e-9)
    return [mean / total for mean in means]


def contradicted(kept: Kept, measured: Mapping[str, float], operators: Mapping[str, int]) -> bool:
    """Whether frames say otherwise than ``kept``, by more than `APART`, and did not say so when it was made. ``measured``: what heads took, by segment;
    ``operators``: how many each has of those that are of this model.
    """
    ms = kept.rehearsal.ms
    return any(
        _apart(found, ms[operators[segment] - 1]) and _apart(found, kept.measured.get(segment, 0.0))
        for segment, found in measured.items()
        if 0 < operators.get(segment, 0) <= len(ms)
    )


def _apart(a: float, b: float) -> bool:
    return max(a, b) > APART * min(a, b)


def _header(outline: Outline) -> seg.Header:
    header, end = seg.parse_header(outline.header)
    if end != len(outline.header):
        raise errors.SegmentError("the model's outline has bytes behind its header; upgrade the server")
    return header


class Kept(msgspec.Struct):
    """A rehearsal, and what frames had said of heads, by segment, when it was made."""

    rehearsal: Rehearsal
    measured: dict[str, float]


class Rehearsals:
    """Those of this device and these kernels, by a key; in the file ``path``, the last `limits.MAX_REHEARSALS`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Kept | None:
        return self._read().get(key)

    def put(self, key: str, found: Kept | None) -> None:
        """Keep ``found``, or forget what was kept where it is None. Raises `errors.StoreError`."""
        kept = {name: one for name, one in self._read().items() if name != key}
        if found is not None:
            kept[key] = found
        try:
            part = self._path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(dict(list(kept.items())[-limits.MAX_REHEARSALS :])))
            part.replace(self._path)
        except OSError as error:
            raise errors.StoreError(
                f"{self._path} cannot be written ({error.strerror}); free space, make it writable, or set `cache_dir`"
            ) from error

    def _read(self) -> dict[str, Kept]:
        """Nothing where there is no such file, or one that another version or a broken disk wrote: models are rehearsed anew."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(limits.MAX_REHEARSALS_BYTES), type=dict[str, Kept])
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        except OSError as error:
            raise errors.StoreError(
                f"{self._path} cannot be read ({error.strerror}); make it readable, or set `cache_dir`"
            ) from error
