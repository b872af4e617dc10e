"""The one error tree of splitedge. Imports nothing.

    SplitEdgeError
    ├── UsageError             wrong user input: a path, an option, a name
    │   ├── ConfigError        a configuration file or environment variable
    │   │   └── AddressError   an address that cannot be listened on, perhaps not yet
    │   ├── InputError         an image or tensor that is no frame of this model
    │   └── PlatformError      an unsupported machine or installation
    ├── ModelError             a model that cannot be imported or served
    ├── CodecError             a tensor that cannot be encoded, or codes that cannot be decoded
    ├── SegmentError           a segment or a tokenizer that is corrupt, truncated or hostile
    ├── ProtocolError          a peer that violates the protocol
    ├── LinkError              the connection to the server
    │   ├── UnreachableError   no answer, or an untrusted certificate
    │   ├── AuthError          the token was refused
    │   └── LinkLostError      an open connection ended or timed out, or a frame aged out
    ├── PlanError              no plan
    │   ├── UnknownModelError
    │   ├── UnknownPlanError   an expired plan: ask for a new one
    │   └── InfeasibleError    no plan meets the demand
    ├── BusyError              a queue is full: the frame was dropped, try again later
    │   └── AgedError          it exceeded its maximum age before it was sent
    └── StoreError             an unusable folder, a full disk

Every error has a message of one sentence that says what to do next, a ``code`` for programs, and ``data``. On the
network it is ``{"error": {"code": ..., "message": ..., "data": {...}}}``, which `from_wire` turns back into the same
class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class SplitEdgeError(Exception):
    """Base of all errors. ``str(error)`` is one sentence; ``data`` holds JSON values."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    remote = False  # whether a peer reported it, through `from_wire`

    def __init__(self, message: str, /, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def copy(self) -> Self:
        """The same error for another caller: one exception raised in two tasks mixes their tracebacks."""
        made = type(self)(self.message, **self.data)
        made.remote = self.remote
        return made

    def to_wire(self) -> dict[str, Any]:
        """The JSON value of the error on the network."""
        return {"code": self.code, "message": self.message, "data": self.data}


class UsageError(SplitEdgeError):
    code, exit_status, http_status = "usage", 2, 400


class ConfigError(UsageError):
    code = "config"


class AddressError(ConfigError):
    code, exit_status = "address", 14


class InputError(UsageError):
    code, exit_status = "input", 3


class PlatformError(UsageError):
    code, exit_status = "platform", 4


class ModelError(SplitEdgeError):
    code, exit_status, http_status = "model", 5, 422


class CodecError(SplitEdgeError):
    code, exit_status, http_status = "codec", 6, 422


class SegmentError(SplitEdgeError):
    code, exit_status, http_status = "segment", 7, 422


class ProtocolError(SplitEdgeError):
    code, exit_status, http_status = "protocol", 8, 400


class LinkError(SplitEdgeError):
    code, exit_status, http_status = "link", 9, 503


class UnreachableError(LinkError):
    code = "unreachable"


class AuthError(LinkError):
    code, exit_status, http_status = "auth", 10, 401


class LinkLostError(LinkError):
    code = "link_lost"


class PlanError(SplitEdgeError):
    code, exit_status, http_status = "plan", 11, 409


class UnknownModelError(PlanError):
    code, http_status = "unknown_model", 404


class UnknownPlanError(PlanError):
    code, http_status = "unknown_plan", 404


class InfeasibleError(PlanError):
    code, http_status = "infeasible", 409


class StoreError(SplitEdgeError):
    code, exit_status, http_status = "store", 12, 507


class BusyError(SplitEdgeError):
    code, exit_status, http_status = "busy", 13, 429


class AgedError(BusyError):
    code = "aged"


def not_ready(state: str) -> UnreachableError:
    """The error for callers while the agent serves no frames."""
    return UnreachableError(
        f"the agent is not ready ({state}); wait until /healthz answers 200",
        reason="not-ready",
        ready=False,
        state=state,
    )


def _tree(root: type[SplitEdgeError]) -> dict[str, type[SplitEdgeError]]:
    """The classes below ``root`` by code; a subclass without a code of its own leaves its parent's place."""
    found: dict[str, type[SplitEdgeError]] = {}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found | {root.code: root}


def from_wire(value: object) -> SplitEdgeError:
    """The error in a peer's ``{"code", "message", "data"}``; an unknown code or a malformed value is a
    `SplitEdgeError`.

    The message is cut at 500 characters and stripped of control characters: it is printed on a terminal.
    """
    fields = value if isinstance(value, dict) else {}
    message = "".join(c for c in str(fields.get("message", "the peer gave no reason"))[:500] if c.isprintable())
    data = fields.get("data")
    kind = _tree(SplitEdgeError).get(str(fields.get("code")), SplitEdgeError)
    error = kind(message, **{str(k)[:40]: v for k, v in data.items()} if isinstance(data, dict) else {})
    error.remote = True
    return error
