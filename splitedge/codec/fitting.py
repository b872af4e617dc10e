"""Codecs fitted to sample tensors, the `FAMILIES`:

- a clip rule of `clip` (`RULES`, `PUBLISHED`); with ``-channel``, one range for each channel.
- ``minmax-frame``, ``minmax-token``: least and greatest value of each frame, or of each row of its last axis.
- ``aciq-frame``, ``aciq-token``: ACIQ's Laplace range about 0, from the mean magnitude of the frame or row.
- ``mse-token``: the range of least squared error, relative to each row's span or to its mean magnitude, the better of
  both.
- ``lloyd-max``, ``lloyd-max-channel``: a codebook of least squared error at 2 and 3 bits, shifted and scaled for each
  channel.
- ``hadamard``: blocks of channels are multiplied by a Hadamard matrix, which makes them alike and nearly Gaussian. Then
  a codebook at 2 and 3 bits, equal steps from 4 bits. ``hadamard-token`` also scales by the mean magnitude of each row.
- ``entropy``: one step for all channels and an entropy stage. Wide channels get more bits, as in rate-distortion
  theory.
- ``pca``: the same for principal components; components that would get no bits are dropped.

The codes of the last two have 8 bits. At ``bits`` b they are fitted so that a frame takes b bits a value in all.

`FLOAT` sends float16 or float32 values, at 16 or 32 bits, and needs no fit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import ArrayLike, NDArray

from kernels import reference
from splitedge import errors, limits
from splitedge.codec import clip
from splitedge.codec.clip import PUBLISHED, RULES
from splitedge.codec.payload import encode, lanes, refuse_values
from splitedge.codec.prepared import BITS, CODEBOOKS, FLOATS, FREQUENCIES, ROTATIONS, prepare
from splitedge.protocol.messages import Basis, Codec

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
AtRate = Callable[[str, float], Codec]  # from the name of the family and the bits of a value

CHANNEL: Final = "-channel"
FLOAT: Final = "float"
#: About the number of values in the fit of `mse-token`, in evenly spaced rows.
_VALUES: Final = 400_000
#: Most rows, evenly spaced, in the fit of an entropy stage, and in the search for its step.
_ROWS: Final = 8192
_SEARCHED: Final = 1024
#: Most tables that the channels share, and least values behind a table; fewer would overfit.
_TABLES: Final = 32
_COUNTED: Final = 4096
#: Most codes on either side of a channel's mean; wider channels get wider steps.
_REACH: Final = 127
#: Components with a smaller deviation, in steps, would get no bits.
_SILENT: Final = 0.3
_CLOSE: Final = 1e-3  # bits of a value within which the search for the step ends
_TRIES: Final = 16  # most iterations of that search
_LEAST_RATE: Final = 0.25
_OTHERS: Final = 32  # held-out samples whose payloads are measured
#: Clip value of a channel over its greatest value in the samples.
_HEADROOM: Final = 1.5


def fit_samples(samples: ArrayLike, family: str, bits: float) -> Codec:
    """A codec for tensors like ``samples`` [n, ..., C].

    ``family`` is one of `FAMILIES`, at ``bits`` 2..8 (any fraction from 0.25 for those of `CODED`), or `FLOAT` at 16 or
    32. Raises for NaN, infinity or no samples, for an unknown family or width, and for a codebook at a width without
    one.
    """
    _check_request(family, bits)
    with np.errstate(over="ignore"):
        values = np.asarray(samples).astype(np.float32)
    if values.ndim == 0 or not values.size:
        raise errors.CodecError("no value to fit a codec to; calibrate with at least one sample", reason="no-values")
    clip.refuse_nonfinite(values, "the calibration samples and the model")
    if family == FLOAT:
        return Codec(FLOAT, int(bits), (0.0,), (1.0,))
    made = _to_rate(values, family, bits) if family in CODED else _PACKED[family](_rows(values), family, int(bits))
    prepare(made)
    return made


def _check_request(family: str, bits: float) -> None:
    if family not in (*FAMILIES, FLOAT):
        raise errors.CodecError(
            f"unknown codec {family!r}; choose one of {', '.join((*FAMILIES, FLOAT))}",
            reason="unknown-codec",
            family=family,
        )
    known = bits in FLOATS if family == FLOAT else bits in BITS
    if not known and not (family in CODED and _LEAST_RATE <= bits <= BITS[-1]):
        wanted = "16 or 32" if family == FLOAT else f"{BITS[0]} to {BITS[-1]}, or the codec {FLOAT!r} at 16 or 32"
        raise errors.CodecError(
            f"the codec {family!r} does not support {bits:g} bits; choose {wanted}", reason="bits", bits=bits
        )


def _rows(values: F32) -> F64:
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def _to_rate(values: F32, family: str, bits: float) -> Codec:
    """A codec of a family of `CODED`.

    Its tables favour the samples of the fit, so a held-out quarter measures the true rate and corrects for it.
    """
    size = math.prod(values.shape[1:])
    held = np.arange(len(values)) % 4 == min(3, len(values) - 1)
    rate = max(bits - 24 * lanes(size) / size, bits / 2)
    if len(values) > 1:
        most, others = CODED[family](_rows(values[~held]))(family, rate), values[held][:_OTHERS]
        taken = 8 * sum(len(encode(x, most)) for x in others) / others.size
        rate *= min(1.0, bits / taken)
    return CODED[family](_rows(values))(family, rate)


def _clipped(rows: F64, family: str, bits: int) -> Codec:
    rule = family.removesuffix(CHANNEL)
    parts = rows.T if family.endswith(CHANNEL) else [rows]
    grids = [clip.grid(*clip.clip_range(clip.distribution(part), rule, bits), bits) for part in parts]
    return Codec(family, bits, tuple(float(lo) for lo, _ in grids), tuple(float(scale) for _, scale in grids))


def _own_range(_: F64, family: str, bits: int) -> Codec:
    scope: Any = "tensor" if family.endswith("frame") else "token"
    top = (1 << bits) - 1
    if family.startswith("minmax"):
        return Codec(family, bits, (0.0,), (_single(1 / top),), dynamic=scope)
    wide = clip.laplace_factor(bits)
    return Codec(family, bits, (_single(-wide),), (_single(2 * wide / top),), dynamic=scope, span="mean")


def _own_least_error(rows: F64, family: str, bits: int) -> Codec:
    some = rows[:: -(-rows.size // _VALUES)].astype(np.float32)
    spans: tuple[Literal["range", "mean"], ...] = ("range", "mean")
    return min((_within_own(some, family, bits, span) for span in spans), key=operator.itemgetter(0))[1]


def _within_own(rows: F32, family: str, bits: int, span: Literal["range", "mean"]) -> tuple[float, Codec]:
    """The codec with the range of least squared error relative to each row's ``span``, and that error.

    Raises for rows whose span exceeds float32.
    """
    with np.errstate(over="ignore"):
        side = reference.codec_side(rows, span == "range").astype(np.float64)
    if not np.isfinite(side).all():
        refuse_values(rows)
    offset, size = side[:, :1], side[:, 1:]
    live = size[:, 0] > 0
    peak = float(size.max())
    if not live.any():  # constants: the offset is the value
        return 0.0, Codec(family, bits, (0.0,), (_single(1 / ((1 << bits) - 1)),), dynamic="token", span=span)
    alike = ((rows[live] - offset[live]) / size[live]).astype(np.float32)
    weights = np.broadcast_to((size[live] / peak) ** 2, alike.shape)
    lo, scale = clip.grid(*clip.clip_range(clip.distribution(alike, weights), "mse", bits), bits)
    error = peak**2 * clip.squared_error(alike, weights, np.array([lo]), np.array([scale]), bits)
    return error, Codec(family, bits, (float(lo),), (float(scale),), dynamic="token", span=span)


def _codebook(rows: F64, family: str, bits: int) -> Codec:
    return _normal(rows if family.endswith(CHANNEL) else rows.reshape(-1, 1), family, bits)


def _rotated(rows: F64, family: str, bits: int) -> Codec:
    size = rotation_of(rows.shape[1])
    turned = reference.codec_rotate(rows.astype(np.float32), size).astype(np.float64) if size else rows
    if family.endswith("token"):
        magnitude = np.abs(turned).mean(axis=1, keepdims=True)
        turned = turned / np.where(magnitude > 0, magnitude, 1.0)
    made = replace(_normal(turned, family, bits), rotation=size)
    return replace(made, dynamic="token", span="mean") if family.endswith("token") else made


def rotation_of(channels: int) -> int:
    """The largest Hadamard block that divides ``channels``; 0 if none does."""
    return max((size for size in ROTATIONS if channels % size == 0), default=0)


def _normal(rows: F64, family: str, bits: int) -> Codec:
    """Channels normalized to mean 0 and deviation 1, with levels fitted to all of them together."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    alike = ((rows - mean) / np.where(deviation > 0, deviation, 1.0))[:, deviation > 0]
    known = clip.distribution(alike[:: max(1, alike.size // 400_000)] if alike.size else np.zeros(1))
    if bits in CODEBOOKS:
        levels = _singles(lloyd_max(known, 1 << bits))
        return Codec(family, bits, _singles(mean), _singles(deviation), levels=levels)
    lo, hi = clip.clip_range(known, "mse", bits)
    return Codec(family, bits, _singles(mean + lo * deviation), _singles((hi - lo) / ((1 << bits) - 1) * deviation))


def lloyd_max(known: clip.Distribution, count: int) -> F64:
    """``count`` ascending levels of least squared error for a distribution, by Lloyd's algorithm from its quantiles."""
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
    """The steps of the channels [C], the reach of their codes on either side of the mean, the index of their tables,
    the tables, and bits of a value.
    """

    step: F64
    reach: I64
    table: I64
    tables: list[list[int]]
    bits: float


def _entropy_coded(rows: F64) -> AtRate:
    some = rows[:: -(-len(rows) // _ROWS)]
    mean = some.mean(axis=0)
    centred = some - mean
    return lambda family, rate: _stepped(family, mean, _steps(centred, rate))


def _components(rows: F64) -> AtRate:
    """As `_entropy_coded`, for principal components with columns of 16-bit integers."""
    channels = rows.shape[1]
    if channels**2 > limits.MAX_BASIS:
        raise errors.CodecError(
            f"{channels} channels are too many for principal components; choose another codec",
            reason="too-many-channels",
            channels=channels,
        )
    centre = rows.mean(axis=0).astype(np.float32)
    centred = rows - centre
    _, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    columns = np.rint(vectors[:, ::-1] * (32767 / np.abs(vectors).max(axis=0)[::-1])).astype("<i2")
    lengths = np.sqrt((columns.astype(np.float64) ** 2).sum(axis=0))
    turned = centred[:: -(-len(rows) // _ROWS)] @ (columns / lengths)
    deviations = turned.std(axis=0)

    def at_rate(family: str, rate: float) -> Codec:
        silent = deviations <= _SILENT * _steps(turned, rate).step
        kept = max(1, int(silent.argmax()) if silent.any() else channels)
        found = _steps(turned[:, :kept], rate * channels / kept)
        made = _stepped(family, np.zeros(kept), found, lengths[:kept])
        basis = Basis(tuple(float(v) for v in centre), np.ascontiguousarray(columns[:, :kept]).tobytes())
        return replace(made, basis=basis)

    return at_rate


def _stepped(family: str, mean: F64, found: _Steps, lengths: F64 | float = 1.0) -> Codec:
    step = found.step * lengths
    lo = mean * lengths - found.reach * step
    tables = tuple(map(tuple, found.tables))
    return Codec(family, 8, _singles(lo), _singles(step), tables=tables, table=tuple(found.table.tolist()))


def _steps(values: F64, rate: float) -> _Steps:
    """The step at which ``values`` [n, C] of mean 0 take ``rate`` bits each, and its tables.

    Halving a narrow step costs one bit, halving a wide step less, so each iteration comes closer.
    """
    few = values[:: -(-len(values) // _SEARCHED)]
    step = max(float(values.std(axis=0).mean()), 1e-30) * 2.0 ** (2 - rate)
    for _ in range(_TRIES):
        over = _tabled(few, step).bits - rate
        if abs(over) <= _CLOSE:
            break
        step *= 2.0**over
    return _tabled(values, step)


def _tabled(values: F64, least: float) -> _Steps:
    """Tables for steps of ``least``, or wider for a channel with too many.

    Channels of similar deviation share a table.
    """
    channels = values.shape[1]
    peaks, deviations = _HEADROOM * np.abs(values).max(axis=0), values.std(axis=0)
    step = np.maximum(least, peaks / _REACH)
    steps_away = np.rint(peaks / step).astype(np.int64)
    groups = np.array_split(
        np.argsort(deviations / step, kind="stable"), min(_TABLES, channels, max(1, values.size // _COUNTED))
    )
    reach, table, tables, bits = np.zeros(channels, np.int64), np.zeros(channels, np.int64), [], 0.0
    for index, group in enumerate(groups):
        own = int(steps_away[group].max())
        reach[group], table[group] = own, index
        codes = np.clip(np.rint(values[:, group] / step[group]), -own, own).astype(np.int64) + own
        counts = np.bincount(codes.reshape(-1), minlength=2 * own + 1)
        tables.append(frequencies(counts))
        bits -= float(counts @ np.log2(np.array(tables[-1]) / FREQUENCIES))
    return _Steps(step, reach, table, tables, bits / values.size)


def frequencies(counts: I64) -> list[int]:
    """``counts`` in proportion, as integers of at least 1 with the sum `FREQUENCIES`.

    The commonest code gets the remainder of the rounding.
    """
    shares = 1 + counts.astype(np.int64) * (FREQUENCIES - len(counts)) // max(1, int(counts.sum()))
    shares[int(counts.argmax())] += FREQUENCIES - int(shares.sum())
    return [int(share) for share in shares]


def _single(value: float) -> float:
    return float(np.float32(value))


def _singles(values: F64) -> tuple[float, ...]:
    with np.errstate(over="ignore"):
        return tuple(values.astype(np.float32).tolist())


Fit = Callable[[F64, str, int], Codec]
#: The fits behind `fit_samples`.
_PACKED: Final[dict[str, Fit]] = {
    **{rule + scope: _clipped for rule in RULES + PUBLISHED for scope in ("", CHANNEL)},
    **dict.fromkeys(("minmax-frame", "minmax-token", "aciq-frame", "aciq-token"), _own_range),
    "mse-token": _own_least_error,
    **dict.fromkeys(("lloyd-max", "lloyd-max-channel"), _codebook),
    **dict.fromkeys(("hadamard", "hadamard-token"), _rotated),
}
#: Families fitted to a rate. The call with the values does the work that all rates share.
CODED: Final[dict[str, Callable[[F64], AtRate]]] = {"entropy": _entropy_coded, "pca": _components}
FAMILIES: Final = (*_PACKED, *CODED)
