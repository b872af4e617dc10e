"""The folder of everything that splitedge keeps and can make again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_base() -> Path:
    """The folder of all caches: ``SPLITEDGE_CACHE_DIR``, systemd's ``CACHE_DIRECTORY``, or the user's cache folder.

    Expands a leading ``~``, as a shell does not in ``NAME="~/path"`` or in a unit file.
    """
    for variable in ("SPLITEDGE_CACHE_DIR", "CACHE_DIRECTORY"):
        if os.environ.get(variable):
            return Path(os.path.expanduser(os.environ[variable].split(":")[0]))  # noqa: PTH111
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"splitedge-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "splitedge"
