"""Fix-ups of `edge-agent doctor --fix`. Each changes one thing that is safe to change, and says what it did.

A fix-up returns None if there is nothing to do. It changes only what belongs to this user.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_profiles import machine, tools
from edge_agent.config import Settings
from edge_agent.doctor import kernel_library, storage
from kernels.cache import cache_base
from splitedge import limits

_OTHERS_WRITE: Final = 0o022


@dataclass(frozen=True)
class Fixed:
    """What a fix-up did, or why it did nothing about a problem."""

    name: str
    done: bool
    said: str


Fix = Callable[[Settings], Fixed | None]


def apply(settings: Settings, say: Callable[[str], object] = lambda _: None) -> list[Fixed]:
    """Apply every fix-up in turn. ``say`` receives the name of each as it begins."""
    found = []
    for name, fix in FIXES.items():
        say(name)
        found.append(fix(settings))
    return [one for one in found if one is not None]


def cache_folder(settings: Settings) -> Fixed | None:
    """Create the missing cache folder, for this user alone."""
    missing = [folder for folder in storage.own_folders(settings) if not folder.exists()]
    said = {folder: _create(folder) for folder in missing}
    if not said:
        return None
    done = not any(said.values())
    return Fixed("cache folder", done, "; ".join(problem or f"created {folder}" for folder, problem in said.items()))


def _create(folder: Path) -> str:
    """Create ``folder`` for this user alone; why that failed, or an empty string."""
    if why := _foreign(folder):
        return f"{folder} is not created: {why}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot create {folder} ({(error.strerror or str(error)).lower()})"
    return ""


def folder_modes(settings: Settings) -> Fixed | None:
    """Let only this user write to the cache folder and to those of compiled kernels: their code is executed."""
    folders = [folder for top in storage.own_folders(settings) for folder in (top, *sorted(top.glob("kernels-*")))]
    changed = [text for folder in folders if (text := _restrict(folder, _OTHERS_WRITE, os.O_DIRECTORY))]
    return Fixed("folder modes", True, "; ".join(changed)) if changed else None


def token_mode(settings: Settings) -> Fixed | None:
    """Keep other users from reading or changing the token file."""
    path = storage.token_path(settings)
    if path is None or not path.is_file() or not path.stat().st_mode & storage.TOO_OPEN:
        return None
    if changed := _restrict(path, storage.TOO_OPEN):
        return Fixed("token file", True, changed)
    return Fixed("token file", False, f"{path} belongs to another user; run `sudo chmod o=,g-w {path}`")


def compiled_kernels(settings: Settings) -> Fixed | None:  # noqa: ARG001 (as every fix-up)
    """Compile the kernels if some are missing, which takes minutes on a small board."""
    if why := _foreign(cache_base()):  # first: the probe makes a folder there
        return Fixed("kernels", False, f"not compiled: {why}")
    facts = kernel_library.probe().facts
    if facts is None or not facts.missing:  # `kernels` says why they cannot be imported or kept
        return None
    memory = machine.memory()
    free = memory.available + memory.swap_free
    if memory.total and free < limits.COMPILE_MEMORY:
        text = f"not compiled: {free // limits.MiB} MiB of memory and swap are free, {limits.COMPILE_MEMORY // limits.MiB} are needed"
        return Fixed("kernels", False, text)
    try:
        done = tools.run([sys.executable, "-P", "-m", "edge_agent", "warm"], limits.WARMUP_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return Fixed("kernels", False, "the compilation did not end in time; run `edge-agent warm` to continue it")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
        return Fixed("kernels", False, f"not compiled: {said}")
    return Fixed("kernels", True, f"compiled {facts.missing} kernels in {facts.folder}")


def _foreign(folder: Path) -> str:
    """Why root should not write below ``folder``, or an empty string: `sudo` may keep the HOME of its caller, who could
    not use root's files there.
    """
    there = storage.nearest(folder)
    if os.geteuid() != 0 or there.stat().st_uid == 0:
        return ""
    return f"{there} belongs to another user; run the command as that user, without sudo"


def _restrict(path: Path, bits: int, kind: int = 0) -> str:
    """Take ``bits`` from the mode of ``path`` if it belongs to this user; what changed, or an empty string.

    Changes the opened file, so that nobody can put a symbolic link in its place meanwhile.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind)
    except OSError:
        return ""
    try:
        status = os.fstat(handle)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() or not mode & bits:
            return ""
        os.fchmod(handle, mode & ~bits)
    except OSError:
        return ""
    finally:
        os.close(handle)
    return f"{path} has mode {mode & ~bits:04o} now, instead of {mode:04o}"


#: Every fix-up by its name. Later ones rely on earlier ones.
FIXES: Final[dict[str, Fix]] = {
    "creating the cache folder": cache_folder,
    "correcting the modes of folders": folder_modes,
    "correcting the mode of the token file": token_mode,
    "compiling kernels (minutes on a small board)": compiled_kernels,
}
