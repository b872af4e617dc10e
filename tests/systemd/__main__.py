"""Run the lab: `scripts/test-systemd` prepares its parts and calls this."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from tests.systemd import emulated
from tests.systemd.lab import Lab, SkippedError
from tests.systemd.machine import LabError, Machine, Network
from tests.systemd.server import Server
from tests.systemd.steps import STALL, STEPS, Step

WIDTH: Final = 80
#: The factor of every limit in seconds, without and with emulation.
PATIENCE: Final = (1.0, 5.0)
ROW: Final = "{:<30} {:>7}  {}"
#: The last lines, by the name of their figure.
LINES: Final = {
    "exposure": "exposure {:.1f}",
    "ready_after_restart_s": "ready after restart {:.1f} s",
    "rolled_back_s": "rolled back in {:.1f} s",
    "left_behind": "left behind: {:.0f}",
}


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="splitedge-systemd-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lab = _lab(stack, given, folder)
        steps = [step for step in STEPS if not (given.quick and step.long)]
        steps = [step for step in steps if step.vital or not given.only or any(one in step.name for one in given.only)]
        notes = emulated.notes(given.cpu) if given.cpu else []
        for note in notes:
            print("\n".join(textwrap.wrap(note, WIDTH)), flush=True)
        print(ROW.format("step", "seconds", "verdict"), flush=True)
        rows = list(_run(lab, steps))
    failed = [row for row in rows if row["verdict"] == "failed"]
    print()
    for name, line in LINES.items():
        if name in lab.figures:
            print(line.format(lab.figures[name]))
    if given.json:
        summary = {f"systemd.{name}": value for name, value in lab.figures.items()} | {"systemd.failed": len(failed)}
        report.write(given.json, "The service on a booted system", rows, summary, notes)
    sys.exit(1 if failed else 0)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(prog="scripts/test-systemd", description="see scripts/test-systemd --help")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--nspawn", type=Path, required=True)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--cpu", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", help="only vital steps and those with this in their names")
    return parser.parse_args()


def _lab(stack: ExitStack, given: Any, folder: Path) -> Lab:
    shared = folder / "shared"
    shutil.copytree(given.release, shared / "release", ignore=shutil.ignore_patterns("key.pem"))
    (shared / "stall").mkdir()
    (shared / "stall/sitecustomize.py").write_text(STALL.replace("SECONDS", "limits.HEAD_STUCK"))
    folder.chmod(0o755)
    network = stack.enter_context(Network(f"lab-{os.getpid()}-server", f"lab-{os.getpid()}-board"))
    server = Server(network, given.cache / "store", folder / "server")
    stack.callback(server.stop)
    server.prepare()
    environment = {"QEMU_CPU": given.cpu} if given.cpu else {}
    machine = stack.enter_context(Machine(given.base, folder / "machine", given.nspawn, network, shared, environment))
    if given.cpu:
        emulated.prepare(machine, server.token)
    return Lab(
        machine,
        network,
        server,
        shared,
        given.release / "key.pem",
        given.quick,
        bool(given.cpu),
        PATIENCE[bool(given.cpu)],
    )


def _run(lab: Lab, steps: list[Step]) -> Any:
    """A row for each step; prints it, and the reason of a failure."""
    stop = ""
    for step in steps:
        began, verdict, note = time.monotonic(), "ok", ""
        try:
            if stop:
                raise SkippedError(f"after `{stop}`")
            note = step.run(lab) or ""
        except SkippedError as reason:
            verdict, note = "skipped", str(reason)
        except Exception as error:  # any fault of a step is its verdict
            verdict, note = "failed", str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            stop = step.name if step.vital else ""
        row = {"step": step.name, "seconds": round(time.monotonic() - began, 1), "verdict": verdict, "note": note}
        shown = f"{verdict}: {note}" if note and verdict != "failed" else verdict
        print(ROW.format(step.name, f"{row['seconds']:.1f}", shown)[:WIDTH], flush=True)
        if verdict == "failed":
            print(f"  {note}", file=sys.stderr)
            _journal(lab)
        yield row


def _journal(lab: Lab) -> None:
    try:
        print("".join(f"  | {line}\n" for line in lab.last_lines().splitlines()), file=sys.stderr, end="")
    except Exception as error:  # the machine may be off
        print(f"  | no journal: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
