"""Run a command and write its terminal output as an SVG picture.

python scripts/record_demo.py [--out docs/demo.svg] [--columns 100] [--title TEXT] [COMMAND ...]

Without COMMAND it records scripts/demo. The exit status is the command's; a command that fails writes no picture.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

ROOT: Final = Path(__file__).resolve().parent.parent
_UP: Final = re.compile(r"\x1b\[(\d*)A")  # cursor up: a progress display erases and rewrites its lines
_FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names fonts on another host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/demo.svg")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--title")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    command = given.command or ["scripts/demo"]
    status, output = run(command, given.columns)
    if status:
        sys.exit(status)
    given.out.write_text(picture(screen(output), given.columns, given.title or shlex.join(command)))


def run(command: list[str], columns: int) -> tuple[int, str]:
    """Return exit status and output of ``command`` in a terminal of ``columns``; show the output as it arrives."""
    master, slave = pty.openpty()
    environ = os.environ | {"COLUMNS": str(columns), "LINES": "50", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=ROOT, env=environ
    ) as child:
        os.close(slave)
        parts = []
        while part := _read(master):
            parts.append(part)
            os.write(1, part)
    os.close(master)
    return child.returncode, b"".join(parts).decode(errors="replace")


def _read(master: int) -> bytes:
    """Return the next bytes of the terminal; empty at its end."""
    try:
        return os.read(master, 65536)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""


def screen(output: str) -> list[str]:
    """Return the lines that remain on the terminal."""
    lines: list[str] = []
    for line in output.replace("\r\n", "\n").split("\n"):
        for moved in _UP.finditer(line):
            del lines[len(lines) - int(moved[1] or 1) :]
        lines.append(_UP.sub("", line))
    return lines


def picture(lines: list[str], columns: int, title: str) -> str:
    """Return ``lines`` with their colours as SVG.

    Paths below this working tree become relative, and no fonts come from another host.
    """
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi("\n".join(lines).strip().replace(f"{ROOT}/", "")))
        return _FONT.sub("", console.export_svg(title=title, unique_id="demo"))


if __name__ == "__main__":
    main()
