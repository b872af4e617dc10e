"""Segment size of EfficientNet-Lite0: its rounded weights by several coders, and upgrades from few bits to more.

    python -m benchmarks.segments --images DIR --labels FILE --json OUT

The first rows cover all weights of the network, layer by layer, in per cent of packed. They show weights packed at
their bits, their entropy with a table for each layer (not counted), general compressors on as many codes as fit a byte,
and our coder. The other rows are segment files: ``whole`` in bytes, and an ``upgrade`` in per cent of the resulting
file.

For comparison, ``nested`` weights at few bits are the upper bits of those at more, rounded to nearest with corrected
biases. Noise is the mean squared difference of the logits to the float model's, on photographs unseen by calibration.
"""

from __future__ import annotations

import lzma
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import models, rounding
from benchmarks.report import photo_parser, report, write
from calibration.accuracy import evaluation
from calibration.lowering import layers
from calibration.lowering.lower import Calibration, lower
from calibration.rounding.quantizer import Rounded, mean_error, pack, top_level
from calibration.samples.samples import Samples, open_samples
from kernels.reference import unpack_bits
from splitedge.head import compression, upgrade
from splitedge.head import segment as seg
from splitedge.head.executor import Head

U8 = NDArray[np.uint8]

WIDTHS: Final = tuple(range(2, 9))
QUICK_WIDTHS: Final = (4, 6)
STEPS: Final = ((3, 4), (4, 5), (4, 6), (5, 6), (6, 8))
QUICK_PHOTOS: Final = 24
NOISE_PHOTOS: Final = 60
REPEATS: Final = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = photo_parser(__doc__ or "").parse_args(arguments)
    photos = open_samples(
        options.images, models.LITE0_PREPROCESS, options.labels, QUICK_PHOTOS if options.quick else None
    )
    widths = QUICK_WIDTHS if options.quick else WIDTHS
    ready = rounding.prepare(rounding.lite0(), photos[::2], (1.0,), widths)
    rows = weights(ready.rounded().roundings, widths)
    report("EfficientNet-Lite0: all weights by coder, per cent of packed", rows, {})
    steps = [step for step in STEPS if set(step) <= set(widths)]
    ways = upgrades(ready, steps, photos[1::2][: QUICK_PHOTOS // 2 if options.quick else NOISE_PHOTOS])
    title, figures = "EfficientNet-Lite0: segment files and upgrades", summary(rows, ways)
    report(title, ways, figures)
    if options.json:
        write(options.json, title, [*rows, *ways], figures)


def weights(roundings: Mapping[tuple[str, int], Rounded], widths: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each of ``widths``: per cent of packed by coder, and our decoding speed."""
    return [
        _coders(bits, [_codes(one, bits) for (_, width), one in roundings.items() if width == bits]) for bits in widths
    ]


def _codes(rounded: Rounded, bits: int) -> U8:
    return unpack_bits(pack(rounded.levels, bits), bits, rounded.levels.size)


def _coders(bits: int, arrays: Sequence[U8]) -> dict[str, Any]:
    packed = sum(-(-codes.size * bits // 8) for codes in arrays)
    coders: dict[str, Callable[[U8], float]] = {
        "entropy": lambda codes: _entropy(codes) / 8,
        "zlib Huffman": lambda codes: len(_deflated(_bytes(codes, bits), zlib.Z_HUFFMAN_ONLY)),
        "zlib": lambda codes: len(_deflated(_bytes(codes, bits), zlib.Z_DEFAULT_STRATEGY)),
        "lzma": lambda codes: len(_lzma(_bytes(codes, bits))),
        "ours": lambda codes: compression.coded_bytes(codes, bits),
    }
    sizes = {name: 100.0 * sum(coder(codes) for codes in arrays) / packed for name, coder in coders.items()}
    return {"bits": bits, "packed": packed, **sizes, "decoded M/s": _speed(arrays, bits)}


def _entropy(codes: U8) -> float:
    """Return the bits of ``codes`` by their empirical entropy."""
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def _bytes(codes: U8, bits: int) -> bytes:
    """Pack as many codes as fit into each byte."""
    each = 8 // bits
    rows = np.concatenate([codes, np.zeros(-codes.size % each, np.uint8)]).reshape(-1, each)
    joined: U8 = (rows << (bits * np.arange(each, dtype=np.uint8))).sum(axis=1, dtype=np.uint8)
    return joined.tobytes()


def _deflated(data: bytes, strategy: int) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return deflate.compress(data) + deflate.flush()


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])


def _speed(arrays: Sequence[U8], bits: int) -> float:
    """Measure the decoding speed, from coded to packed in memory, in million weights per second."""
    parts, offset = [], 0
    for codes in arrays:
        parts.append(compression.Part("codes", offset, codes.size, bits))
        offset += seg.roundup(parts[-1].nbytes)
    blob = np.zeros(offset, np.uint8)
    for part, codes in zip(parts, arrays, strict=True):
        compression.pack(codes, blob, part)
    data, best = compression.encode(blob, parts), float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        compression.decode(data, parts, offset)
        best = min(best, time.perf_counter() - start)
    return sum(codes.size for codes in arrays) / best / 1e6


def upgrades(ready: rounding.Network, steps: Sequence[tuple[int, int]], photos: Samples) -> list[dict[str, Any]]:
    """Return a row for each step from few bits to more: the files, the upgrade, and the noise of nested weights."""
    network, calibration = ready.network, ready.rounded()
    files = {bits: lower(network, calibration, network.graph.output, bits).segment() for step in steps for bits in step}
    floats = evaluation.float_outputs(ready.run, photos)
    rows = []
    for few, many in steps:
        way = upgrade.make(files[few], files[many])
        start = time.perf_counter()
        upgrade.apply(files[few], way, seg.digest(files[many]))
        took = time.perf_counter() - start
        nested = lower(network, nest(network, calibration, few, many), network.graph.output, few).segment()
        rows.append(
            {
                "from": few,
                "to": many,
                "few whole": len(files[few]),
                "many whole": len(files[many]),
                "upgrade %": 100 * len(way) / len(files[many]),
                "applied s": took,
                "noise": _noise(files[few], photos, floats),
                "nested noise": _noise(nested, photos, floats),
            }
        )
    return rows


def nest(network: layers.Network, calibration: Calibration, few: int, many: int) -> Calibration:
    """Return ``calibration`` with weights at ``few`` bits derived from those at ``many`` on a coarser grid.

    Weights are rounded to nearest, and mean errors are subtracted from the biases.
    """
    roundings = dict(calibration.roundings)
    for layer in network.weighted(network.graph.output):
        fine = calibration.roundings[layer.out, many]
        step, top = 2 ** (many - few), top_level(few)
        levels, scale = np.clip(np.rint(fine.levels / step), -top, top).astype(np.int8), fine.scale * np.float32(step)
        means = calibration.means_of(layer) if isinstance(layer, layers.Conv) else None
        error = 0.0 if means is None else mean_error(fine.values(), levels, scale, means)
        roundings[layer.out, few] = Rounded(levels, scale, fine.bias + error)
    return replace(calibration, roundings=roundings)


def _noise(file: bytes, photos: Samples, floats: NDArray[np.float32]) -> float:
    head = Head(seg.parse(file), check_golden=False)
    codes = np.stack([head.run(photos.codes(i, head.input)) for i in range(len(photos))]).reshape(len(photos), -1)
    logits = np.float32(head.output.scale) * (codes.astype(np.float32) - np.float32(head.output.zero_point))
    return float(((logits - floats) ** 2).mean())


def summary(rows: Sequence[dict[str, Any]], ways: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {f"lite0.coded{row['bits']}.percent_of_packed": row["ours"] for row in rows}
    found |= {f"lite0.coded{row['bits']}.percent_of_entropy": 100 * row["ours"] / row["entropy"] for row in rows}
    found["decoded_million_weights_per_s"] = min(row["decoded M/s"] for row in rows)
    return found | {f"lite0.upgrade{way['from']}to{way['to']}.percent": way["upgrade %"] for way in ways}


if __name__ == "__main__":
    main()
