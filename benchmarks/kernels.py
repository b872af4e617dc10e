"""Single kernels on one thread: GEMM and depthwise layers against rivals and the machine's peak, codec against a copy.

    python -m benchmarks.kernels [--quick] [--json OUT]

Our kernels run as in the product: a head of one layer, whose operator the compiled interpreter runs many times in one
call. The time includes the epilogue (bias, requantization, clamp). A rival runs as often before the next one's turn, so
that all find their weights in the cache. The time of an empty call of its runtime is subtracted. "Peak" is the rate of
the dot-product instruction alone on registers. ONNX Runtime: the faster of MatMulInteger (no requantization, so less
work) and QLinearConv, which does the same work as our kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import layer as layers
from benchmarks import rivals
from benchmarks.layer import Call, Layer
from benchmarks.report import in_turn, parser, report, write
from kernels import codec as codec_kernels
from kernels import peak
from splitedge import codec

# Whole tiles, K >= 256: products of transformers, and square ones.
WHOLE: Final = ((192, 768, 768), (192, 3072, 768), (1536, 256, 256), (384, 1024, 1024), (192, 384, 1536))
# EfficientNet-Lite0: the three products of a performance goal, and the others.
RAGGED: Final = ((196, 80, 480), (196, 112, 672), (49, 192, 1152))
OTHERS: Final = (
    (49, 1152, 192),
    (49, 1152, 320),
    (49, 320, 1280),
    (49, 672, 192),
    (196, 480, 80),
    (196, 480, 112),
    (196, 672, 112),
    (784, 40, 240),
    (784, 240, 40),
    (784, 144, 40),
    (3136, 24, 144),
    (3136, 144, 24),
    (3136, 96, 24),
    (12544, 16, 96),
    (12544, 32, 16),
    (1, 1280, 1000),
)
# Plane, channels, window, stride.
DEPTHWISE: Final = (
    (112, 32, 3, 1),
    (112, 96, 3, 2),
    (56, 144, 3, 1),
    (56, 144, 5, 2),
    (28, 240, 5, 1),
    (28, 240, 3, 2),
    (14, 480, 3, 1),
    (14, 480, 5, 1),
    (14, 672, 5, 1),
    (14, 672, 5, 2),
    (7, 1152, 5, 1),
    (7, 1152, 3, 1),
)
CONVOLUTIONS: Final = (
    (224, 3, 32, 3, 2),
    (56, 64, 64, 3, 1),
    (28, 128, 128, 3, 1),
    (14, 256, 256, 3, 1),
    (7, 512, 512, 3, 1),
)
REPEATS: Final = 100
QUICK: Final = 2  # of each list
CALL_US: Final = 2000  # our kernel repeats within a call for about this long, but at least `TIMES` times
TIMES: Final = 3
LEAST_US: Final = 0.1  # minimum time of a rival without its empty call; their noise can exceed a small layer's time
CODEC_BYTES: Final = 256 << 20  # of float32; larger than any cache
ORT, TORCH, LITERT = "ORT", "torch", "LiteRT"


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    repeats, few = (7, QUICK) if arguments.quick else (REPEATS, None)
    products: list[dict[str, Any]] = []
    for kind, shapes in {"whole": WHOLE, "ragged": RAGGED, "other": OTHERS}.items():
        for m, k, n in shapes[:few]:
            products.append({"product": f"{m}x{k}x{n}", "kind": kind} | measured(Layer(m, 1, k, n), repeats))
    report("Matrix products, requantized", products, {})
    planes: list[dict[str, Any]] = []
    for size, c, outs, kernel, stride in [*CONVOLUTIONS[:few], *((s, c, 0, k, t) for s, c, k, t in DEPTHWISE[:few])]:
        layer = Layer(size, size, c, outs or c, kernel, stride, not outs)
        name = f"{size}x{size}x{c}" + (f" to {outs}" if outs else "") + f", {kernel}x{kernel} / {stride}"
        planes.append({"convolution": name, "kind": "general" if outs else "depthwise"} | measured(layer, repeats))
    report("Convolutions, requantized", planes, {})
    coded = codec_rows(3 if arguments.quick else 9, arguments.quick)
    summary = _summary(products, planes, coded)
    notes = [note for note in (rivals.litert_missing(),) if note]
    notes += [
        "of copy: time of copying the tensor over time of encoding it; traffic of copy: bytes read and written per "
        "second, relative to a copy"
    ]
    if arguments.quick:
        notes.append(
            f"left out by --quick: all but {QUICK} shapes of each kind; {repeats} repeats instead of {REPEATS}; a "
            "smaller tensor"
        )
    report("Codec: clip, quantize and pack a tensor that leaves the cache", coded, summary, None, notes)
    if arguments.json:
        write(arguments.json, "Kernels", [*products, *planes, *coded], summary, notes)


def measured(layer: Layer, repeats: int) -> dict[str, Any]:
    """Return a row: our time, rate and share of peak, and the ratios to rivals."""
    calls, empty = _rivals(layer)
    times, run = layers.ours(layer, CALL_US, TIMES)
    theirs = {
        name: partial(_again, call, times)
        for name, call in (calls | {f"empty {e}": c for e, c in empty.items()}).items()
    }
    taken = {
        name: np.array(ms) * 1e3 for name, ms in in_turn({"ours": run, "peak": peak.burst} | theirs, repeats).items()
    }
    burst = taken.pop("peak")
    taken = {name: us / times for name, us in taken.items()}
    us = taken["ours"]
    row: dict[str, Any] = {
        "us": float(np.median(us)),
        "GOPS": layer.operations / float(np.median(us)) / 1e3,
        "of peak": float(np.median(layer.operations / us / (peak.BURST / burst))),
    }
    for name in (ORT, TORCH, LITERT):
        own = [_own(taken, call, name) for call in calls if call.startswith(name)]
        best: NDArray[np.float64] | None = np.min(own, axis=0) if own else None
        if name == ORT and best is not None:
            row[f"{name} us"] = float(np.median(best))
        row[f"vs {name}"] = "-" if best is None else float(np.median(best / us))
    row["vs QLinearConv"] = float(np.median(_own(taken, f"{ORT} convolution", ORT) / us))
    return row


def _own(taken: Mapping[str, NDArray[np.float64]], call: str, runtime: str) -> NDArray[np.float64]:
    """Return the microseconds of a rival's ``call`` minus those of its runtime's empty call."""
    return np.maximum(taken[call] - np.median(taken[f"empty {runtime}"]), LEAST_US)


def _again(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def _rivals(layer: Layer) -> tuple[dict[str, Call], dict[str, Call]]:
    """Return the rivals' calls for this layer, and their empty calls."""
    calls: dict[str, Call] = {f"{ORT} convolution": layers.onnx_convolution(layer)}
    empty: dict[str, Call] = {ORT: layers.onnx_nothing()}
    if layer.kernel == 1:
        calls |= {f"{ORT} product": layers.onnx_product(layer)}
        if layer.height > 16:  # torch refuses fewer rows
            calls |= {TORCH: layers.torch_product(layer)}
            empty |= {TORCH: lambda: None}
    if not rivals.litert_missing():
        calls |= {LITERT: layers.litert(layer)}
        empty |= {LITERT: layers.litert_nothing()}
    return calls, empty


def codec_rows(repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Measure encoding, decoding and copying at each width, in turn."""
    values = np.random.default_rng(0).normal(size=CODEC_BYTES // (8 if quick else 4)).astype(np.float32)
    back = np.zeros_like(values)
    rows: list[dict[str, Any]] = []
    for bits in (2, 3, 4, 6, 8):
        chosen = codec.fit(values[: 1 << 16], "mse", bits)
        lo, scale = np.array(chosen.lo, np.float32), np.array(chosen.scale, np.float32)
        none = np.zeros(0, np.float32)
        payload = np.zeros(codec.packed_bytes(values.size, bits), np.uint8)
        calls: dict[str, Call] = {
            "copy": partial(np.copyto, back, values),
            "encode": partial(codec_kernels.encode, values, lo, np.float32(1) / scale, none, 0, bits, payload),
            "decode": partial(
                codec_kernels.decode, payload, lo, scale, none, np.zeros((0, 2), np.float32), 0, bits, back
            ),
        }
        times = {name: np.array(ms) for name, ms in in_turn(calls, repeats, warmup=1).items()}
        rows += [_codec_row(name, bits, values.nbytes, payload.nbytes, times) for name in ("encode", "decode")]
    return rows


def _codec_row(name: str, bits: int, size: int, payload: int, times: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    share = float(np.median(times["copy"] / times[name]))
    rate, copied = (size / float(np.median(times[call])) / 1e6 for call in (name, "copy"))
    traffic = share * (size + payload) / (2 * size)
    return {
        "codec": name,
        "bits": bits,
        "GB/s of float32": rate,
        "copy GB/s": copied,
        "of copy": share,
        "traffic of copy": traffic,
    }


def _summary(
    products: list[dict[str, Any]], planes: list[dict[str, Any]], coded: list[dict[str, Any]]
) -> dict[str, float]:
    def least(rows: list[dict[str, Any]], column: str, kind: str = "") -> float:
        return float(min(row[column] for row in rows if row.get("kind", "") == kind or not kind))

    deep = [row for row in planes if row["kind"] == "depthwise"]
    found = {
        "gemm.min_ratio_ort": least(products, f"vs {ORT}"),
        "gemm.min_ratio_qlinearconv": least(products, "vs QLinearConv"),
        "gemm.min_peak_share": least(products, "of peak", "whole"),
        "gemm.min_peak_share_ragged": least(products, "of peak", "ragged"),
        "depthwise.min_ratio_ort": least(deep, f"vs {ORT}"),
        "conv.min_ratio_ort": least(planes, f"vs {ORT}", "general"),
        "codec.min_share_of_copy": least([row for row in coded if row["codec"] == "encode"], "of copy"),
    }
    if rivals.litert_missing():
        return found
    return found | {
        "gemm.min_ratio_litert": least(products, f"vs {LITERT}"),
        "depthwise.min_ratio_litert": least(deep, f"vs {LITERT}"),
    }


if __name__ == "__main__":
    main()
