"""Answer reuse in camera streams made from photographs, with split EfficientNet-Lite0.

    python -m benchmarks.reuse --images DIR --labels FILE --json OUT

Every other photograph calibrates. Each of the others is a scene of `FRAMES` frames, `RATE` a second; the change to the
next scene is a cut. Within a scene, frames differ by sensor noise, JPEG, a slow pan, light, or an object (a part of
another photograph) that appears half-way. All but the first kind also have noise of 2 levels. The head is the 8-bit
one. The tensor at a cut uses 4 bits, pixels are unchanged, and an answer arrives `LATENCY` frames later.
`edge_agent.runtime.answer_reuse` makes the decisions.

``extra`` is the cost of reuse: the increase in answers, per hundred, that differ from the float model's on the same
frame, relative to sending every frame. ``lost`` is the same in points of top-1. A missed cut is a frame that got the
answer of another scene.
"""

from __future__ import annotations

import io
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import models
from benchmarks.accuracy import MIDDLE, SUMMARY_BITS, Split, prepare
from benchmarks.report import in_turn, photo_parser, report
from calibration.accuracy import evaluation
from calibration.samples.samples import Samples, evenly, open_samples
from edge_agent.config import ReuseConfig
from edge_agent.runtime.answer_reuse import AnswerReuse
from splitedge import codec, errors
from splitedge.head.answers import Answered
from splitedge.head.preprocess import code_table, load_image, normalise, pixels_to_codes

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

FRAMES: Final = 30
RATE: Final = 15.0
LATENCY: Final = 2
SCENES: Final = 48
NOISE: Final = 2.0
THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
RECOMMENDED: Final = 0.1
PLACES: Final = (0.2, MIDDLE)
#: Limits of ``--quick``.
QUICK_PHOTOS: Final = 32
QUICK_SCENES: Final = 4
QUICK_STREAMS: Final = ("noise 2", "pan 1 px", "object 56 px")


@dataclass(frozen=True)
class Scene:
    """A photograph of at least 224 pixels a side, float64 [H, W, 3], the next photograph, and the random generator."""

    photo: F64
    other: F64
    rng: np.random.Generator

    def view(self, shift: float = 0.0) -> F64:
        """Return the centre crop, moved by ``shift`` whole pixels along the longer side and reflected at the ends."""
        along = int(self.photo.shape[1] > self.photo.shape[0])
        start = [(size - 224) // 2 for size in self.photo.shape[:2]]
        room = self.photo.shape[along] - 224
        way = (start[along] + round(shift)) % (2 * room) if room else 0
        start[along] = min(way, 2 * room - way)
        return self.photo[start[0] : start[0] + 224, start[1] : start[1] + 224].copy()

    def noisy(self, pixels: F64, level: float = NOISE) -> U8:
        return np.clip(np.rint(pixels + self.rng.normal(0, level, pixels.shape)), 0, 255).astype(np.uint8)


Camera = Callable[[Scene, int], U8]
"""From a scene and a frame number to the frame, uint8 [224, 224, 3]."""


def still(level: float) -> Camera:
    return lambda scene, _: scene.noisy(scene.view(), level)


def jpeg(quality: int) -> Camera:
    def frame(scene: Scene, _: int) -> U8:
        held = io.BytesIO()
        Image.fromarray(scene.noisy(scene.view())).save(held, "JPEG", quality=quality)
        return np.asarray(load_image(held.getvalue()).convert("RGB"))

    return frame


def pan(pixels: float) -> Camera:
    return lambda scene, t: scene.noisy(scene.view(pixels * t))


def dimming(share: float) -> Camera:
    return lambda scene, t: scene.noisy(scene.view() * (1 - share) ** t)


def flicker(share: float) -> Camera:
    return lambda scene, t: scene.noisy(scene.view() * (1 - share * (t % 2)))


def visitor(side: int) -> Camera:
    def frame(scene: Scene, t: int) -> U8:
        pixels, at = scene.view(), (224 - side) // 2 + 16
        if t >= FRAMES // 2:
            pixels[at : at + side, at : at + side] = scene.other[16 : 16 + side, 16 : 16 + side]
        return scene.noisy(pixels)

    return frame


STREAMS: Final[Mapping[str, Camera]] = {
    "noise 1": still(1),
    "noise 2": still(2),
    "noise 4": still(4),
    "noise 8": still(8),
    "JPEG 90": jpeg(90),
    "JPEG 50": jpeg(50),
    "pan 1/4 px": pan(0.25),
    "pan 1 px": pan(1),
    "pan 4 px": pan(4),
    "dimming 1 %": dimming(0.01),
    "flicker 5 %": flicker(0.05),
    "object 28 px": visitor(28),
    "object 56 px": visitor(56),
    "object 112 px": visitor(112),
}


@dataclass(frozen=True)
class Stream:
    """A stream, with values for each frame.

    ``scene``: scene number; ``label``: class; ``wanted``: the float model's answer. ``codes`` and ``sent``: at the
    input and each cut, the codes, and the answer if the frame is sent.
    """

    name: str
    scene: I64
    label: I64
    wanted: I64
    codes: list[U8]
    sent: list[I64]


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "").parse_args(arguments)
    quick = options.quick
    photos = open_samples(options.images, models.LITE0_PREPROCESS, options.labels, QUICK_PHOTOS if quick else None)
    if photos.classes is None:
        raise errors.UsageError(
            "reuse needs labels; pass --labels with a CSV of file name and class index", reason="no-labels"
        )
    split = prepare(photos[::2], (MIDDLE,) if quick else PLACES)
    held = photos[1::2]
    names = QUICK_STREAMS if quick else tuple(STREAMS)
    scenes = evenly(len(held), QUICK_SCENES if quick else SCENES)
    rows: list[dict[str, Any]] = []
    for name in names:
        stream = film(name, split, held, scenes)
        rows += [
            row(stream, place, layer, threshold)
            for place, layer in enumerate(["input", *split.layers])
            for threshold in THRESHOLDS
        ]
    notes = [
        f"{len(scenes)} scenes of {FRAMES} frames, {RATE:g} a second, answers {LATENCY} frames later: at most "
        f"{100 * (1 - LATENCY / FRAMES):.0f} of a hundred frames need not be sent",
    ]
    figures = summary(rows, split.layers[-1]) | speed(split, stream.codes[-1])
    report("Answers that serve twice, EfficientNet-Lite0 split", rows, figures, options.json, notes)


def film(name: str, split: Split, held: Samples, scenes: I64) -> Stream:
    """Run the stream ``name`` of the photographs ``scenes`` of ``held`` through the float model, head and tails."""
    assert held.classes is not None
    table = code_table(models.LITE0_PREPROCESS, split.head.input)
    taps = [split.head.header.input, *split.taps]
    codes: list[list[U8]] = [[] for _ in taps]
    wanted = []
    for frames in _scenes(STREAMS[name], held, scenes):
        tapped = [split.head.taps(pixels_to_codes(pixels, table), taps) for pixels in frames]
        for of_cut, found in zip(codes, zip(*tapped, strict=True), strict=True):
            of_cut.append(np.stack(found))
        outputs = split.run(np.stack([normalise(pixels, models.LITE0_PREPROCESS) for pixels in frames]))
        wanted.append(evaluation.top1(outputs))
    at_cuts = [np.concatenate(of_cut) for of_cut in codes]
    answers = np.concatenate(wanted)
    sent = [answers, *(_answers(split, place, of_cut) for place, of_cut in enumerate(at_cuts[1:]))]
    label = np.repeat(held.classes[scenes], FRAMES)
    return Stream(name, np.repeat(np.arange(len(scenes)), FRAMES), label, answers, at_cuts, sent)


def _scenes(camera: Camera, held: Samples, scenes: I64) -> Iterator[list[U8]]:
    """Yield the frames of each scene. An object is a part of the next scene's photograph."""
    photos = [_photo(held, int(i)) for i in scenes]
    for i, photo in enumerate(photos):
        scene = Scene(photo, photos[(i + 1) % len(photos)], np.random.default_rng(i))
        yield [camera(scene, t) for t in range(FRAMES)]


def _photo(held: Samples, index: int) -> F64:
    """Load a whole photograph, scaled so that its short side has the model's resize length."""
    image = load_image(held.sources[index].read_bytes()).convert("RGB")  # type: ignore[union-attr]  # a file: `open_samples` made it
    scale = models.LITE0_PREPROCESS.resize / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64)


def _answers(split: Split, place: int, codes: U8) -> I64:
    """Return the server's class for each frame."""
    spot, histogram = split.spots[place], split.histograms[place]
    assert spot.load
    made = histogram.fit(split.rules[spot.index, SUMMARY_BITS], SUMMARY_BITS)
    return evaluation.top1(evaluation.run_tail(spot.load(), codes, evaluation.arrival(spot.quantization, made)))


def sources(codes: U8, config: ReuseConfig) -> I64:
    """Return for each frame the number of the frame whose answer it gets: its own if it is sent."""
    reuse, on_way, found = AnswerReuse(config), deque[Any](), []
    for i, frame in enumerate(codes):
        while on_way and on_way[0].number <= i - LATENCY:
            done = on_way.popleft()
            reuse.keep(done, Answered(((done.number, 1.0),)), 1)
        seen = reuse.compare(frame, i / RATE)
        if seen.reused is None:
            on_way.append(seen)
        found.append(i if seen.reused is None else seen.reused.answer.pairs[0][0])
    return np.array(found)


def row(stream: Stream, place: int, layer: str, threshold: float) -> dict[str, Any]:
    """Return the row of ``stream`` at one cut and threshold."""
    source = sources(stream.codes[place], ReuseConfig(threshold=threshold))
    alone, given = stream.sent[place], stream.sent[place][source]
    differ, differ_alone = (100.0 * float((answers != stream.wanted).mean()) for answers in (given, alone))
    right, right_alone = (100.0 * float((answers == stream.label).mean()) for answers in (given, alone))
    return {
        "cut after": layer,
        "stream": stream.name,
        "threshold": threshold,
        "not sent %": 100.0 * float((source != np.arange(len(source))).mean()),
        "differ, all sent %": differ_alone,
        "differ %": differ,
        "extra": differ - differ_alone,
        "lost": right_alone - right,
        "missed cuts": int((stream.scene[source] != stream.scene).sum()),
    }


def summary(rows: Sequence[Mapping[str, Any]], layer: str) -> dict[str, float]:
    """Return figures at the recommended threshold: all streams at the cut after ``layer``, and the worst at any cut."""
    chosen = [r for r in rows if r["threshold"] == RECOMMENDED]
    here = [r for r in chosen if r["cut after"] == layer]
    still = [r for r in here if r["stream"] == "noise 2"]
    return {
        "reuse.threshold": RECOMMENDED,
        "reuse.not_sent_percent": statistics.fmean(r["not sent %"] for r in here),
        "reuse.still_not_sent_percent": statistics.fmean(r["not sent %"] for r in still),
        "reuse.extra_points": statistics.fmean(r["extra"] for r in here),
        "reuse.extra_points_worst": max(r["extra"] for r in chosen),
        "reuse.lost_points": statistics.fmean(r["lost"] for r in here),
        "reuse.missed_cuts": float(sum(r["missed cuts"] for r in chosen)),
    }


def speed(split: Split, codes: U8) -> dict[str, float]:
    """Measure the microseconds of a comparison and of the encoding that it can save, for the last cut's tensor."""
    spot, histogram = split.spots[-1], split.histograms[-1]
    own = spot.quantization
    assert own is not None
    made = histogram.fit(split.rules[spot.index, SUMMARY_BITS], SUMMARY_BITS)
    reuse = AnswerReuse(ReuseConfig(threshold=1.0, max_run=1_000_000))
    reuse.keep(reuse.compare(codes[0], 0.0), Answered(()), 0)
    times = in_turn(
        {
            "compare": lambda: reuse.compare(codes[1], 0.0),
            "encode": lambda: codec.encode_codes(codes[1], own.scale, own.zero_point, made),
        },
        200,
    )
    return {f"reuse.{name}_us": 1e3 * statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    main()
