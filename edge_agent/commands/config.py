"""`edge-agent config show|check|init|set|unset`."""

from __future__ import annotations

import getpass
import json as json_module
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from edge_agent import config, config_file
from edge_agent.config import Settings
from splitedge import errors, files, settings
from splitedge.platform_check import printable
from splitedge.settings import Given, Origin, Setting
from splitedge.terminal import Cell, Column, plain, table, width
from splitedge.terminal import show as print_parts

HIDDEN: Final = "***"
#: The settings that hold a token, and the file beside the configuration that a new token is written to.
TOKEN_FILES: Final = {"token": "token", "chain.token": "chain-token", "stage.token": "stage-token"}
_ASKED: Final = ("server", "ca", "token", "model")


def show(path: Path | None, options: Mapping[str, Any], *, json: bool) -> None:
    """Print every setting with its value and its source; tokens are hidden. Raises `errors.ConfigError`."""
    given, problems = config.collect(path, options)
    loaded = config.made(given, problems)
    place = path or config.file()
    if json:
        found = [_record(one, loaded, given) for one in config.reference()]
        print(json_module.dumps({"file": None if place is None else str(place), "settings": found}))
        return
    rows: list[list[Cell]] = []
    for group in dict.fromkeys(one.group for one in config.reference()):
        rows += [["", "", ""], [Text(group, style="bold"), "", ""]]
        rows += [_row(one, loaded, given) for one in config.reference() if one.group == group]
    columns = [Column("key"), Column("source"), Column("value", wrapped=True)]
    print_parts(Text(f"file: {plain(str(place)) if place else 'none'}"), table(columns, rows, width(), header=False))


def check(path: Path | None, options: Mapping[str, Any]) -> int:
    """Print "ok" and the file and return 0, or print every problem on a line of standard error and return 2."""
    given, wrong = config.collect(path, options)
    problems = [error.message for error in wrong] or list(_problems(config.made(given, wrong)))
    for problem in problems:
        print(f"edge-agent: {printable(problem)}", file=sys.stderr)
    if problems:
        return errors.ConfigError.exit_status
    place = path or config.file()
    print(f"ok: {printable(str(place)) if place else 'no file; variables, options and defaults apply'}")
    return 0


def init(path: Path | None, options: Mapping[str, Any], *, replace: bool) -> None:
    """Write a configuration file with ``options`` and, on a terminal, with the answers to some questions.

    Tokens are written to files of their own that only this user can read. Raises `errors.UsageError` if a file exists,
    unless ``replace``; `errors.ConfigError` for a value; `errors.StoreError` for a file that cannot be written.
    """
    place = (path or config.new_file()).absolute()
    _refuse([place], replace)
    given = {key: value for key, value in options.items() if value is not None}
    if sys.stdin.isatty():
        given |= _answers(given)
    given = {key: _absolute(key, value) for key, value in given.items()}
    tokens = _tokens(given, place)
    made = config.from_options(given)
    text = config_file.new(made)
    _refuse([*tokens, place], replace)
    files.make_folder(place.parent)
    for file, token in tokens.items():
        files.write(file, f"{token}\n".encode(), mode=0o600)
    files.write(place, text.encode())
    print(*(f"wrote {printable(str(file))}" for file in (*tokens, place)), sep="\n")
    for problem in _problems(made):
        print(f"edge-agent: note: {printable(problem)}", file=sys.stderr)


def change(path: Path | None, key: str, text: str | None) -> None:
    """Set ``key`` in the configuration file to what ``text`` means; None comments it out.

    Raises `errors.ConfigError` for the key, the value or the file, `errors.StoreError` if it cannot be written. Then
    the file is as it was.
    """
    setting = config.setting(key)
    value = None if text is None else _absolute(key, settings.parse_value(setting, text))
    if value is not None:
        config.check_url(key, value)
        _refuse_secret(key)
    place = path or config.file()
    if place is None:
        raise errors.ConfigError(
            "there is no configuration file; create one with `edge-agent config init`", reason="no-file"
        )
    data = settings.read(place)
    settings.parse(data, place)
    edited = config_file.changed(data, key, value)
    if edited != data:
        files.rewrite(place, edited)
    shown = f"`{key}` has its default" if value is None else f"{key} = {config_file.literal(value, key)}"
    print(printable(f"{shown} in {place}"))
    if os.environ.get(setting.variable):
        print(f"edge-agent: note: the variable {setting.variable} overrides the file", file=sys.stderr)


# --- show


def _record(setting: Setting, loaded: Settings, given: Mapping[str, Given]) -> dict[str, Any]:
    origin = _origin(setting, given)
    return {
        "key": setting.key,
        "group": setting.group,
        "value": _visible(setting, loaded),
        "origin": origin.kind,
        "name": origin.name or None,
    }


def _row(setting: Setting, loaded: Settings, given: Mapping[str, Given]) -> list[Cell]:
    origin, value = _origin(setting, given), _visible(setting, loaded)
    source = origin.kind if origin.kind in ("default", "file") else origin.name
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else str(value).removesuffix(".0")
        if isinstance(value, float)
        else value
    )
    shown = setting.default if text in ("", None) and origin.kind == "default" else text
    style = "dim" if origin.kind == "default" else ""
    return [Text(setting.key, style="cyan"), Text(source, style=style), Text(plain(str(shown)), style=style)]


def _origin(setting: Setting, given: Mapping[str, Given]) -> Origin:
    return given[setting.key].origin if setting.key in given else Origin("default")


def _visible(setting: Setting, loaded: Settings) -> Any:
    """The value without secrets: a token, or a password in a URL."""
    value = settings.value_of(loaded, setting.key)
    if settings.is_secret(setting.key):
        return HIDDEN if value else ""
    return re.sub(r"(?<=//)[^/@]*@", f"{HIDDEN}@", value) if isinstance(value, str) else value


# --- check


def _problems(loaded: Settings) -> Iterator[str]:
    from edge_agent.service import check  # numpy and aiohttp

    try:
        config.token(loaded)
    except errors.ConfigError as error:
        yield error.message
    yield from check.contents(loaded)


# --- init and set


def _answers(given: Mapping[str, Any]) -> dict[str, Any]:
    """The answers to questions for settings that are not ``given``. Wrong answers are asked for again."""
    found: dict[str, Any] = {}
    print("Press Enter to accept the value in brackets.", file=sys.stderr)
    for key in _ASKED:
        server = str(given.get("server", found.get("server", "")))
        known = key in given or (key == "token" and "token_file" in given)
        if not known and (key != "ca" or server.startswith("https")):
            found |= _answer(config.setting(key))
    return found


def _answer(setting: Setting) -> dict[str, Any]:
    question = f"{setting.sentence.partition('. ')[0].rstrip('.')} [{setting.default or 'none'}]: "
    secret = settings.is_secret(setting.key)
    while True:
        try:
            text = _line(question, secret=secret).strip()
            if not text:
                return {}
            value = settings.parse_value(setting, text)
            config.check_url(setting.key, value)
            return {setting.key: config.check_token(text, "the answer") if secret else value}
        except errors.ConfigError as error:
            print(printable(error.message), file=sys.stderr)


def _line(question: str, *, secret: bool) -> str:
    try:
        if secret:
            return getpass.getpass(question)
        print(question, end="", file=sys.stderr, flush=True)
        return input()
    except EOFError as error:
        raise errors.UsageError(
            "the input ended before all questions were answered; give the values as options", reason="no-answer"
        ) from error


def _tokens(given: dict[str, Any], place: Path) -> dict[Path, str]:
    """Move tokens from ``given`` to files beside ``place``: the path of each file, and its token."""
    found: dict[Path, str] = {}
    for key, name in TOKEN_FILES.items():
        token = given.pop(key, "")
        if not token:
            continue
        if given.get(f"{key}_file"):
            raise errors.UsageError(
                f"the token and its file are both given; omit {config.setting(key).option} or {config.setting(f'{key}_file').option}",
                reason="token-and-file",
            )
        file = place.with_name(name)
        found[file] = config.check_token(token, config.setting(key).option)
        given[f"{key}_file"] = str(file)
    return found


def _refuse(places: list[Path], replace: bool) -> None:
    found = [str(place) for place in places if os.path.lexists(place)]
    if found and not replace:
        raise errors.UsageError(
            f"{' and '.join(found)} already exist{'s' * (len(found) == 1)}; pass --replace to replace, or change single "
            "settings with `edge-agent config set`",
            reason="exists",
            files=found,
        )


def _refuse_secret(key: str) -> None:
    if settings.is_secret(key):
        raise errors.ConfigError(
            f"other users can see a token on a command line; write it to a file of mode 600 and run `edge-agent config "
            f"set {key}_file FILE`",
            key=key,
            reason="secret",
        )


def _absolute(key: str, value: Any) -> Any:
    """``value``, and of a path the absolute one: the file is used from other folders too."""
    if not value or not settings.is_path(config.setting(key).kind):
        return value
    return str(config.path_of(value).absolute())
