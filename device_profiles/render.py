"""A profile as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_profiles.schema import (
    Condition,
    DeviceProfile,
    Kernel,
    Origin,
    Overhead,
    Power,
    Throttling,
    Warmup,
    is_measured,
)

_MIB = 1 << 20


def table(profile: DeviceProfile) -> RenderableType:
    """Everything in ``profile``: the machine, its state, the kernels, what could not be measured, and where what was not measured comes from."""
    measured = is_measured(profile)
    parts: list[RenderableType] = [_facts(profile), Text(), _kernels(profile.kernels, measured=measured)]
    if not measured:
        parts.insert(
            0, Text("Nobody measured this board: what follows is published or estimated.\n", style="bold yellow")
        )
    if profile.unmeasured and measured:
        parts += [Text(), _unmeasured(profile.unmeasured)]
    if others := {path: origin for path, origin in profile.origins.items() if origin.mark != "measured"}:
        parts += [Text(), _origins(others)]
    return Group(*parts)


def _facts(profile: DeviceProfile) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = _machine(profile) + _condition(profile.condition)
    rows += [("memory copy", f"{profile.copy_gbps:.1f} GB/s read + written" if profile.copy_gbps else "")]
    rows += _warmup(profile.warmup)
    rows += [("overhead", _overhead(profile.overhead)), ("power", _power(profile.power))]
    rows += [
        ("measured" if is_measured(profile) else "written", profile.created + (", quick" if profile.quick else ""))
    ]
    for name, value in rows:
        if value:
            grid.add_row(name, Text(value) if isinstance(value, str) else value)
    return grid


def _machine(profile: DeviceProfile) -> list[tuple[str, str | Text]]:
    machine = profile.machine
    cores = f"{machine.physical_cores} cores, {machine.logical_cores} threads"
    if machine.usable_cores < machine.logical_cores:
        cores += f", {machine.usable_cores} for this process"
    if machine.cpu_quota is not None:
        cores += f", quota {machine.cpu_quota:g} cores"
    sets = Text(", ".join(machine.instruction_sets) or "none that matters")
    total, free = machine.memory_total_bytes / _MIB, machine.memory_available_bytes / _MIB
    return [
        ("board", machine.board or ""),
        ("processor", f"{machine.cpu} ({machine.architecture})"),
        ("instructions", sets),
        ("kernels use", Text(profile.chosen.get("instruction set") or machine.isa, style="bold")),
        ("cores", cores),
        ("threads", profile.chosen.get("threads", "")),
        ("memory", f"{total:,.0f} MiB, {free:,.0f} MiB available"),
        ("system", machine.os),
    ]


def _condition(condition: Condition) -> list[tuple[str, str | Text]]:
    clock = f"{condition.mhz_now:,.0f} MHz" if condition.mhz_now else ""
    if condition.mhz_max:
        clock += f"{' of ' if clock else 'at most '}{condition.mhz_max:,.0f} MHz"
    heat = f"{condition.temperature_c:.1f} °C" if condition.temperature_c is not None else ""
    return [("clock", clock), ("temperature", heat), ("throttling", _throttling(condition.throttling))]


def _throttling(state: Throttling | None) -> str | Text:
    if state is None:
        return ""
    style = "bold red" if state.now else "yellow" if state.since_boot else "green"
    reasons = "; ".join(state.reasons) or "none"
    return Text(f"{'NOW: ' if state.now else ''}{reasons} ({state.source})", style=style)


def _warmup(warmup: Warmup | None) -> list[tuple[str, str | Text]]:
    if warmup is None:
        return []
    parts = [
        f"{seconds:.1f} s {what}"
        for seconds, what in ((warmup.warm_s, "from the kernel cache"), (warmup.cold_s, "compiling everything"))
        if seconds is not None
    ]
    return [("start-up", ", ".join(parts))]


def _overhead(overhead: Overhead) -> str:
    stages = "".join(f", {ns:.2f} ns more for {stage}" for stage, ns in overhead.stage_ns.items())
    return f"{overhead.call_us:.1f} us a frame, {overhead.op_us:.2f} us an operator, {overhead.value_ns:.2f} ns a value that is sent{stages}"


def _power(power: Power) -> str:
    if power.source == "unknown" or power.load_watts is None:
        return ""
    idle = f", {power.idle_watts:.2f} W idle" if power.idle_watts is not None else ""
    return f"{power.load_watts:.2f} W under load{idle} ({power.sensor or power.source})"


def _kernels(kernels: list[Kernel], *, measured: bool) -> Table:
    title = f"integer kernels ({'medians' if measured else 'estimated'})"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    shown.add_column("kernel and shape", no_wrap=True)
    for name in ("threads", "time us", "± sd", "GOPS", "GB/s"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in kernels:
        gops = f"{row.gops:,.1f}" if row.macs else "-"
        spread = f"{row.sd_us:,.1f}" if measured else "-"
        cells = (Text(row.name), str(row.threads), f"{row.time_us:,.1f}", spread, gops, f"{row.gbps:,.1f}")
        shown.add_row(*cells)
    return shown


def _unmeasured(gaps: dict[str, str]) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="could not measure", title_justify="left", title_style="bold yellow"
    )
    shown.add_column("what", style="yellow", no_wrap=True)
    shown.add_column("why", overflow="fold")
    for what, why in gaps.items():
        shown.add_row(Text(what), Text(why))
    return shown


def _origins(origins: dict[str, Origin]) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="not measured", title_justify="left", title_style="bold yellow"
    )
    shown.add_column("what", style="yellow", no_wrap=True)
    shown.add_column("mark", no_wrap=True)
    shown.add_column("source", overflow="fold")
    for path, origin in origins.items():
        shown.add_row(Text(path), origin.mark, Text(origin.source))
    return shown
