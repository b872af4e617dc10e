"""Processes of a benchmark: calibrate EfficientNet-Lite0, start the server, and end any process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import lite0
from benchmarks.models import LITE0_PREPROCESS

PORT: Final = 8470


def add_command(store: Path, images: Path, *options: str) -> list[str]:
    """Return the command that calibrates EfficientNet-Lite0 on ``images`` into ``store``, with more ``options`` of `add`."""
    spec = LITE0_PREPROCESS
    command = [sys.executable, "-m", "edge_server", "add", lite0.file(), "--name", "lite0", "--images", str(images)]
    command += ["--size", str(spec.shape[0]), "--resize", str(spec.resize)]
    command += ["--mean", str(spec.mean[0]), "--std", str(spec.std[0])]
    return [*command, *options, "--store", str(store)]


@contextmanager
def serving(store: Path, prefix: Sequence[str] = (), address: str = "127.0.0.1", port: int = PORT) -> Iterator[int]:
    """Run `edge-server serve` at ``address``; yield its port once it is ready.

    ``prefix``: prefix of its command (a namespace, a core). ``port`` 0: a free one.
    """
    command = [*prefix, sys.executable, "-m", "edge_server", "serve"]
    options = ["--host", address, "--port", str(port), "--insecure", "--quiet", "--store", str(store)]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([*command, *options], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            ready = re.search(r"ready on \S+:(\d+)$", lines.readline().strip())
            if ready is None:
                sys.exit("the server did not start; see its message above")
            yield int(ready[1])
    finally:
        process.terminate()
        reap(process)


def reap(process: subprocess.Popen[Any], patience: float = 30.0) -> None:
    """Wait up to ``patience`` seconds for a terminating ``process``, then kill it. It may be building a segment."""
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
