"""A model's operators timed on this device before any of its weights are here.

What a head takes depends on the shapes of its operators and not on its weights. So the server sends the longest head's header alone, a few kB; the
head runs with constants of zero, and as the heads of a network are beginnings of each other, one run tells the time of all of them. Single operators
in a profile are timed apart from each other and stand for others like them; this is the very sequence that frames go through.
"""

from __future__ import annotations

import time
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import numpy as np

from edge_agent import errors, limits
from edge_agent.head import Head
from edge_agent.head import segment as seg
from edge_agent.protocol.messages import Outline, Rehearsal

SECONDS: Final = 0.5  # for whole runs, and again for runs operator by operator
LEAST, MOST = 5, 50  # runs
#: Of a head's constants: as they are in the file, unpacked, and packed for the kernels.
_COPIES: Final = 4


def memory_bytes(outline: Outline) -> int:
    """What `rehearse` takes at most. Raises `errors.SegmentError` for an outline that is none."""
    header = _header(outline)
    return _COPIES * header.blob_bytes + header.arena_bytes


def rehearse(outline: Outline, threads: int) -> Rehearsal:
    """Run the head that ``outline`` describes on so many ``threads``: a second of work, or five runs. Blocks; compiles kernels that are not in the cache.

    Raises `errors.SegmentError` for an outline that is none.
    """
    header = _header(outline)
    head = Head(seg.Segment(header, np.zeros(header.blob_bytes, np.uint8)), check_golden=False, threads=threads)
    frame = seg.golden_frame(header)
    head.run(frame)
    times: list[float] = []
    while len(times) < LEAST or (sum(times) < 1e3 * SECONDS and len(times) < MOST):
        start = time.perf_counter()
        head.run(frame)
        times.append(1e3 * (time.perf_counter() - start))
    whole = median(times)
    apart = [one.us for one in head.profile(frame, max(LEAST, min(MOST, int(1e3 * SECONDS / max(whole, 1e-3)))))]
    total = max(sum(apart), 1e-9)
    return Rehearsal(outline.bundle, [whole * us / total for us in accumulate(apart)])


def _header(outline: Outline) -> seg.Header:
    header, end = seg.parse_header(outline.header)
    if end != len(outline.header):
        raise errors.SegmentError("the model's outline has bytes behind its header; upgrade the server")
    return header


class Rehearsals:
    """Those of this device and these kernels, by a key; in the file ``path``, the last `limits.MAX_REHEARSALS`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Rehearsal | None:
        return self._read().get(key)

    def put(self, key: str, found: Rehearsal | None) -> None:
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

    def _read(self) -> dict[str, Rehearsal]:
        """Nothing where there is no such file, or one that another version or a broken disk wrote: models are rehearsed anew."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(limits.MAX_REHEARSALS_BYTES), type=dict[str, Rehearsal])
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        except OSError as error:
            raise errors.StoreError(
                f"{self._path} cannot be read ({error.strerror}); make it readable, or set `cache_dir`"
            ) from error
