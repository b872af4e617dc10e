"""Download what a plan needs: its segment and its tokenizer. Both are kept in the disk cache."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.peers import StatusCallback
from splitedge import errors
from splitedge.head import text, upgrade
from splitedge.head.text import Tokenizer
from splitedge.link.http_client import Base, ServerClient
from splitedge.protocol.messages import Plan

DOWNLOADING: Final = "downloading the segment"  # the progress message during that download


async def segment(server: ServerClient, cache: DiskCache, plan: Plan, say: StatusCallback) -> bytes:
    """The segment of ``plan``: from the cache, as a patch of a cached segment of the same model, or whole."""
    say(DOWNLOADING)
    base = await asyncio.to_thread(_base, cache, plan)
    path = await server.fetch_segment(plan.segment, cache.directory, base)
    return await _read(cache, path)


async def tokenizer(server: ServerClient, cache: DiskCache, plan: Plan, say: StatusCallback) -> Tokenizer | None:
    """The tokenizer of ``plan``, or None if it has none or the tokenizers library is missing; the agent then takes
    token ids only.

    Raises `errors.SegmentError` for a file that is not the plan's or not a tokenizer.
    """
    ref = plan.tokenizer
    if ref is None or not text.installed():
        return None
    say("downloading the tokenizer")
    path = await server.fetch_tokenizer(ref, plan.model, cache.directory)
    data = await _read(cache, path)
    try:
        return await asyncio.to_thread(Tokenizer, data, plan.preprocess.shape[-1], ref.padding)
    except errors.InputError as error:
        raise errors.SegmentError(
            f"the server's tokenizer cannot be used: {error.message}", reason="tokenizer"
        ) from error


async def _read(cache: DiskCache, path: Path) -> bytes:
    data = await asyncio.to_thread(cache.read, path)
    await asyncio.to_thread(cache.prune)
    return data


def _base(cache: DiskCache, plan: Plan) -> Base | None:
    """The cached segment that a patch to the segment of ``plan`` can start from."""
    held = cache.nearest(plan.model, plan.cut.layer)
    if held is None:
        return None
    return Base(held.stem, lambda patch: upgrade.apply(cache.read(held), patch, plan.segment.sha256))
