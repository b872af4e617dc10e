"""`edge-agent plan` and `edge-agent models`: ask the server and show its answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from device_profiles import DeviceProfile, known
from device_profiles.schema import Pace
from edge_agent.commands.what_if import WhatIf
from edge_agent.config import Settings
from edge_agent.planning import device, dry_run_store, measured_times, peers, plan_request
from splitedge import files, report, terminal
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import MeasuredTimes, Plan, PlanRequest


async def plan(
    settings: Settings,
    *,
    json: bool,
    layers: bool = False,
    board: str | None = None,
    pace: Pace = "slow",
    assumed: Mapping[str, float] | None = None,
    plot: Path | None = None,
) -> None:
    """Print the server's plan for this machine and link. Downloads no segment and runs no frame.

    ``board``: plan for this known board instead of this machine, and for the end ``pace`` of its band. ``assumed``: values of the link (fields of
    `LinkEstimate`), which are then not
    measured. The output names both. ``plot``: a file for the picture of the trade-offs, which the server draws after
    the plan is printed.
    """
    assumed = assumed or {}
    known_board = known.load(board) if board else None
    if known_board:
        known_board.pace = pace
    with terminal.Progress("edge-agent") as progress:
        async with peers.client(settings) as client:
            asked, chosen = await _ask(client, settings, known_board, assumed, progress)
            progress.stop()
            what_if = (
                WhatIf(board, known_board, asked.link, sorted(assumed), chosen.prediction.device_ms)
                if board or assumed
                else None
            )
            _print(chosen, what_if, json=json, layers=layers)
            if plot:
                progress("drawing the trade-offs")
                files.write(plot, await client.curves(asked, files.picture_form(plot.name)))
    if plot:
        print(f"picture of the trade-offs: {plot}", file=sys.stderr if json else sys.stdout)


async def _ask(
    client: ServerClient,
    settings: Settings,
    known_board: DeviceProfile | None,
    assumed: Mapping[str, float],
    say: peers.StatusCallback,
) -> tuple[PlanRequest, Plan]:
    """The request and the plan, for this machine or for ``known_board``."""
    profile = known_board or await device.profile(settings, say)
    link = await plan_request.measure_link(client, assumed, say)
    measured = MeasuredTimes() if known_board else measured_times.time_log(settings).medians()
    dry_run = None if known_board else await dry_run_store.dry_run(client, settings, profile, measured.head_ms, say)
    request = plan_request.describe(settings, profile, link, measured=measured, dry_run=dry_run)
    return request, await plan_request.request_plan(client, settings, request, say)


def _print(chosen: Plan, what_if: WhatIf | None, *, json: bool, layers: bool) -> None:
    if json:
        extra = {"what_if": what_if.document()} if what_if else {}
        print(msgspec.json.encode(msgspec.to_builtins(chosen) | extra).decode())
        return
    width = terminal.width()
    if what_if:
        terminal.show(what_if.words(width), "")
    terminal.show(report.explain(chosen, width, "edge-agent plan", layers=layers))


async def models(settings: Settings, *, json: bool) -> None:
    """Print the models on the server."""
    async with peers.client(settings, patient=False) as client:
        found = await client.models()
    if json:
        print(msgspec.json.encode(found).decode())
    elif found:
        terminal.show(report.models(found, terminal.width()))
    else:
        print("the server has no models; add one with `edge-server add`")
