"""`GET /metrics`: what became of sessions, frames and requests, in the Prometheus text format. Each process of a server counts for itself."""

from __future__ import annotations

from collections import Counter

from splitedge import errors


class Counts:
    """By the code of the error, of which there are only those of `splitedge.errors`; an end in order and an answer have none: ""."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()  # that have ended
        self.frames: Counter[str] = Counter()  # that have a reply
        self.requests: Counter[str] = Counter()  # that were refused

    def ended(self, error: errors.SplitEdgeError | None) -> None:
        """Count a session."""
        self.sessions[error.code if error else ""] += 1

    def replied(self, error: errors.SplitEdgeError | None) -> None:
        """Count a frame."""
        self.frames[error.code if error else ""] += 1

    def render(self, streams: int) -> str:
        """The exposition text; ``streams`` are open now."""
        return "".join([
            _family("sessions", "gauge", "Sessions that are open.", {"": streams}),
            _family("sessions_ended_total", "counter", "Sessions that have ended, by the error that ended them.", _by_code(self.sessions)),
            _family("frames_total", "counter", "Frames answered, and frames refused by error.", _by_code(self.frames)),
            _family("requests_refused_total", "counter", "Requests refused, by error.", _by_code(self.requests)),
        ])  # fmt: skip


def _by_code(counts: Counter[str]) -> dict[str, int]:
    return {f'{{code="{code}"}}': count for code, count in sorted(counts.items())}


def _family(name: str, kind: str, text: str, samples: dict[str, int]) -> str:
    name = f"splitedge_server_{name}"
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    return "\n".join([*lines, *(f"{name}{labels} {value}" for labels, value in samples.items())]) + "\n"
