"""A profile as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from device_profiles.band import times
from device_profiles.schema import (
    Condition,
    DeviceProfile,
    Kernel,
    Machine,
    Origin,
    Overhead,
    Power,
    Throttling,
    Warmup,
    is_measured,
)
from splitedge.terminal import Cell, Column, definitions, wrap
from splitedge.terminal import table as fitted

_MIB = 1 << 20
_WARNING = "bold yellow"

Row = tuple[str, Cell]


def table(profile: DeviceProfile, width: int) -> RenderableType:
    """All of ``profile`` in ``width`` columns: machine, condition, kernels, gaps, and the origin of each value that
    was not measured.
    """
    measured = is_measured(profile)
    parts: list[RenderableType] = [_facts(profile, width), Text(), _kernels(profile.kernels, width, measured=measured)]
    if not measured:
        note = wrap("This board was not measured: all values are published or estimated.", width)
        parts.insert(0, Text("\n".join(note) + "\n", style=_WARNING))
    if profile.unmeasured and measured:
        gaps = [(Text(what, style="yellow"), why) for what, why in profile.unmeasured.items()]
        parts += [Text("\nNot measurable on this machine", style=_WARNING), definitions(gaps, width)]
    if others := {path: origin for path, origin in profile.origins.items() if origin.mark != "measured"}:
        parts += [Text("\nValues that were not measured", style=_WARNING), _origins(others, width)]
    return Group(*parts)


def band_words(ms: float, profile: DeviceProfile) -> list[str]:
    """A sentence on the band of the board's time ``ms`` in a plan; nothing without a band or a head."""
    found = times(ms, profile)
    if found is None or ms <= 0 or is_measured(profile):
        return []
    return [
        f"Time on the board: {found.middle:.3g} ms, 80 % from {found.fast:.3g} to {found.slow:.3g} ms. "
        f"The plan counts on the {profile.pace} end (--pace)."
    ]


def _facts(profile: DeviceProfile, width: int) -> Text:
    copy = f"{profile.copy_gbps:.1f} GB/s read + written" if profile.copy_gbps else ""
    date = profile.created + (", quick" if profile.quick else "")
    rows: list[Row] = [
        *_machine(profile.machine, profile.chosen),
        *_condition(profile.condition),
        ("memory copy", copy),
        ("start-up", _warmup(profile.warmup)),
        ("overhead", _overhead(profile.overhead)),
        ("band", _band(profile)),
        ("power", _power(profile.power)),
        ("measured" if is_measured(profile) else "written", date),
    ]
    return definitions([(Text(name, style="bold cyan"), value) for name, value in rows if value], width)


def _machine(machine: Machine, chosen: Mapping[str, str]) -> list[Row]:
    cores = f"{machine.physical_cores} cores, {machine.logical_cores} threads"
    if machine.usable_cores < machine.logical_cores:
        cores += f", {machine.usable_cores} for this process"
    if machine.cpu_quota is not None:
        cores += f", quota {machine.cpu_quota:g} cores"
    total, free = machine.memory_total_bytes / _MIB, machine.memory_available_bytes / _MIB
    return [
        ("board", machine.board or ""),
        ("processor", f"{machine.cpu} ({machine.architecture})"),
        ("instructions", ", ".join(machine.instruction_sets) or "none that the kernels use"),
        ("kernels use", Text(chosen.get("instruction set") or machine.isa, style="bold")),
        ("cores", cores),
        ("threads", chosen.get("threads", "")),
        ("memory", f"{total:,.0f} MiB, {free:,.0f} MiB available"),
        ("system", machine.os),
    ]


def _condition(condition: Condition) -> list[Row]:
    clock = f"{condition.mhz_now:,.0f} MHz" if condition.mhz_now else ""
    if condition.mhz_max:
        clock += f"{' of ' if clock else 'at most '}{condition.mhz_max:,.0f} MHz"
    heat = f"{condition.temperature_c:.1f} °C" if condition.temperature_c is not None else ""
    return [("clock", clock), ("temperature", heat), ("throttling", _throttling(condition.throttling))]


def _throttling(state: Throttling | None) -> Cell:
    if state is None:
        return ""
    style = "bold red" if state.now else "yellow" if state.since_boot else "green"
    reasons = "; ".join(state.reasons) or "none"
    return Text(f"{'NOW: ' if state.now else ''}{reasons} ({state.source})", style=style)


def _warmup(warmup: Warmup | None) -> str:
    if warmup is None:
        return ""
    times = ((warmup.warm_s, "from the kernel cache"), (warmup.cold_s, "compiling everything"))
    return ", ".join(f"{seconds:.1f} s {what}" for seconds, what in times if seconds is not None)


def _overhead(overhead: Overhead) -> str:
    stages = "".join(f", {ns:.2f} ns more for {stage}" for stage, ns in overhead.stage_ns.items())
    return (
        f"{overhead.call_us:.1f} us per frame, {overhead.op_us:.2f} us per operator, "
        f"{overhead.value_ns:.2f} ns per value sent{stages}"
    )


def _band(profile: DeviceProfile) -> str:
    if profile.band is None:
        return ""
    factors = (
        f"80 % of heads take {profile.band.fast:.2f} to {profile.band.slow:.2f} times as long as this profile says"
    )
    return factors if is_measured(profile) else f"{factors}; plans count on the {profile.pace} end"


def _power(power: Power) -> str:
    if power.source == "unknown" or power.load_watts is None:
        return ""
    idle = f", {power.idle_watts:.2f} W idle" if power.idle_watts is not None else ""
    return f"{power.load_watts:.2f} W under load{idle} ({power.sensor or power.source})"


def _kernels(kernels: Sequence[Kernel], width: int, *, measured: bool) -> RenderableType:
    title = f"Integer kernels ({'medians' if measured else 'estimated'})"
    columns = [
        Column("kernel and shape", alone=True),
        Column("threads", right=True),
        Column("time us", right=True),
        Column("± sd", right=True, optional=True),
        Column("GOPS", right=True),
        Column("GB/s", right=True, optional=True),
    ]
    rows = []
    for row in kernels:
        gops = f"{row.gops:,.1f}" if row.macs else "-"
        spread = f"{row.sd_us:,.1f}" if measured else "-"
        rows.append([row.name, str(row.threads), f"{row.time_us:,.1f}", spread, gops, f"{row.gbps:,.1f}"])
    return Group(Text(title, style="bold"), fitted(columns, rows, width))


def _origins(origins: Mapping[str, Origin], width: int) -> Text:
    """Each value with its mark, and its source below it, where a URL has space."""
    lines: list[Text] = []
    for path, origin in origins.items():
        lines.append(Text.assemble((path, "yellow"), f" ({origin.mark})"))
        lines += [Text(line) for line in wrap(f"  {origin.source}", width, "  ")]
    return Text("\n").join(lines)
