"""What a candidate costs: time split, bytes, energy, server time, and the objective that weighs them."""

from __future__ import annotations

from typing import Literal

from edge_agent import codec
from edge_agent.protocol import frames
from edge_agent.protocol.messages import Prediction
from edge_server.planner.problem import Point, Problem, Site


def payload_bytes(elements: int, bits: int) -> int:
    """Bytes of one frame on the link: header and ``elements`` codes; the WebSocket's own 6 to 14 bytes are not counted."""
    return frames.HEADER_BYTES + codec.payload_bytes(elements, bits)


def sending_ms(size: int, uplink_mbps: float) -> float:
    """Milliseconds for which ``size`` bytes occupy the uplink."""
    return size * 8 / (uplink_mbps * 1000)


def predict(problem: Problem, site: Site, point: Point) -> Prediction:
    """The prediction for cutting at ``site`` with the bits of ``point``. Where the cut is the output nothing is sent."""
    local = site.cut.kind == "output"
    size = 0 if local else payload_bytes(site.elements, point.activation_bits)
    sending = 0.0 if local else sending_ms(size, problem.link.uplink_mbps)
    transfer = 0.0 if local else sending + problem.link.rtt_ms
    server = 0.0 if local else site.tail_ms
    energy, source = _energy(problem, site.head_ms, sending)
    total = site.head_ms + transfer + server
    weights = problem.demand.weights
    return Prediction(
        device_ms=site.head_ms,
        transfer_ms=transfer,
        server_ms=server,
        total_ms=total,
        energy_j=energy,
        energy_source=source,
        drop_points=point.drop,
        drop_low=point.low,
        drop_high=point.high,
        samples=point.samples,
        payload_bytes=size,
        float_bytes=4 * site.elements,
        segment_bytes=problem.segment_bytes.get((point.cut, point.weight_bits), 0),
        objective=weights.time * total / 1000 + weights.energy * energy + weights.cost * server / 1000,
    )


def rate_fps(prediction: Prediction, rtt_ms: float) -> float:
    """Frames a second with the stages overlapped: the slowest of head, sending and tail sets the pace."""
    sending = max(0.0, prediction.transfer_ms - rtt_ms)
    slowest = max(prediction.device_ms, sending, prediction.server_ms)
    return 1000 / slowest if slowest > 0 else float("inf")


def _energy(
    problem: Problem, device_ms: float, sending_ms: float
) -> tuple[float, Literal["measured", "declared", "unknown"]]:
    power = problem.power
    if power.compute_w is None or power.transmit_w is None:
        return 0.0, "unknown"
    joules = (power.compute_w * device_ms + power.transmit_w * sending_ms) / 1000
    return joules, "measured" if power.measured else "declared"
