"""Dry runs kept between starts, and the decision when a model needs a new one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from device_profiles import DeviceProfile
from edge_agent.config import Settings
from edge_agent.planning import device, disk_cache
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.dry_run import memory_bytes, time_operators
from edge_agent.planning.peers import StatusCallback
from splitedge import errors, limits
from splitedge.link.http_client import ServerClient
from splitedge.protocol.messages import DryRun

_log = logging.getLogger(__name__)

TOLERANCE: Final = 1.25  # a head whose time differs from the dry run by more than this factor contradicts it


class KeptDryRun(msgspec.Struct):
    """A dry run, and the frame times of heads, by segment, when it was made."""

    dry_run: DryRun = msgspec.field(name="rehearsal")
    measured: dict[str, float]


class DryRunStore:
    """The dry runs of this device and this build of the kernels, by key, in the JSON file ``path``: the last
    `limits.MAX_DRY_RUNS`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> KeptDryRun | None:
        """The dry run kept under ``key``. Raises `errors.StoreError`."""
        return self._read().get(key)

    def put(self, key: str, found: KeptDryRun) -> None:
        """Keep ``found`` as the newest. Safe among threads and processes. Raises `errors.StoreError`."""
        with disk_cache.locked(self._path):
            kept = {name: one for name, one in self._read().items() if name != key} | {key: found}
            self._write(dict(list(kept.items())[-limits.MAX_DRY_RUNS :]))

    def remove(self, bundle: str) -> None:
        """Remove the dry runs of ``bundle``, the SHA-256 of a model that was replaced. Safe and raises as `put`."""
        with disk_cache.locked(self._path):
            self._write({key: one for key, one in self._read().items() if one.dry_run.bundle != bundle})

    def _write(self, kept: dict[str, KeptDryRun]) -> None:
        disk_cache.write(self._path, msgspec.json.encode(kept))

    def _read(self) -> dict[str, KeptDryRun]:
        return disk_cache.read_json(self._path, dict[str, KeptDryRun], limits.MAX_DRY_RUNS_BYTES) or {}


def store(settings: Settings) -> DryRunStore:
    """The dry runs made here with this build of the kernels."""
    return DryRunStore(disk_cache.build_file(settings, "rehearsals"))


async def dry_run(
    server: ServerClient, settings: Settings, profile: DeviceProfile, head_ms: Mapping[str, float], say: StatusCallback
) -> DryRun | None:
    """The model's dry run on this device: made once, and again if frames contradict it.

    ``head_ms``: measured heads, by segment.

    None if it cannot be made: for a profile that the settings name, which may be another machine's; in a chain, whose
    boards run parts of the model; for a server without outlines; for a model larger than this board's memory.
    """
    if settings.profile or settings.chain.next or not settings.model:
        return None
    known, key = store(settings), f"{settings.model} on {device.threads(profile)}"
    operators = await asyncio.to_thread(DiskCache(disk_cache.folder(settings)).operators, settings.model)
    kept = known.get(key)
    if kept is not None and not contradicted(kept, head_ms, operators):
        return kept.dry_run
    try:
        outline = await server.outline(settings.model)
        if memory_bytes(outline) > profile.machine.memory_available_bytes:
            return None
        say("timing the model on this board")
        found = await asyncio.to_thread(time_operators, outline, device.threads(profile))
    except (errors.ProtocolError, errors.SegmentError) as error:  # a server of another version, or an invalid outline
        _log.info("no dry run of the model, the profile is used instead: %s", error)
        return None
    await asyncio.to_thread(known.put, key, KeptDryRun(found, dict(head_ms)))
    return found


def contradicted(kept: KeptDryRun, head_ms: Mapping[str, float], operators: Mapping[str, int]) -> bool:
    """Whether a measured head differs from ``kept`` by more than `TOLERANCE` and did not when ``kept`` was made.

    ``head_ms``: measured heads, by segment. ``operators``: the number of operators of each segment of this model.
    """
    ms = kept.dry_run.ms
    return any(
        _differ(found, ms[operators[segment] - 1]) and _differ(found, kept.measured.get(segment, 0.0))
        for segment, found in head_ms.items()
        if 0 < operators.get(segment, 0) <= len(ms)
    )


def _differ(a: float, b: float) -> bool:
    return max(a, b) > TOLERANCE * min(a, b)
