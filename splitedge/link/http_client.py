"""The server's HTTP interface: version, models, plans, segments, and the measurement of the link."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import re
import ssl as ssl_module
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self

import aiohttp

from splitedge import errors, files, limits
from splitedge.link import endpoint, probe
from splitedge.link.endpoint import tls_context
from splitedge.protocol.messages import (
    ChainDevice,
    ChainRequest,
    LinkEstimate,
    ModelInfo,
    Outline,
    Plan,
    PlanRequest,
    SegmentRef,
    ServerVersion,
    TokenizerRef,
    decode,
    encode,
)

__all__ = ["Base", "ServerClient", "tls_context"]

_log = logging.getLogger("edge_agent")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_CHUNK: Final = 256 * 1024
_VERSION_BYTES: Final = 4096


class Base(NamedTuple):
    """A segment that is held, by its hash. ``apply`` makes of the bytes of an upgrade the file that is wanted and no other, or raises `errors.SegmentError`."""

    sha256: str
    apply: Callable[[bytes], bytes]


class _Download(NamedTuple):
    """What is fetched: its path on the server, its bytes, the file that grows, and what to call it."""

    path: str
    size: int
    part: Path
    what: str = "segment"


class ServerClient:
    """One server's HTTP interface, over kept-alive connections.

    ``ssl`` is a context from `tls_context`; None trusts the system's authorities. Every method raises `errors.UnreachableError` when nothing
    answers or the certificate is not accepted, `errors.AuthError` for a refused token, the error that the server names, and
    `errors.ProtocolError` for an answer that is none. The constructor raises `errors.UsageError` for an address that is none, or a
    token that would cross a network in the clear (unless ``allow_insecure``). A client that is not ``patient`` serves a person who waits for the
    first answer: it gives up sooner.
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
        raise errors.UnknownModelError(f"the server has no model {name!r}; `edge-agent models` lists those it has")

    async def reach(self) -> None:
        """Return if the server, or a board that serves as a stage, answers and takes the token."""
        await self._probe(b"", 0)

    async def outline(self, model: str) -> Outline:
        """What the longest head of ``model`` computes. Raises `errors.UnknownModelError`, `errors.ProtocolError` from a server that knows no outlines."""
        return decode(await self._ask("GET", "v1/outline", limits.MAX_PLAN_BYTES, params={"model": model}), Outline)

    async def plan(self, request: PlanRequest) -> Plan:
        """A plan for ``request``, or `errors.PlanError` (unknown model, infeasible demand)."""
        return decode(await self._ask("POST", "v1/plan", limits.MAX_PLAN_BYTES, data=_body(request)), Plan)

    async def chain(self, request: ChainRequest) -> Plan:
        """The plan of the first board of a chain. Raises as `plan` does."""
        return decode(await self._ask("POST", "v1/chain", limits.MAX_PLAN_BYTES, data=_body(request)), Plan)

    async def next_plan(self, plan_id: str) -> Plan:
        """The plan of the board after the one of ``plan_id``. Raises `errors.UnknownPlanError`, `errors.ProtocolError` where none follows."""
        return decode(await self._ask("GET", "v1/next", limits.MAX_PLAN_BYTES, params={"plan": plan_id}), Plan)

    async def stages(self, before: int) -> list[ChainDevice]:
        """Of a stage: itself and the boards behind it, each as it describes itself; it may measure its links first. ``before``: how many come before it."""
        body = await self._ask("GET", "v1/stage", limits.MAX_REQUEST_BYTES, params={"before": str(before)})
        return decode(body, list[ChainDevice])

    async def curves(self, request: PlanRequest, form: str) -> bytes:
        """A picture (``png`` or ``svg``) of the trade-offs around the plan for ``request``. Raises as `plan` does."""
        body = _body(request)
        async with self._request("POST", "v1/curves", data=body, params={"format": form}) as response:
            return await _bounded(response, limits.MAX_PICTURE_BYTES)

    async def measure_link(self) -> LinkEstimate:
        """Round trip and rates between here and the server; takes one to two seconds."""
        noise = await asyncio.to_thread(os.urandom, limits.MAX_PROBE_BYTES)  # nothing on the way can compress it
        return await probe.measure(lambda up, down: probe.timed(self._probe(noise[:up], down)))

    async def fetch_segment(self, ref: SegmentRef, directory: Path, base: Base | None = None) -> Path:
        """The file of segment ``ref`` in ``directory`` (made if need be), fetched unless it is there already.

        Where ``base`` is given and the server knows a smaller way from there, only that is fetched; if it does not lead to ``ref``, all of it is.

        It grows as ``SHA.part``, over broken connections and earlier runs, and is named ``SHA.segment`` once its SHA-256 is right; if it is
        wrong and an earlier run left a part (which a power cut may have damaged), all of it is fetched once more. Raises
        `errors.SegmentError` for a wrong hash or size (the part is deleted), `errors.StoreError` for a folder that cannot be
        written, `errors.LinkLostError` when the connection breaks `limits.FETCH_TRIES` times without bringing a byte.
        """
        if not _SHA256.fullmatch(ref.sha256) or not 0 < ref.size <= limits.MAX_SEGMENT_BYTES:
            raise errors.SegmentError(
                f"the plan names an impossible segment ({ref.size} bytes); ask the server for a new plan"
            )
        done, part = directory / f"{ref.sha256}.segment", directory / f"{ref.sha256}.part"
        wanted = _Download(f"v1/segments/{ref.sha256}", ref.size, part)
        async with _keeping(wanted):
            if not await asyncio.to_thread(_is_whole, done, ref):
                await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
                if base is None or not await self._upgrade(ref, base, directory, done):
                    await self._fetch_whole(wanted, ref.sha256, done)
        return done

    async def fetch_tokenizer(self, ref: TokenizerRef, model: str, directory: Path) -> Path:
        """The file ``SHA.tokenizer`` of ``model``'s tokenizer in ``directory``. Fetched, kept and refused as `fetch_segment` does."""
        if not _SHA256.fullmatch(ref.sha256) or not 0 < ref.size <= limits.MAX_TOKENIZER_BYTES:
            raise errors.SegmentError(
                f"the plan names an impossible tokenizer ({ref.size} bytes); ask the server for a new plan"
            )
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
                f"a probe for {down} bytes brought {len(body)}; run the same splitedge on both sides"
            )

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, data: bytes | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with a good status. Failures of the connection, while it is read too, become errors of ours."""
        if self._http is None:
            raise RuntimeError("use ServerClient as an async context manager")
        url = self._base / path
        # aiohttp sends a large `bytes` in one piece and warns of it; it sends a file in pieces.
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
        """Whether the segment was made of ``base``. Only failures of the link and of the folder are raised."""
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
        except (
            errors.SplitEdgeError
        ) as error:  # an older server, a segment that it has no more, an upgrade that does not fit
            _log.info("the whole segment is fetched: %s", error)
            await asyncio.to_thread(part.unlink, missing_ok=True)
            return False
        return True

    async def _fetch_whole(self, wanted: _Download, sha256: str, done: Path) -> None:
        part = wanted.part
        tries = 2 if await asyncio.to_thread(part.exists) else 1
        for _ in range(tries):
            await self._complete(wanted)
            if await asyncio.to_thread(_is_whole, part, SegmentRef(sha256, wanted.size)):
                await asyncio.to_thread(part.replace, done)
                return
            await asyncio.to_thread(part.unlink)
        raise errors.SegmentError(
            f"the {wanted.what}'s hash is not the one that the plan names; ask the server for a new plan"
        )

    async def _complete(self, wanted: _Download) -> None:
        """Fetch until the part has all its bytes, each connection going on where the last one broke."""
        failures = 0
        while (have := await asyncio.to_thread(_length, wanted)) < wanted.size:
            try:
                await self._fetch(wanted, have)
            except errors.LinkError as error:
                if not endpoint.heals(error) or (failures == 0 and isinstance(error, errors.UnreachableError)):
                    raise
                grown = await asyncio.to_thread(_length, wanted) > have
                failures = 1 if grown else failures + 1
                if failures >= limits.FETCH_TRIES:
                    raise
                await asyncio.sleep(limits.BACKOFF_FIRST * 2**failures)

    async def _fetch(self, wanted: _Download, have: int) -> None:
        """Append what one connection brings to the ``have`` bytes in the part."""
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
                f"the {wanted.what}'s download ended early; check the network and fetch it again"
            )


@asynccontextmanager
async def _keeping(wanted: _Download) -> AsyncIterator[None]:
    """What the fetch of ``wanted`` leaves of its part, and calls failures of its folder."""
    try:
        yield
    except errors.SegmentError:
        await asyncio.to_thread(wanted.part.unlink, missing_ok=True)
        raise
    except OSError as error:
        directory, reason = wanted.part.parent, error.strerror or str(error)
        raise errors.StoreError(
            f"a {wanted.what} cannot be kept in {directory} ({reason}); free space there or choose another folder"
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
        f"the server's answer is over the limit of {limit} bytes; check that it is an edge-server"
    )


async def _refused(response: aiohttp.ClientResponse) -> errors.SplitEdgeError:
    """The error in a response: ``{"error": {...}}`` of the server, or what its status means."""
    if response.status == 416:
        return errors.SegmentError("the server's segment is shorter than the plan says; ask the server for a new plan")
    try:
        body = await _bounded(response, limits.MAX_MESSAGE_BYTES)
        document: dict[str, dict[str, Any]] = decode(body, dict[str, dict[str, Any]])
        return errors.from_wire(document["error"])
    except (errors.ProtocolError, KeyError):  # somebody else's error page
        return endpoint.status_error(response.status, response.url)


def _body(request: PlanRequest | ChainRequest) -> bytes:
    body = encode(request)
    if len(body) > limits.MAX_REQUEST_BYTES:
        raise errors.ProtocolError(
            f"a plan request of {len(body)} bytes is over the limit of {limits.MAX_REQUEST_BYTES}; shorten the profile"
        )
    return body


def _first_byte(response: aiohttp.ClientResponse, wanted: _Download, have: int) -> int:
    """Where in the segment the body of ``response`` begins: ``have``, or 0 from a server that ignores ranges."""
    if response.status == 200:
        if response.content_length not in (None, wanted.size):
            raise _wrong_size(wanted, response.content_length)
        return 0
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        raise errors.ProtocolError(
            f"the server did not answer the range from byte {have}; check that it is an edge-server"
        )
    if int(found[2]) != wanted.size:
        raise _wrong_size(wanted, int(found[2]))
    return have


def _wrong_size(wanted: _Download, size: int | None) -> errors.SegmentError:
    return errors.SegmentError(
        f"the server's {wanted.what} has {size} bytes where the plan says {wanted.size}; ask the server for a new plan"
    )


def _length(wanted: _Download) -> int:
    """Bytes in the part; one that is longer than what is wanted is no part of it, and is emptied."""
    try:
        size = wanted.part.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= wanted.size:
        return size
    wanted.part.unlink()
    return 0


def _apply(base: Base, part: Path, done: Path) -> None:
    """Turn ``part``, an upgrade of ``base``, into the segment that is wanted, and name it ``done``."""
    files.replace(done, base.apply(part.read_bytes()))
    part.unlink()


def _is_whole(path: Path, ref: SegmentRef | TokenizerRef) -> bool:
    """Whether ``path`` is the file ``ref``, by size and hash."""
    try:
        with path.open("rb") as file:
            return (
                os.fstat(file.fileno()).st_size == ref.size
                and hashlib.file_digest(file, "sha256").hexdigest() == ref.sha256
            )
    except FileNotFoundError:
        return False


def _sync(file: BinaryIO) -> None:
    """Bytes to the disk before the name: a board loses power without notice."""
    file.flush()
    os.fsync(file.fileno())
