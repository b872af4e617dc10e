"""What an agent reports about itself: the fields of `/v1/status`, and the gauges of `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from edge_agent.runtime.agent_plan import AgentPlan
from edge_agent.runtime.energy import FrameEnergy
from edge_agent.runtime.replanning import Replanner
from edge_agent.runtime.results import Counters

_LINK_GAUGES: Final = ("rung", "bits", "uplink_mbps", "rtt_ms", "holds", "overloads_total", "waiting")


def plan_info(plan: AgentPlan | None) -> dict[str, str]:
    """The active plan as short texts; empty without one."""
    if plan is None:
        return {}
    made = plan.engine.plan
    codec = made.ladder[plan.engine.codec] if made.mode != "device" else None
    return {
        "id": made.id,
        "model": made.model,
        "mode": made.mode,
        "cut": made.cut.layer,
        "weight_bits": f"{made.mean_bits():.2f}",
        "activation_bits": str(codec.bits) if codec else "",
        "rule": codec.rule if codec else "",
    }


def link_status(replanner: Replanner, controller: str) -> dict[str, Any] | None:
    """How the stream adapts: controller, codec in use, link estimate, and whether the link carries enough.

    None without a stream.
    """
    plan = replanner.plan
    if plan is None or (adaptation := plan.adaptation) is None:
        return None
    now = time.monotonic()
    estimate, rungs = adaptation.estimate(now), plan.engine.plan.rungs
    return {
        "controller": controller,
        "rung": adaptation.rung,
        "rungs": len(rungs),
        "bits": adaptation.bits,
        "drop_points": rungs[adaptation.rung].drop_points,
        "uplink_mbps": estimate.uplink_mbps,
        "rtt_ms": estimate.rtt_ms,
        "holds": adaptation.holds,
        "overloads_total": replanner.retiring.overloads + adaptation.overloads,
        "waiting": plan.queue.waiting(now),
    }


def energy_status(energy: FrameEnergy | None, counters: Counters) -> dict[str, Any] | None:
    """The power sensor's name, joules while frames were in progress, and joules for each answered frame.

    None without a sensor.
    """
    if energy is None:
        return None
    joules, frames = energy.frames_j, counters.served
    return {"sensor": energy.sensor, "joules": joules, "joules_per_frame": joules / frames if frames else None}


def gauges(status: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``status`` by metric name. A name that ends in _total only grows. Energy only with a sensor."""
    found = {
        "ready": float(status["ready"]),
        "queue_frames": status["queue"]["frames"],
        "queue_bytes": status["queue"]["bytes"],
        "reconnects_total": status["reconnects_total"],
        "plans_total": status["plans_total"],
    }
    if link := status["link"]:
        found |= {f"link_{name}": float(link[name]) for name in _LINK_GAUGES}
    if energy := status["energy"]:
        found["frame_joules_total"] = energy["joules"]
        if energy["joules_per_frame"] is not None:
            found["joules_per_frame"] = energy["joules_per_frame"]
    return found
