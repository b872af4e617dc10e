"""Checks before a command measures, compiles or computes: its arguments, the files that they name, and the server.

This module loads neither numba nor the kernels, so errors appear at once.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge_agent import config
from edge_agent.config import Settings
from edge_agent.inputs.sources import Source, expand, file_bytes, spoken
from splitedge import errors, files, limits

if TYPE_CHECKING:
    from edge_agent.api.client import RunningAgent

_NAMED = 5  # files in one error message


class Failed(NamedTuple):
    """A source that cannot be read, and the reason."""

    source: Source
    error: errors.InputError


class Frames(NamedTuple):
    """The frames of an `infer` command: those that can be read, in order, and those that cannot."""

    good: list[Source]
    bad: list[Failed]


def frames(patterns: list[str], texts: list[str], *folders: Path | None) -> Frames:
    """The frames in ``texts`` and in the files, folders and globs of ``patterns``; none is read yet. Makes the
    ``folders`` for outputs.

    Raises `errors.UsageError` without any, `errors.InputError` if none can be read or there are too many,
    `errors.StoreError` for the folder.
    """
    if not patterns and not texts:
        raise errors.UsageError("there is no input; give a file or a folder, or a text with --text", reason="no-inputs")
    if "" in patterns:
        raise errors.UsageError("a file name is empty; give a file or a folder", reason="empty-name")
    found = Frames([spoken(text) for text in texts], [])
    stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    for pattern in patterns:
        try:
            for source in expand(pattern, stdin):
                _put(found, source, _problem(source))
        except errors.InputError as error:
            _put(found, Source(pattern, bytes), error)
    _check(found)
    for folder in folders:
        if folder is not None:
            files.make_folder(folder)
    return found


def server(settings: Settings) -> None:
    """Check that a model is selected, that the profile of the settings is usable, and that the server answers
    (`peers.check`).
    """
    from edge_agent.planning import peers  # aiohttp: errors in arguments should not wait for this import

    config.require_model(settings)
    if settings.profile:
        from edge_agent.planning import device

        device.named_profile(settings)
    asyncio.run(peers.check(settings, patient=False))


def with_outputs(settings: Settings, out: Path | None) -> Settings:
    """``settings``, asking for complete outputs if there is a folder ``out`` for them."""
    return settings if out is None else msgspec.structs.replace(settings, topk=0)


def answering(settings: Settings, *, own: bool) -> RunningAgent | None:
    """The agent that runs on this machine with the same settings. Without one, or with ``own``: None, after the checks of
    `server`.
    """
    config.require_model(settings)
    if not own:
        from edge_agent.api import client

        if (running := asyncio.run(client.find(settings))) is not None:
            return running
    server(settings)
    return None


def plan(settings: Settings, board: str | None, picture: Path | None) -> None:
    """Like `server`, after a check of the other arguments of `plan`: the known board and the file of the picture."""
    if picture:
        if settings.chain.next:
            raise errors.UsageError(
                "--plot cannot draw a chain of boards; omit --plot or --next", reason="plot-of-chain"
            )
        files.picture_form(picture.name)
        files.require_writable(picture)
    if board:
        from device_profiles import known

        known.load(board)
    server(settings)


def _put(found: Frames, source: Source, problem: errors.InputError | None) -> None:
    if problem is None:
        found.good.append(source)
    else:
        found.bad.append(Failed(source, problem))


def _check(found: Frames) -> None:
    """Raise `errors.InputError` if there are too many inputs, or none can be read."""
    count = len(found.good) + len(found.bad)
    if count > limits.MAX_SOURCE_FILES:
        raise errors.InputError(
            f"{count} inputs exceed the limit of {limits.MAX_SOURCE_FILES}; give fewer at a time",
            reason="too-many-files",
        )
    if found.good:
        return
    if count == 1:
        raise found.bad[0].error
    reasons = "; ".join(failed.error.message for failed in found.bad[:_NAMED])
    more = f"; and {count - _NAMED} more" if count > _NAMED else ""
    raise errors.InputError(f"cannot read any of {count} inputs: {reasons}{more}", reason="none-readable")


def _problem(source: Source) -> errors.InputError | None:
    """The reason why ``source`` cannot be read, as far as metadata shows. Does not open it: it may be a pipe."""
    if source.path is None:
        return None
    try:
        file_bytes(source.path)
    except errors.InputError as error:
        return error
    if os.access(source.path, os.R_OK):
        return None
    return errors.InputError(
        f"{source.path} cannot be read ({os.strerror(errno.EACCES)})", name=source.name, reason="unreadable"
    )
