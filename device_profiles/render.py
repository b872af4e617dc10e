"""A profile as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from device_profiles.band import times
from device_profiles.schema import (
    TIGHT,
    BackendTime,
    Condition,
    DeviceProfile,
    Kernel,
    Load,
    Machine,
    Origin,
    Overhead,
    Power,
    Throttling,
    Warmup,
    is_measured,
)
from splitedge import terminal
from splitedge.terminal import Cell, Column, definitions, plain, wrap
from splitedge.terminal import table as fitted

_MIB = 1 << 20
_WARNING = "bold yellow"
NATIVE = "native"  # the backend of our kernels

Row = tuple[str, Cell]


def table(profile: DeviceProfile, width: int) -> RenderableType:
    """All of ``profile`` in ``width`` columns: machine, condition, kernels, gaps, and the origin of each value that
    was not measured.
    """
    measured = is_measured(profile)
    parts: list[RenderableType] = [_facts(profile, width), Text(), kernel_table(profile, width)]
    if not measured:
        note = wrap("This board was not measured: all values are published or estimated.", width)
        parts.insert(0, Text("\n".join(note) + "\n", style=_WARNING))
    if profile.backends:
        parts += [Text(), backend_table(profile.backends, width)]
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
    date = profile.created + (", quick" if profile.quick else "")
    rows: list[Row] = [
        *_machine(profile.machine, profile.chosen),
        *_condition(profile.condition),
        *_memory(profile),
        ("peak", _by_threads([(one.threads, one.gops) for one in profile.peaks], "GOPS") if profile.peaks else ""),
        ("load", _load(profile.load)),
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


def _memory(profile: DeviceProfile) -> list[Row]:
    """Copy and read by the number of threads; from an older file or a quick profile the copy alone."""
    found: list[Row] = []
    for kind, note in (("copy", " (read + written)"), ("read", "")):
        each = [(one.threads, one.gbps) for one in profile.bandwidths if one.kind == kind]
        if each:
            found.append((f"memory {kind}", _by_threads(each, "GB/s") + note))
    if not found and profile.copy_gbps:
        return [("memory copy", f"{profile.copy_gbps:.1f} GB/s read + written")]
    return found


def _by_threads(values: Sequence[tuple[int, float]], unit: str) -> str:
    """The values of numbers of threads: "7.2 GB/s on 1 thread, 12.1 on 4"."""
    (threads, value), *others = values
    return f"{value:,.1f} {unit} on {terminal.threads(threads)}" + "".join(
        f", {more:,.1f} on {n}" for n, more in others
    )


def _load(load: Load | None) -> str:
    if load is None:
        return ""
    change = 100 * (load.sustained_gops / load.burst_gops - 1)
    return (
        f"{load.burst_gops:,.1f} GOPS in the first second, {load.sustained_gops:,.1f} after {load.seconds:.0f} s "
        f"({change:+.1f} %), on {terminal.threads(load.threads)}"
    )


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


def kernel_table(profile: DeviceProfile, width: int) -> RenderableType:
    """The kernels: median, half the width of its interval, speed, share of the peak, bandwidth."""
    measured, peaks = is_measured(profile), {one.threads: one.gops for one in profile.peaks}
    columns = [
        Column("kernel and shape", alone=True),
        Column("threads", right=True),
        Column("time us", right=True),
        Column("± %", right=True, optional=True),
        Column("GOPS", right=True),
        Column("% of peak", right=True, optional=True),
        Column("GB/s", right=True, optional=True),
    ]
    keep = [i for i, one in enumerate(columns) if peaks or one.heading != "% of peak"]
    rows = []
    for row in profile.kernels:
        gops = f"{row.gops:,.1f}" if row.macs else "-"
        peak = f"{100 * row.gops / peaks[row.threads]:.0f}" if row.macs and row.threads in peaks else "-"
        cells: list[Cell] = [row.name, str(row.threads), f"{row.time_us:,.1f}", _half(row), gops, peak]
        cells.append(f"{row.gbps:,.1f}")
        rows.append([cells[i] for i in keep])
    title = f"Integer kernels ({'medians' if measured else 'estimated'})"
    parts: list[RenderableType] = [Text(title, style="bold"), fitted([columns[i] for i in keep], rows, width)]
    if note := loose_note(profile.kernels):
        parts.append(Text("\n".join(wrap(note, width)), style="yellow"))
    return Group(*parts)


def _half(row: Kernel) -> Cell:
    """Half the interval of the time, in per cent of it."""
    if row.interval is None:
        return "-"
    half = 50 * (row.interval.high_us - row.interval.low_us) / row.time_us
    return Text(f"{half:.1f}" if half < 10 else f"{half:.0f}", style="" if row.interval.tight else "yellow")


def loose_note(kernels: Sequence[Kernel]) -> str:
    """How many rows are not as exact as they should be; empty if all are."""
    known = [row.interval for row in kernels if row.interval is not None]
    loose = sum(not one.tight for one in known)
    if not loose:
        return ""
    return (
        f"{loose} of {len(known)} medians are not known within {100 * TIGHT:.0f} % (95 % interval): other programs or "
        "a changing clock disturb them."
    )


def backend_table(backends: Sequence[BackendTime], width: int) -> RenderableType:
    """The backends on the reference network, each with its speed relative to our kernels."""
    own = next((one.ms for one in backends if one.name == NATIVE), None)
    columns = [
        Column("backend"),
        Column("threads", right=True),
        Column("ms", right=True),
        Column("speed", right=True),
        Column("version", wrapped=True),
    ]
    rows = []
    for one in backends:
        ms = f"{one.ms:.3f}" if one.ms else "-"
        speed = f"{own / one.ms:.2f} x" if own and one.ms else "-"
        rows.append([plain(one.name), str(one.threads), ms, speed, plain(one.failure or one.version)])
    title = Text("Backends on the reference network (speed: relative to native)", style="bold")
    return Group(title, fitted(columns, rows, width))


def _origins(origins: Mapping[str, Origin], width: int) -> Text:
    """Each value with its mark, and its source below it, where a URL has space."""
    lines: list[Text] = []
    for path, origin in origins.items():
        lines.append(Text.assemble((path, "yellow"), f" ({origin.mark})"))
        lines += [Text(line) for line in wrap(f"  {origin.source}", width, "  ")]
    return Text("\n").join(lines)
