"""Checks of the storage: room, read-only file systems, wear, and the mode of the token file."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final, NamedTuple

from device_profiles import machine
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.doctor.check import Check, fail, ok, warn
from edge_agent.service import unit
from kernels.cache import cache_base
from splitedge import errors, limits, terminal

#: Bits of a mode that a token file should not have: any for others, writing for the group.
TOO_OPEN: Final = 0o027
_OTHER: Final = "set `cache_dir` or SPLITEDGE_CACHE_DIR to another folder"
_NORMAL_WEAR: Final = 8  # eighty per cent of the lifetime, in the steps of ten that the card reports
_PRE_EOL: Final = {2: "80 % of its spare blocks are used", 3: "almost all of its spare blocks are used"}


class Mount(NamedTuple):
    """A file system, where it is mounted."""

    place: Path
    kind: str
    read_only: bool


def own_folders(settings: Settings) -> list[Path]:
    """The folders of this user's agent: compiled kernels; segments and measurements."""
    try:
        named = config.path_of(settings.cache_dir) if settings.cache_dir else cache_base()
    except errors.ConfigError:  # a home folder that does not exist: the agent says so
        named = cache_base()
    return list(dict.fromkeys([cache_base(), named]))


def space(settings: Settings, root: Path = machine.ROOT) -> Check:
    """Free space of the folders for segments, measurements and compiled kernels, and whether they can be written."""
    service = [root / folder.relative_to("/") for folder in (unit.CACHE, unit.STATE)]
    found: list[str] = []
    for folder in [*own_folders(settings), *(folder for folder in service if folder.exists())]:
        there = nearest(folder)
        mounted = mount(there, root)
        if mounted is not None and mounted.read_only:
            advice = (
                f"remount it: `sudo mount -o remount,rw {mounted.place}`; if it became read-only by itself, see "
                "`sudo dmesg`: the card may be dying"
            )
            return fail("storage", f"{mounted.place} is mounted read-only, and {folder} is there", advice)
        if not there.is_dir():
            return fail("storage", f"{there} is not a folder", _OTHER)
        if folder not in service and not os.access(there, os.W_OK | os.X_OK):
            return fail("storage", f"{there} cannot be written by this user", f"change its owner, or {_OTHER}")
        free = shutil.disk_usage(there).free
        text = f"{folder}: {terminal.size(free)} free"
        if free < limits.LOW_DISK:
            return warn("storage", text, f"remove files: splitedge needs up to {terminal.size(limits.LOW_DISK)} there")
        found.append(text)
    return ok("storage", "; ".join(found))


def wear(root: Path = machine.ROOT) -> Check | None:
    """Errors of file systems, and the wear that an eMMC reports. SD cards report none."""
    counts = {path.parent.name: _number(path) for path in sorted(root.glob("sys/fs/ext4/*/errors_count"))}
    if bad := [f"{count} errors on {name}" for name, count in counts.items() if count]:
        advice = "back up the card, check it with `fsck` at the next start, and replace it if errors return"
        return warn("wear", f"ext4 recorded {', '.join(bad)}", advice)
    cards = [_card(folder) for folder in sorted(root.glob("sys/block/mmcblk[0-9]"))]
    if not cards:
        return None
    text = "; ".join(text for text, _ in cards)
    if any(worn for _, worn in cards):
        return warn("wear", text, "back it up and replace it soon: it will become read-only or lose data")
    return ok("wear", text)


def _card(folder: Path) -> tuple[str, bool]:
    """A card in words, and whether it is worn."""
    device = folder / "device"
    kind, name = (_text(device / file).strip()[:20] for file in ("type", "name"))
    text = " ".join(filter(None, [folder.name, f"({kind} {name})".replace("( ", "(") if kind or name else ""]))
    steps = max((int(one, 16) for one in re.findall(r"0x[0-9a-fA-F]{1,2}", _text(device / "life_time"))), default=0)
    spare = _PRE_EOL.get(_number(device / "pre_eol_info", 16), "")
    if not steps and not spare:
        return f"{text} reports no wear", False
    used = "beyond its lifetime" if steps > 10 else f"{10 * steps - 10} to {10 * steps} % of its lifetime used"
    return f"{text}: {', '.join(filter(None, [used if steps else '', spare]))}", steps > _NORMAL_WEAR or bool(spare)


def token_file(settings: Settings) -> Check | None:
    """Whether other users can read or change the file with the token."""
    path = token_path(settings)
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return fail("token file", f"{path}: {(error.strerror or str(error)).lower()}", "correct `token_file`")
    found = f"{path} has mode {stat.S_IMODE(mode):04o}"
    if mode & TOO_OPEN:
        return warn("token file", found, f"run `edge-agent doctor --fix` or `chmod o=,g-w {path}`: others may use it")
    return ok("token file", found)


def token_path(settings: Settings) -> Path | None:
    """The file that `token_file` names, if it is set and its home folder exists."""
    try:
        return config.path_of(settings.token_file) if settings.token_file else None
    except errors.ConfigError:
        return None


def mount(path: Path, root: Path = machine.ROOT) -> Mount | None:
    """The file system that holds ``path``; None if the system lists none."""
    real = path.resolve()
    holding = [one for one in mounts(_text(root / "proc/self/mounts")) if real.is_relative_to(one.place)]
    return max(reversed(holding), key=lambda one: len(one.place.parts), default=None)  # a later one covers an earlier


def mounts(text: str) -> list[Mount]:
    """The mounts in the text of /proc/self/mounts, where spaces of a path are written ``\\040``."""
    rows = (line.split(" ") for line in text.split("\n"))
    return [Mount(Path(_unescaped(row[1])), row[2], "ro" in row[3].split(",")) for row in rows if len(row) >= 4]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), text)


def nearest(path: Path) -> Path:
    """The folder ``path``, or the nearest parent that exists."""
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _number(path: Path, base: int = 10) -> int:
    """The number in ``path``, 0 if there is none."""
    text = _text(path).strip().lower()
    return int(text, base) if re.fullmatch(r"0x[0-9a-f]{1,8}" if base == 16 else r"\d{1,18}", text) else 0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
