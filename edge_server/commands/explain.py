"""`edge-server explain`: the plan for a board that is not connected, and the trade-offs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.text import Text

import device_profiles
from calibration.accuracy import trials
from calibration.accuracy.drop_model import TAIL, AccuracyModel
from calibration.bundle.bundle import Bundle
from device_profiles import known
from device_profiles.band import times
from device_profiles.render import band_words
from device_profiles.schema import DeviceProfile, Pace, is_measured
from edge_server.planning import curves
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import choose_plan, request_of, store_plan
from edge_server.store.store import Store
from splitedge import errors, files, terminal
from splitedge.protocol.messages import Demand, LinkEstimate
from splitedge.report import explain as plan_as_text


def profile_of(file: Path | None, board: str | None, pace: Pace = "slow") -> DeviceProfile:
    """The profile in ``file`` or of the known ``board``, whose plans count on the end ``pace`` of its band.

    Raises `errors.UsageError` unless exactly one is given, and as reading it does.
    """
    if (file is None) == (board is None):
        raise errors.UsageError(
            "give one board: --profile FILE, from `edge-agent profile --out FILE`, "
            f"or --board with one of {', '.join(known.names())}",
            reason="one-device",
        )
    profile = device_profiles.load(file) if file else known.load(board or "")
    profile.pace = pace
    return profile


def profiles_of(file: Path | None, boards: Sequence[str], pace: Pace = "slow") -> dict[str, DeviceProfile]:
    """The profiles of the known ``boards`` by name, all without any, and of ``file`` by its board. Raises as
    `profile_of` does.
    """
    found = {name: profile_of(None, name, pace) for name in boards or ([] if file else known.names())}
    if file is not None:
        measured = profile_of(file, None, pace)
        found[measured.machine.board or measured.machine.cpu] = measured
    return found


def links_of(
    uplink: float | None, downlink: float | None, rtt: float | None, uplinks: Sequence[float], round_trip: float
) -> list[LinkEstimate]:
    """The link with these options; without an uplink, one for each of ``uplinks``. The downlink is the uplink, and the
    round trip ``round_trip``, if not given.
    """
    trip, rates = round_trip if rtt is None else rtt, uplinks if uplink is None else [uplink]
    return [LinkEstimate(trip, rate, rate if downlink is None else downlink) for rate in rates]


def bound(bundle: Bundle, points: float, noise: float) -> str:
    """The noise of a plan, the noise that the accuracy bound allows, and the noise that QPART's bound on the mean
    would allow.
    """
    model = bundle.accuracy
    allowed, mean = model.within(points), model.qpart(points)
    ratio = f", {mean / allowed:.3g} times as much" if allowed > 0 else ""
    share = ""
    if isinstance(model, AccuracyModel) and model.threshold > 0:
        share = f" ({mean / model.threshold:.2g} of the mean adversarial noise)"
    return (
        f"Noise bound: this plan has noise {noise:.3g}. At {allowed:.3g}, {100 * (1 - TAIL):.0f} % of measurements on "
        f"{model.promise_samples} samples lose at most {points:g} points. QPART bounds the mean of the measurements "
        f"instead and would allow {mean:.3g}{ratio}{share}."
    )


def fits(bundle: Bundle, cut: int) -> Iterator[str]:
    """How well two assumptions of planning fit the measurements: noises add up, and noise is p x 4^-bits."""
    if found := trials.additivity(bundle.manifest.trials):
        yield f"Sum of noises: {found}."
    layers = [layer.noise.error for layer in bundle.layers.values()]
    codecs = bundle.cut_noises[cut].fit()
    parts = [f"{min(layers):.2g} to {max(layers):.2g} bits for layers"] if layers else []
    parts += [f"{codecs[1]:.2g} bits for packed codecs at this cut"] if codecs else []
    if parts:
        yield (
            f"Noise by bits: measured noise differs from p x 4^-bits by {' and '.join(parts)} (root mean square). "
            "Plans use the measured noise."
        )


def explain(
    folder: Path,
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
    """Print the plan for ``profile``, then draw its trade-offs to ``plot``.

    ``layers``: list each layer; ``verbose``: print `bound` and `fits`.
    """
    form = files.picture_form(plot.name) if plot else "svg"
    if plot:
        files.require_writable(plot)
    request = request_of(model, profile, link, demand)
    with Store(folder) as store:
        catalog = Catalog(store)
        chosen = choose_plan(catalog, request)
        plan = store_plan(catalog, chosen)
    found = curves.curves(chosen.table, chosen.query, chosen.pick)
    if json:
        band = times(plan.prediction.device_ms, profile)
        extra = {"device_ms": band._asdict(), "pace": profile.pace} if band else {}
        print(msgspec.json.encode({"plan": plan, "curves": found} | extra).decode())
    else:
        width = terminal.width()
        terminal.show(*_what_if(profile, link, plan.prediction.device_ms, width), "")
        terminal.show(plan_as_text(plan, width, "edge-server explain", layers=layers))
        if verbose:
            noise = bound(chosen.bundle, demand.max_drop_points, chosen.pick.noise)
            terminal.show("", noise, *fits(chosen.bundle, plan.cut.index))
    if plot:
        files.write(plot, curves.draw(found, form))
        print(f"picture of the trade-offs: {plot}", file=sys.stderr if json else sys.stdout)


def _what_if(profile: DeviceProfile, link: LinkEstimate, device_ms: float, width: int) -> Iterator[Text]:
    """The board and the link, that a known board was not measured, and the band of its time."""
    board = profile.machine.board or profile.machine.cpu
    speed = f"{link.uplink_mbps:g} Mbit/s up, {link.downlink_mbps:g} Mbit/s down, {link.rtt_ms:g} ms round trip"
    yield Text("\n".join(terminal.wrap(f"{board}, {speed}", width)), "bold yellow")
    if not is_measured(profile):
        yield Text("This board was not measured: all times are predictions.", "yellow")
        for line in band_words(device_ms, profile):
            yield Text("\n".join(terminal.wrap(line, width)), "yellow")
