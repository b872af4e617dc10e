"""Codecs fitted to whole tensors: what a range for each value cannot say, such as a rotation, or steps that share bits among channels.

- a clip rule of `clip` (`RULES`, `PUBLISHED`), and with ``-channel`` the same for each channel;
- ``minmax-frame``, ``minmax-token``: least and greatest value of each frame, or of each row of its last axis;
- ``aciq-frame``, ``aciq-token``: ACIQ's Laplace range about 0 from the frame's, or the row's, own mean magnitude;
- ``lloyd-max``, ``lloyd-max-channel``: the codebook of least squared error at 2 and 3 bits, moved and scaled to each channel;
- ``hadamard``: channels in blocks through a Hadamard matrix, which makes them alike and nearly Gaussian, then such a codebook, or equal steps from 4
  bits on; ``hadamard-token`` scales it by the mean magnitude of each row;
- ``entropy``: one step for all channels and an entropy stage, so that bits go where values are wide, as rate-distortion theory has it;
- ``pca``: the same for the principal components, of which those that would get no bits are left out.

At ``bits`` b the last two are fitted so that a frame takes b bits a value, whatever comes with it included; their codes are of 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent import errors, limits
from edge_agent.codec import clip
from edge_agent.codec.clip import PUBLISHED, RULES
from edge_agent.codec.payload import lanes
from edge_agent.codec.ready import BITS, CODEBOOKS, FREQUENCIES, ROTATIONS, prepare
from edge_agent.protocol.messages import Basis, Codec
from kernels import reference

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CHANNEL: Final = "-channel"
#: Rows to which an entropy stage is fitted at most, evenly spread.
_ROWS: Final = 8192
#: Tables that the channels share, at most, and values that one must have been counted from: else it fits these samples and no others.
_TABLES: Final = 32
_COUNTED: Final = 4096
#: Codes on either side of a channel's mean; where steps would be more, they are wider.
_REACH: Final = 127
#: Of a step: components that deviate less would get no bits.
_SILENT: Final = 0.3
_HALVINGS: Final = 18
_LEAST_RATE: Final = 0.25


def fit_samples(samples: ArrayLike, family: str, bits: float) -> Codec:
    """The codec of ``family``, one of `FAMILIES`, at ``bits`` 2..8 (any fraction from 0.25 on for those of `CODED`) for tensors like ``samples`` [n, ..., C].

    Raises for NaN, infinity and no samples at all, for an unknown family or width, and for a codebook at a width that has none.
    """
    if family not in FAMILIES:
        raise errors.CodecError(f"there is no codec {family!r}; choose one of {', '.join(FAMILIES)}")
    if bits not in BITS and not (family in CODED and _LEAST_RATE <= bits <= BITS[-1]):
        raise errors.CodecError(f"{bits} bits cannot be had at the cut; choose {BITS[0]} to {BITS[-1]}")
    with np.errstate(over="ignore"):
        values = np.asarray(samples).astype(np.float32)
    if values.ndim == 0 or not values.size:
        raise errors.CodecError("there is no value to fit a codec to; calibrate with at least one sample")
    clip.refuse_nonfinite(values, "the calibration samples and the model")
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    made = (
        CODED[family](rows, family, _rate(values.shape, bits))
        if family in CODED
        else _PACKED[family](rows, family, int(bits))
    )
    prepare(made)
    return made


def _rate(shape: tuple[int, ...], bits: float) -> float:
    """Bits of a code, so that with the states of the entropy stage a frame takes ``bits`` a value."""
    size = math.prod(shape[1:])
    return max(bits - 24 * lanes(size) / size, bits / 2)


def _clipped(rows: F64, family: str, bits: int) -> Codec:
    rule = family.removesuffix(CHANNEL)
    parts = rows.T if family.endswith(CHANNEL) else [rows]
    grids = [clip.grid(*clip.clip_range(clip.distribution(part), rule, bits), bits) for part in parts]
    return Codec(family, bits, [float(lo) for lo, _ in grids], [float(scale) for _, scale in grids])


def _own_range(_: F64, family: str, bits: int) -> Codec:
    scope: Any = "tensor" if family.endswith("frame") else "token"
    top = (1 << bits) - 1
    if family.startswith("minmax"):
        return Codec(family, bits, [0.0], [_single(1 / top)], dynamic=scope)
    wide = clip.laplace_factor(bits)
    return Codec(family, bits, [_single(-wide)], [_single(2 * wide / top)], dynamic=scope, span="mean")


def _codebook(rows: F64, family: str, bits: int) -> Codec:
    return _normal(rows if family.endswith(CHANNEL) else rows.reshape(-1, 1), family, bits)


def _rotated(rows: F64, family: str, bits: int) -> Codec:
    size = rotation_of(rows.shape[1])
    turned = reference.codec_rotate(rows.astype(np.float32), size).astype(np.float64) if size else rows
    if family.endswith("token"):
        magnitude = np.abs(turned).mean(axis=1, keepdims=True)
        turned = turned / np.where(magnitude > 0, magnitude, 1.0)
    made = _normal(turned, family, bits)
    made.rotation = size
    if family.endswith("token"):
        made.dynamic, made.span = "token", "mean"
    return made


def rotation_of(channels: int) -> int:
    """The largest block that divides so many channels; 0 where none does."""
    return max((size for size in ROTATIONS if channels % size == 0), default=0)


def _normal(rows: F64, family: str, bits: int) -> Codec:
    """Each channel moved and scaled to mean 0 and deviation 1, then levels fitted to all of them together."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    alike = ((rows - mean) / np.where(deviation > 0, deviation, 1.0))[:, deviation > 0]
    known = clip.distribution(alike[:: max(1, alike.size // 400_000)] if alike.size else np.zeros(1))
    if bits in CODEBOOKS:
        levels = [float(np.float32(v)) for v in lloyd_max(known, 1 << bits)]
        return Codec(family, bits, _singles(mean), _singles(deviation), levels=levels)
    lo, hi = clip.clip_range(known, "mse", bits)
    return Codec(family, bits, _singles(mean + lo * deviation), _singles((hi - lo) / ((1 << bits) - 1) * deviation))


def lloyd_max(known: clip.Distribution, count: int) -> F64:
    """``count`` ascending levels of least squared error for a distribution, by Lloyd's rule from its quantiles."""
    weight, first = (np.concatenate(([0.0], np.cumsum(known.weights * known.values**k))) for k in range(2))
    places = np.searchsorted(weight[1:], (np.arange(count) + 0.5) / count * weight[-1])
    levels: F64 = known.values[np.minimum(places, len(known.values) - 1)]
    for _ in range(200):
        cuts = np.searchsorted(known.values, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate(([0], cuts, [len(known.values)]))
        inside, total = np.diff(weight[edges]), np.diff(first[edges])
        levels = np.maximum.accumulate(np.where(inside > 0, total / np.where(inside > 0, inside, 1.0), levels))
    return levels


# --- the entropy stage ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """Channels cut into steps [C]: how far codes reach on either side of the mean, their table, and the tables."""

    step: F64
    reach: I64
    table: I64
    tables: list[list[int]]


def _entropy_coded(rows: F64, family: str, rate: float) -> Codec:
    some = rows[:: -(-len(rows) // _ROWS)]
    mean = some.mean(axis=0)
    return _stepped(family, mean, _steps(some - mean, rate))


def _components(rows: F64, family: str, rate: float) -> Codec:
    """As `_entropy_coded`, of the principal components: their columns as 16-bit integers."""
    channels = rows.shape[1]
    if channels**2 > limits.MAX_BASIS:
        raise errors.CodecError(f"principal components of {channels} channels are too many; choose another codec")
    centre = rows.mean(axis=0).astype(np.float32)
    some = rows[:: -(-len(rows) // _ROWS)] - centre
    _, vectors = np.linalg.eigh((rows - centre).T @ (rows - centre) / len(rows))
    columns = np.rint(vectors[:, ::-1] * (32767 / np.abs(vectors).max(axis=0)[::-1])).astype("<i2")
    lengths = np.sqrt((columns.astype(np.float64) ** 2).sum(axis=0))
    turned = some @ (columns / lengths)
    silent = turned.std(axis=0) <= _SILENT * _steps(turned, rate).step
    kept = max(1, int(silent.argmax()) if silent.any() else channels)
    found = _steps(turned[:, :kept], rate * channels / kept)
    made = _stepped(family, np.zeros(kept), found, lengths[:kept])
    made.basis = Basis([float(v) for v in centre], np.ascontiguousarray(columns[:, :kept]).tobytes())
    return made


def _stepped(family: str, mean: F64, found: _Steps, lengths: F64 | float = 1.0) -> Codec:
    step = found.step * lengths
    lo = mean * lengths - found.reach * step
    return Codec(family, 8, _singles(lo), _singles(step), tables=found.tables, table=[int(t) for t in found.table])


def _steps(values: F64, rate: float) -> _Steps:
    """The step at which ``values`` [n, C] of mean 0 cost ``rate`` bits each, and its tables."""
    high = max(float(np.abs(values).max()), 1e-30) * 4
    low = high * 2.0**-24
    for _ in range(_HALVINGS):
        step = math.sqrt(low * high)
        low, high = (low, step) if _cost(_tabled(values, step), values) < rate else (step, high)
    return _tabled(values, high)


def _cost(found: _Steps, values: F64) -> float:
    """Bits of a value, by the tables."""
    codes = _codes(values[::4], found.step, found.reach)
    prices = [-np.log2(np.array(table) / FREQUENCIES) for table in found.tables]
    return float(np.mean([prices[t][codes[:, c]].mean() for c, t in enumerate(found.table)]))


def _codes(values: F64, step: F64, reach: I64 | int) -> I64:
    return np.clip(np.rint(values / step), -reach, reach).astype(np.int64) + reach


def _tabled(values: F64, least: float) -> _Steps:
    """Tables for steps of ``least``, or more where a channel would need too many; channels in order of their deviation share them."""
    channels = values.shape[1]
    peaks, deviations = np.abs(values).max(axis=0), values.std(axis=0)
    step = np.maximum(least, peaks / _REACH)
    steps_away = np.rint(peaks / step).astype(np.int64)
    groups = np.array_split(
        np.argsort(deviations / step, kind="stable"), min(_TABLES, channels, max(1, values.size // _COUNTED))
    )
    reach, table, tables = np.zeros(channels, np.int64), np.zeros(channels, np.int64), []
    for index, group in enumerate(groups):
        own = int(steps_away[group].max())
        reach[group], table[group] = own, index
        codes = _codes(values[:, group], step[group], own)
        tables.append(frequencies(np.bincount(codes.reshape(-1), minlength=2 * own + 1)))
    return _Steps(step, reach, table, tables)


def frequencies(counts: I64) -> list[int]:
    """``counts`` as integers of at least 1 that sum to `FREQUENCIES`, in proportion; what rounding leaves is the commonest code's."""
    shares = 1 + counts.astype(np.int64) * (FREQUENCIES - len(counts)) // max(1, int(counts.sum()))
    shares[int(counts.argmax())] += FREQUENCIES - int(shares.sum())
    return [int(share) for share in shares]


def _single(value: float) -> float:
    return float(np.float32(value))


def _singles(values: F64) -> list[float]:
    with np.errstate(over="ignore"):
        return [float(v) for v in values.astype(np.float32)]


Fit = Callable[[F64, str, int], Codec]
#: What `fit_samples` knows.
_PACKED: Final[dict[str, Fit]] = {
    **{rule + scope: _clipped for rule in RULES + PUBLISHED for scope in ("", CHANNEL)},
    **dict.fromkeys(("minmax-frame", "minmax-token", "aciq-frame", "aciq-token"), _own_range),
    **dict.fromkeys(("lloyd-max", "lloyd-max-channel"), _codebook),
    **dict.fromkeys(("hadamard", "hadamard-token"), _rotated),
}
#: And what is fitted to a rate.
CODED: Final[dict[str, Callable[[F64, str, float], Codec]]] = {"entropy": _entropy_coded, "pca": _components}
FAMILIES: Final = (*_PACKED, *CODED)
