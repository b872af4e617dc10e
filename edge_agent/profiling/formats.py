"""A profile as Markdown, CSV and JSON, for forums and scripts."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from device_profiles.schema import DeviceProfile, Kernel
from edge_agent.bench.render import csv_table, markdown_table
from splitedge.terminal import plain

#: The columns of Markdown, which is for forums.
_SHOWN: Final = ("kernel", "threads", "time us", "± %", "GOPS", "% of peak", "GB/s")


def anonymous(profile: DeviceProfile) -> DeviceProfile:
    """``profile`` without what may tell more than the board and the figures: times of day, paths, texts of errors."""
    backends = [msgspec.structs.replace(one, failure="failed" if one.failure else "") for one in profile.backends]
    return msgspec.structs.replace(
        profile,
        created=profile.created[:10],
        backends=backends,
        unmeasured=dict.fromkeys(profile.unmeasured, "not measured"),
    )


def markdown(profile: DeviceProfile) -> str:
    """The board, its roofs, and tables of kernels and backends."""
    parts = [headline(profile), *_roofs(profile)]
    rows = [[_flat(row, profile)[name] for name in _SHOWN] for row in profile.kernels]
    parts.append(markdown_table(_SHOWN, rows))
    if profile.backends:
        cells = [[one.name, one.threads, one.ms, one.failure or one.version] for one in profile.backends]
        parts.append(markdown_table(("backend, reference network", "threads", "ms", "version"), cells))
    return "\n\n".join(parts)


def headline(profile: DeviceProfile) -> str:
    """The board and the program in one line."""
    machine, condition = profile.machine, profile.condition
    board = f"{machine.board}, " if machine.board else ""
    clock = f" at {condition.mhz_now:,.0f} MHz" if condition.mhz_now else ""
    heat = f", {condition.temperature_c:.0f} °C" if condition.temperature_c is not None else ""
    state = condition.throttling
    slow = f", throttled: {', '.join(state.reasons)}" if state is not None and state.now else ""
    version = f"; splitedge {profile.splitedge}" if profile.splitedge else ""
    return plain(f"{board}{machine.cpu}{clock}{heat}{slow}, {machine.isa}{version}")


def _roofs(profile: DeviceProfile) -> list[str]:
    lines = [f"- {one.kind} on {one.threads} threads: {one.gbps:.1f} GB/s" for one in profile.bandwidths]
    lines += [f"- peak on {one.threads} threads: {one.gops:.1f} GOPS" for one in profile.peaks]
    if profile.load is not None:
        load = profile.load
        lines.append(
            f"- load on {load.threads} threads: {load.burst_gops:.1f} GOPS in the first second, "
            f"{load.sustained_gops:.1f} after {load.seconds:.0f} s"
        )
    if profile.power.load_watts is not None:
        idle = f", {profile.power.idle_watts:.2f} W idle" if profile.power.idle_watts is not None else ""
        lines.append(f"- power: {profile.power.load_watts:.2f} W under load{idle} ({profile.power.source})")
    return ["\n".join(plain(line) for line in lines).replace(" 1 threads", " 1 thread")] if lines else []


def as_csv(profile: DeviceProfile) -> str:
    """All kernels with a heading."""
    rows = [_flat(row, profile) for row in profile.kernels]
    return csv_table(list(rows[0]), [list(row.values()) for row in rows])


def _flat(row: Kernel, profile: DeviceProfile) -> dict[str, Any]:
    peak = next((one.gops for one in profile.peaks if one.threads == row.threads), None)
    known = row.interval
    half = None if known is None else round(50 * (known.high_us - known.low_us) / row.time_us, 1)
    gops = round(row.gops, 1) if row.macs else None
    return {
        "kernel": row.name,
        "kind": row.kind,
        **msgspec.structs.asdict(row.shape),
        "threads": row.threads,
        "products": row.macs,
        "bytes": row.bytes,
        "time us": round(row.time_us, 2),
        "low us": None if known is None else round(known.low_us, 2),
        "high us": None if known is None else round(known.high_us, 2),
        "± %": half,
        "tight": None if known is None else known.tight,
        "GOPS": gops,
        "% of peak": round(100 * row.gops / peak) if peak and row.macs else None,
        "GB/s": round(row.gbps, 1),
    }


def as_json(profile: DeviceProfile) -> str:
    """The profile."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1).decode()


FORMATS: Final = {"md": markdown, "csv": as_csv, "json": as_json}
