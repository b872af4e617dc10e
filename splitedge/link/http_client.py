"""Client of the server's HTTP interface: version, models, plans, segments, and the link measurement."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import math
import os
import re
import ssl as ssl_module
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self

import aiohttp
import msgspec

from splitedge import errors, files, limits
from splitedge.backoff import Backoff
from splitedge.link import endpoint, probe
from splitedge.link.endpoint import tls_context
from splitedge.protocol.messages import (
    OUTPUTS_PROTOCOL,
    ChainDevice,
    ChainRequest,
    LinkEstimate,
    ModelInfo,
    Outline,
    Output,
    Plan,
    PlanRequest,
    SegmentRef,
    ServerVersion,
    TokenizerRef,
    decode,
    encode,
    is_served,
)

__all__ = ["Base", "ServerClient", "tls_context"]

_log = logging.getLogger("edge_agent")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_CHUNK: Final = 256 * 1024
_VERSION_BYTES: Final = 4096


class Base(NamedTuple):
    """A segment on this board, by its hash.

    ``apply`` turns the bytes of an upgrade into the wanted file, or raises `errors.SegmentError`.
    """

    sha256: str
    apply: Callable[[bytes], bytes]


class _Download(NamedTuple):
    """A download: its path on the server, its size in bytes, the partial file, and its name in messages."""

    path: str
    size: int
    part: Path
    what: str = "segment"


class ServerClient:
    """One server's HTTP interface, over kept-alive connections.

    ``ssl`` is a context from `tls_context`; None trusts the system's CA certificates. ``patient=False`` has shorter
    timeouts, for a person who waits. Every method raises `errors.UnreachableError` without an answer or for an
    untrusted certificate, `errors.AuthError` for a refused token, `errors.ProtocolError` for an invalid answer, and the
    errors that the server reports. The constructor raises `errors.UsageError` for an invalid address, or a token that
    would be sent unencrypted (unless ``allow_insecure``).
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        ssl: ssl_module.SSLContext | None = None,
        allow_insecure: bool = False,
        patient: bool = True,
    ) -> None:
        total, connect = (
            (limits.REQUEST_TIMEOUT, limits.CONNECT_TIMEOUT) if patient else (limits.FIRST_ANSWER, limits.FIRST_CONNECT)
        )
        self._timeout = aiohttp.ClientTimeout(total=total, sock_connect=connect)
        self._base = endpoint.server_url(base_url, token, allow_insecure=allow_insecure)
        self._headers, self._ssl = endpoint.headers(token), ssl
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=4, ssl=self._ssl or True),
            timeout=self._timeout,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    async def version(self) -> ServerVersion:
        body = await self._ask("GET", "v1/version", _VERSION_BYTES)
        return decode(body, ServerVersion)

    async def models(self) -> list[ModelInfo]:
        body = await self._ask("GET", "v1/models", limits.MAX_PLAN_BYTES)
        return decode(body, list[ModelInfo])

    async def model(self, name: str) -> ModelInfo:
        """Raises `errors.UnknownModelError`."""
        body = await self._ask("GET", "v1/models", limits.MAX_PLAN_BYTES, params={"name": name})
        every: list[ModelInfo] = decode(body, list[ModelInfo])
        for found in every:
            if found.name == name:
                return found
        raise errors.UnknownModelError(
            f"the server has no model {name!r}; `edge-agent models` lists those it has",
            reason="unknown-model",
            model=name,
        )

    async def reach(self) -> None:
        """Return if the server, or a board that serves as a stage, answers and accepts the token."""
        await self._probe(b"", 0)

    async def outline(self, model: str) -> Outline:
        """The operators of the longest head of ``model``.

        Raises `errors.UnknownModelError`, or `errors.ProtocolError` from a server without outlines.
        """
        return decode(await self._ask("GET", "v1/outline", limits.MAX_PLAN_BYTES, params={"model": model}), Outline)

    async def plan(self, request: PlanRequest) -> Plan:
        """The plan for ``request``, in the protocol of an older server if need be (`Plan.protocol`).

        Raises `errors.PlanError` (unknown model, infeasible demand).
        """
        try:
            return await self._plan(request)
        except errors.ProtocolError as error:
            if (
                not error.remote
                or not is_served(theirs := (await self.version()).protocol)
                or theirs >= request.protocol
            ):
                raise
        return await self._plan(msgspec.structs.replace(request, protocol=theirs))

    async def _plan(self, request: PlanRequest) -> Plan:
        body = await self._ask("POST", "v1/plan", limits.MAX_PLAN_BYTES, data=_body(request))
        return _from_older(decode(body, Plan), request.protocol)

    async def chain(self, request: ChainRequest) -> Plan:
        """The plan of the first board of a chain. Raises as `plan`."""
        return decode(await self._ask("POST", "v1/chain", limits.MAX_PLAN_BYTES, data=_body(request)), Plan)

    async def next_plan(self, plan_id: str) -> Plan:
        """The plan of the board behind that of ``plan_id``.

        Raises `errors.UnknownPlanError`, or `errors.ProtocolError` if there is none.
        """
        return decode(await self._ask("GET", "v1/next", limits.MAX_PLAN_BYTES, params={"plan": plan_id}), Plan)

    async def stages(self, before: int) -> list[ChainDevice]:
        """A stage's description of itself and of the boards behind it; it may measure its links first.

        ``before``: number of boards before it.
        """
        body = await self._ask("GET", "v1/stage", limits.MAX_REQUEST_BYTES, params={"before": str(before)})
        return decode(body, list[ChainDevice])

    async def curves(self, request: PlanRequest, form: str) -> bytes:
        """A plot (``png`` or ``svg``) of the trade-offs around the plan for ``request``. Raises as `plan`."""
        body = _body(request)
        async with self._request("POST", "v1/curves", data=body, params={"format": form}) as response:
            return await _bounded(response, limits.MAX_PICTURE_BYTES)

    async def measure_link(self) -> LinkEstimate:
        """Measure round trip and rates to the server. Takes one to two seconds."""
        noise = await asyncio.to_thread(os.urandom, limits.MAX_PROBE_BYTES)  # random, so that no link can compress it
        return await probe.measure(lambda up, down: probe.timed(self._probe(noise[:up], down)))

    async def fetch_segment(self, ref: SegmentRef, directory: Path, base: Base | None = None) -> Path:
        """The file of segment ``ref`` in ``directory``, downloaded unless it exists. The folder is created if it is
        missing.

        If the server has a smaller upgrade from ``base``, only the upgrade is downloaded; if it does not yield ``ref``,
        the whole segment is.

        The download grows as ``SHA.part`` over broken connections and restarts, and is renamed to ``SHA.segment`` when
        its SHA-256 is right. If the hash is wrong and the part is from an earlier run, which a power cut may have
        damaged, the segment is downloaded once more. Raises `errors.SegmentError` for a wrong hash or size (the part is
        deleted), `errors.StoreError` for a folder that cannot be written, and `errors.LinkLostError` when the
        connection breaks `limits.FETCH_TRIES` times without a byte.
        """
        _check_ref(ref, limits.MAX_SEGMENT_BYTES, "segment")
        done, part = directory / f"{ref.sha256}.segment", directory / f"{ref.sha256}.part"
        wanted = _Download(f"v1/segments/{ref.sha256}", ref.size, part)
        async with _keeping(wanted):
            if not await asyncio.to_thread(_is_whole, done, ref):
                await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
                if base is None or not await self._upgrade(ref, base, directory, done):
                    await self._fetch_whole(wanted, ref.sha256, done)
        return done

    async def fetch_tokenizer(self, ref: TokenizerRef, model: str, directory: Path) -> Path:
        """The file ``SHA.tokenizer`` of ``model``'s tokenizer in ``directory``.

        Downloads and raises as `fetch_segment`.
        """
        _check_ref(ref, limits.MAX_TOKENIZER_BYTES, "tokenizer")
        done, part = directory / f"{ref.sha256}.tokenizer", directory / f"{ref.sha256}.part"
        wanted = _Download(f"v1/models/{model}/tokenizer", ref.size, part, "tokenizer")
        async with _keeping(wanted):
            if not await asyncio.to_thread(_is_whole, done, ref):
                await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
                await self._fetch_whole(wanted, ref.sha256, done)
        return done

    # --- requests

    async def _ask(self, method: str, path: str, limit: int, data: bytes | None = None, **options: Any) -> bytes:
        async with self._request(method, path, data=data, **options) as response:
            return await _bounded(response, limit)

    async def _probe(self, up: bytes, down: int) -> None:
        async with self._request("POST", "v1/probe", data=up, params={"down": str(down)}) as response:
            body = await _bounded(response, down)
        if len(body) != down:
            raise errors.ProtocolError(
                f"a probe for {down} bytes returned {len(body)}; run the same splitedge version on both sides",
                reason="probe-bytes",
            )

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, data: bytes | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200 or 206.

        Failures of the connection, also while the body is read, become `errors.SplitEdgeError`.
        """
        if self._http is None:
            raise RuntimeError("use ServerClient as an async context manager")
        url = self._base / path
        # aiohttp warns of large `bytes`, which it sends in one piece; it sends a file in pieces.
        body = io.BytesIO(data) if data and len(data) > _CHUNK else data
        try:
            async with self._http.request(method, url, data=body, allow_redirects=False, **options) as response:
                if response.status not in (200, 206):
                    raise await _refused(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ssl_module.SSLError) as error:
            raise await endpoint.explained(error, url, self._ssl) from error

    # --- segments and tokenizers

    async def _upgrade(self, ref: SegmentRef, base: Base, directory: Path, done: Path) -> bool:
        """Make the segment from ``base``; False if that failed. Raises only failures of the link and of the folder."""
        part = directory / f"{ref.sha256}-{base.sha256}.part"
        path = f"v1/segments/{ref.sha256}/upgrade/{base.sha256}"
        try:
            async with self._request("HEAD", path) as response:
                size = response.content_length or ref.size
            if size >= ref.size:
                return False
            await self._complete(_Download(path, size, part))
            await asyncio.to_thread(_apply, base, part, done)
        except errors.LinkError:
            raise
        except errors.SplitEdgeError as error:  # an older server, a removed segment, an upgrade that does not fit
            _log.info("downloading the whole segment: %s", error)
            await asyncio.to_thread(part.unlink, missing_ok=True)
            return False
        return True

    async def _fetch_whole(self, wanted: _Download, sha256: str, done: Path) -> None:
        part = wanted.part
        tries = 2 if await asyncio.to_thread(part.exists) else 1
        for _ in range(tries):
            await self._complete(wanted)
            if await asyncio.to_thread(_is_whole, part, SegmentRef(sha256, wanted.size)):
                await asyncio.to_thread(files.rename, part, done)
                return
            await asyncio.to_thread(part.unlink)
        raise errors.SegmentError(
            f"the {wanted.what} has another hash than in the plan; request a new plan", reason="hash"
        )

    async def _complete(self, wanted: _Download) -> None:
        """Download until the part has all its bytes. Each connection continues where the last one broke."""
        failures, backoff = 0, Backoff()
        while (have := await asyncio.to_thread(_length, wanted)) < wanted.size:
            try:
                await self._fetch(wanted, have)
            except errors.LinkError as error:
                if not endpoint.heals(error) or (failures == 0 and isinstance(error, errors.UnreachableError)):
                    raise
                grown = await asyncio.to_thread(_length, wanted) > have
                failures = 1 if grown else failures + 1
                if grown:
                    backoff.reset()
                if failures >= limits.FETCH_TRIES:
                    raise
                await asyncio.sleep(backoff.next())

    async def _fetch(self, wanted: _Download, have: int) -> None:
        """Append the bytes of one connection to the ``have`` bytes of the part."""
        ranges = {"Range": f"bytes={have}-"} if have else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.CONNECT_TIMEOUT, sock_read=limits.STALL)
        async with self._request("GET", wanted.path, headers=ranges, timeout=timeout) as response:
            size = _first_byte(response, wanted, have)
            file = await asyncio.to_thread(wanted.part.open, "ab" if size else "wb")
            try:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    if size > wanted.size:
                        raise _wrong_size(wanted, size)
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(_sync, file)
            finally:
                await asyncio.to_thread(file.close)
        if size < wanted.size:
            raise errors.LinkLostError(
                f"the download of the {wanted.what} ended early; check the network and try again",
                reason="download-ended",
            )


def _check_ref(ref: SegmentRef | TokenizerRef, most: int, what: str) -> None:
    """Raise `errors.SegmentError` unless ``ref`` has a SHA-256 and a size of 1 to ``most`` bytes."""
    if not _SHA256.fullmatch(ref.sha256) or not 0 < ref.size <= most:
        raise errors.SegmentError(
            f"the plan names an invalid {what} ({ref.size} bytes); request a new plan",
            reason=f"{what}-size",
            size=ref.size,
        )


@asynccontextmanager
async def _keeping(wanted: _Download) -> AsyncIterator[None]:
    """Delete the part after a `errors.SegmentError`, and name the folder in file errors."""
    try:
        yield
    except errors.SegmentError:
        await asyncio.to_thread(wanted.part.unlink, missing_ok=True)
        raise
    except OSError as error:
        directory, reason = wanted.part.parent, error.strerror or str(error)
        raise errors.StoreError(
            f"the {wanted.what} cannot be written to {directory} ({reason}); free space or choose another folder",
            reason="cannot-keep",
        ) from error


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of ``response``, at most ``limit`` bytes. Raises `errors.ProtocolError` for more, before it is read."""
    body = bytearray()
    if (response.content_length or 0) <= limit:
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise errors.ProtocolError(
        f"the server's answer exceeds the limit of {limit} bytes; check that it is an edge-server",
        reason="answer-too-large",
        limit=limit,
    )


async def _refused(response: aiohttp.ClientResponse) -> errors.SplitEdgeError:
    """The error of a response: that of its body ``{"error": {...}}``, or that of its status."""
    if response.status == 416:
        return errors.SegmentError(
            "the server's segment is shorter than in the plan; request a new plan", reason="shorter"
        )
    try:
        body = await _bounded(response, limits.MAX_MESSAGE_BYTES)
        document: dict[str, dict[str, Any]] = decode(body, dict[str, dict[str, Any]])
        return errors.from_wire(document["error"])
    except (errors.ProtocolError, KeyError):  # the error page of a proxy, for instance
        return endpoint.status_error(response.status, response.url)


def _body(request: PlanRequest | ChainRequest) -> bytes:
    body = encode(request)
    if len(body) > limits.MAX_REQUEST_BYTES:
        raise errors.ProtocolError(
            f"a plan request of {len(body)} bytes exceeds the limit of {limits.MAX_REQUEST_BYTES}; shorten the profile",
            reason="request-too-large",
        )
    return body


def _from_older(plan: Plan, protocol: int) -> Plan:
    """``plan`` with what a server of ``protocol`` leaves out: its protocol, and its output, which is one of classes.

    Raises `errors.PlanError` for a model that has no classes, which such a server does not tell apart.
    """
    if protocol >= OUTPUTS_PROTOCOL:
        return plan
    if plan.metric == "cosine":
        raise errors.PlanError(
            f"the server uses protocol {protocol}, which has no answers for models without classes; upgrade splitedge "
            "on the server",
            reason="protocol-output",
        )
    classes = math.prod(plan.cut.shape) if plan.mode == "device" else len(plan.labels) or 1  # of a tail: not used
    return msgspec.structs.replace(plan, protocol=protocol, output=Output("logits", [classes]))


def _first_byte(response: aiohttp.ClientResponse, wanted: _Download, have: int) -> int:
    """The offset of the body of ``response`` in the file: ``have``, or 0 from a server that ignores ranges."""
    if response.status == 200:
        if response.content_length not in (None, wanted.size):
            raise _wrong_size(wanted, response.content_length)
        return 0
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        raise errors.ProtocolError(
            f"the server ignored the range from byte {have}; check that it is an edge-server", reason="range"
        )
    if int(found[2]) != wanted.size:
        raise _wrong_size(wanted, int(found[2]))
    return have


def _wrong_size(wanted: _Download, size: int | None) -> errors.SegmentError:
    return errors.SegmentError(
        f"the server's {wanted.what} has {size} bytes, and {wanted.size} in the plan; request a new plan",
        reason="other-size",
        size=size,
    )


def _length(wanted: _Download) -> int:
    """The size of the part in bytes. A part that is too long is deleted."""
    try:
        size = wanted.part.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= wanted.size:
        return size
    wanted.part.unlink()
    return 0


def _apply(base: Base, part: Path, done: Path) -> None:
    """Apply the upgrade ``part`` to ``base`` and write the segment to ``done``."""
    files.replace(done, base.apply(part.read_bytes()))
    part.unlink()


def _is_whole(path: Path, ref: SegmentRef | TokenizerRef) -> bool:
    """Whether ``path`` has the size and hash of ``ref``."""
    try:
        with path.open("rb") as file:
            return (
                os.fstat(file.fileno()).st_size == ref.size
                and hashlib.file_digest(file, "sha256").hexdigest() == ref.sha256
            )
    except FileNotFoundError:
        return False


def _sync(file: BinaryIO) -> None:
    """Flush the file to the disk before it is renamed: a board may lose power at any time."""
    file.flush()
    os.fsync(file.fileno())
