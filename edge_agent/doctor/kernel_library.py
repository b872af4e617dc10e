"""The check of the kernels. A child process imports and runs them: if it crashes, the doctor reports the signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

import msgspec

from device_profiles import tools
from edge_agent.doctor.check import Check, fail, ok, warn
from kernels import isa
from splitedge import limits

STAGES: Final = {
    "start": "starting Python",
    "numpy": "importing numpy",
    "kernels": "importing the kernels",
    "run": "checking the answers of the kernels",
}
_ILLEGAL: Final = {
    "numpy": "numpy uses instructions that this processor lacks; set OPENBLAS_CORETYPE=ARMV8 (on Arm), or install "
    "another version of numpy",
    "kernels": "numba or the kernels use instructions that this processor lacks; set SPLITEDGE_ISA=portable and report "
    "this",
    "run": "the kernels use instructions that this processor lacks; set SPLITEDGE_ISA=portable and report this",
}


class Facts(msgspec.Struct):
    """What the child process found out about the kernels."""

    library: str  # the library in the package, or an empty string
    reason: str  # why there is none, if that needs saying
    folder: str  # of compiled kernels
    advice: str  # on a folder that cannot hold them, or an empty string
    steps: int
    missing: int  # kernels that are not compiled yet
    ran: bool  # the answers are right; without compiled kernels that would take minutes


@dataclass(frozen=True)
class Probe:
    """How the child process ended: with ``facts``, or during ``stage`` with a ``problem``."""

    facts: Facts | None
    stage: str = ""
    problem: str = ""
    signal: signal.Signals | None = None


def probe() -> Probe:
    """Import and run the kernels in a child process. Takes a second or two, at most `limits.PROBE_TIMEOUT`."""
    try:
        done = tools.run([sys.executable, "-P", "-m", "edge_agent.doctor.probe"], limits.PROBE_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        return Probe(None, _stage(_decoded(error.stdout)), f"no end within {limits.PROBE_TIMEOUT:g} s")
    except OSError as error:
        return Probe(None, "start", (error.strerror or str(error)).lower())
    return _ended(done)


def kernels(found: Probe) -> Check:
    """The library of kernels, or the folder of compiled kernels and whether it contains those of this version."""
    if found.facts is None:
        where = STAGES[found.stage]
        return fail("kernels", f"{found.problem} while {where}", _advice(found))
    facts = found.facts
    ran = "; answers are right" if facts.ran else ""
    if facts.library:
        return ok("kernels", f"in the package, for {isa.ISA}: {facts.library}{ran}")
    if facts.advice:
        return warn("kernels", f"{facts.folder} is not usable", facts.advice)
    why = f"{facts.reason}; " if facts.reason else ""
    if facts.missing:
        text = f"{why}{facts.folder}: {facts.steps - facts.missing} of {facts.steps} kernels compiled"
        return warn("kernels", text, "run `edge-agent warm` once; until then, each start compiles kernels")
    return ok("kernels", f"{why}{facts.folder}: all {facts.steps} kernels compiled{ran}")


def _ended(done: subprocess.CompletedProcess[str]) -> Probe:
    if done.returncode < 0:
        died = signal.Signals(-done.returncode)
        why = (signal.strsignal(died) or "").lower()
        return Probe(None, _stage(done.stdout), f"{died.name} ({why})", died)
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith("{"):
        return Probe(msgspec.json.decode(last, type=Facts))
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Probe(None, _stage(done.stdout), said[:200])


def _stage(output: str) -> str:
    """The last stage that began."""
    return next((line for line in reversed(output.splitlines()) if line in STAGES), "start")


def _advice(found: Probe) -> str:
    if found.signal == signal.SIGILL and found.stage in _ILLEGAL:
        return _ILLEGAL[found.stage]
    if found.signal == signal.SIGKILL:
        return "the system ended it, usually for lack of memory; stop other programs or add swap"
    if found.signal is None and "No module" in found.problem:
        return "a package is missing; install splitedge again in a new virtual environment"
    return "install splitedge again in a new virtual environment; a file on the card may be damaged"


def _decoded(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
