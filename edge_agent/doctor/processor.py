"""Checks of the processor: cores, clock, temperature, power, and a GPU that heads do not use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from device_profiles import machine, power, tools
from edge_agent.doctor.check import Check, ok, warn
from kernels import isa
from splitedge import limits

# These drivers choose the clock themselves: "powersave" is their default and does not fix the lowest clock.
_OWN_CLOCK: Final = ("intel_pstate", "amd-pstate-epp")
_GOVERNORS: Final = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
#: What the drivers of NVIDIA's GPUs make: on a Jetson, and on a PC.
_GPUS: Final = ("dev/nvhost-gpu", "dev/nvgpu", "sys/devices/gpu.0", "sys/devices/platform/gpu.0", "dev/nvidia0")


def instructions() -> Check:
    """The instruction set of the kernels."""
    asked = os.environ.get("SPLITEDGE_ISA")
    best = isa.best(isa.host_features())
    if asked and asked != best:
        return warn("instructions", isa.explain(), f"unset SPLITEDGE_ISA={asked}: {best} is faster")
    return ok("instructions", isa.explain())


def cores(root: Path = machine.ROOT) -> Check:
    """Cores and threads for heads."""
    found, _ = machine.machine(isa.ISA, root)
    threads = machine.usable_threads(root)
    text = f"{found.physical_cores} cores, {found.logical_cores} threads; heads use at most {threads}"
    if found.cpu_quota is not None:
        text += f" (quota {found.cpu_quota:g} cores)"
        if found.cpu_quota < 1:
            return warn("cores", text, "raise the quota to 1 core or more (CPUQuota=): it interrupts every frame")
    return ok("cores", text)


def clock(root: Path = machine.ROOT) -> Check:
    """The clock of the processor and its governor."""
    now, most = machine.clock(root)
    governors = machine.governors(root)
    parts = [f"{now:,.0f} MHz" if now else "", f"at most {most:,.0f} MHz" if most else ""]
    parts += [f"governor {', '.join(governors)}" if governors else ""]
    text = ", ".join(part for part in parts if part) or "unknown on this system"
    if "powersave" in governors and governors["powersave"] not in _OWN_CLOCK:
        return warn("clock", text, f"powersave keeps the lowest clock; run: echo schedutil | sudo tee {_GOVERNORS}")
    return ok("clock", text)


def heat(root: Path = machine.ROOT) -> Check:
    """Temperatures, and throttling of the processor, by heat or by a weak power supply."""
    degrees, state, zones = machine.temperature(root), machine.throttling(root), machine.zones(root)
    hottest = max(zones, key=zones.__getitem__, default="")
    parts = [f"{degrees:.1f} °C"] if degrees is not None else []
    if len(zones) > 1:
        parts.append(f"hottest of {len(zones)} zones: {hottest} {zones[hottest]:.1f} °C")
    if state is None:
        parts.append("throttling is unknown on this system")
    else:
        parts.append(f"{'; '.join(state.reasons) or 'no throttling'} ({state.source})")
    text = ", ".join(parts)
    hot = max([*zones.values(), degrees or 0.0]) >= limits.HOT_C
    reasons = state.reasons if state is not None else []
    if state is not None and state.now:
        return warn("heat", text, f"{_remedy(reasons, hot)}: the processor is throttled")
    if state is not None and state.since_boot:
        return warn("heat", text, f"{_remedy(reasons, hot)}: the processor was throttled since the last start")
    if hot:
        return warn("heat", text, f"{_remedy([], hot)}: the processor will lower its clock")
    return ok("heat", text)


def _remedy(reasons: Sequence[str], hot: bool) -> str:
    """What to do. A weak supply also lowers the clock, so that alone is no sign of heat."""
    weak = any("under-voltage" in reason or "over-current" in reason for reason in reasons)
    warm = hot or any("temperature" in reason or "thermal" in reason for reason in reasons)
    supply = ["use a stronger power supply with a short cable"] if weak else []
    return ", and ".join([*supply, *(["improve the cooling"] if warm or not weak else [])])


def power_mode(root: Path = machine.ROOT) -> Check | None:
    """The power mode of a Jetson, which limits clocks and cores."""
    if not machine.is_jetson(root):
        return None
    mode, off = machine.power_mode(root), machine.offline_cores(root)
    text = mode or "unknown (nvpmodel gives no answer)"
    if off:
        advice = "`sudo nvpmodel -q --verbose` lists the modes; `sudo nvpmodel -m 0` is usually the fastest"
        return warn("power mode", f"{text}; {off} cores are switched off", advice)
    return ok("power mode", text)


def gpu(root: Path = machine.ROOT) -> Check | None:
    """A GPU, which heads do not use."""
    name = _gpu(root)
    if name is None:
        return None
    why = "heads run on the CPU, where integer kernels give the same bits on every board, and plans count on that"
    return ok("gpu", f"{name} is not used: {why}")


def _gpu(root: Path) -> str | None:
    if machine.is_jetson(root):
        return "the Jetson's GPU"
    listed = (tools.output(root, "nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").strip()
    if listed:
        return listed.splitlines()[0][:60]
    return "an NVIDIA GPU" if any((root / path).exists() for path in _GPUS) else None


def sensor(root: Path = machine.ROOT) -> Check:
    """The power sensor."""
    meter = power.find(root)
    found = meter.name if meter else f"{power.why_none(root)}; `edge-agent profile --watts` takes a figure instead"
    return ok("power", found)
