"""The plan that serves an agent's callers: answer reuse, results, and the comparison of frame times with the plan's
prediction.
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.planning.measured_times import SendingModel
from edge_agent.runtime.active_plan import ActivePlan
from edge_agent.runtime.answer_reuse import AnswerReuse, Comparison
from edge_agent.runtime.engine import Compare, Engine
from edge_agent.runtime.pipeline import Passage
from edge_agent.runtime.results import Result, placed_boxes, regions, top_classes
from splitedge import limits
from splitedge.head import answers
from splitedge.head.answers import Answered
from splitedge.head.preprocess import Placement
from splitedge.link.adaptation import Adaptation
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.tasks import segmentation


class AgentPlan(ActivePlan):
    """A plan that serves callers.

    ``reuse``: None if answers are not reused. ``sending``: None if the link was not measured for this plan.
    """

    def __init__(
        self,
        engine: Engine,
        stream: FrameStream | None,
        adaptation: Adaptation | None = None,
        reuse: AnswerReuse | None = None,
        sending: SendingModel | None = None,
    ) -> None:
        super().__init__(engine, stream, adaptation)
        self.reuse, self.sending = reuse, sending
        self._excess_ms: deque[float] = deque(maxlen=limits.MEDIAN_WINDOW)  # of lone frames, over the prediction

    @property
    def compare(self) -> Compare | None:
        """Compares the head's output with the kept answer's frame, in the head's thread; None without answer reuse."""
        return self._compare if self.reuse is not None else None

    def _compare(self, tensor: NDArray[Any]) -> Comparison:
        assert self.reuse is not None
        return self.reuse.compare(tensor, time.monotonic())

    def learn(self, passage: Passage) -> float | None:
        """Compare a lone frame's time with the prediction.

        Returns the sending time above it, None if the link may have changed.

        Preprocessing and queueing are left out: no plan predicts them.
        """
        encoded, timing = passage.encoded, passage.timing
        rung, size = encoded.rung, HEADER_BYTES + len(encoded.payload)
        planned, sending = self.engine.plan.prediction, self.sending
        excess = timing.total_ms - timing.preprocess_ms - timing.wait_ms - planned.total_ms
        if sending is None:
            if self.stream is None:
                self._excess_ms.append(excess)
            return None
        chosen = sending.predicted_ms(self.engine.codec, planned.payload_bytes)
        self._excess_ms.append(excess - sending.predicted_ms(rung, size) + chosen)
        return sending.excess_ms(rung, size, timing.encode_ms + timing.link_ms)

    @property
    def mispredicted(self) -> bool:
        """Whether frames take longer or shorter than the plan predicts."""
        tolerance = max(limits.MISMATCH_MS, limits.MISMATCH_SHARE * self.engine.plan.prediction.total_ms)
        return len(self._excess_ms) >= limits.MEDIAN_FRAMES and abs(median(self._excess_ms)) > tolerance

    @property
    def decodes(self) -> bool:
        """Whether `result` decodes boxes or a map here, which takes too long for the event loop (49 ms for 4,000 boxes
        of 80 classes).
        """
        plan = self.engine.plan
        return plan.mode == "device" and bool(plan.output.task_name)

    def result(self, passage: Passage, topk: int) -> Result:
        """The result for the frame's caller. Keeps a server's answer for reuse. ``topk``: as in the settings."""
        plan, encoded, found, reply = self.engine.plan, passage.encoded, passage.encoded.comparison, passage.answer
        made = Result([], passage.timing, passage.sent_bytes, plan.id, plan.mode, kind=plan.output.kind)
        made.distance = found.distance if found else None
        if reply is not None:
            answer = answers.unpack(reply.payload, plan.output, topk)
            made.rung, made.bits = encoded.rung, plan.ladder[encoded.rung].bits
            if self.reuse is not None and found is not None:
                self.reuse.keep(found, answer, made.payload_bytes)
        elif encoded.reused is not None:
            answer, made.cached, made.saved_bytes = encoded.reused.answer, True, encoded.reused.sent_bytes
        else:
            answer = answers.from_values(self.engine.output(encoded.codes), plan.output, topk)
        made.top, made.output = top_classes(answer.pairs, plan.labels), answer.output
        self._add_task(made, answer, encoded.placement)
        return made

    def _add_task(self, made: Result, answer: Answered, place: Placement) -> None:
        """Add what the plan's task makes of ``answer``, and name its outputs."""
        plan = self.engine.plan
        made.placement = (place.left, place.top, place.width, place.height)
        if plan.output.parts and answer.output is not None:
            made.output, made.outputs = None, answers.parts(answer.output.astype(np.float32), plan.output)
        made.task = plan.output.task_name
        if answer.boxes is not None:
            made.boxes = placed_boxes(answer.boxes, plan.labels, made.placement)
        if answer.map is not None:
            made.map, made.regions = answer.map, regions(segmentation.shares(answer.map), plan.labels)
