"""`edge-agent plan` and `edge-agent models`: ask the server, explain the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

import device_profiles
from device_profiles import known
from edge_agent import errors, negotiation
from edge_agent.config import Settings
from edge_agent.explain import WhatIf, explain, picture_form, plain, write_picture
from edge_agent.protocol.messages import PlanRequest


async def plan(
    settings: Settings,
    *,
    json: bool,
    board: str | None = None,
    given: Mapping[str, float] | None = None,
    plot: Path | None = None,
) -> None:
    """Print the plan that the server makes for this machine and link; nothing is fetched or run.

    ``board`` names a known board to plan for in place of this machine, ``given`` the values of the link (as in `LinkEstimate`) that are not to be
    measured; the output says so. ``plot``: a file for the picture of the trade-offs, which the server draws.
    """
    given = given or {}
    if plot and settings.chain.next:
        raise errors.UsageError(
            "the trade-offs of a chain of boards are not drawn; leave out --plot, or the next board"
        )
    form = picture_form(plot.name) if plot else "svg"
    stands_in = known.load(board) if board else None
    spinner = Console(stderr=True).status("measuring this machine")
    with spinner:

        def say(text: str) -> None:
            spinner.update(plain(text))

        profile = stands_in or await negotiation.profile(settings, say)
        async with negotiation.client(settings) as client:
            link = await negotiation.link(client, given, say)
            measured = {} if stands_in else negotiation.timings(settings).known()
            rehearsed = None if stands_in else await negotiation.rehearsal(client, settings, profile, measured, say)
            chosen = await negotiation.plan(client, settings, profile, [], measured, say, link, rehearsed)
            if plot:
                say("drawing the trade-offs")
                asked = PlanRequest(
                    settings.model, device_profiles.to_dict(profile), link, settings.demand, [], measured, rehearsed
                )
                await asyncio.to_thread(write_picture, plot, await client.curves(asked, form))
    what_if = WhatIf(board, stands_in, link, sorted(given)) if board or given else None
    if json:
        extra = {"what_if": what_if.document()} if what_if else {}
        print(msgspec.json.encode(msgspec.to_builtins(chosen) | extra).decode())
    else:
        console = Console(highlight=False)
        if what_if:
            console.print(what_if.words(), "")
        console.print(explain(chosen, console.width))
        if plot:
            console.print(Text(f"\nthe trade-offs are drawn in {plot}"))


async def models(settings: Settings, *, json: bool) -> None:
    """Print the server's models."""
    async with negotiation.client(settings) as client:
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
