"""Predicted against measured times of whole heads on this machine, from its own profile.

    python -m benchmarks.predictions [--minilm DIR] [--json OUT] [--quick]

`edge-agent profile` measures single operators of a few shapes. The times of whole networks follow from them without any
measurement of a network (`device_profiles.predict`), as the planner does for a board that it has never seen. The heads
run on one thread and on all. All networks but EfficientNet-Lite0 and MiniLM have random weights. The profile and the
heads are measured in turn: half of the heads after one profile, the others after a second one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import cache, heads, minilm, models
from benchmarks.report import in_turn, parser, report
from device_profiles import load as load_profile
from device_profiles import predict
from device_profiles.machine import usable_threads
from device_profiles.schema import DeviceProfile
from splitedge.head import load
from splitedge.head import segment as seg

NETWORKS: Final = {
    "EfficientNet-Lite0": "lite0",
    "MobileNet": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "ResNet-18": "resnet18",
    "ResNet-50": "resnet50",
    "SqueezeNet 1.1": "squeezenet",
    "VGG-11": "vgg11",
    "ViT, 196 tokens": "vit",
}
TEXTS: Final = (16, 64, 128)  # tokens
RUNS: Final = 60


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--minilm", type=Path, help="folder with MiniLM's model.safetensors and vocab.txt")
    arguments = options.parse_args()
    segments = networks(arguments.minilm or minilm.folder())
    if arguments.quick:
        segments = dict(list(segments.items())[:3])
    rows = []
    for half in (list(segments.items())[::2], list(segments.items())[1::2]):
        profile = measured(quick=arguments.quick)
        for name, segment in half:
            for threads in sorted({1, usable_threads()}):
                rows.append(row(name, segment, threads, profile, 10 if arguments.quick else RUNS))  # noqa: PERF401
    report("Predicted and measured heads on this machine", rows, figures(rows), arguments.json)


def measured(*, quick: bool) -> DeviceProfile:
    """Return what `edge-agent profile` measures, in a process of its own, where no head has threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        command = [sys.executable, "-m", "edge_agent", "profile", "--out", str(path), *(["--quick"] if quick else [])]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return load_profile(path)


def networks(place: Path | None) -> dict[str, bytes]:
    """Return the segments of all networks by name. ``place``: of MiniLM's weights, random if None."""
    made: dict[str, Callable[[], dict[str, bytes]]] = {name: partial(_cnn, source) for name, source in NETWORKS.items()}
    made |= {f"MiniLM, {tokens} tokens": partial(_encoder, place, tokens) for tokens in TEXTS}
    return {name: cache.kept(f"predictions-{name.replace(' ', '-')}", make)["segment"] for name, make in made.items()}


def _cnn(source: str) -> dict[str, bytes]:
    return {"segment": heads.our_segment(models.load(source), None if source == "vit" else heads.SHAPE)}


def _encoder(place: Path | None, tokens: int) -> dict[str, bytes]:
    from benchmarks import minilm_model

    return {"segment": heads.our_segment(minilm_model.encoder(place, tokens))}


def row(name: str, segment: bytes, threads: int, profile: DeviceProfile, runs: int) -> dict[str, Any]:
    """Return the prediction for one head, its time, and the error in per cent of the time."""
    head = load(segment, threads)
    codes = seg.golden_frame(head.header)
    taken = statistics.median(in_turn({"head": lambda: head.run(codes)}, runs)["head"])
    only = msgspec.structs.replace(profile, kernels=[one for one in profile.kernels if one.threads == threads])
    predicted = predict.head_ms(head.header, only)
    return {
        "network": name,
        "threads": threads,
        "predicted ms": predicted,
        "measured ms": taken,
        "error %": 100 * (predicted / taken - 1),
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median and the largest absolute error, over all rows and for one thread."""
    errors = [abs(one["error %"]) for one in rows]
    single = [abs(one["error %"]) for one in rows if one["threads"] == 1]
    return {
        "self.networks": float(len(single)),
        "self.median_abs_error_percent": statistics.median(errors),
        "self.median_abs_error_percent_one_thread": statistics.median(single),
        "self.max_abs_error_percent": max(errors),
    }


if __name__ == "__main__":
    main()
