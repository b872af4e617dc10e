"""Processes that a benchmark begins: the server, and how each of them ends."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PORT: Final = 8470


@contextmanager
def serving(store: Path, prefix: Sequence[str] = (), address: str = "127.0.0.1", port: int = PORT) -> Iterator[int]:
    """`edge-server serve` at ``address``, once it is ready; yields its port. ``prefix``: what begins its command (a namespace, a core). ``port`` 0: a free one."""
    command = [*prefix, sys.executable, "-m", "edge_server", "serve"]
    options = ["--host", address, "--port", str(port), "--insecure", "--quiet", "--store", str(store)]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([*command, *options], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            ready = re.search(r"ready on \S+:(\d+)$", lines.readline().strip())
            if ready is None:
                sys.exit("the server did not start; look at its message above")
            yield int(ready[1])
    finally:
        process.terminate()
        reap(process)


def reap(process: subprocess.Popen[Any], patience: float = 30.0) -> None:
    """Wait for ``process``, which was told to end, and kill it where it has not in ``patience`` seconds: it may be in the midst of a segment."""
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
