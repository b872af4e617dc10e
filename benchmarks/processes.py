"""Processes that a benchmark begins: the server, and how each of them ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PORT: Final = 8470


@contextmanager
def serving(store: Path, prefix: Sequence[str], address: str) -> Iterator[None]:
    """`edge-server serve` at ``address`` and `PORT`, once it is ready. ``prefix``: what begins its command (a namespace, a core)."""
    command = [*prefix, sys.executable, "-m", "edge_server", "serve"]
    options = ["--host", address, "--port", str(PORT), "--insecure", "--store", str(store)]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([*command, *options], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            if "ready" not in lines.readline():
                sys.exit("the server did not start; look at its message above")
            yield
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
