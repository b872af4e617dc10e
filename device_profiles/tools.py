"""Programs of the system that report what /proc and /sys do not, such as ``vcgencmd``; their run time is bounded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from splitedge import limits

ROOT: Final = Path("/")
_FOLDERS: Final = ("usr/sbin", "usr/bin", "sbin", "bin", "opt/vc/bin")


def run(command: Sequence[str], timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` without input, with ``variables`` besides the environment's. Its output is text.

    Raises `OSError`, `subprocess.TimeoutExpired` after ``timeout`` seconds.
    """
    return subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        env=os.environ | variables,
    )


def output(root: Path, *command: str, timeout: float = limits.TOOL_TIMEOUT) -> str | None:
    """Standard output of ``command``. None if it is not installed below ``root``, fails, or takes longer than
    ``timeout`` seconds.
    """
    search = os.pathsep.join(str(root / folder) for folder in _FOLDERS)
    if root == ROOT:
        search = os.pathsep.join([os.environ.get("PATH", ""), search])
    tool = shutil.which(command[0], path=search)
    if tool is None:
        return None
    try:
        done = run([tool, *command[1:]], timeout, LC_ALL="C")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
