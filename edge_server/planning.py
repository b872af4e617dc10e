"""From a plan request to a plan: a `Problem` of the bundle, the profile and the link; the planner's choice; its segment; the message."""

from __future__ import annotations

import functools
import math
import secrets
import time

from calibration.accuracy import GridPoint
from calibration.bundle import Bundle
from device_profiles import schema
from edge_agent import errors, limits
from edge_agent.head.segment import Conv, Header, only_moves
from edge_agent.protocol.messages import PROTOCOL_VERSION, Codec, Demand, Plan, PlanRequest
from edge_server.catalog import Catalog
from edge_server.planner import Choice, Point, Power, Problem, Site, plan, verify_plan
from edge_server.planner.candidates import MODES, mode_of
from edge_server.tails import Handler, Tails
from edge_server.times import head_times


def make_plan(catalog: Catalog, request: PlanRequest, tails: Tails | None = None) -> Plan:
    """The plan for ``request``, stored and with its segment built. Blocks for as long as building a segment takes.

    ``tails``: those of this process, whose times and queue count; without them the bundle's times do.

    Raises `errors.UnknownModelError`, `errors.UsageError`, `errors.InfeasibleError`, `errors.ProtocolError` (versions, profile).
    """
    if request.protocol != PROTOCOL_VERSION:
        raise errors.ProtocolError(
            f"the agent speaks protocol {request.protocol} and this server {PROTOCOL_VERSION}: upgrade the older of the two"
        )
    profile = schema.from_dict(request.profile)
    bundle = catalog.bundle(request.model)
    problem = problem_of(catalog, bundle, profile, request, tails)
    choice = plan(problem)
    if faults := verify_plan(problem, choice):
        raise errors.PlanError(f"the planner contradicts itself ({'; '.join(faults)}): please report this")
    answer = _message(catalog, bundle, problem, choice, held=set(request.held))
    catalog.store.put_plan(answer)
    return answer


def problem_of(
    catalog: Catalog, bundle: Bundle, profile: schema.DeviceProfile, request: PlanRequest, tails: Tails | None = None
) -> Problem:
    """What the planner needs to know, as plain data."""
    headers = {index: bundle.header(index) for index in _allowed(bundle, request.demand)}
    segments = {ref.sha256: cut for (cut, _), ref in catalog.store.known_segments(bundle.sha256).items()}
    times = head_times(bundle, bundle.offered, profile, request.measured, segments)
    heads = dict(zip(bundle.offered, times, strict=True))
    queue = 0.0 if tails is None else tails.times.queue_ms()
    behind = dict(zip(bundle.offered, tail_times(catalog, bundle, tails), strict=True))
    return Problem(
        model=bundle.name,
        sites=tuple(
            _site(bundle, index, headers[index], heads[index], queue + behind[index]) for index in sorted(headers)
        ),
        points=tuple(expected(point) for point in bundle.grid),
        link=request.link,
        demand=request.demand,
        segment_bytes=_segment_bytes(catalog, bundle, headers, set(request.held)),
        power=_power(profile.power),
        memory_bytes=profile.machine.memory_available_bytes or None,
        layers=tuple(cut.layer for cut in bundle.cuts if cut.kind != "input"),
    )


def tail_times(catalog: Catalog, bundle: Bundle, tails: Tails | None) -> tuple[float, ...]:
    """Milliseconds of a frame on the server for each offered cut."""
    if tails is None:
        return tuple(bundle.tail_ms[cut] for cut in bundle.offered)

    def measure(index: int) -> None:
        cut = bundle.cuts[index]
        load = functools.partial(catalog.tail, bundle, cut)
        Handler(tails, (bundle.sha256, index), load, [bundle.codec(index, "minmax", 8)], topk=5).warm()

    return tails.times.of(bundle, bundle.offered, measure)


def _allowed(bundle: Bundle, demand: Demand) -> list[int]:
    """The offered cuts of the mode that is asked for. Raises `errors.InfeasibleError` where there is none."""
    found = [i for i in bundle.offered if demand.mode in ("any", MODES[bundle.cuts[i].kind])]
    if not found:
        raise errors.InfeasibleError(
            f"no offered cut of {bundle.name} has the mode {demand.mode!r}: allow mode = 'any'",
            binding=["mode"], nearest={"mode": "any"}, all_of=False,
        )  # fmt: skip
    return found


def expected(measured: GridPoint) -> Point:
    """What the planner counts on: the measured drop, or half of the answers that changed where that is more.

    A change that happens to mend an answer hides one that spoils it; the best of hundreds of combinations, each measured on a few samples, is
    as a rule one where that happened.
    """
    m, drop = measured, max(measured.drop, 50 * (1 - measured.agreement))
    return Point(m.cut, m.weight_bits, m.activation_bits, m.rule, drop, min(m.low, drop), max(m.high, drop), m.samples)


def _site(bundle: Bundle, index: int, header: Header, head_ms: float, tail_ms: float) -> Site:
    cut = bundle.cuts[index]
    return Site(
        cut=cut,
        head_ms=head_ms,
        tail_ms=tail_ms,
        memory_bytes=header.arena_bytes + _weights(header),
        layers=frozenset({cut.layer, *(op.name for op in header.ops)}),
        is_input=only_moves(header),
    )


def _power(power: schema.Power) -> Power:
    """A board that is not known to draw less while it sends counts at its load."""
    sending = power.idle_watts if power.idle_watts is not None else power.load_watts
    return Power(power.load_watts, sending, measured=power.source == "sensor")


def _segment_bytes(
    catalog: Catalog, bundle: Bundle, headers: dict[int, Header], held: set[str]
) -> dict[tuple[int, int], int]:
    """Bytes to fetch for each (cut, weight bits): 0 where the agent holds it, else estimated, so that a plan depends on no past one."""
    known = catalog.store.known_segments(bundle.sha256)
    ours = {key for key, ref in known.items() if ref.sha256 in held}
    wanted = {(point.cut, point.weight_bits) for point in bundle.grid if point.cut in headers}
    return {key: 0 if key in ours else _estimated_bytes(headers[key[0]], key[1]) for key in wanted}


def _estimated_bytes(header: Header, bits: int) -> int:
    """Packed weights, a bias and a multiplier for each channel, about 300 bytes of JSON for each operator."""
    channels = sum(header.tensors[op.out].shape[-1] for op in header.ops if isinstance(op, Conv))
    return _weights(header) * bits // 8 + 8 * channels + 300 * len(header.ops)


def _weights(header: Header) -> int:
    """Weights of a head, which it holds at a byte each once they are unpacked."""
    total = 0
    for op in header.ops:
        if isinstance(op, Conv):
            channels = header.tensors[op.x].shape[-1] // op.groups
            total += header.tensors[op.out].shape[-1] * channels * math.prod(op.kernel)
    return total


def _message(catalog: Catalog, bundle: Bundle, problem: Problem, choice: Choice, held: set[str]) -> Plan:
    chosen = choice.chosen
    index = chosen.cut.index
    segment = catalog.segment(bundle, index, chosen.weight_bits)
    chosen.prediction.segment_bytes = 0 if segment.sha256 in held else segment.size
    ladder: list[Codec] = [bundle.codec(index, point.rule, point.activation_bits) for point in choice.ladder]
    return Plan(
        id=secrets.token_urlsafe(18),
        model=bundle.name,
        bundle=bundle.sha256,
        mode=mode_of(chosen),
        cut=chosen.cut,
        weight_bits=chosen.weight_bits,
        ladder=ladder,
        codec=choice.codec,
        segment=segment,
        preprocess=bundle.preprocess,
        prediction=chosen.prediction,
        runners_up=list(choice.runners_up),
        considered=choice.considered,
        expires_unix=time.time() + limits.PLAN_LIFETIME,
        demand=problem.demand,
        labels=bundle.labels,
        metric=bundle.metric,
    )
