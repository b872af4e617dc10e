"""`edge-agent plan` and `edge-agent models`: ask the server, explain the answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

import device_profiles
from device_profiles import DeviceProfile, known
from edge_agent.commands.what_if import WhatIf
from edge_agent.config import Settings
from edge_agent.planning import negotiation, peers
from splitedge import files
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import Plan, PlanRequest
from splitedge.report import explain, plain


async def plan(
    settings: Settings,
    *,
    json: bool,
    layers: bool = False,
    board: str | None = None,
    given: Mapping[str, float] | None = None,
    plot: Path | None = None,
) -> None:
    """Print the plan that the server makes for this machine and link; nothing is fetched or run.

    ``board`` names a known board to plan for in place of this machine, ``given`` the values of the link (as in `LinkEstimate`) that are not to be
    measured; the output says so. ``plot``: a file for the picture of the trade-offs. The server draws it; the plan is printed before that.
    """
    given = given or {}
    stands_in = known.load(board) if board else None
    with Console(stderr=True).status("starting") as spinner:

        def say(text: str) -> None:
            spinner.update(plain(text))

        async with peers.client(settings) as client:
            asked, chosen = await _ask(client, settings, stands_in, given, say)
            spinner.stop()
            what_if = WhatIf(board, stands_in, asked.link, sorted(given)) if board or given else None
            _print(chosen, what_if, json=json, layers=layers)
            if plot:
                spinner.start()
                say("drawing the trade-offs")
                files.write(plot, await client.curves(asked, files.picture_form(plot.name)))
    if plot:
        print(f"picture of the trade-offs: {plot}", file=sys.stderr if json else sys.stdout)


async def _ask(
    client: ServerClient,
    settings: Settings,
    stands_in: DeviceProfile | None,
    given: Mapping[str, float],
    say: negotiation.Say,
) -> tuple[PlanRequest, Plan]:
    """The plan for this machine, or for the board that ``stands_in`` for it, and what was asked."""
    profile = stands_in or await negotiation.profile(settings, say)
    link = await negotiation.link(client, given, say)
    measured = {} if stands_in else negotiation.timings(settings).known()
    rehearsed = None if stands_in else await negotiation.rehearsal(client, settings, profile, measured, say)
    chosen = await negotiation.plan(client, settings, profile, [], measured, say, link, rehearsed)
    known_as = device_profiles.to_dict(profile)
    return PlanRequest(settings.model, known_as, link, settings.demand, [], measured, rehearsed), chosen


def _print(chosen: Plan, what_if: WhatIf | None, *, json: bool, layers: bool) -> None:
    if json:
        extra = {"what_if": what_if.document()} if what_if else {}
        print(msgspec.json.encode(msgspec.to_builtins(chosen) | extra).decode())
        return
    console = Console(highlight=False)
    if what_if:
        console.print(what_if.words(), "")
    console.print(explain(chosen, console.width, "edge-agent plan", layers=layers), crop=False)  # names stay whole


async def models(settings: Settings, *, json: bool) -> None:
    """Print the server's models."""
    async with peers.client(settings, patient=False) as client:
        found = await client.models()
    if json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table("model", "input", "cuts offered", "metric", "samples", "not in the integer head")
    for model in found:
        shape = " x ".join(map(str, model.preprocess.shape))
        if model.tokenizer is not None:
            shape = f"text, {shape} tokens"
        cells = (
            model.name,
            shape,
            f"{len(model.offered)} of {len(model.cuts)}",
            model.metric,
            str(model.samples),
            ", ".join(model.unsupported[:5]),
        )
        table.add_row(*(Text(plain(cell)) for cell in cells))
    Console(highlight=False).print(table if found else "the server has no models yet; `edge-server add` brings one in")
