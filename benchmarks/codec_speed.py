"""Encoding and decoding speed of codecs, against a copy of the tensor and against PipeEdge's method.

    python -m benchmarks.codec_speed [--json OUT] [--quick]

The benchmark encodes and decodes one tensor of 197 x 768 float32 (a ViT-Base's) on one thread. It uses the public
`encode` and `decode` and includes the overhead of each call. Calls take turns, each after one untimed call; figures are
medians. GB/s count float32 bytes. PipeEdge's method is reimplemented here in vectorised numpy, as in the original:
minimum and maximum of the tensor, floor(32 / bits) codes to a 32-bit word, no clipping. Conversions to and from torch
and checks are omitted. The speedup is the median of the ratios call by call.

Figures without a codec name are for ``mse-channel``, which clips, quantizes and packs with a range for each channel.
It does PipeEdge's work plus clipping. The other codecs also rotate, change the basis or use entropy coding. `entropy`
and `pca` take about the bits shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import parser, ratio, report
from splitedge import codec

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]

SHAPE: Final = (197, 768)
BITS: Final = (2, 3, 4, 5, 6, 7, 8)
PLAIN: Final = "mse-channel"
FAMILIES: Final = (
    "mse",
    PLAIN,
    "lloyd-max-channel",
    "hadamard",
    "minmax-token",
    "hadamard-token",
    "entropy",
    "pca",
)
COPY, PIPEEDGE = "copy", "pipeedge"
REPEATS: Final = 300
QUICK: Final = 20
FITTED: Final = 8  # tensors


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser((__doc__ or "").splitlines()[0]).parse_args(arguments)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for bits in (2, 4, 8) if chosen.quick else BITS:
        times = timed(bits, QUICK if chosen.quick else REPEATS)
        rows += table(bits, times)
        if bits == 2:
            own = {(way, f): 1e3 * float(np.median(times[way, f])) for way in ("encode", "decode") for f in FAMILIES}
            summary |= {f"{'' if f == PLAIN else f + '.'}{way}_2bit_us": us for (way, f), us in own.items()}
    for way, name in (("encode", "speedup_over_pipeedge_min"), ("decode", "decode_speedup_over_pipeedge_min")):
        for family in FAMILIES:
            least = min(row["of PipeEdge"] for row in rows if (row["codec"], row["way"]) == (family, way))
            summary[name if family == PLAIN else f"{family}.{name}"] = least
    report("Codecs on one tensor of 197 x 768", rows, summary, chosen.json)


def timed(bits: int, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Measure the milliseconds of each call, by way (encode or decode) and codec."""
    rng = np.random.default_rng(0)
    samples = rng.standard_t(5, (FITTED, *SHAPE)) * np.exp(rng.normal(0, 1, SHAPE[1]))
    x, back = samples[0].astype(np.float32), np.empty(SHAPE, np.float32)
    calls: dict[tuple[str, str], Callable[[], Any]] = {("encode", COPY): partial(np.copyto, back, x)}
    packed = pipeedge_encode(x, bits)
    calls["encode", PIPEEDGE], calls["decode", PIPEEDGE] = (
        partial(pipeedge_encode, x, bits),
        partial(pipeedge_decode, *packed, bits, SHAPE),
    )
    for family in FAMILIES:
        made = codec.fit_samples(samples, family, bits)
        data = codec.encode(x, made)
        calls["encode", family], calls["decode", family] = (
            partial(codec.encode, x, made),
            partial(codec.decode, data, made, SHAPE),
        )
    times = in_turn_warm(calls, repeats)
    return times | {("decode", COPY): times["encode", COPY]}


def in_turn_warm(
    calls: Mapping[tuple[str, str], Callable[[], Any]], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """As `report.in_turn`, but each timed call follows an untimed call of its own.

    Every call therefore finds its tensors in the cache.
    """
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[key].append((time.perf_counter() - start) * 1e3)
    return times


def table(bits: int, times: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    size = 4 * SHAPE[0] * SHAPE[1]
    return [
        {
            "codec": family,
            "bits": bits,
            "way": way,
            "us": 1e3 * float(np.median(ms)),
            "GB/s": size / float(np.median(ms)) / 1e6,
            "of copy": ratio(ms, times[way, COPY]),
            "of PipeEdge": ratio(ms, times[way, PIPEEDGE]),
        }
        for (way, family), ms in times.items()
    ]


def pipeedge_encode(x: F32, bits: int) -> tuple[U32, np.float32, np.float32]:
    """Return words, minimum and range: values scaled to 0..1, rounded, and packed in groups by shifts."""
    least, each = x.min(), 32 // bits
    above = x - least
    span = above.max()
    codes = np.around(above / span * np.float32((1 << bits) - 1)).astype(np.uint32).reshape(-1)
    groups = np.append(codes, np.zeros(-codes.size % each, np.uint32)).reshape(-1, each)
    shifted = np.left_shift(groups, np.arange(0, bits * each, bits, dtype=np.uint32))
    return np.bitwise_or.reduce(shifted, axis=1), least, span


def pipeedge_decode(words: U32, least: np.float32, span: np.float32, bits: int, shape: tuple[int, ...]) -> F32:
    """The inverse of `pipeedge_encode`."""
    each, top = 32 // bits, np.uint32((1 << bits) - 1)
    groups = np.repeat(words, each).reshape(-1, each)
    codes = np.right_shift(groups, np.arange(0, bits * each, bits, dtype=np.uint32)).reshape(-1) & top
    values = (codes[: shape[0] * shape[1]] / top).astype(np.float32)
    return (values * span + least).reshape(shape)


if __name__ == "__main__":
    main()
