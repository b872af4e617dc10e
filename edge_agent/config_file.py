"""The text of the configuration file: a new one with every setting documented, and changes of a single key.

The standard library reads TOML and does not write it. `new` writes the simple form that the agent needs. `changed`
edits one line, and parses the result: if anything but the key changed, it refuses. So a file that it does not
understand (a multi-line string, an inline table) is never damaged.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

from edge_agent.config import Settings, reference
from splitedge import errors, limits
from splitedge.settings import Setting, value_of

_WIDTH: Final = 80
_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_KEY: Final = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER: Final = re.compile(rf"[ \t]*\[[ \t]*({_KEY})[ \t]*\][ \t]*(?:#.*)?")
_ANY_HEADER: Final = re.compile(r"[ \t]*\[")
_PAIR: Final = re.compile(rf"([ \t]*)(#?[ \t]*)({_KEY})([ \t]*=[ \t]*)(.*)")
#: A value on one line that is no array and no table: a string, a number, a Boolean, a date.
_VALUE: Final = re.compile(r"""(?!\"""|''')(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)(?=[ \t]*(?:#|$))""")

_Key = tuple[str, ...]


def new(settings: Settings) -> str:
    """The text of a file that loads as ``settings``: every setting with its sentence, defaults as comments.

    Raises `errors.ConfigError` for a path that is not UTF-8.
    """
    default = Settings()
    top = "Settings of the edge-agent. Options and environment variables override them."
    parts = [_comment(f"{top} Check changes with `edge-agent config check`.")]
    for section, group in groupby(_by_section(), key=_section):
        if section:
            parts.append(f"[{section}]")
        parts += [_entry(one, value_of(settings, one.key), value_of(default, one.key)) for one in group]
    return "\n\n".join(parts) + "\n"


def changed(data: bytes, key: str, value: object) -> bytes:
    """``data``, a valid configuration file, with the setting ``key`` set to ``value``. None comments the key out.

    Comments, order and line ends stay. Raises `errors.ConfigError` if the key is in a form that cannot be edited here,
    or the file becomes too large.
    """
    mark = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
    text = data.removeprefix(mark).decode()
    path = tuple(key.split("."))
    wanted = _leaves(tomllib.loads(text)) | {path: value}
    if value is None:
        del wanted[path]
    for edited in _edits(text, path, value):
        if _same(edited, wanted):
            return _bounded(mark + edited.encode())
    raise errors.ConfigError(
        f"`{key}` is written in a form that only an editor can change (such as an inline table); edit the file by hand",
        key=key,
        reason="cannot-edit",
    )


def literal(value: object, key: str) -> str:
    """``value`` in TOML. Raises `errors.ConfigError` for text that is not UTF-8, as a path may be."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.ConfigError(
            f"`{key}` is not UTF-8, which a TOML file must be; rename the file or use the environment variable",
            key=key,
            reason="not-utf8",
        ) from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _by_section() -> list[Setting]:
    """All settings, those of a section together: `Settings` has keys after a nested section, and TOML has not."""
    order = {section: i for i, section in enumerate(dict.fromkeys(map(_section, reference())))}
    return sorted(reference(), key=lambda one: order[_section(one)])


def _section(setting: Setting) -> str:
    return setting.key.rpartition(".")[0]


def _entry(setting: Setting, value: object, default: object) -> str:
    limits = "" if setting.type in ("string", "path", "boolean") else f" Allowed: {setting.allowed}."
    name = setting.key.rpartition(".")[2]
    if value != default:
        return f"{_comment(setting.sentence + limits)}\n{name} = {literal(value, setting.key)}"
    unset = f" Default: {setting.default}." if setting.default and default in ("", None) else ""
    shown = "" if default is None else literal(default, setting.key)
    return f"{_comment(setting.sentence + limits + unset)}\n# {name} = {shown}".rstrip()


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)


# --- changes


class _Line(NamedTuple):
    """A line of the file: the table that it is in, or None if that is an array; ``key`` without the table."""

    text: str
    table: _Key | None
    header: bool = False
    key: _Key = ()
    comment: bool = False  # a key that is commented out

    @property
    def path(self) -> _Key:
        """The complete key, or nothing."""
        return self.table + self.key if self.key and self.table is not None and not self.comment else ()


def _lines(text: str) -> Iterator[_Line]:
    """The lines of ``text``. One that is inside a value of several lines may be taken for a key."""
    table: _Key | None = ()
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if _ANY_HEADER.match(line):
            found = _HEADER.fullmatch(line.rstrip("\r\n"))
            table = _key(found[1]) if found else None
            yield _Line(line, table, header=True)
        elif pair := _PAIR.match(line):
            yield _Line(line, table, key=_key(pair[3]), comment=bool(pair[2]))
        else:
            yield _Line(line, table)


def _key(text: str) -> _Key:
    return tuple(part.strip("\"'") for part in re.findall(_PART, text))


def _edits(text: str, path: _Key, value: object) -> Iterator[str]:
    """Possible texts with the key ``path`` set to ``value``, the best first. Some may be wrong or not even TOML."""
    lines = list(_lines(text))
    places = [i for i, line in enumerate(lines) if line.path == path]
    if places:
        for i in places:
            yield _joined(lines, i, i + 1, _with_value(lines[i].text, value, ".".join(path)))
        return
    if value is None:
        yield text
        return
    *table, name = path
    end = "\r\n" if "\r\n" in text else "\n"
    pair = f"= {literal(value, '.'.join(path))}{end}"
    for i in _after(lines, tuple(table), name):
        yield _joined(lines, i, i, f"{name} {pair}")
    for i, line in reversed(list(enumerate(lines))):  # beside `table.other = ...`
        if line.table is not None and line.path[:-1] == tuple(table) and len(line.table) < len(table):
            yield _joined(lines, i + 1, i + 1, f"{'.'.join(path[len(line.table) :])} {pair}")
    if table:
        space = end if lines else ""
        yield _joined(lines, len(lines), len(lines), f"{space}[{'.'.join(table)}]{end}{name} {pair}")


def _after(lines: list[_Line], table: _Key, name: str) -> Iterator[int]:
    """Places for a new key ``name`` of ``table``, the best first: below its comment, the last key, or the header."""
    inside = [i for i, line in enumerate(lines) if line.table == table]
    if table and not inside:
        return
    yield from (i + 1 for i in inside if lines[i].comment and lines[i].key == (name,))
    yield from (i + 1 for i in reversed(inside) if lines[i].path)
    yield inside[0] + 1 if table else 0


def _with_value(line: str, value: object, key: str) -> str:
    """``line``, a key and its value, with another value. None comments it out."""
    pair = _PAIR.match(line)
    old = _VALUE.match(line.rstrip("\r\n"), pair.start(5)) if pair else None
    if pair is None or old is None:
        return line
    if value is None:
        return f"{pair[1]}# {line[pair.start(3) :]}"
    return line[: old.start()] + literal(value, key) + line[old.end() :]


def _joined(lines: list[_Line], start: int, end: int, made: str) -> str:
    """The text with ``made`` in place of the lines from ``start`` to ``end``."""
    before = "".join(line.text for line in lines[:start])
    if before and not before.endswith("\n"):
        before += "\r\n" if "\r\n" in before else "\n"
    return before + made + "".join(line.text for line in lines[end:])


def _same(text: str, wanted: dict[_Key, Any]) -> bool:
    """Whether ``text`` has exactly these values, also in type: 1 is neither 1.0 nor true."""
    try:
        found = _leaves(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in wanted.items()}


def _leaves(table: dict[str, Any], prefix: _Key = ()) -> dict[_Key, Any]:
    """The values of all keys below ``table``."""
    found: dict[_Key, Any] = {}
    for name, value in table.items():
        found |= _leaves(value, (*prefix, name)) if isinstance(value, dict) else {(*prefix, name): value}
    return found


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.MAX_CONFIG_BYTES:
        raise errors.ConfigError(
            f"the configuration file would be larger than {limits.MAX_CONFIG_BYTES} bytes; remove comments from it",
            reason="too-large",
        )
    return data
