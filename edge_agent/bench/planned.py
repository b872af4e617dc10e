"""The head that the server plans for this board, as a model to measure."""

from __future__ import annotations

from pathlib import Path

from edge_agent.backends import SEGMENT
from edge_agent.bench.cases import Model
from edge_agent.bench.measuring import Say
from edge_agent.config import Settings
from edge_agent.planning import device, downloads, peers, plan_request
from edge_agent.planning.disk_cache import DiskCache, folder
from splitedge.errors import UsageError


async def head(settings: Settings, into: Path, say: Say) -> Model:
    """The segment of the plan for ``settings``, in the folder ``into``.

    Raises `UsageError` if the plan gives the board no part of the network, and as a request for a plan does.
    """
    async with peers.client(settings) as client:
        profile = await device.profile(settings, say)
        link = await plan_request.measure_link(client, {}, say)
        request = plan_request.describe(settings, profile, link)
        plan = await plan_request.request_plan(client, settings, request, say)
        if plan.mode == "server":
            raise UsageError(
                f"the plan for {settings.model} runs all of it on the server; demand another mode with --mode device",
                reason="no-head",
            )
        data = await downloads.segment(client, DiskCache(folder(settings)), plan, say)
    file = into / f"planned{SEGMENT}"
    file.write_bytes(data)
    return Model(f"{settings.model} to {plan.cut.layer}"[:300], [file])
