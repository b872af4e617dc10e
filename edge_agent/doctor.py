"""The checks of `edge-agent doctor`: machine, installation, configuration and server. They compile and change nothing.

Each check is a function that returns a `Check`: its finding and, for a problem, a suggested fix.
"""

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
from kernels import isa, native, warm
from splitedge import errors, limits, platform_check
from splitedge.head import text

Verdict = Literal["ok", "warn", "fail"]

# These drivers choose the clock themselves: "powersave" is their default and does not fix the lowest clock.
_OWN_CLOCK = ("intel_pstate", "amd-pstate-epp")
_GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


@dataclass(frozen=True)
class Check:
    """The result of one check. ``advice`` is the suggested fix, empty if the verdict is ok."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


async def examine(path: Path | None, options: Mapping[str, Any], root: Path = machine.ROOT) -> list[Check]:
    """Run every check. ``path`` and ``options`` as in `config.load`; ``root``: the root of the file system.

    Takes 1 to 2 s, and up to `limits.DOCTOR_TIMEOUT` more if the server does not answer.
    """
    cache = kernel_cache()
    checks = [
        system(),
        instructions(),
        cores(root),
        cache,
        memory(root, compiled=cache.verdict == "ok"),
        clock(root),
        heat(root),
        sensor(root),
    ]
    settings, check = configuration(path, options)
    return [*checks, check, *([] if settings is None else [await server(settings)])]


def system() -> Check:
    """The platform: operating system, processor and Python."""
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
        return _warn("instructions", isa.explain(), f"unset SPLITEDGE_ISA={asked}: {best} is faster")
    return Check("instructions", "ok", isa.explain())


def cores(root: Path = machine.ROOT) -> Check:
    """Cores and threads for heads."""
    found, _ = machine.machine(isa.ISA, root)
    threads = machine.usable_threads(root)
    text = f"{found.physical_cores} cores, {found.logical_cores} threads; heads use at most {threads}"
    if found.cpu_quota is None:
        return Check("cores", "ok", text)
    text += f" (quota {found.cpu_quota:g} cores)"
    if found.cpu_quota < 1:
        return _warn("cores", text, "raise the quota to 1 core or more (CPUQuota=): it interrupts every frame")
    return Check("cores", "ok", text)


def kernel_cache() -> Check:
    """The library of kernels, or the folder of compiled kernels and whether it contains those of this version."""
    if native.LIBRARY is not None:
        return Check("kernels", "ok", f"in the package, for {isa.ISA}: {native.LIBRARY.path.name}")
    if warm.problem():
        return _warn("kernels", f"{warm.folder()} is not usable", warm.advice())
    why = f"{native.REASON}; " if native.REASON else ""
    steps, missing = len(warm.steps()), len(warm.missing())
    if missing:
        found = f"{why}{warm.folder()}: {steps - missing} of {steps} kernels compiled"
        return _warn("kernels", found, "run `edge-agent warm` once; until then, each start compiles kernels")
    return Check("kernels", "ok", f"{why}{warm.folder()}: all {steps} kernels compiled")


def memory(root: Path = machine.ROOT, *, compiled: bool = True) -> Check:
    """Free memory for heads and, unless the kernels are ``compiled``, for compiling them."""
    found, _ = machine.machine(isa.ISA, root)
    total, free = found.memory_total_bytes, found.memory_available_bytes
    text = f"{free // limits.MiB:,} MiB of {total // limits.MiB:,} MiB available"
    if not total:
        return Check("memory", "ok", "unknown on this system")
    if free < (limits.LOW_MEMORY if compiled else limits.COMPILE_MEMORY):
        use = "large heads" if compiled else "compiling the kernels"
        return _warn("memory", text, f"stop other programs, add swap or raise the limit: {use} may need more")
    return Check("memory", "ok", text)


def clock(root: Path = machine.ROOT) -> Check:
    """The clock of the processor and its governor."""
    now, most = machine.clock(root)
    governors = machine.governors(root)
    parts = [f"{now:,.0f} MHz" if now else "", f"at most {most:,.0f} MHz" if most else ""]
    parts += [f"governor {', '.join(governors)}" if governors else ""]
    text = ", ".join(part for part in parts if part) or "unknown on this system"
    if "powersave" in governors and governors["powersave"] not in _OWN_CLOCK:
        return _warn("clock", text, f"powersave keeps the lowest clock; run: echo schedutil | sudo tee {_GOVERNORS}")
    return Check("clock", "ok", text)


def heat(root: Path = machine.ROOT) -> Check:
    """Temperature and throttling of the processor."""
    degrees, state = machine.temperature(root), machine.throttling(root)
    parts = [f"{degrees:.1f} °C"] if degrees is not None else []
    if state is None:
        return Check("heat", "ok", ", ".join([*parts, "throttling is unknown on this system"]))
    text = ", ".join([*parts, "; ".join(state.reasons) or "no throttling"]) + f" ({state.source})"
    fix = "improve the cooling or use a stronger power supply"
    if state.now:
        return _warn("heat", text, f"{fix}: the processor is throttled")
    if state.since_boot:
        return _warn("heat", text, f"{fix}: the processor was throttled since the last start")
    return Check("heat", "ok", text)


def sensor(root: Path = machine.ROOT) -> Check:
    """The power sensor."""
    meter = power.find(root)
    found = meter.name if meter else f"{power.why_none(root)}; `edge-agent profile --watts` takes a figure instead"
    return Check("power", "ok", found)


def configuration(path: Path | None, options: Mapping[str, Any]) -> tuple[Settings | None, Check]:
    """The settings in effect, or None if they are not valid."""
    place = path or config.file()
    found = str(place) if place else "no file; variables, options and defaults apply"
    try:
        return config.load(path, options), Check("configuration", "ok", found)
    except errors.ConfigError as error:
        return None, Check("configuration", "fail", found, error.message)


async def server(settings: Settings) -> Check:
    """Whether the server answers, accepts the token and has the model.

    At the default address, a missing server is no problem.
    """
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings) as client:
            models = {model.name: model for model in await client.models()}
    except TimeoutError:
        advice = f"no answer within {limits.DOCTOR_TIMEOUT:g} s; check the network and that edge-server runs there"
        return _no_server(settings, advice)
    except errors.SplitEdgeError as error:
        return _no_server(settings, error.message)
    chosen = models.get(settings.model)
    if settings.model and chosen is None:
        advice = f"the server has no model {settings.model!r}; `edge-agent models` lists its models"
        return Check("server", "fail", settings.server, advice)
    found = f"{settings.server} answers; models: {', '.join(models) or 'none'}"
    if chosen is not None and chosen.tokenizer is not None and not text.installed():
        return _warn("server", found, f"{text.missing().message}; until then, {chosen.name} accepts only token ids")
    return Check("server", "ok", found)


def _no_server(settings: Settings, advice: str) -> Check:
    if settings.server == Settings().server:
        return Check("server", "ok", f"none configured, and none at {settings.server}")
    return Check("server", "fail", settings.server, advice)


def _warn(name: str, found: str, advice: str) -> Check:
    return Check(name, "warn", found, advice)
