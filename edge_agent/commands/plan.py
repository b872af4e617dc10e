"""`edge-agent plan` and `edge-agent models`: ask the server, explain the answer."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent import negotiation
from edge_agent.config import Settings
from edge_agent.explain import explain, plain


async def plan(settings: Settings, *, json: bool) -> None:
    """Print the plan that the server makes for this machine and link; nothing is fetched or run."""
    spinner = Console(stderr=True).status("measuring this machine")
    with spinner:

        def say(text: str) -> None:
            spinner.update(plain(text))

        profile = await negotiation.profile(settings, say)
        async with negotiation.client(settings) as client:
            chosen = await negotiation.plan(client, settings, profile, [], _measured(settings), say)
    if json:
        print(msgspec.json.encode(chosen).decode())
    else:
        console = Console(highlight=False)
        console.print(explain(chosen, console.width))


def _measured(settings: Settings) -> dict[str, float]:
    return negotiation.timings(settings).known()


async def models(settings: Settings, *, json: bool) -> None:
    """Print the server's models."""
    async with negotiation.client(settings) as client:
        found = await client.models()
    if json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table("model", "input", "cuts", "metric", "samples", "not in the integer head")
    for model in found:
        shape = " x ".join(map(str, model.preprocess.shape))
        cells = (
            model.name,
            shape,
            str(len(model.cuts)),
            model.metric,
            str(model.samples),
            ", ".join(model.unsupported[:5]),
        )
        table.add_row(*(Text(plain(cell)) for cell in cells))
    Console(highlight=False).print(table if found else "the server has no models yet; `edge-server add` brings one in")
