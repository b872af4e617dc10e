"""`GET /metrics`: the agent's counters in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.runtime.results import BUCKETS, Counters
from splitedge.prometheus import family, histogram

Samples = list[tuple[dict[str, str], float]]


def render(counters: Counters, gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
    """All metrics: the counters, ``gauges`` by name, and ``info``, the labels of the current plan."""
    payload, saved = float(counters.payload_bytes), float(counters.saved_bytes)
    stages: Samples = [({"stage": stage}, seconds) for stage, seconds in sorted(counters.phase_sum_s.items())]
    return "".join(
        [
            _family("frames_total", "Frames that have ended, by outcome and reason.", _outcomes(counters)),
            _family("payload_bytes_total", "Bytes sent for answered frames.", [({}, payload)]),
            _family("saved_bytes_total", "Bytes not sent because an earlier frame's answer was reused.", [({}, saved)]),
            _family("frame_stage_seconds_total", "Seconds of answered frames, by stage.", stages),
            histogram(
                "splitedge_frame_seconds",
                "Seconds from a frame's arrival to its answer.",
                BUCKETS,
                counters.latency,
                counters.latency_sum_s,
            ),
            _family("plan_info", "The current plan.", [(dict(info), 1)] if info else []),
            *(
                _family(name, f"{name.replace('_', ' ').capitalize()}.", [({}, value)])
                for name, value in gauges.items()
            ),
        ]
    )


def _family(name: str, description: str, samples: Samples) -> str:
    return family(f"splitedge_{name}", "counter" if name.endswith("_total") else "gauge", description, samples)


def _outcomes(counters: Counters) -> Samples:
    samples: Samples = [
        ({"outcome": "answered", "reason": ""}, counters.answered),
        ({"outcome": "reused", "reason": ""}, counters.reused),
    ]
    for outcome, reasons in (("dropped", counters.dropped), ("failed", counters.failed)):
        samples += [({"outcome": outcome, "reason": reason}, count) for reason, count in sorted(reasons.items())]
    return samples
