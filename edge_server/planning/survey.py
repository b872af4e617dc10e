"""Where it pays to split a model: the best of board, server and split for several boards, links and demands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from device_profiles import DeviceProfile
from device_profiles.schema import Pace, is_measured
from edge_server.planner import CutCodec, Pick, Query, Table, choose
from edge_server.planning.catalog import Catalog
from edge_server.planning.device_plan import query_for, request_of
from splitedge import errors
from splitedge.protocol.messages import IMAGE_FORMATS, Demand, LinkEstimate, Mode

#: Uplinks in Mbit/s that a survey compares, if no link is given.
UPLINKS: Final = (1.0, 4.0, 16.0, 64.0, 256.0)
#: The round trip in ms of these links.
ROUND_TRIP: Final = 20.0
_ENDS: Final[tuple[Pace, ...]] = ("fast", "slow")
MODES: Final[tuple[Mode, ...]] = ("device", "split", "server")

Winner: TypeAlias = Literal["device", "split", "server", ""]


class Way(msgspec.Struct):
    """The best plan of one ``mode``: milliseconds and bytes of a frame, joules on the board, and the objective.

    ``codec``: what is sent, by the rule of an image file, else by its bits; empty if nothing is sent.
    """

    mode: Mode
    cut: str
    ms: float
    payload_bytes: int
    energy_j: float
    server_ms: float
    objective: float
    codec: str = ""


class Case(msgspec.Struct):
    """A board on a link. ``ways``: the modes that meet the demand, best first.

    ``sure``: another mode wins nowhere in the band of the board's predicted times.
    """

    board: str
    link: LinkEstimate
    ways: list[Way]
    sure: bool = True

    @property
    def winner(self) -> Winner:
        """The best mode; empty if none meets the demand."""
        return self.ways[0].mode if self.ways else ""

    @property
    def gain(self) -> float:
        """By what factor splitting lowers the objective of the better of board and server; 1 if it does not win, or if
        nothing else meets the demand.
        """
        if self.winner != "split" or len(self.ways) < 2 or self.ways[0].objective <= 0:
            return 1.0
        return self.ways[1].objective / self.ways[0].objective

    @property
    def only(self) -> bool:
        """Whether splitting alone meets the demand."""
        return self.winner == "split" and len(self.ways) == 1


class Change(msgspec.Struct):
    """The cases of another demand. ``option``: the option of the command that asks for it; empty for the own one."""

    option: str
    cases: list[Case]


class Survey(msgspec.Struct):
    """``changes``: the demand as it was given, then others."""

    model: str
    demand: Demand
    changes: list[Change]

    @property
    def cases(self) -> list[Case]:
        return self.changes[0].cases


def survey(
    catalog: Catalog, model: str, boards: Mapping[str, DeviceProfile], links: Sequence[LinkEstimate], demand: Demand
) -> Survey:
    """The ways to run ``model`` on each of ``boards`` over each of ``links``, for ``demand`` and for other demands.

    Raises as `device_plan.choose_plan` does, except for demands that no plan meets.
    """
    bundle = catalog.bundle(model)
    table = catalog.table(bundle)
    paces: dict[tuple[str, Pace], Query] = {}
    for name, profile in boards.items():
        for pace in (profile.pace, *_other_ends(profile)):
            paced = msgspec.structs.replace(profile, pace=pace)
            request = request_of(model, paced, links[0], demand)
            paces[name, pace] = query_for(catalog, bundle, table, paced, request, None)

    def cases(wanted: Demand) -> Iterator[Case]:
        for name, profile in boards.items():
            for link in links:
                query = dataclasses.replace(paces[name, profile.pace], demand=wanted, link=link)
                found = Case(name, link, _ways(table.table, query))
                for end in _other_ends(profile):
                    ways = _ways(table.table, dataclasses.replace(paces[name, end], demand=wanted, link=link))
                    found.sure &= Case(name, link, ways).winner == found.winner
                yield found

    changes = [Change("", list(cases(demand)))]
    for option, other in others(demand, energy=all(_has_watts(profile) for profile in boards.values())):
        changes.append(Change(option, list(cases(other))))
    return Survey(model, demand, changes)


def others(demand: Demand, *, energy: bool) -> Iterator[tuple[str, Demand]]:
    """Demands that often change the choice, each with the option that asks for it.

    ``energy``: the boards' watts are known.
    """

    def weighted(**weights: float) -> Demand:
        return msgspec.structs.replace(demand, weights=msgspec.structs.replace(demand.weights, **weights))

    if demand.keep == "nothing":
        yield "--keep input", msgspec.structs.replace(demand, keep="input")
    if not demand.weights.megabyte:
        yield "--weight-megabyte 10", weighted(megabyte=10.0)
    if not demand.weights.cost:
        yield "--weight-cost 10", weighted(cost=10.0)
    if energy and not demand.weights.energy:
        yield "--weight-energy 1", weighted(energy=1.0)
    if demand.min_rate_fps is None:
        yield "--min-rate 30", msgspec.structs.replace(demand, min_rate_fps=30.0)


def _other_ends(profile: DeviceProfile) -> list[Pace]:
    """The ends of the band of a predicted profile, besides the one that it counts on."""
    return [] if is_measured(profile) else [end for end in _ENDS if end != profile.pace]


def _has_watts(profile: DeviceProfile) -> bool:
    return profile.power.load_watts is not None


def _ways(table: Table, query: Query) -> list[Way]:
    """The best plan of each mode that the demand allows, best first."""
    wanted: list[Mode] = [mode for mode in MODES if query.demand.mode in ("any", mode)]
    picks = {mode: _pick(table, query, mode) for mode in wanted}
    found = [_way(table, mode, pick) for mode, pick in picks.items() if pick is not None]
    return sorted(found, key=lambda way: (way.objective, MODES.index(way.mode)))


def _pick(table: Table, query: Query, mode: Mode) -> Pick | None:
    try:
        return choose(table, dataclasses.replace(query, demand=msgspec.structs.replace(query.demand, mode=mode)))
    except errors.InfeasibleError:
        return None


def _way(table: Table, mode: Mode, pick: Pick) -> Way:
    return Way(
        mode=mode,
        cut=table.options[pick.option].cut.layer,
        ms=pick.total_ms,
        payload_bytes=pick.payload_bytes,
        energy_j=pick.energy_j,
        server_ms=pick.server_ms,
        objective=pick.objective,
        codec="" if pick.codec is None else _sent(table.options[pick.option].codecs[pick.codec]),
    )


def _sent(codec: CutCodec) -> str:
    return codec.rule if codec.work.keys() & set(IMAGE_FORMATS) else f"{codec.bits} bits"
