"""The checks of `edge-agent doctor`: what this machine, this installation and the way to the server are like. Nothing is compiled or changed."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from device_profiles import machine, power
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import peers
from kernels import isa, jit, warm
from splitedge import errors, limits, platform_check
from splitedge.head import text

Verdict = Literal["ok", "warn", "fail"]

# Drivers that choose the clock themselves: their "powersave" is the usual setting and no lowest clock.
_OWN_CLOCK = ("intel_pstate", "amd-pstate-epp")


@dataclass(frozen=True)
class Check:
    """One line of the answer. ``advice`` is a sentence of what to do, empty where the verdict is ok."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


async def examine(path: Path | None, options: Mapping[str, Any], root: Path = machine.ROOT) -> list[Check]:
    """Every check, in the order in which a reader wants them. ``path`` and ``options`` as in `config.load`; ``root``: of the file tree.

    Takes a second or two, at most `limits.DOCTOR_TIMEOUT` more where the server is silent.
    """
    kept = kernel_cache()
    fits = memory(root, compiled=kept.verdict == "ok")
    checks = [system(), instructions(), cores(root), kept, fits, clock(root), heat(root), sensor(root)]
    settings, check = configuration(path, options)
    return [*checks, check, *([] if settings is None else [await server(settings)])]


def system() -> Check:
    """What splitedge cannot run without."""
    found = f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}"
    try:
        platform_check.check()
    except errors.PlatformError as error:
        return Check("platform", "fail", found, error.message)
    return Check("platform", "ok", f"{found}, 64 bit")


def instructions() -> Check:
    """The instruction set of the kernels."""
    asked = os.environ.get("SPLITEDGE_ISA")
    best = isa.best(isa.host_features())
    if asked and asked != best:
        return Check(
            "instructions", "warn", isa.explain(), f"SPLITEDGE_ISA={asked} is set and {best} is the fastest: unset it"
        )
    return Check("instructions", "ok", isa.explain())


def cores(root: Path = machine.ROOT) -> Check:
    """What heads may run on."""
    found, _ = machine.machine(isa.ISA, root)
    threads = machine.usable_threads(root)
    text = f"{found.physical_cores} cores, {found.logical_cores} threads; heads run on at most {threads}"
    if found.cpu_quota is None:
        return Check("cores", "ok", text)
    text += f" (quota {found.cpu_quota:g} cores)"
    if found.cpu_quota < 1:
        return Check(
            "cores", "warn", text, "the quota halts every frame for a while: give it a core or more (CPUQuota=)"
        )
    return Check("cores", "ok", text)


def kernel_cache() -> Check:
    """Where compiled kernels are kept, and whether those of this version are there."""
    if jit.CACHE_PROBLEM:
        return Check("kernel cache", "warn", f"{jit.CACHE_DIR} cannot be used", jit.advice())
    steps, missing = len(warm.steps()), len(warm.missing())
    if missing:
        found = f"{jit.CACHE_DIR}: cold, {steps - missing} of {steps} compiled"
        return Check(
            "kernel cache", "warn", found, "run `edge-agent warm` once: until then starts compile and are slow"
        )
    return Check("kernel cache", "ok", f"{jit.CACHE_DIR}: warm, all {steps} compiled")


def memory(root: Path = machine.ROOT, *, compiled: bool = True) -> Check:
    """What is free for heads, and for compiling where that is still to be done."""
    found, _ = machine.machine(isa.ISA, root)
    total, free = found.memory_total_bytes, found.memory_available_bytes
    text = f"{free // limits.MiB:,} MiB of {total // limits.MiB:,} MiB available"
    if not total:
        return Check("memory", "ok", "not shown by this system")
    if free < (limits.LOW_MEMORY if compiled else limits.COMPILE_MEMORY):
        use = "large heads" if compiled else "compiling the kernels"
        return Check("memory", "warn", text, f"stop other programs, add swap or raise the limit: {use} may need more")
    return Check("memory", "ok", text)


def clock(root: Path = machine.ROOT) -> Check:
    """The clock, and what decides over it."""
    now, most = machine.clock(root)
    governors = machine.governors(root)
    parts = [f"{now:,.0f} MHz" if now else "", f"at most {most:,.0f} MHz" if most else ""]
    parts += [f"governor {', '.join(governors)}" if governors else ""]
    text = ", ".join(part for part in parts if part) or "not shown by this system"
    if "powersave" in governors and governors["powersave"] not in _OWN_CLOCK:
        folder = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        return Check("clock", "warn", text, f"powersave keeps the lowest clock: echo schedutil | sudo tee {folder}")
    return Check("clock", "ok", text)


def heat(root: Path = machine.ROOT) -> Check:
    """Temperature, and whether the system slows the processor down."""
    degrees, state = machine.temperature(root), machine.throttling(root)
    parts = [f"{degrees:.1f} °C"] if degrees is not None else []
    if state is None:
        return Check("heat", "ok", ", ".join([*parts, "throttling is not shown by this system"]))
    text = ", ".join([*parts, "; ".join(state.reasons) or "no throttling"]) + f" ({state.source})"
    if state.now:
        return Check(
            "heat", "warn", text, "the processor is slowed down: cool it better or use a stronger power supply"
        )
    if state.since_boot:
        return Check("heat", "warn", text, "it was slowed down before: cool it better or use a stronger power supply")
    return Check("heat", "ok", text)


def sensor(root: Path = machine.ROOT) -> Check:
    """What measures power."""
    meter = power.find(root)
    found = meter.name if meter else f"{power.why_none(root)}; `edge-agent profile --watts` takes your figure"
    return Check("power", "ok", found)


def configuration(path: Path | None, options: Mapping[str, Any]) -> tuple[Settings | None, Check]:
    """The settings in force, or None where they are not valid."""
    place = path or config.file()
    found = str(place) if place else "no file; variables, options and defaults"
    try:
        return config.load(path, options), Check("configuration", "ok", found)
    except errors.ConfigError as error:
        return None, Check("configuration", "fail", found, error.message)


async def server(settings: Settings) -> Check:
    """Whether the server answers, takes the token and has the model. One that was not configured need not be there."""
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings) as client:
            models = {model.name: model for model in await client.models()}
    except TimeoutError:
        advice = (
            f"it did not answer within {limits.DOCTOR_TIMEOUT:g} s: check the network and that edge-server runs there"
        )
        return _server(settings, advice)
    except errors.SplitEdgeError as error:
        return _server(settings, error.message)
    chosen = models.get(settings.model)
    if settings.model and chosen is None:
        advice = f"it has no model {settings.model!r}: `edge-agent models` lists those it has"
        return Check("server", "fail", settings.server, advice)
    found = f"{settings.server} answers; models: {', '.join(models) or 'none yet'}"
    if chosen is not None and chosen.tokenizer is not None and not text.installed():
        return Check(
            "server", "warn", found, f"{text.missing().message}; until then {chosen.name} takes token ids only"
        )
    return Check("server", "ok", found)


def _server(settings: Settings, advice: str) -> Check:
    if settings.server == Settings().server:
        return Check("server", "ok", f"none configured, and none at {settings.server}")
    return Check("server", "fail", settings.server, advice)
