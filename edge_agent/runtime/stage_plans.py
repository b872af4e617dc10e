"""The plans that a later stage of a chain serves: opened by the id of the plan before, and checked to be made for this
board.
"""

from __future__ import annotations

import asyncio
import functools
import time

from device_profiles import DeviceProfile
from edge_agent.config import Settings
from edge_agent.planning import device, disk_cache, downloads, peers, streams
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.peers import StatusCallback
from edge_agent.runtime.active_plan import ActivePlan
from edge_agent.runtime.engine import Encoded, Engine
from edge_agent.runtime.pipeline import Passage
from edge_agent.runtime.preparation import adaptation_of
from splitedge import codec, errors, limits
from splitedge.head import answers
from splitedge.link.adaptation import Adaptation, Goal
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Demand, Open, Plan


class StagePlan(ActivePlan):
    """A plan that serves sessions of the board before. Its stream leads to the next board or to the server."""

    def __init__(self, engine: Engine, stream: FrameStream | None, adaptation: Adaptation | None, topk: int) -> None:
        super().__init__(engine, stream, adaptation)
        self.topk, self.sessions = topk, 0
        self.since = time.monotonic()  # when the plan was opened, or last reported as outdated

    def outdated(self) -> bool:
        """Whether the link has changed lastingly since the plan was made.

        True at most once in `limits.REPLAN_LEAST`, as it serves until replaced.
        """
        now = time.monotonic()
        due = self.adaptation is not None and self.adaptation.changed and now - self.since >= limits.REPLAN_LEAST
        self.since = now if due else self.since
        return due

    def encode(self, frame: Frame) -> Encoded:
        """Decode ``frame``, run the segment, and encode for the link; blocks. Decoding counts as preprocessing."""
        start = time.perf_counter()
        stage = self.engine.plan.stage
        assert stage is not None
        if frame.codec >= len(stage.incoming):
            raise errors.CodecError(
                f"the frame names codec {frame.codec} of a ladder of {len(stage.incoming)}: ask for a new plan",
                reason="codec-not-on-ladder",
            )
        x = codec.decode(frame.payload, stage.incoming[frame.codec], stage.start.shape)
        decoded_ms = 1e3 * (time.perf_counter() - start)
        encoded = self.engine.resume(x, functools.partial(self.choose, limits.FRAME_AGE / 2))
        return encoded._replace(preprocess_ms=encoded.preprocess_ms + decoded_ms)

    def overhead_ms(self, encoded: Encoded, turn_ms: float) -> float:
        """As in `ActivePlan`; decoding belongs to the codec, which plans predict."""
        return super().overhead_ms(encoded, turn_ms - encoded.preprocess_ms)

    def answer(self, passage: Passage) -> bytes:
        """The answer's payload: the next peer's, or this board's own output."""
        if passage.answer is not None:
            return bytes(passage.answer.payload)
        return answers.pack(self.engine.output(passage.encoded.codes), self.engine.plan.output, self.topk)


class StagePlans:
    """The open plans of a stage, at most `limits.STAGE_PLANS`. ``profile`` is set before the first is opened."""

    def __init__(self, settings: Settings, say: StatusCallback) -> None:
        self.last: Plan | None = None  # the plan opened last
        self.profile: DeviceProfile | None = None
        self.open: dict[tuple[str, int], StagePlan] = {}  # by the plan before, and topk
        self._settings, self._say = settings, say
        self._opening = asyncio.Lock()

    async def join(self, asked: Open) -> StagePlan:
        """The plan behind the one that ``asked`` names, prepared if it is not open, with one more session.

        The caller ends the session.
        """
        key = asked.plan, asked.topk
        async with self._opening:
            found = self.open.get(key)
            if found is None or found.failed:
                found = await self._prepare(asked)
                await self._make_room(key)
                self.open[key] = found
            self.last = found.engine.plan
            found.sessions += 1
        return found

    async def close(self) -> None:
        """Close the stream of every plan."""
        for plan in list(self.open.values()):
            await plan.close()
        self.open.clear()

    async def _prepare(self, asked: Open) -> StagePlan:
        """Plan, segment, warm head, and the stream to the next peer."""
        if len(asked.plan) > limits.MAX_NAME:
            raise errors.ProtocolError(
                f"the plan's name is longer than {limits.MAX_NAME} characters; run the same splitedge on both boards",
                reason="plan-name",
            )
        settings = self._settings
        async with peers.client(settings) as server:
            plan = await server.next_plan(asked.plan)
            check_stage(plan, asked.plan, device.name(settings))
            data = await downloads.segment(server, DiskCache(disk_cache.folder(settings)), plan, self._say)
        self._say("preparing the head")
        assert self.profile is not None
        demand, threads = Demand(max_drop_points=plan.demand.max_drop_points), device.threads(self.profile)
        engine = await asyncio.to_thread(Engine, plan, data, demand, threads)
        adaptation = stream = None
        if plan.mode != "device":
            adaptation = self._adaptation(plan)
            stream = await streams.open_stream(settings, plan, adaptation, self._say, asked.topk)
        self._say("ready")
        return StagePlan(engine, stream, adaptation, asked.topk)

    def _adaptation(self, plan: Plan) -> Adaptation:
        link = streams.planned_link(plan)
        if link is None:
            raise _inconsistent()
        return adaptation_of(self._settings, plan, link, Goal(plan.demand.min_rate_fps, None))

    async def _make_room(self, key: tuple[str, int]) -> None:
        """Close the plan that ``key`` had before and, of the others, the oldest without a session.

        Raises `errors.BusyError` if all are in use.
        """
        unused = [other for other in self.open if other != key and not self.open[other].sessions]
        spare = unused[: max(0, len(self.open) - (key in self.open) - limits.STAGE_PLANS + 1)]
        for old in [*spare, *([key] if key in self.open else [])]:
            await self.open.pop(old).close()
        if len(self.open) >= limits.STAGE_PLANS:
            raise errors.BusyError(f"this board already serves {len(self.open)} plans; try again later", reason="plans")


def check_stage(plan: Plan, upstream: str, device: str) -> None:
    """Raise `errors.ProtocolError` unless ``plan`` follows the plan ``upstream`` and is for the board ``device``."""
    stage = plan.stage
    if stage is None or stage.upstream != upstream:
        raise errors.ProtocolError(
            "the server's plan does not follow the plan of the board before; run the same splitedge on all boards",
            reason="other-plan",
        )
    if stage.device != device:
        raise errors.ProtocolError(
            "this plan was made for another board; ask for a new plan, or correct `chain.next`", reason="other-board"
        )
    if not stage.incoming or device not in [one.device for one in stage.route]:
        raise _inconsistent()


def _inconsistent() -> errors.ProtocolError:
    return errors.ProtocolError(
        "the server's plan is inconsistent; run the same splitedge on all boards", reason="inconsistent"
    )
