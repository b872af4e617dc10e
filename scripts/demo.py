"""The whole workflow on this machine: read the network, compile, calibrate, serve, and measure five ways to classify.

Every row of the table is measured on this machine. The link is deliberately slow; see benchmarks/ways.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import lite0, photos, report, ways
from benchmarks.photos import CACHE, ROOT, Photo
from benchmarks.ways import Frames, Way
from kernels import isa, warm
from splitedge import errors

WIDTH = 80
#: Columns of a way's title; the others of the table need the rest of 80.
WAY_WIDTH: Final = 31
console = Console() if sys.stdout.isatty() else Console(width=WIDTH)


class Steps:
    """Prints each finished step with its seconds, and stores them by name."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[Any]:
        start = time.monotonic()
        with console.status(f"{name}: {text}") as status:
            yield status
        self.seconds[name] = time.monotonic() - start
        console.print(
            f"[bold]{name:<12}[/bold] {escape(text):<57}[dim]{self.seconds[name]:>7.1f} s[/dim]", highlight=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", metavar="OUT", type=Path, help="write the rows, the figures and each step's seconds to this file"
    )
    given = parser.parse_args()
    try:
        demo(given.json)
    except errors.SplitEdgeError as error:
        sys.exit(f"demo: {error.message}")
    except subprocess.CalledProcessError:
        sys.exit("demo: the calibration failed; read the message above, and run again")
    except KeyboardInterrupt:
        sys.exit(130)


def demo(out: Path | None) -> None:
    console.print(
        f"[bold]One network, ten photos, {ways.MBPS:g} Mbit/s: five ways to classify them, measured.[/bold]\n"
    )
    steps = Steps()
    found = photos.demo()
    unseen = [photo for photo in found if not photo.seen]
    store = prepared(steps, found)
    frames = Frames.of(unseen)
    with steps("measurement", f"5 ways, {len(unseen)} photos that calibration never saw") as status:
        measured = list(ways.run(frames, store, CACHE / "agent", lambda text: status.update(f"measurement: {text}")))
    show(measured, frames)
    show_answers(measured, frames)
    show_next(store, unseen[0])
    if out:
        report.write(
            out, "The demo", ways.rows(measured, frames), figures(steps, measured, frames), ways.notes(measured, frames)
        )


def prepared(steps: Steps, found: list[Photo]) -> Path:
    """Return the store with the calibrated network; reuse the results of earlier runs."""
    with steps("network", "EfficientNet-Lite0 for 1,000 ImageNet classes, as ONNX"):
        lite0.file()
    with ExitStack() as stack:
        made: Callable[[], object] = ways.int8
        if not ways.int8_file().exists():  # beside the compilation, which uses one core
            made = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))).submit(ways.int8).result
        with steps("kernels", f"for {isa.ISA}; compiled once for this machine") as status:
            compile_kernels(status)
        with steps("comparison", "the same network in int8 for ONNX Runtime"):
            made()
    there = (ways.store_folder() / "ready").exists()
    samples = (
        f"{photos.VIEWS * sum(photo.seen for photo in found)} views of {sum(photo.seen for photo in found)} photos"
    )
    with steps("calibration", f"on {samples}" + (", made before" if there else "")) as status:
        if not there:
            status.stop()  # edge-server add shows its own progress
        return ways.calibrated(found)


def compile_kernels(status: Any) -> None:
    """Compile the kernels that are not in the cache."""
    warm.compile_missing(1, lambda name, _: status.update(f"kernels: compiled {name}"))


def figures(steps: Steps, measured: list[Way], frames: Frames) -> dict[str, float]:
    taken = {f"demo.{name}_s": seconds for name, seconds in steps.seconds.items()}
    return taken | {"demo.seconds": time.monotonic() - steps.began} | ways.summary(measured, frames)


# --- output -----------------------------------------------------------------------------------------------------------


def show(measured: list[Way], frames: Frames) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = ways.rows(measured, frames)
    names = [name for name in rows[0] if name != "points lost"]  # ten photos are too few for an interval
    table.add_column("way", no_wrap=True, overflow="ellipsis", max_width=WAY_WIDTH)
    for name in names[1:]:
        width = max(len(name), *(len(row[name]) for row in rows))
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for way, row in zip(measured, rows, strict=True):
        table.add_row(*(row[name] for name in names), style="bold green" if way.name == "split" else "")
    console.print()
    console.print(table)
    for note in ways.notes(measured, frames):
        console.print(f"[dim]{escape(note)}[/dim]", highlight=False)


def show_answers(measured: list[Way], frames: Frames) -> None:
    """Print each photo's label, and the answers of the float model and of the split."""
    split = next(way for way in measured if way.name == "split")
    assert split.plan is not None
    names = split.plan.labels
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("photo", "float model", "split"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=24)
    for label, whole, halves in zip(frames.classes, frames.floats, split.classes, strict=True):
        table.add_row(names[label], *(f"{'✓' if one == label else '✗'} {names[one]}" for one in (whole, halves)))
    console.print()
    console.print(table)


def show_next(store: Path, photo: Photo) -> None:
    place, program = store.relative_to(ROOT), Path(sys.executable).parent
    programs = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program
    console.print("\n[bold]Run it yourself[/bold]")
    for line in (
        f"{programs}/edge-server serve --store {place}",
        f"{programs}/edge-server token my-board --store {place}",
        f"SPLITEDGE_TOKEN=... {programs}/edge-agent plan --model {ways.MODEL}",
        f"SPLITEDGE_TOKEN=... {programs}/edge-agent infer --model {ways.MODEL} {photo.path.relative_to(ROOT)}",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
