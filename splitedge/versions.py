"""What a bug report needs: the `version` command of both programs, and versions in the doctor's archive.

Loads neither numba nor aiohttp; numpy and the kernels only for `facts`.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any, Final

import splitedge
from splitedge import terminal

#: The libraries of every installation, then those of extras and what numba needs.
LIBRARIES: Final = ("aiohttp", "msgspec", "numpy", "pillow", "rich", "safetensors", "typer")
EXTRAS: Final = ("llvmlite", "matplotlib", "numba", "onnx", "onnxruntime", "tokenizers", "torch")


def installation(program: str) -> dict[str, Any]:
    """Versions and platform, as JSON values. A library that is not installed has the version None."""
    return {
        "program": program,
        "version": splitedge.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libraries": {name: _version(name) for name in (*LIBRARIES, *EXTRAS)},
    }


def facts(program: str) -> dict[str, Any]:
    """`installation`, the instruction set, and the source of the kernels."""
    from kernels import isa, native

    library = native.LIBRARY
    kernels = (
        {"source": "compiled", "reason": native.REASON or None}
        if library is None
        else {"source": "library", "path": str(library.path), "sha256": library.sha256}
    )
    return installation(program) | {"isa": isa.ISA, "kernels": kernels}


def show(program: str, *, as_json: bool) -> None:
    """Print `facts`: JSON, or a line for each."""
    found = facts(program)
    if as_json:
        print(json.dumps(found))
        return
    kernels, libraries = found["kernels"], found["libraries"]
    why = f" ({kernels['reason']})" if kernels.get("reason") else ""
    rows: list[tuple[terminal.Cell, terminal.Cell]] = [
        (program, found["version"]),
        ("Python", found["python"]),
        ("platform", terminal.plain(found["platform"])),
        ("instructions", found["isa"]),
        ("kernels", terminal.plain(kernels.get("path", f"compiled by Numba on this machine{why}"))),
        *((name, version) for name, version in libraries.items() if version),
    ]
    terminal.show(terminal.definitions(rows, terminal.width()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
