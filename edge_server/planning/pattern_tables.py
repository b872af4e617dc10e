"""From a bundle to the planner's table of patterns: the same for every device, so it is made once, and its patterns are kept in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from calibration.accuracy import trials
from calibration.bundle.bundle import Bundle
from edge_server.planner import (
    CutCodec,
    Layer,
    Level,
    Pattern,
    Place,
    Table,
    best_patterns,
    pattern_of,
    precompute,
    tabulate,
)
from edge_server.store.store import Store
from splitedge.head.segment import Header, only_moves
from splitedge.protocol import frames

#: Points of accuracy drop for which patterns are made: what is asked for is rounded down to one of them.
DROPS: Final = (
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.3,
    4.0, 4.5, 5.0, 6.0, 7.0, 8.5, 10.0, 15.0, 20.0, 50.0, 100.0,
)  # fmt: skip


#: Raised where the same levels, layers and codecs come to have other patterns than those that stores keep.
_SEARCH: Final = 1
_HASH_BYTES: Final = hashlib.sha256().digest_size


def table_of(bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Table:
    """The patterns of every offered cut at every level. Raises `errors.UsageError` where the model's answers bear no noise at all."""
    return precompute(bundle.name, _places(bundle), levels_of(bundle), progress)


def kept_table(store: Store, bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Table:
    """`table_of`, from the patterns in ``store``; where it holds none, or those of something else, they are found and kept there."""
    places, levels = _places(bundle), levels_of(bundle)
    source = _source(places, levels)
    patterns = _unpack(store.patterns(bundle.sha256), source, places)
    if patterns is None:
        patterns = best_patterns(places, levels, progress)
        store.put_patterns(bundle.sha256, _pack(patterns, source))
    return tabulate(bundle.name, places, levels, patterns)


def _places(bundle: Bundle) -> list[Place]:
    return [place_of(bundle, cut, bundle.header(cut)) for cut in bundle.offered]


def _source(places: Sequence[Place], levels: Sequence[Level]) -> bytes:
    """Hash of all that patterns are made from."""
    made_from = _SEARCH, levels, [(place.cut.kind, place.noise, place.layers, place.codecs) for place in places]
    return hashlib.sha256(msgspec.msgpack.encode(made_from)).digest()


def _pack(patterns: Sequence[Pattern], source: bytes) -> bytes:
    """A hash over ``source`` and what follows; then the place and the bits of each pattern, from which all else is told."""
    body = msgspec.msgpack.encode([(one.place, bytes(one.bits)) for one in patterns])
    return hashlib.sha256(source + body).digest() + body


def _unpack(data: bytes | None, source: bytes, places: Sequence[Place]) -> list[Pattern] | None:
    """The patterns that `_pack` wrote; None for what is damaged, or was made from something else."""
    if data is None or hashlib.sha256(source + data[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
        return None
    found = msgspec.msgpack.decode(data[_HASH_BYTES:], type=list[tuple[int, bytes]])
    return [pattern_of(index, places[index], tuple(bits)) for index, bits in found]


def levels_of(bundle: Bundle) -> list[Level]:
    """For each of `DROPS` the noise that the accuracy model lets it have."""
    found = [Level(drop, bundle.accuracy.within(drop)) for drop in DROPS]
    rising: list[Level] = []
    for level in found:
        if level.noise > (rising[-1].noise if rising else 0.0):
            rising.append(level)
    return rising


def place_of(bundle: Bundle, index: int, header: Header) -> Place:
    """An offered cut, whose head has ``header``, as the planner sees it."""
    cut, noise = bundle.cuts[index], bundle.cut_noises[index]
    inside = [bundle.layers[name] for name in bundle.weight_layers(index)]
    return Place(
        cut=cut,
        layers=tuple(
            Layer(layer.name, layer.weights, tuple(layer.noises), tuple(layer.coded_bytes)) for layer in inside
        ),
        codecs=tuple(
            CutCodec(one.rule, one.bits, frames.HEADER_BYTES + one.payload, trials.codec_noise(noise, one), one.work)
            for one in noise.codecs
        ),
        tail_ms=bundle.tail_ms[index],
        memory_bytes=header.arena_bytes + sum(layer.weights for layer in inside),
        inside=frozenset({cut.layer, *(op.name for op in header.ops)}),
        is_input=only_moves(header),
        other_bytes=bundle.other_bytes[index],
        noise=trials.head_noise(noise, [layer.noise for layer in inside]),
    )
