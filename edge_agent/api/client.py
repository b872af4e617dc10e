"""A client of the agent that runs on this machine, over its local HTTP API. Loads neither numpy nor the kernels.

Frames may be private, and any user can listen on a free port. So only an agent of root, of this user or of a systemd
service with a dynamic user (the unit of `edge-agent service install`) gets them, as the kernel lists the port's owner.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import aiohttp
import msgspec

from edge_agent import config
from edge_agent.config import Settings
from edge_agent.inputs.sources import is_array
from edge_agent.runtime.results import Result, from_json
from splitedge import errors, limits
from splitedge.backoff import Backoff
from splitedge.link import http_server
from splitedge.link.endpoint import is_loopback

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where an agent that listens on any address answers
_DYNAMIC: Final = range(61184, 65520)  # user ids that systemd gives out, and no person has
_LISTENS: Final = "0A"  # TCP_LISTEN in /proc/net/tcp
_FRAME: Final = "application/x-frame"  # any type but those that the API gives a meaning


class Gone(Exception):  # noqa: N818  no error for a user: the caller continues with an agent of its own
    """The agent answers no more frames."""


class FrameForm(msgspec.Struct):
    """What a frame of the agent's model is; ``shape``: of an image or a tensor, channels last, without the batch axis."""

    kind: Literal["image", "tensor", "text"]
    shape: list[int]


class Status(msgspec.Struct):
    """The fields of `/v1/status` that a client needs."""

    ready: bool
    settings: str = ""
    plan: dict[str, str] | None = None
    input: FrameForm | None = None


class RunningAgent:
    """A running agent that serves frames at ``url``, an async context manager.

    ``plan``: its plan as `/v1/status` tells it. ``frame``: what it takes. ``settings``: `config.fingerprint` of its own.
    """

    def __init__(self, url: str, status: Status, frame: FrameForm, *, patience_s: float) -> None:
        self.url, self.plan, self.frame, self.settings = url, status.plan or {}, frame, status.settings
        self._patience_s = patience_s
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.RUNNING_AGENT, sock_read=self._patience_s)
        self._http = aiohttp.ClientSession(self.url, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    async def infer(self, data: bytes | str) -> Result:
        """The answer to the frame in ``data``, the content of a file or a text. Waits while the agent's queue is full.

        Raises `Gone` if the agent stopped or does not answer, and the errors of `Agent.infer`.
        """
        backoff = Backoff(most=limits.RUNNING_AGENT)
        while True:
            try:
                return await self._ask(data)
            except errors.BusyError as error:
                if error.data.get("reason") != "queue":
                    raise
            await asyncio.sleep(backoff.next())

    async def _ask(self, data: bytes | str) -> Result:
        assert self._http is not None
        text = isinstance(data, str) or (self.frame.kind == "text" and not is_array(data))
        headers = {"Content-Type": "text/plain; charset=utf-8" if text else _FRAME}
        body = data.encode() if isinstance(data, str) else data
        try:
            async with self._http.post("/v1/infer", data=body, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone from error
        if response.status == 200:
            return from_json(answer)
        refused = _refused(answer)
        if refused.data.get("reason") == "not-ready":
            raise Gone
        raise refused


async def find(settings: Settings) -> RunningAgent | None:
    """The agent that serves frames on this machine with the same settings; None if there is none.

    Waits at most `limits.RUNNING_AGENT`.
    """
    agent = await serving(settings)
    return agent if agent is not None and agent.settings == config.fingerprint(settings) else None


async def serving(settings: Settings) -> RunningAgent | None:
    """The agent that serves frames at the address of the local API in ``settings``, as `find`."""
    url = address(settings)
    if url is None or not await asyncio.to_thread(trusted, settings.api.port):
        return None
    status = await _status(url)
    if status is None or not status.ready or status.input is None:
        return None
    patience_s = settings.demand.max_away_s + limits.FRAME_AGE + limits.REQUEST_TIMEOUT
    return RunningAgent(url, status, status.input, patience_s=patience_s)


def address(settings: Settings) -> str | None:
    """The URL of the local API with ``settings``; None if its port is any free one, or it is not on the loopback."""
    host = _ANY.get(settings.api.host, settings.api.host)
    if not settings.api.port or not is_loopback(host):
        return None
    return http_server.url(host, settings.api.port, tls=False)


def trusted(port: int, net: Path = Path("/proc/net")) -> bool:
    """Whether someone listens on ``port``, and all who do may see this user's frames."""
    found = owners(port, net)
    return bool(found) and all(user in (0, os.geteuid()) or user in _DYNAMIC for user in found)


def owners(port: int, net: Path = Path("/proc/net")) -> set[int]:
    """The ids of the users who listen on the TCP port ``port``, as the kernel lists them in ``net``."""
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            rows = (net / name).read_text("ascii").splitlines()[1:]
        except (OSError, UnicodeDecodeError):
            continue
        for fields in map(str.split, rows):
            if len(fields) > 7 and fields[3] == _LISTENS and fields[1].endswith(f":{port:04X}"):
                found.add(int(fields[7]))
    return found


def _refused(answer: bytes) -> errors.SplitEdgeError:
    try:
        return errors.from_wire(msgspec.json.decode(answer, type=dict[str, Any])["error"])
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        return errors.from_wire(None)


async def _status(url: str) -> Status | None:
    """The answer to `/v1/status`; None without one in time."""
    try:
        async with (
            asyncio.timeout(limits.RUNNING_AGENT),
            aiohttp.ClientSession(url) as http,
            http.get("/v1/status", allow_redirects=False) as response,
        ):
            return msgspec.json.decode(await response.read(), type=Status)
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
        return None
