"""Text and tables on a terminal: lines fit its width, and identifiers stay whole, so that they can be copied."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

GAP: Final = 2  # spaces between columns
LEAST_WRAPPED: Final = 30  # columns that wrapped text takes beside optional columns and names
NARROW: Final = 12  # columns that wrapped text takes on any terminal
QUIET_S: Final = 1.0  # without a terminal, a step that is done within this time prints nothing

Cell = str | Text


class Column(NamedTuple):
    """A column of a `table`, and what may happen to it if the table is too wide."""

    heading: str
    right: bool = False
    optional: bool = False  # left out
    shortest: int = 0  # cells are shortened in the middle, down to this length
    alone: bool = False  # the first column only: each cell takes a line of its own, above the others
    wrapped: bool = False  # the last column only: cells continue on further lines


def plain(text: str) -> str:
    """``text`` without control characters. Names come from the server and must not control the terminal."""
    return "".join(c for c in text if c.isprintable())


def size(count: float) -> str:
    """A number of bytes with its unit: ``3.1 kB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def threads(count: int) -> str:
    """A number of threads in words: ``1 thread``."""
    return f"{count} thread" if count == 1 else f"{count} threads"


def shorten(text: str, length: int) -> str:
    """``text`` in at most ``length`` characters, without its middle: ``encoder…value``."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """``text`` in lines of at most ``width`` characters, all but the first after ``indent``.

    Words stay whole, also those longer than a line.
    """
    found = textwrap.wrap(text, max(1, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return found or [""]


def show(*parts: RenderableType) -> None:
    """Print ``parts`` to standard output. Strings are wrapped; other parts have the width of the terminal already."""
    console, columns = Console(highlight=False, markup=False), width()
    for part in parts:
        console.print("\n".join(wrap(part, columns)) if isinstance(part, str) else part, soft_wrap=True)


def width(piped: int = 80) -> int:
    """Columns of the terminal; ``piped`` if standard output is none and COLUMNS is not set."""
    return Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else piped


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, *, header: bool = True) -> Text:
    """``rows`` below the headings, in lines of at most ``width`` characters.

    A table that is too wide loses optional columns, the last first; then cells are shortened in the middle; then the
    first column gets lines of its own.
    """
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    shown = list(range(len(columns)))
    while _natural(columns, cells, shown, header) > width and any(columns[i].optional for i in shown):
        shown.remove(max(i for i in shown if columns[i].optional))
    columns, cells = [columns[i] for i in shown], [[row[i] for i in shown] for row in cells]
    everything = list(range(len(columns)))
    _shorten(columns, cells, _natural(columns, cells, everything, header) - width)
    if columns[0].alone and _natural(columns, cells, everything, header) > width:
        return _listed(columns, cells, width, header=header)
    return _joined(_lines(columns, cells, width, header=header))


def definitions(rows: Sequence[tuple[Cell, Cell]], width: int) -> Text:
    """Names, and beside each its wrapped text."""
    return table([Column("name"), Column("text", wrapped=True)], rows, width, header=False)


class Progress:
    """Status messages of a command, on standard error: a spinner on a terminal; elsewhere a line for each step that
    takes longer than `QUIET_S`.
    """

    def __init__(self, program: str) -> None:
        self._program, self._console = program, Console(stderr=True)
        self._spinner: Status | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __call__(self, text: str) -> None:
        """The step that begins."""
        self.stop()
        if self._console.is_terminal:
            self._spinner = self._console.status(Text(plain(text)))
            self._spinner.start()
            return
        self._timer = threading.Timer(
            QUIET_S, print, [f"{self._program}: {plain(text)}"], {"file": sys.stderr, "flush": True}
        )
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """End the step, so that later output does not collide with the spinner."""
        if self._spinner is not None:
            self._spinner.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._spinner = self._timer = None


def _sizes(columns: Sequence[Column], rows: Sequence[Sequence[Text]], header: bool) -> list[int]:
    heads = [len(column.heading) if header else 0 for column in columns]
    return [max([head, *(row[i].cell_len for row in rows)]) for i, head in enumerate(heads)]


def _natural(columns: Sequence[Column], rows: Sequence[Sequence[Text]], shown: Sequence[int], header: bool) -> int:
    """The least width of the columns ``shown``."""
    sizes = _sizes(columns, rows, header)
    least = [min(sizes[i], LEAST_WRAPPED) if columns[i].wrapped else sizes[i] for i in shown]
    return sum(least) + GAP * (len(least) - 1)


def _shorten(columns: Sequence[Column], rows: list[list[Text]], excess: int) -> None:
    """Shorten cells in the middle, those of the last column first, until ``excess`` columns are saved."""
    for i, column in reversed(list(enumerate(columns))):
        longest = max((row[i].cell_len for row in rows), default=0)
        if excess > 0 and 0 < column.shortest < longest:
            length = max(column.shortest, longest - excess)
            excess -= longest - length
            for row in rows:
                row[i] = Text(shorten(row[i].plain, length), style=row[i].style)


def _listed(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, *, header: bool) -> Text:
    """The first column on lines of its own, the others below it."""
    rest = _lines(columns[1:], [row[1:] for row in rows], width - GAP, header=header)
    lines = [Text(" " * GAP).append_text(line) for line in rest[0]] if header else []
    for row, below in zip(rows, rest[1:] if header else rest, strict=True):
        lines += [row[0], *(Text(" " * GAP).append_text(line) for line in below)]
    return _joined([lines])


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, *, header: bool) -> list[list[Text]]:
    """The lines of the header, if there is one, and of each row."""
    sizes = _sizes(columns, rows, header)
    if columns[-1].wrapped:
        sizes[-1] = max(width - sum(sizes[:-1]) - GAP * (len(sizes) - 1), NARROW)
    heads = [[Text(column.heading, style="dim") for column in columns]] if header else []
    return [_row(columns, row, sizes) for row in (*heads, *rows)]


def _row(columns: Sequence[Column], row: Sequence[Text], sizes: Sequence[int]) -> list[Text]:
    *cells, last = row
    indent = sum(sizes[:-1]) + GAP * (len(sizes) - 1)
    parts = wrap(last.plain, sizes[-1]) if columns[-1].wrapped else [last.plain]
    first = Text()
    for column, cell, wide in zip(columns, cells, sizes, strict=False):
        space = " " * (wide - cell.cell_len)
        first.append_text(Text(space) + cell if column.right else cell + Text(space)).append(" " * GAP)
    space = " " * (sizes[-1] - last.cell_len) if columns[-1].right else ""
    first.append(space).append(parts[0], style=last.style)
    return [first, *(Text(" " * indent).append(part, style=last.style) for part in parts[1:])]


def _joined(groups: Sequence[Sequence[Text]]) -> Text:
    found = Text(no_wrap=True, overflow="ignore")
    for number, line in enumerate(line for group in groups for line in group):
        line.rstrip()
        found.append("\n" if number else "").append_text(line)
    return found
