"""A fake root folder, laid out file by file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

LayOut = Callable[[dict[str, str]], Path]


@pytest.fixture
def lay_out(tmp_path: Path) -> LayOut:
    """``lay_out(files)``: the root of a file system with these files. Those in ``usr/bin`` are executable."""

    def make(files: dict[str, str]) -> Path:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if name.startswith("usr/bin/"):
                path.chmod(0o755)
        return root

    return make
