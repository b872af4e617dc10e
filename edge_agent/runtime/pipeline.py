"""The way of a frame through a board: the queue, the head's thread, the link. `Agent` and `StageServer` share it.

One worker thread preprocesses a frame, runs its head and encodes it. The event loop only waits. So frame n + 1 is in
the head while frame n is on the link.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from edge_agent.config import Settings
from edge_agent.planning.measured_times import TimeLog, TurnTimer, time_log
from edge_agent.runtime.active_plan import ActivePlan
from edge_agent.runtime.engine import Encoded
from edge_agent.runtime.queue_limit import QueueLimit
from edge_agent.runtime.results import Counters, Timing, phases
from splitedge import limits
from splitedge.protocol.frames import HEADER_BYTES, Answer


class Passage(NamedTuple):
    """A frame that has passed the pipeline.

    ``answer`` is None if nothing was sent. ``alone``: no other frame was in progress meanwhile.
    """

    encoded: Encoded
    answer: Answer | None
    timing: Timing
    alone: bool

    @property
    def sent_bytes(self) -> int:
        """Bytes sent for the frame, header included."""
        return HEADER_BYTES + len(self.encoded.payload) if self.answer is not None else 0


class FramePipeline:
    """The queue's limit, the head's thread, and the counts and times of the frames that pass.

    `Counters` and `QueueLimit` enclose a frame's whole way, so its owner applies them:

        with pipeline.counters.counting_errors(), pipeline.limit.slot(size):
            passage = await pipeline.run(...)
        pipeline.counters.count_answer(...)
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.limit = QueueLimit()
        self.times: TimeLog | None = None
        self._thread = ThreadPoolExecutor(1, "head")
        self._turns = TurnTimer()
        self._begun: float | None = None  # when the frame in the head's thread began, in `time.monotonic`

    @property
    def alive(self) -> bool:
        """Whether no frame is in the head's thread for longer than `limits.HEAD_STUCK`."""
        begun = self._begun
        return begun is None or time.monotonic() - begun <= limits.HEAD_STUCK

    def open_times(self, settings: Settings) -> TimeLog:
        """The times measured so far, read from disk once. Raises `errors.StoreError`."""
        self.times = self.times or time_log(settings)
        return self.times

    async def run(
        self, plan: ActivePlan, encode: Callable[[], Encoded], deadline: float | None, start: float
    ) -> Passage:
        """Queue a frame of ``plan``, call ``encode`` in the head's thread, and send the result unless an earlier answer
        serves.

        ``deadline``: when the frame ages out, in the event loop's time. ``start``: when it came, of
        `time.perf_counter`. Raises `errors.AgedError`, and what ``encode`` and the stream raise.
        """
        async with plan.use():
            came, alone = time.monotonic(), plan.users == 1
            if plan.adaptation is not None:
                plan.adaptation.offered(came)
            async with plan.queue.place(deadline) as leave:
                encoded, turn_ms = await self._encode(encode)
                sent = time.perf_counter()
                if encoded.reused is not None and plan.adaptation is not None:
                    plan.adaptation.withdrawn(came)
                stream = plan.stream if encoded.reused is None else None
                answer = await stream.send(encoded.payload, encoded.rung, deadline, leave) if stream else None
                alone = alone and plan.users == 1
        if self.times is not None:
            self.times.add_head(plan.engine.plan.segment.sha256, encoded.head_ms)
            self.times.add_overhead(plan.overhead_ms(encoded, turn_ms))
        return Passage(encoded, answer, _timing(encoded, answer, start, sent), alone)

    async def _encode(self, encode: Callable[[], Encoded]) -> tuple[Encoded, float]:
        """The encoded frame, and the milliseconds of its turn in the head's thread."""
        asked = time.perf_counter()

        def turn() -> tuple[Encoded, float]:
            self._begun = time.monotonic()
            try:
                return self._turns.run(asked, encode)
            finally:
                self._begun = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, turn)

    def close(self) -> None:
        """End the head's thread after its current frame, and keep the measured times. Raises `errors.StoreError`."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self.times is not None:
            self.times.save()


def _timing(encoded: Encoded, answer: Answer | None, start: float, sent: float) -> Timing:
    """Where the time of a frame went that came at ``start`` and left the head's thread at ``sent``."""
    end = time.perf_counter()
    queue_ms, tail_ms = (answer.queue_us / 1e3, answer.tail_us / 1e3) if answer else (0.0, 0.0)
    timing = Timing(
        preprocess_ms=encoded.preprocess_ms,
        head_ms=encoded.head_ms,
        encode_ms=encoded.encode_ms,
        link_ms=max(0.0, 1e3 * (end - sent) - queue_ms - tail_ms),
        queue_ms=queue_ms,
        tail_ms=tail_ms,
        total_ms=1e3 * (end - start),
    )
    timing.wait_ms = max(0.0, timing.total_ms - sum(value for _, value in phases(timing)))
    return timing
