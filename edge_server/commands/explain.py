"""`edge-server explain`: a plan for a device that need not be here, and the trade-offs around it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

import device_profiles
from device_profiles import known
from device_profiles.schema import DeviceProfile, is_measured
from edge_agent import errors
from edge_agent.explain import explain as plan_in_words
from edge_agent.explain import picture_form, write_picture
from edge_agent.protocol.messages import Demand, LinkEstimate, PlanRequest
from edge_server import curves
from edge_server.catalog import Catalog
from edge_server.planning import choose_plan, store_plan
from edge_server.store import Store, default_folder


def profile_of(file: Path | None, board: str | None) -> DeviceProfile:
    """The device to plan for. Raises `errors.UsageError` unless it is named in one way, and as reading it does."""
    if (file is None) == (board is None):
        raise errors.UsageError(
            f"name one device: --profile FILE, which `edge-agent profile --out` writes, or --board, one of {', '.join(known.names())}"
        )
    return device_profiles.load(file) if file else known.load(board or "")


def explain(
    folder: Path | None,
    model: str,
    profile: DeviceProfile,
    link: LinkEstimate,
    demand: Demand,
    plot: Path | None,
    *,
    json: bool,
) -> None:
    """Prints the plan for ``profile`` and draws its trade-offs into ``plot``."""
    form = picture_form(plot.name) if plot else None
    request = PlanRequest(model, device_profiles.to_dict(profile), link, demand)
    with Store(folder or default_folder()) as store:
        catalog = Catalog(store)
        chosen = choose_plan(catalog, request)
        plan = store_plan(catalog, chosen)
    found = curves.curves(chosen.table, chosen.asked, chosen.pick)
    if plot and form:
        write_picture(plot, curves.draw(found, form))
    if json:
        print(msgspec.json.encode({"plan": plan, "curves": found}).decode())
        return
    console = Console(highlight=False)
    if not is_measured(profile):
        console.print(
            Text(f"{profile.machine.board}: a board that nobody measured; all times are predictions", "bold yellow"), ""
        )
    console.print(plan_in_words(plan, console.width))
    if plot:
        console.print(f"\nthe trade-offs are drawn in {plot}", markup=False)
