"""Fits codecs that need more than a histogram: rotations, principal components, entropy coding and float16.

They are fitted to samples that rounding used. The tail runs only with codecs that no other one beats in both bytes and
squared error at the cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.samples.samples import Samples, evenly
from calibration.statistics.activations import Quantization
from splitedge import codec
from splitedge.codec.fitting import CODED, fit_samples
from splitedge.head.executor import Head
from splitedge.protocol.messages import Codec

F32 = NDArray[np.float32]

#: Bits of the packed families, and bits per value to which the coded families are fitted.
PACKED: Final = {"hadamard": (2, 3)}
RATES: Final = {"entropy": (1.0, 1.5, 2.0, 3.0, 4.0, 5.0), "pca": (0.75, 1.25, 2.0, 3.0)}
#: Maximum values and samples for a fit, and minimum rows.
VALUES, SAMPLES, ROWS = 1 << 21, 256, 256
#: Minimum rows per channel for principal components, which otherwise overfit the samples; and maximum numbers of a
#: basis in a plan.
ROWS_A_CHANNEL: Final = 4
BASIS: Final = 1 << 16


@dataclass(frozen=True)
class Fitted:
    """A codec, with its rule and bits in a bundle."""

    rule: str
    bits: int
    codec: Codec


def gather(
    head: Head, taps: Sequence[int], quantizations: Sequence[Quantization | None], samples: Samples
) -> list[F32]:
    """Samples [n, ..., C] of each of the header's tensors ``taps``, in float32.

    At most `VALUES` values and `SAMPLES` samples each.
    """
    sizes = [math.prod(head.header.tensors[tap].shape) for tap in taps]
    wanted = [max(1, min(SAMPLES, VALUES // size)) for size in sizes]
    held: list[list[NDArray[Any]]] = [[] for _ in taps]
    for i in evenly(len(samples), max(wanted, default=1)):
        for own, most, tensor in zip(
            held, wanted, head.taps(samples.codes(int(i), head.input), list(taps)), strict=True
        ):
            if len(own) < most:
                own.append(tensor.copy())
    return [_real(np.stack(own), quantization) for own, quantization in zip(held, quantizations, strict=True)]


def _real(values: NDArray[Any], quantization: Quantization | None) -> F32:
    return values if quantization is None else quantization.values().astype(np.float32)[values]


def fit(values: F32, *, floats: bool = False) -> list[Fitted]:
    """Codecs of every family for which ``values`` [n, ..., C] are sufficient, at each of its rates.

    ``floats``: the head's tensor holds floats, so float16 loses less than 8 bits do. For 8-bit codes float16 would
    double the bytes without a gain.
    """
    rows = values.reshape(-1, values.shape[-1])
    varies = bool(np.ptp(rows))
    found = [Fitted(codec.FLOAT, 16, fit_samples(values, codec.FLOAT, 16))] if floats and varies else []
    if len(rows) < ROWS or not varies:
        return found
    found += [Fitted(family, b, fit_samples(values, family, b)) for family, widths in PACKED.items() for b in widths]
    for family, rates in RATES.items():
        if family == "pca" and (few_rows(rows.shape) or rows.shape[1] ** 2 > 1 << 20):
            continue
        at_rate = CODED[family](rows.astype(np.float64))
        made = [at_rate(f"{family}-{rate:g}", rate) for rate in rates]
        found += [Fitted(one.rule, 8, one) for one in made if carried(one)]
    return found


def few_rows(shape: Sequence[int]) -> bool:
    """Whether values [..., C] of this ``shape`` are too few for principal components.

    These would then overfit the samples.
    """
    return math.prod(shape[:-1]) < ROWS_A_CHANNEL * shape[-1]


def carried(made: Codec) -> bool:
    """Whether the basis of ``made`` is small enough for a plan."""
    return made.basis is None or len(made.basis.columns) <= 2 * BASIS


def worth_a_run(candidates: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (bytes, squared error) that no other candidate beats in both."""
    order = sorted(range(len(candidates)), key=lambda i: candidates[i])
    kept: list[int] = []
    for i in order:
        if not kept or candidates[i][1] < candidates[kept[-1]][1]:
            kept.append(i)
    return sorted(kept)


def cost(made: Codec, values: F32) -> tuple[float, float]:
    """Mean bytes of a frame and mean squared error of coding ``values`` [n, ..., C]."""
    payloads = [codec.encode(np.ascontiguousarray(x), made) for x in values]
    wrong = [float(((codec.decode(p, made, x.shape) - x) ** 2).mean()) for p, x in zip(payloads, values, strict=True)]
    return float(np.mean([len(p) for p in payloads])), float(np.mean(wrong))
