"""Facts about this board that a plan request needs: its device profile, its threads, and its name in a chain."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import msgspec

import device_profiles
from device_profiles import DeviceProfile, machine, schema
from device_profiles.predict import best_threads
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import disk_cache, peers
from edge_agent.planning.disk_cache import DiskCache
from edge_agent.planning.peers import StatusCallback
from splitedge import errors, limits


async def profile(settings: Settings, say: StatusCallback) -> DeviceProfile:
    """The profile that the settings name, else the one kept for this build of the kernels, else a new quick
    measurement, which is kept.

    A measurement takes minutes, so the server and the next board must answer first: raises as `peers.check` does.

    A kept profile has its memory, clock and throttling updated. A named profile is used as it is, and raises
    `errors.ConfigError` if it was not measured. Measurements on more threads than the settings allow are left out, so
    that `predict.best_threads` obeys them.
    """
    found = await _profile(settings, say)
    if settings.threads:
        found.kernels = [kernel for kernel in found.kernels if kernel.threads <= settings.threads]
    return found


def threads(profile: DeviceProfile) -> int:
    """The threads that a head runs on here. The profile may be another machine's."""
    return min(best_threads(profile), machine.usable_threads())


def place(settings: Settings) -> Path:
    """The file of the profile in use: the one that the settings name, else the one kept for this build."""
    return config.path_of(settings.profile) if settings.profile else disk_cache.build_file(settings, "profile")


def keep(profile: DeviceProfile, settings: Settings) -> Path:
    """Make ``profile`` the one in use; returns its file. Raises `errors.StoreError`."""
    path = place(settings)
    if not settings.profile:
        DiskCache(path.parent)  # makes the folder
    device_profiles.save(profile, path)
    return path


def named_profile(settings: Settings) -> DeviceProfile:
    """The profile file that the settings name. Raises `errors.ConfigError` if it cannot be read or was not measured."""
    found = device_profiles.load(config.path_of(settings.profile))
    schema.require_measured(found)
    return found


def name(settings: Settings) -> str:
    """This board's name in plans for chains: random, and kept in the cache folder. Raises `errors.StoreError`."""
    path = DiskCache(disk_cache.folder(settings)).directory / "device-name"
    try:
        return path.read_text("ascii").strip()[: limits.MAX_NAME] or _new_name(path)
    except FileNotFoundError:
        return _new_name(path)
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StoreError(f"{path} cannot be read ({error}); remove it", reason="unreadable") from error


async def _profile(settings: Settings, say: StatusCallback) -> DeviceProfile:
    if settings.profile:
        return await asyncio.to_thread(named_profile, settings)
    path = place(settings)
    try:
        return await asyncio.to_thread(_refreshed, device_profiles.load(path))
    except errors.ConfigError:  # no such file, or one of another version
        DiskCache(path.parent)  # fails before the measurement if the folder cannot be written
        await peers.check(settings)
        say("measuring this machine (only once; takes one to two minutes)")
    measured = await asyncio.to_thread(device_profiles.measure, quick=True)
    await asyncio.to_thread(device_profiles.save, measured, path)
    return measured


def _refreshed(profile: DeviceProfile) -> DeviceProfile:
    now, gaps = machine.machine(profile.machine.isa)
    condition, more = machine.condition()
    return msgspec.structs.replace(
        profile, machine=now, condition=condition, unmeasured=profile.unmeasured | gaps | more
    )


def _new_name(path: Path) -> str:
    name = secrets.token_hex(16)
    disk_cache.write(path, name.encode("ascii"))
    return name
