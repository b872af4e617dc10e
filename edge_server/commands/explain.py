"""`edge-server explain`: a plan for a device that need not be here, and the trade-offs around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

import device_profiles
from calibration.accuracy import trials
from calibration.accuracy.drop_model import TAIL, AccuracyModel
from calibration.bundle.bundle import Bundle
from device_profiles import known
from device_profiles.schema import DeviceProfile, is_measured
from edge_server.planning import curves
from edge_server.planning.device_plan import choose_plan, store_plan
from edge_server.store.catalog import Catalog
from edge_server.store.store import Store, default_folder
from splitedge import errors, files
from splitedge.protocol.messages import Demand, LinkEstimate, PlanRequest
from splitedge.report import explain as plan_in_words


def profile_of(file: Path | None, board: str | None) -> DeviceProfile:
    """The device to plan for. Raises `errors.UsageError` unless it is named in one way, and as reading it does."""
    if (file is None) == (board is None):
        raise errors.UsageError(
            f"name one device: --profile FILE, which `edge-agent profile --out` writes, or --board, one of {', '.join(known.names())}"
        )
    return device_profiles.load(file) if file else known.load(board or "")


def bound(bundle: Bundle, points: float, noise: float) -> str:
    """A plan's noise beside what its promise allows, and beside what QPART's bound on the mean would, in a line."""
    model = bundle.accuracy
    allowed, mean = model.within(points), model.qpart(points)
    ratio = f", {mean / allowed:.3g} times as much" if allowed > 0 else ""
    told = isinstance(model, AccuracyModel) and model.threshold > 0
    share = (
        f" ({mean / model.threshold:.2g} of the mean adversarial noise)"
        if told and isinstance(model, AccuracyModel)
        else ""
    )
    return (
        f"Noise bound: the noise of this plan is {noise:.3g}. At {allowed:.3g}, {100 * (1 - TAIL):.0f} % of measurements on {model.promise_samples} "
        f"samples lose at most {points:g} points. QPART bounds the mean of the measurements instead and would allow {mean:.3g}{ratio}{share}."
    )


def fits(bundle: Bundle, cut: int) -> Iterator[str]:
    """How well two assumptions of planning fit what was measured: that noises add up, and that bits add noise as p x 4^-bits."""
    if told := trials.additivity(bundle.manifest.trials):
        yield f"Sum of noises: {told}."
    errors_of = [layer.noise.error for layer in bundle.layers.values()]
    found = bundle.cut_noises[cut].fit()
    parts = [f"{min(errors_of):.2g} to {max(errors_of):.2g} bits for layers"] if errors_of else []
    parts += [f"{found[1]:.2g} bits for packed codecs at this cut"] if found else []
    if parts:
        yield f"Noise by bits: measured noise differs from p x 4^-bits by {' and '.join(parts)} (root mean square). Plans use the measured noise."


def explain(
    folder: Path | None,
    model: str,
    profile: DeviceProfile,
    link: LinkEstimate,
    demand: Demand,
    plot: Path | None,
    *,
    json: bool,
    layers: bool = False,
    verbose: bool = False,
) -> None:
    """Prints the plan for ``profile``, then draws its trade-offs into ``plot``. ``layers``: with each layer's bits; ``verbose``: with how sure it is."""
    form = files.picture_form(plot.name) if plot else "svg"
    if plot:
        files.require_writable(plot)
    request = PlanRequest(model, device_profiles.to_dict(profile), link, demand)
    with Store(folder or default_folder()) as store:
        catalog = Catalog(store)
        chosen = choose_plan(catalog, request)
        plan = store_plan(catalog, chosen)
    found = curves.curves(chosen.table, chosen.asked, chosen.pick)
    if json:
        print(msgspec.json.encode({"plan": plan, "curves": found}).decode())
    else:
        console = Console(highlight=False)
        console.print(Text(_what_if(profile, link), "bold yellow"))
        if not is_measured(profile):
            console.print(Text("Nobody measured this board: all times are predictions.", "yellow"))
        console.print()
        text = plan_in_words(plan, console.width, "edge-server explain", layers=layers)
        console.print(text, crop=False)  # names stay whole
        if verbose:
            console.print()
            for line in (
                bound(chosen.bundle, demand.max_drop_points, chosen.pick.noise),
                *fits(chosen.bundle, plan.cut.index),
            ):
                console.print(line, markup=False)
    if plot:
        files.write(plot, curves.draw(found, form))
        print(f"picture of the trade-offs: {plot}", file=sys.stderr if json else sys.stdout)


def _what_if(profile: DeviceProfile, link: LinkEstimate) -> str:
    board = profile.machine.board or profile.machine.cpu
    return f"{board}, {link.uplink_mbps:g} Mbit/s up, {link.downlink_mbps:g} Mbit/s down, {link.rtt_ms:g} ms round trip"
