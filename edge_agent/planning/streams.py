"""The frame stream of a plan: to the server or, in a chain, to the next board."""

from __future__ import annotations

from edge_agent.config import Settings
from edge_agent.planning import peers
from edge_agent.planning.peers import StatusCallback
from splitedge import limits
from splitedge.head import answers
from splitedge.link.adaptation import Adaptation
from splitedge.link.http_client import tls_context
from splitedge.link.stream_client import FrameStream
from splitedge.protocol.messages import LinkEstimate, Plan


def frame_stream(
    settings: Settings, plan: Plan, adaptation: Adaptation | None = None, topk: int | None = None
) -> FrameStream:
    """The stream for the frames of ``plan``, an async context manager. It reports every frame to ``adaptation``.

    ``topk``: that of the settings if it is None.
    """
    downstream = plan.stage is not None and bool(plan.stage.downstream)
    url, token, ca = peers.next_address(settings) if downstream else peers.server_address(settings)
    away = settings.demand.max_away_s
    return FrameStream(
        url,
        token,
        plan.id,
        topk=answers.requested(plan.output, settings.topk if topk is None else topk),
        protocol=plan.protocol,
        max_away_s=away,
        frame_age_s=max(limits.FRAME_AGE, away),
        ssl=tls_context(ca),
        allow_insecure=settings.allow_insecure,
        adaptation=adaptation,
    )


async def open_stream(
    settings: Settings, plan: Plan, adaptation: Adaptation, say: StatusCallback, topk: int | None = None
) -> FrameStream:
    """A stream that the peer has opened too. The caller closes it. Raises the error that prevents it from opening."""
    say("opening the stream")
    opened = await frame_stream(settings, plan, adaptation, topk).__aenter__()
    try:
        await opened.ready()
    except BaseException as error:
        await opened.__aexit__(type(error), error, None)
        raise
    return opened


def planned_link(plan: Plan) -> LinkEstimate | None:
    """The link that a chain's ``plan`` assumes for its board. None for another plan, and if the board sends nothing."""
    route = [] if plan.stage is None else [one for one in plan.stage.route if one.device == plan.stage.device]
    if not route or not route[0].sending_ms > 0:
        return None
    mbps = route[0].payload_bytes * 8e-3 / route[0].sending_ms
    return LinkEstimate(route[0].rtt_ms, mbps, mbps)
