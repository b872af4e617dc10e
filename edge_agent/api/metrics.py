"""`GET /metrics`: the counters in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.runtime.results import BUCKETS, Counters


def render(counters: Counters, gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
    """The exposition text: frames by outcome, latency histogram, stage seconds, payload bytes, ``gauges``, and ``info`` about the plan."""
    lines = [
        *_family("frames_total", "counter", "Frames that have ended, by outcome and reason.", _outcomes(counters)),
        *_family("payload_bytes_total", "counter", "Bytes sent for frames that were answered.", [("", counters.payload_bytes)]),
        *_family("saved_bytes_total", "counter", "Bytes not sent where an earlier frame's answer served.", [("", counters.saved_bytes)]),
        *_family("frame_stage_seconds_total", "counter", "Seconds that frames with an answer spent, by stage.",
                 [(_labels(stage=stage), value) for stage, value in sorted(counters.stage_sum_s.items())]),
        *_histogram(counters),
        *_family("plan_info", "gauge", "The plan in force.", [(_labels(**info), 1)] if info else []),
    ]  # fmt: skip
    for name, value in gauges.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += _family(name, kind, f"{name.replace('_', ' ').capitalize()}.", [("", value)])
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> list[str]:
    name = f"splitedge_{name}"
    return [
        f"# HELP {name} {text}",
        f"# TYPE {name} {kind}",
        *(f"{name}{labels} {_number(v)}" for labels, v in samples),
    ]


def _outcomes(counters: Counters) -> list[tuple[str, float]]:
    samples: list[tuple[str, float]] = [
        (_labels(outcome="answered", reason=""), counters.answered),
        (_labels(outcome="reused", reason=""), counters.reused),
    ]
    samples += [(_labels(outcome="dropped", reason=reason), n) for reason, n in sorted(counters.dropped.items())]
    return samples + [(_labels(outcome="failed", reason=reason), n) for reason, n in sorted(counters.failed.items())]


def _histogram(counters: Counters) -> list[str]:
    name, seen = "splitedge_frame_seconds", 0
    lines = [f"# HELP {name} Seconds from a frame's coming to its answer.", f"# TYPE {name} histogram"]
    for bound, count in zip((*(str(b) for b in BUCKETS), "+Inf"), counters.latency, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
    return [*lines, f"{name}_sum {_number(counters.latency_sum_s)}", f"{name}_count {counters.served}"]


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
