"""Type the commands of the tutorial, the how-to pages and README.md in a clean place, and time each.

python -m benchmarks.first_hour [--json OUT] [--quick] [--keep FOLDER]

The commands come from the Markdown itself. A comment before each shell block names the machine that runs it, or the
reason why it cannot run here:

    <!-- first-hour: on=server -->                    run each line on the server; on=board likewise
    <!-- first-hour: on=server until="ready on" -->   the last line keeps running; continue when it prints this
    <!-- first-hour: on=board file=~/agent.toml -->   the block is a file: write it
    <!-- first-hour: on=server slow -->               omitted with --quick
    <!-- first-hour: skip="needs systemd" -->         never run; listed with the reason

Server and board are two shells on this machine. Each has an empty home folder and only the environment variables of
`PASSED`. The server's folder is a fresh clone of HEAD. `SUBSTITUTED`, `CARRIED` and `PREPARED` declare all differences
from the text. Ports 8470 and 8471 must be free. ``--quick`` types the tutorial only.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.report import parser, report
from splitedge import errors

ROOT: Final = Path(__file__).resolve().parent.parent
#: Pages that share one installation, in the order of typing.
INSTALLATIONS: Final = (
    (
        "docs/tutorial.md",
        *(
            f"docs/howto/{name}.md"
            for name in (
                "add-a-model",
                "raspberry-pi",
                "jetson",
                "build-a-release",
                "upgrade",
                "tls",
                "text-model",
                "detector",
                "several-boards",
                "tune-the-link",
                "reuse-answers",
                "benchmark-a-board",
                "plan-for-another-board",
                "read-metrics",
                "run-as-a-service",
                "troubleshooting",
                "remove",
            )
        ),
    ),
    ("README.md",),
)
#: Text and its replacement, because both machines are this one.
SUBSTITUTED: Final = {"server.example": "localhost", "192.0.2.10": "127.0.0.1"}
#: Files that the reader copies from the server to the board.
CARRIED: Final = ("dist/splitedge-*.whl", "constraints.txt", "~/.config/splitedge/server.pem")
#: README.md uses the reader's own files; the tutorial's files replace them.
PREPARED: Final = {
    "model.onnx": "sample/model.onnx",
    "photos": "sample/photos",
}
PHOTO: Final = "sample/photo.jpg"  # the photo that both machines' commands call photo.jpg
#: Replacements in README.md: the accuracy bound of the sample's few photos exceeds one point.
SET: Final = {"SPLITEDGE_DEMAND_MAX_DROP_POINTS": "5"}
PASSED: Final = re.compile(r"LANG|LC_.*|PIP_.*|TMPDIR|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|https?_proxy|no_proxy")
LONGEST: Final = 3600.0  # seconds that one command may take

_BLOCK: Final = re.compile(
    r"(?:^ *<!-- first-hour: ([^\n]*?) -->\n)?^( *)```(\w+)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)
_TOKEN: Final = re.compile(r"\bTOKEN\b")
_PRINTED: Final = re.compile(r"\bse_[\w-]{43}(?![\w-])")  # a token that `edge-server init` or `token` prints


@dataclass(frozen=True)
class Block:
    """A fenced block. ``where``: "server", "board" or "". ``skip``: the reason why it cannot run here, or ""."""

    page: str
    line: int
    language: str
    text: str
    marked: bool
    where: str = ""
    skip: str = ""
    file: str = ""
    until: str = ""
    slow: bool = False

    def commands(self) -> list[str]:
        """Return the command lines without preceding comment lines."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of ``text`` in order. Raises `errors.UsageError` for a comment with an unknown word."""
    return [_block(page, text, found) for found in _BLOCK.finditer(text)]


def _block(page: str, text: str, found: re.Match[str]) -> Block:
    given, indent, language, body = found.groups()
    words = dict(word.partition("=")[::2] for word in shlex.split(given or ""))
    if unknown := words.keys() - {"on", "skip", "file", "until", "slow"}:
        raise errors.UsageError(
            f"{page}: the comment {given!r} has unknown words {sorted(unknown)}; see benchmarks/first_hour.py"
        )
    line = text.count("\n", 0, found.start(4))
    body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
    return Block(
        page,
        line,
        language,
        body,
        given is not None,
        words.get("on", ""),
        words.get("skip", ""),
        words.get("file", ""),
        words.get("until", ""),
        "slow" in words,
    )


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--keep", type=Path, help="work in this new folder and keep it")
    given = options.parse_args()
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="splitedge-first-hour-")))
        folder.mkdir(parents=True, exist_ok=True)
        first: Path | None = None
        for number, pages in enumerate(INSTALLATIONS[:1] if given.quick else INSTALLATIONS):
            place = Place(folder / str(number), stack, first)
            first = first or place.server.folder
            for page in pages[:1] if given.quick else pages:
                rows += typed(page, place, quick=given.quick)
            place.close()
    failed = [row for row in rows if row["status"] not in ("0", "skipped")]
    summary = {
        "first_hour.steps": sum(row["status"] != "skipped" for row in rows),
        "first_hour.failed": len(failed),
        "first_hour.skipped": sum(row["status"] == "skipped" for row in rows),
        "first_hour.tutorial_s": sum(row["seconds"] for row in rows if row["page"] == "docs/tutorial.md"),
        "first_hour.seconds": time.monotonic() - began,
    }
    report("The first hour: every command of the documentation, typed", rows, summary, given.json)
    sys.exit(bool(failed))


def typed(page: str, place: Place, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each command of ``page``."""
    for block in blocks(page, (ROOT / page).read_text()):
        reason = block.skip or ("slow" if block.slow and quick else "")
        if reason and block.marked:
            yield _row(block, "; ".join(block.commands()), 0.0, "skipped", reason)
        elif block.where and block.file:
            place.shell(block.where).write(block.file, place.substituted(block.text))
        elif block.where:
            yield from place.run(block)


def _row(block: Block, command: str, seconds: float, status: str, note: str) -> dict[str, Any]:
    where = block.where or "-"
    return {
        "page": block.page,
        "line": block.line,
        "on": where,
        "command": command[:100],
        "seconds": round(seconds, 2),
        "status": status,
        "note": note,
    }


class Place:
    """A server and a board below ``folder``. ``earlier``: server folder of the previous installation, or None."""

    def __init__(self, folder: Path, stack: ExitStack, earlier: Path | None) -> None:
        checkout = folder / "server/splitedge"
        folder.mkdir(parents=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
        extra = {} if earlier is None else SET
        if earlier is not None:
            for name, source in PREPARED.items():
                _copy(earlier / source, checkout / name)
        self._earlier = earlier
        self._token = ""
        self.server = stack.enter_context(Shell(checkout, folder / "server/home", {}))
        self.board = stack.enter_context(Shell(folder / "board/splitedge", folder / "board/home", extra))

    def shell(self, where: str) -> Shell:
        """Return the shell of a machine. For the board, first copy the files that a reader carries there."""
        if where == "server":
            return self.server
        for pattern in CARRIED:
            root = self.server.home if pattern.startswith("~/") else self.server.folder
            for path in root.glob(pattern.removeprefix("~/")):
                _copy(path, self.board.folder / path.name)
        _copy((self._earlier or self.server.folder) / PHOTO, self.board.folder / "photo.jpg")
        return self.board

    def substituted(self, text: str) -> str:
        """Return ``text`` with this machine's names and the printed token."""
        for old, new in SUBSTITUTED.items():
            text = text.replace(old, new)
        return _TOKEN.sub(self._token or "TOKEN", text)

    def run(self, block: Block) -> Iterator[dict[str, Any]]:
        """Yield a row for each command of ``block``."""
        shell, commands = self.shell(block.where), block.commands()
        for number, command in enumerate(commands):
            until = block.until if number == len(commands) - 1 else ""
            status, seconds, output = shell.run(self.substituted(command), until)
            if shell is self.server and (printed := _PRINTED.findall(output)):
                self._token = printed[-1]
            if status:
                print(f"{block.page}:{block.line}: {command}\n{output[-2000:]}", file=sys.stderr)
            yield _row(block, command, seconds, str(status), "")

    def close(self) -> None:
        """End both shells and their processes."""
        self.board.close()
        self.server.close()


@dataclass
class Shell:
    """A bash in ``folder`` with a separate home folder.

    Variables, the working folder and an activated environment persist between commands.
    """

    folder: Path
    home: Path
    extra: Mapping[str, str]
    _bash: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _status: int = field(default=-1, init=False)  # read end of a pipe; the shell writes each command's status to it
    _report: int = field(default=-1, init=False)  # the pipe's write end

    def __enter__(self) -> Shell:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True)
        passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
        path = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"  # python3 is the interpreter of this script
        environ = passed | {"HOME": str(self.home), "PATH": path, "COLUMNS": "100", **self.extra}
        self._status, out = os.pipe()
        command = ["bash", "--noprofile", "--norc"]
        self._bash = subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd=self.folder, env=environ, pass_fds=[out], start_new_session=True
        )
        self._report = out
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the shell and every program of its session."""
        if self._bash is None:
            return
        with ExitStack() as stack:
            stack.callback(os.close, self._status)
            stack.callback(os.close, self._report)
            os.killpg(self._bash.pid, signal.SIGTERM)  # bash itself ignores SIGTERM while it reads commands
            assert self._bash.stdin is not None
            self._bash.stdin.close()
            self._bash.wait(30)
        self._bash = None

    def write(self, name: str, text: str) -> None:
        """Write ``text`` to a file; ``~`` is this shell's home folder."""
        path = Path(name.replace("~", str(self.home), 1)) if name.startswith("~") else self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, command: str, until: str = "") -> tuple[int, float, str]:
        """Run ``command``; return status, seconds and output.

        With ``until`` it keeps running, and is done once it prints that text.
        """
        log = self.home.parent / f"log-{time.monotonic_ns()}.txt"
        typed_in = log.with_suffix(".sh")
        typed_in.write_text(f"{command} &\n" if until else f"{command}\n")
        began = time.monotonic()
        status = self._send(
            f". {shlex.quote(str(typed_in))} </dev/null >{shlex.quote(str(log))} 2>&1; echo $? >&{self._report}"
        )
        if until and not status:
            status = _printed(log, until)
        return status, time.monotonic() - began, log.read_text(errors="replace")

    def _send(self, line: str) -> int:
        """Send ``line`` and return the status from the shell. Raises `TimeoutError` if the command does not end."""
        assert self._bash is not None
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n".encode())
        self._bash.stdin.flush()
        if not select.select([self._status], [], [], LONGEST)[0]:
            raise TimeoutError(f"no end within {LONGEST:g} s: {line}")
        return int(os.read(self._status, 64))


def _printed(log: Path, text: str) -> int:
    """Return 0 once ``log`` holds ``text``, 1 if it does not within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if text in log.read_text(errors="replace"):
            return 0
        time.sleep(0.1)
    return 1


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, or a file that does not exist yet; do nothing if ``source`` is missing."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists() and not target.exists():
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
