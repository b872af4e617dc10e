"""The planner's table of a bundle. It is the same for every device, so its patterns are kept in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from calibration.accuracy import trials
from calibration.bundle.bundle import Bundle
from edge_server.planner import (
    CutCodec,
    CutOption,
    Level,
    Pattern,
    Table,
    WeightLayer,
    best_patterns,
    make_pattern,
    precompute,
    tabulate,
)
from edge_server.store.store import Store
from splitedge.head.segment import Header, needed, reveals_input
from splitedge.protocol import frames

#: Accuracy drops, in points, that have patterns; a demand is rounded down to one of them.
DROPS: Final = (
    *(0.01, 0.02, 0.05),
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.3, 4.0, 4.5, 5.0, 6.0, 7.0, 8.5),
    *(10.0, 15.0, 20.0, 50.0, 100.0),
)

#: Increase it if the search finds other patterns for the same levels, layers and codecs: it invalidates stored ones.
_SEARCH_VERSION: Final = 2
_HASH_BYTES: Final = hashlib.sha256().digest_size


def build_table(bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Table:
    """The patterns of every offered cut at every level; ``progress`` as in `precompute`.

    Raises `errors.UsageError` if no bit widths keep the loosest level.
    """
    return precompute(bundle.name, _cut_options(bundle), accuracy_levels(bundle), progress)


def load_or_build_table(store: Store, bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Table:
    """As `build_table`, from the patterns in ``store``. Missing, damaged or outdated ones are computed and stored."""
    options, levels = _cut_options(bundle), accuracy_levels(bundle)
    source = _source_hash(options, levels)
    patterns = _unpack(store.patterns.get(bundle.sha256), source, options)
    if patterns is None:
        patterns = best_patterns(options, levels, progress)
        store.patterns.put(bundle.sha256, _pack(patterns, source))
    return tabulate(bundle.name, options, levels, patterns)


def accuracy_levels(bundle: Bundle) -> list[Level]:
    """For each of `DROPS` the noise that the accuracy model allows; equal levels are merged."""
    rising: list[Level] = []
    for drop in DROPS:
        noise = bundle.accuracy.within(drop)
        if noise > (rising[-1].noise if rising else 0.0):
            rising.append(Level(drop, noise))
    return rising


def _cut_options(bundle: Bundle) -> list[CutOption]:
    return [_cut_option(bundle, cut, bundle.header(cut)) for cut in bundle.offered]


def _cut_option(bundle: Bundle, index: int, header: Header) -> CutOption:
    """The offered cut ``index``, whose head has ``header``, for the planner."""
    cut, noise = bundle.cuts[index], bundle.cut_noises[index]
    inside = [bundle.layers[name] for name in bundle.weight_layers(index)]
    return CutOption(
        cut=cut,
        layers=tuple(
            WeightLayer(layer.name, layer.weights, tuple(layer.noises), tuple(layer.coded_bytes)) for layer in inside
        ),
        codecs=tuple(
            CutCodec(one.rule, one.bits, frames.HEADER_BYTES + one.payload, trials.codec_noise(noise, one), one.work)
            for one in noise.codecs
        ),
        tail_ms=bundle.tail_ms[index],
        memory_bytes=header.arena_bytes + sum(layer.weights for layer in inside),
        inside=frozenset({cut.layer, *(op.name for op in header.ops)}),
        is_input=reveals_input(header),
        operators=needed(header),
        other_bytes=bundle.other_bytes[index],
        noise=trials.head_noise(noise, [layer.noise for layer in inside]),
    )


def _source_hash(options: Sequence[CutOption], levels: Sequence[Level]) -> bytes:
    """SHA-256 of everything that the patterns depend on."""
    inputs = [(option.cut.kind, option.noise, option.layers, option.codecs) for option in options]
    return hashlib.sha256(msgspec.msgpack.encode((_SEARCH_VERSION, levels, inputs))).digest()


def _pack(patterns: Sequence[Pattern], source: bytes) -> bytes:
    """A hash over ``source`` and the body; the body holds the option and the bits of each pattern."""
    body = msgspec.msgpack.encode([(one.option, bytes(one.bits)) for one in patterns])
    return hashlib.sha256(source + body).digest() + body


def _unpack(data: bytes | None, source: bytes, options: Sequence[CutOption]) -> list[Pattern] | None:
    """The patterns that `_pack` wrote; None if they are missing, damaged, or made from something else."""
    if data is None or hashlib.sha256(source + data[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
        return None
    found = msgspec.msgpack.decode(data[_HASH_BYTES:], type=list[tuple[int, bytes]])
    return [make_pattern(index, options[index], tuple(bits)) for index, bits in found]
