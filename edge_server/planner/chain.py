"""A model over a chain of boards and the server: the problem and its answer. `route_search` solves it.

    total   = sum over the boards used of work + sum over the links used of (frame bytes / uplink + round trip)
              + queue + tail
    work    = span + values x ns of each stage of the codec that arrives and of the codec that is sent
    pace    = the slowest work, sending or tail, or total / window: at most `window` frames are in progress
    noise   = codecs of the links used + head and weights up to the last integer cut

A span is one board's time from unpacking its input to the packed payload that it sends. The stages of a codec besides
packing take as long to decode as to encode. Boards compute in the order of the chain. A link may skip a board. Without
such a link, a board may pass a tensor on unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_server.planner.allocation import CutCodec
from edge_server.planner.demands import PowerDraw, check_demand, check_keep
from edge_server.planner.patterns import CutOption, Level
from splitedge import errors, limits
from splitedge.codec import STAGES
from splitedge.protocol.messages import Demand, LinkEstimate, Objective

F64 = NDArray[np.float64]

INPUT = -1  # stands for the model's input where an option's index is expected


@dataclass(frozen=True, slots=True, eq=False)
class ChainBoard:
    """A board of a chain.

    ``span_ms[a + 1, b]``: its time from option a (row 0: from the model's input) to option b, with unpacking and
    packing; infinite if it cannot compute that. ``memory_bytes``: free; None: unknown, not checked. ``stage_ns``:
    nanoseconds a value for each of `codec.STAGES`, to encode or decode.
    """

    span_ms: F64
    memory_bytes: int | None = None
    stage_ns: tuple[float, ...] = (0.0,) * len(STAGES)

    def coding_ms(self, codec: CutCodec) -> float:
        """The time of the stages of ``codec`` besides packing, or besides unpacking."""
        return sum(1e-6 * amount * self.stage_ns[STAGES.index(stage)] for stage, amount in codec.work.items())


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A model, a demand, and the boards that may share the model.

    ``links[i, j]``: from board i to a later board j, or to the server if j is the number of boards. ``span_bytes``:
    memory for each span, indexed as `ChainBoard.span_ms`. ``levels``: accuracy levels, rising. ``tail_ms[i]``: the
    server's time behind option i. ``window``: frames under way at once. ``spread``: every board and the server must
    compute a part.
    """

    model: str
    options: tuple[CutOption, ...]
    levels: tuple[Level, ...]
    demand: Demand
    objective: Objective
    boards: tuple[ChainBoard, ...]
    links: Mapping[tuple[int, int], LinkEstimate]
    span_bytes: F64
    tail_ms: tuple[float, ...]
    queue_ms: float = 0.0
    window: int = limits.WINDOW
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """One board's part, and the link behind it.

    ``board`` computes from option ``start`` (or `INPUT`) to option ``end`` and sends the result by that option's
    ``codec`` to the board ``to``, or to the server if that is the number of boards. ``codec`` and ``to`` are None if
    the board makes the answer. ``work_ms``: the span and the stages of both codecs. ``sending_ms``: bytes over the
    uplink.
    """

    board: int
    start: int
    end: int
    codec: int | None
    to: int | None
    work_ms: float
    sending_ms: float
    rtt_ms: float


@dataclass(frozen=True, slots=True)
class Route:
    """The hops of the boards used, in order.

    ``bits``: of the weight layers up to the last option. ``server_ms``: of the tail, without the queue; 0 if nothing is
    sent to the server.
    """

    hops: tuple[Hop, ...]
    bits: tuple[int, ...]
    queue_ms: float
    server_ms: float
    total_ms: float
    pace_ms: float
    noise: float


def work_ms(span: float, decode: float, encode: float) -> float:
    """A board's work, summed in one order: a bound must be met to the last bit by the work that defines it."""
    return span + decode + encode


def sending_ms(size: int, link: LinkEstimate) -> float:
    """The time of ``size`` bytes over the uplink."""
    return size * 8e-3 / link.uplink_mbps


def check_chain(chain: Chain) -> None:
    """Raise `errors.UsageError` for an inconsistent chain or an invalid demand."""
    names = sorted(set().union(*(option.inside for option in chain.options)))
    for link in chain.links.values():
        check_demand(chain.model, chain.demand, link, PowerDraw(), names)
    check_keep(chain.model, chain.demand, [option.cut for option in chain.options])
    if chain.demand.mode != "any":
        raise errors.UsageError(
            f"mode = {chain.demand.mode!r}, but boards in a chain need mode any: leave it out", reason="mode"
        )
    _check_shapes(chain)
    count = len(chain.boards)
    if not chain.links:
        raise errors.UsageError(
            f"the chain has no links: link each board to a later one or to the server, {count}", reason="links"
        )
    for i, j in chain.links:
        if not 0 <= i < j <= count:
            raise errors.UsageError(
                f"the chain has a link from {i} to {j}: link each board to a later one or to the server, {count}",
                reason="links",
            )


def _check_shapes(chain: Chain) -> None:
    shape = (len(chain.options) + 1, len(chain.options))
    if not chain.boards or any(board.span_ms.shape != shape for board in chain.boards):
        shapes = [board.span_ms.shape for board in chain.boards]
        raise errors.UsageError(
            f"the boards' span_ms have shapes {shapes}: pass one board or more, each with {shape}", reason="devices"
        )
    for board in chain.boards:
        if len(board.stage_ns) != len(STAGES) or not all(ns >= 0 for ns in board.stage_ns):
            raise errors.UsageError(
                f"stage_ns is {list(board.stage_ns)}: pass a number of 0 or more for each of {', '.join(STAGES)}",
                reason="stage-times",
            )
    if len(chain.tail_ms) != len(chain.options) or chain.span_bytes.shape != shape or chain.window < 1:
        raise errors.UsageError(
            f"the chain has {len(chain.tail_ms)} tail times, span_bytes of shape {chain.span_bytes.shape} and window "
            f"{chain.window}: pass {len(chain.options)} times, shape {shape} and a window of 1 or more",
            reason="tails-and-memory",
        )
