"""From a bundle to the planner's table of patterns: the same for every device, so it is made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from calibration import trials
from calibration.bundle import Bundle
from edge_agent.head.segment import Header, only_moves
from edge_agent.protocol import frames
from edge_server.planner import CutCodec, Layer, Level, Place, Table, precompute

#: Points of accuracy drop for which patterns are made: what is asked for is rounded down to one of them.
DROPS: Final = (
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.3,
    4.0, 4.5, 5.0, 6.0, 7.0, 8.5, 10.0, 15.0, 20.0, 50.0, 100.0,
)  # fmt: skip


def table_of(bundle: Bundle, progress: Callable[[int, int], None] | None = None) -> Table:
    """The patterns of every offered cut at every level. Raises `errors.UsageError` where the model's answers bear no noise at all."""
    places = [place_of(bundle, cut, bundle.header(cut)) for cut in bundle.offered]
    return precompute(bundle.name, places, levels_of(bundle), progress)


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
            CutCodec(one.rule, one.bits, frames.HEADER_BYTES + one.payload, trials.codec_noise(noise, one), one.stages)
            for one in noise.codecs
        ),
        tail_ms=bundle.tail_ms[index],
        memory_bytes=header.arena_bytes + sum(layer.weights for layer in inside),
        inside=frozenset({cut.layer, *(op.name for op in header.ops)}),
        is_input=only_moves(header),
        other_bytes=bundle.other_bytes[index],
        noise=trials.head_noise(noise, [layer.noise for layer in inside]),
    )
