"""What a command checks before it measures, compiles or computes: its arguments, the files that they name, and the server.

Loads neither numba nor the kernels, so that an error is told at once.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple

from edge_agent import config
from edge_agent.config import Settings
from edge_agent.inputs.sources import Source, expand, file_bytes, spoken
from splitedge import errors, files, limits

_NAMED = 5  # files in one error message


class Failed(NamedTuple):
    """A source that cannot be read, and why."""

    source: Source
    error: errors.InputError


class Frames(NamedTuple):
    """The frames of an `infer` command: those that can be read, in order, and those that cannot."""

    good: list[Source]
    bad: list[Failed]


def frames(patterns: list[str], texts: list[str], out: Path | None = None) -> Frames:
    """What ``texts``, files, folders and globs name. Nothing is read yet. ``out``: a folder that is made for outputs.

    Raises `errors.UsageError` if they name nothing, `errors.InputError` if nothing that they name can be read, `errors.StoreError` for the folder.
    """
    if not patterns and not texts:
        raise errors.UsageError("nothing to classify; name a file or a folder, or give a text with --text")
    if "" in patterns:
        raise errors.UsageError("a file name is empty; name a file or a folder")
    found = Frames([spoken(text) for text in texts], [])
    stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    for pattern in patterns:
        try:
            for source in expand([pattern], stdin):
                _put(found, source, _problem(source))
        except errors.InputError as error:
            _put(found, Source(pattern, bytes), error)
    _check(found)
    if out is not None:
        files.make_folder(out)
    return found


def server(settings: Settings) -> None:
    """Return if a model is chosen, the profile that the settings name can be used, and `peers.check` finds no fault; for a person who waits."""
    from edge_agent.planning import peers  # aiohttp, which a fault of the arguments need not wait for

    config.require_model(settings)
    if settings.profile:
        from edge_agent.planning import negotiation

        negotiation.named_profile(settings)
    asyncio.run(peers.check(settings, patient=False))


def plan(settings: Settings, board: str | None, picture: Path | None) -> None:
    """As `server`, after what `plan` names beside the settings: a known board, and the file of a picture."""
    if picture:
        if settings.chain.next:
            raise errors.UsageError("--plot does not draw a chain of boards; leave out --plot or --next")
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
    """Raise `errors.InputError` if nothing can be read, or more is named than may be."""
    count = len(found.good) + len(found.bad)
    if count > limits.MAX_SOURCE_FILES:
        raise errors.InputError(f"{count} files are more than {limits.MAX_SOURCE_FILES}; give fewer at a time")
    if found.good:
        return
    if count == 1:
        raise found.bad[0].error
    told = "; ".join(failed.error.message for failed in found.bad[:_NAMED])
    more = f"; and {count - _NAMED} more" if count > _NAMED else ""
    raise errors.InputError(f"none of the {count} inputs can be read: {told}{more}")


def _problem(source: Source) -> errors.InputError | None:
    """Why ``source`` cannot be read, as far as its name tells. It is not opened: it may be a pipe."""
    if source.path is None:
        return None
    try:
        file_bytes(source.path)
    except errors.InputError as error:
        return error
    if os.access(source.path, os.R_OK):
        return None
    return errors.InputError(f"{source.path} cannot be read ({os.strerror(errno.EACCES)})", name=source.name)
