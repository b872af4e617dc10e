"""The one error tree of splitedge. Imports nothing.

    SplitEdgeError
    ├── UsageError             what the user gave is wrong: a path, an option, a name
    │   ├── ConfigError        a configuration file or environment variable
    │   │   └── AddressError   an address that cannot be listened on, at least not yet
    │   ├── InputError         an image or tensor that cannot be a frame of this model
    │   └── PlatformError      a machine or an installation that splitedge cannot run on
    ├── ModelError             a model that cannot be imported or served
    ├── CodecError             a tensor that cannot be encoded, or codes that cannot be decoded
    ├── SegmentError           a segment or a tokenizer that is corrupt, truncated or hostile
    ├── ProtocolError          a peer that breaks the protocol
    ├── LinkError              the way to the server
    │   ├── UnreachableError   nothing answers, or the certificate is not accepted
    │   ├── AuthError          the token was refused
    │   └── LinkLostError      an open connection ended, fell silent, or a frame aged out
    ├── PlanError              no plan
    │   ├── UnknownModelError
    │   ├── UnknownPlanError   the server has forgotten it or it expired: ask for a new one
    │   └── InfeasibleError    no plan meets the demand
    ├── BusyError              a queue is full: this frame was dropped by policy, try again later
    │   └── AgedError          it waited longer than it may, and was never sent
    └── StoreError             a folder that cannot be read or written, a full disk

Every error is one clear sentence that says what to do next, a ``code`` that programs may compare, and ``data``. It crosses
the network as ``{"error": {"code": ..., "message": ..., "data": {...}}}`` and comes back as the same class (`from_wire`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class SplitEdgeError(Exception):
    """Base of all errors a caller may meet. ``str(error)`` is one sentence; ``data`` holds plain JSON values."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    remote = False  # whether a peer said so: then `from_wire` made it

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
        """The error as the JSON value that crosses the network."""
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
    """What a caller gets while no frames are served."""
    return UnreachableError(
        f"the agent is not ready ({state}); wait until /healthz answers 200", ready=False, state=state
    )


def _tree(root: type[SplitEdgeError]) -> dict[str, type[SplitEdgeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_wire(value: object) -> SplitEdgeError:
    """The error in a peer's ``{"code", "message", "data"}``; an unknown code or a malformed value is a `SplitEdgeError`.

    The message is cut at 500 characters and stripped of control characters: it ends on a user's terminal.
    """
    fields = value if isinstance(value, dict) else {}
    message = "".join(c for c in str(fields.get("message", "the peer gave no reason"))[:500] if c.isprintable())
    data = fields.get("data")
    kind = _tree(SplitEdgeError).get(str(fields.get("code")), SplitEdgeError)
    error = kind(message, **{str(k)[:40]: v for k, v in data.items()} if isinstance(data, dict) else {})
    error.remote = True
    return error
