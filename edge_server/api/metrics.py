"""`GET /metrics`: sessions, frames and requests in the Prometheus text format, of one server process."""

from __future__ import annotations

from collections import Counter

from splitedge import errors
from splitedge.prometheus import family


class ServerCounters:
    """Counts by error code, one of those of `splitedge.errors`; "" for an answer and for a regular end."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()  # that have ended
        self.frames: Counter[str] = Counter()  # that were answered or refused
        self.requests: Counter[str] = Counter()  # that were refused

    def count_session(self, error: errors.SplitEdgeError | None) -> None:
        """Count a session that ended."""
        self.sessions[error.code if error else ""] += 1

    def count_frame(self, error: errors.SplitEdgeError | None) -> None:
        """Count a frame that was answered or refused."""
        self.frames[error.code if error else ""] += 1

    def render(self, streams: int) -> str:
        """All metrics; ``streams`` are open now."""
        return "".join(
            [
                family("splitedge_server_sessions", "gauge", "Open sessions.", [({}, streams)]),
                _by_code("sessions_ended_total", "Ended sessions, by the error that ended them.", self.sessions),
                _by_code("frames_total", "Answered frames, and refused frames by error.", self.frames),
                _by_code("requests_refused_total", "Refused requests, by error.", self.requests),
            ]
        )


def _by_code(name: str, description: str, counts: Counter[str]) -> str:
    samples = [({"code": code}, count) for code, count in sorted(counts.items())]
    return family(f"splitedge_server_{name}", "counter", description, samples)
