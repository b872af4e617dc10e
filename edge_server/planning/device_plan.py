"""From a plan request of one device to its plan: the planner's query, its pick, the segment, and the message."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from calibration.bundle.bundle import Bundle
from device_profiles import schema
from edge_server.planner import (
    Pick,
    Query,
    RunnerUp,
    Table,
    choose,
    refusals,
    runners_up,
    verify_pick,
    why_lost,
)
from edge_server.planning.catalog import Catalog, PlanningTable
from edge_server.planning.curves import curves, draw
from edge_server.planning.head_times import head_times
from edge_server.planning.plan_message import (
    Costs,
    PlannedHead,
    build_plan,
    build_prediction,
    check_output,
    check_protocol,
    codec_stage_ns,
    mean_bits,
    power_draw,
)
from edge_server.tails.pool import TailHandler, TailPool
from splitedge import errors
from splitedge.codec import image_file
from splitedge.files import PictureForm
from splitedge.head.segment import FIRST_OPERATORS, OPERATORS
from splitedge.protocol.messages import (
    PROTOCOL_VERSION,
    TASKS,
    Candidate,
    Demand,
    LinkEstimate,
    MeasuredTimes,
    Parts,
    Plan,
    PlanRequest,
    Prediction,
)


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """The planner's choice for a plan request, and its inputs."""

    bundle: Bundle
    table: Table
    query: Query
    pick: Pick


def request_of(model: str, profile: schema.DeviceProfile, link: LinkEstimate, demand: Demand) -> PlanRequest:
    """The request of a board that is not connected, with an agent of this version."""
    value, known = schema.to_dict(profile), sorted(OPERATORS)
    tasks = [*TASKS, *image_file.NAMED]
    return PlanRequest(model=model, profile=value, link=link, demand=demand, operators=known, tasks=tasks)


def make_plan(catalog: Catalog, request: PlanRequest, tails: TailPool | None = None) -> Plan:
    """The plan for ``request``, stored, with its segment built; blocks meanwhile. Raises as `choose_plan` does."""
    return store_plan(catalog, choose_plan(catalog, request, tails), request.protocol)


def store_plan(catalog: Catalog, choice: PlanChoice, protocol: int = PROTOCOL_VERSION) -> Plan:
    """The plan of ``choice`` for an agent of ``protocol``, stored, with its segment built."""
    plan = _plan(catalog, choice)
    plan.protocol = protocol
    catalog.store.plans.put(plan)
    return plan


def draw_curves(catalog: Catalog, request: PlanRequest, form: PictureForm, tails: TailPool | None = None) -> bytes:
    """A picture of the trade-offs around the plan for ``request``. Raises as `choose_plan` and `curves.draw` do."""
    choice = choose_plan(catalog, request, tails)
    return draw(curves(choice.table, choice.query, choice.pick), form)


def choose_plan(catalog: Catalog, request: PlanRequest, tails: TailPool | None = None) -> PlanChoice:
    """The planner's choice for ``request``, verified.

    ``tails``: of this process; its measured times and its queue count. Without it the bundle's times count.
    Raises `errors.UnknownModelError`, `errors.UsageError`, `errors.InfeasibleError`, `errors.ProtocolError` (version,
    profile, times).
    """
    try:
        return _choose_plan(catalog, request, tails)
    except errors.InfeasibleError as error:
        raise _with_reason(catalog.bundle(request.model), error) from error


def _choose_plan(catalog: Catalog, request: PlanRequest, tails: TailPool | None) -> PlanChoice:
    check_protocol(request.protocol)
    profile = schema.from_dict(request.profile)
    bundle = catalog.bundle(request.model)
    check_output(request.protocol, request.tasks, bundle.output, bundle.preprocess)
    table = catalog.table(bundle)
    query = query_for(catalog, bundle, table, profile, request, tails)
    pick = choose(table.table, query)
    refusals.require_valid(verify_pick(table.table, query, pick))
    return PlanChoice(bundle, table.table, query, pick)


def _with_reason(bundle: Bundle, error: errors.InfeasibleError) -> errors.InfeasibleError:
    """``error``, and why no part of the model runs on a board if none does."""
    if bundle.offered != [0] or not bundle.reasons[-1]:
        return error
    reason = bundle.reasons[-1]
    return errors.InfeasibleError(
        f"{error}; no board runs a part of this model: {reason}", **error.data | {"whole": reason}
    )


def tail_times(catalog: Catalog, bundle: Bundle, cuts: list[int], tails: TailPool | None) -> tuple[float, ...] | None:
    """Milliseconds of the tail behind each of ``cuts``, as this process measured them; None without ``tails``."""
    if tails is None:
        return None

    def measure(index: int) -> None:
        load = functools.partial(catalog.tail, bundle, bundle.cuts[index])
        ladder = [bundle.codec(index, "minmax", 8)]
        TailHandler(tails, (bundle.sha256, index), load, ladder, bundle.output, topk=5).warm()

    return tails.times.predict(bundle, cuts, measure)


# --- the planner's query ----------------------------------------------------------------------------------------------


def query_for(
    catalog: Catalog,
    bundle: Bundle,
    table: PlanningTable,
    profile: schema.DeviceProfile,
    request: PlanRequest,
    tails: TailPool | None,
) -> Query:
    """The planner's query for ``request`` of a board with ``profile``. ``tails``: as in `choose_plan`."""
    cuts = [option.cut for option in table.table.options]
    known = catalog.store.segments.known(bundle.sha256, {*request.held, *request.measured})
    heads = {sha256: key for sha256, key in known.items() if key.start == 0}
    segments = {sha256: key.cut for sha256, key in heads.items()}
    return Query(
        demand=request.demand,
        link=request.link,
        head_ms=head_times(cuts, table.heads, profile, request.measured, segments, _dry_run_ms(bundle, request)),
        tail_ms=tail_times(catalog, bundle, [cut.index for cut in cuts], tails),
        queue_ms=0.0 if tails is None else tails.times.queue_ms(),
        sending_ms=MeasuredTimes.from_wire(request.measured).sending_ms or 0.0,
        stage_ns=codec_stage_ns(profile),
        power=power_draw(profile.power),
        memory_bytes=profile.machine.memory_available_bytes or None,
        operators=frozenset(request.operators) or FIRST_OPERATORS,
        formats=_formats(profile, request),
        held=_held(table.table, {heads[sha256][1:] for sha256 in request.held if sha256 in heads}),
    )


def _formats(profile: schema.DeviceProfile, request: PlanRequest) -> frozenset[str]:
    """The formats of image files that this server decodes, the agent names, and the board's profile has a time for."""
    return frozenset(image_file.available()) & set(request.tasks) & profile.overhead.stage_ns.keys()


def _dry_run_ms(bundle: Bundle, request: PlanRequest) -> list[float] | None:
    """The dry run's times, if it ran this version of the model."""
    dry_run = request.dry_run
    return dry_run.ms if dry_run is not None and dry_run.bundle == bundle.sha256 else None


def _held(table: Table, segments: set[tuple[int, tuple[int, ...]]]) -> frozenset[int]:
    """The indices of the patterns whose segments, given by cut and bits, are among ``segments``."""
    if not segments:
        return frozenset()
    return frozenset(
        i for i, one in enumerate(table.patterns) if (table.options[one.option].cut.index, one.bits) in segments
    )


# --- the message ------------------------------------------------------------------------------------------------------


def _plan(catalog: Catalog, choice: PlanChoice) -> Plan:
    table, query, pick = choice.table, choice.query, choice.pick
    head = _head(choice, pick)
    segment = catalog.segment(choice.bundle, head.option.cut.index, head.bits)
    prediction = _prediction(choice, pick)
    prediction.segment_bytes = 0 if pick.pattern in query.held else segment.size
    return build_plan(
        head,
        prediction,
        segment,
        query.demand,
        considered=len(table.pattern),
        runners_up=[_candidate(choice, one) for one in runners_up(table, query, pick)],
    )


def _head(choice: PlanChoice, pick: Pick) -> PlannedHead:
    option, pattern = choice.table.options[pick.option], choice.table.patterns[pick.pattern]
    return PlannedHead(
        bundle=choice.bundle,
        option=option,
        layers=option.layers,
        bits=pattern.bits,
        codec=pick.codec,
        ladder=pick.ladder,
        noise=pick.noise,
        other_noise=pattern.noise + option.noise,
        head_noise=option.noise,
    )


def _prediction(choice: PlanChoice, pick: Pick) -> Prediction:
    query, weights = choice.query, choice.query.demand.weights
    parts = Parts(
        time=weights.time * pick.total_ms / 1000,
        fetch=_fetch_s(query, pick) * weights.time,
        energy=weights.energy * pick.energy_j,
        cost=weights.cost * pick.server_ms / 1000,
        traffic=weights.megabyte * _traffic_mb(query, pick),
    )
    costs = Costs(
        device_ms=pick.device_ms,
        transfer_ms=pick.transfer_ms,
        queue_ms=pick.queue_ms,
        server_ms=pick.server_ms,
        total_ms=pick.total_ms,
        energy_j=pick.energy_j,
        power=query.power,
        segment_bytes=pick.segment_bytes,
        objective=pick.objective,
        parts=parts,
        sending_ms=0.0 if pick.codec is None else query.sending_ms,
    )
    return build_prediction(_head(choice, pick), costs)


def _fetch_s(query: Query, pick: Pick) -> float:
    """Seconds of the segment's download for each expected frame."""
    if query.demand.frames is None:
        return 0.0
    return pick.segment_bytes * 8e-6 / query.link.downlink_mbps / query.demand.frames


def _traffic_mb(query: Query, pick: Pick) -> float:
    """Megabytes over the link for each frame."""
    segment = 0.0 if query.demand.frames is None else pick.segment_bytes / query.demand.frames
    return 1e-6 * (pick.payload_bytes + segment)


def _candidate(choice: PlanChoice, runner_up: RunnerUp) -> Candidate:
    pick = runner_up.pick
    head = _head(choice, pick)
    return Candidate(
        cut=head.option.cut,
        weight_bits=mean_bits(head.layers, head.bits),
        activation_bits=head.chosen.bits if head.chosen else 0,
        rule=head.chosen.rule if head.chosen else "",
        prediction=_prediction(choice, pick),
        reason=why_lost(choice.table, choice.query, runner_up, choice.pick),
    )
