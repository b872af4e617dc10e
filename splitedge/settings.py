"""Settings of a program: one struct defines its options, environment variables, TOML keys and their documentation.

A setting is a field of a msgspec struct. Its annotation holds the type, the limits (`msgspec.Meta`, whose
``description`` states the allowed values for error messages) and an `About`. Sections of the file are nested structs.

An option overrides an environment variable, which overrides the file, which overrides the default. An unknown key in
the file is an error: a misspelt setting must not be ignored silently.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from splitedge import errors, limits

T = TypeVar("T", bound=msgspec.Struct)

_PATH = Meta(max_length=4096, pattern="^[^\0]*$", description="a path")
PathText = Annotated[str, _PATH]
Milliseconds = Annotated[float, Meta(gt=0, le=1e6, description="a number of milliseconds greater than 0")]
Seconds = Annotated[float, Meta(gt=0, le=3600, description="a number of seconds greater than 0, at most 3600")]
Flag = Annotated[bool, Meta(description="true or false")]


class About(NamedTuple):
    """Documentation of a setting, beside its type in ``Annotated``."""

    sentence: str
    option: str = ""  # the option's name, if it is not the key with dashes
    default: str = ""  # what applies without a value, if the default does not say it
    group: str = ""  # the heading of the option in --help, if it is not the section


class Setting(NamedTuple):
    """One setting in all its forms.

    ``kind`` is its annotated type; all other fields are text for documentation and messages.
    """

    key: str  # in TOML, with the section: "api.port"
    option: str  # "--port"; of a Boolean "--replan/--no-replan"
    variable: str  # "SPLITEDGE_API_PORT"
    type: str  # "string", "path", "integer", "number", "boolean", or the allowed words: "latency | rate"
    allowed: str  # "an integer from 0 to 65535"
    default: str
    sentence: str
    group: str
    kind: Any


class Origin(NamedTuple):
    """The source of a value. ``name``: the path of the file, the variable or the option; empty for a default."""

    kind: Literal["default", "file", "variable", "option"]
    name: str = ""


class Given(NamedTuple):
    """A value that a user gave, and its source."""

    value: Any
    origin: Origin


@functools.cache
def reference(struct: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """Every setting of ``struct``, in the order of its definition."""
    return tuple(_settings(struct, ""))


def load(struct: type[T], file: Path | None, options: Mapping[str, object], environ: Mapping[str, str]) -> T:
    """The settings in effect. ``options`` maps keys to values; None means that the option was not given.

    Raises `errors.ConfigError` that names the option, variable or key, and the allowed values. ``data`` has the key and
    ``where`` the value is.
    """
    values, problems = collect(struct, file, options, environ)
    return made(struct, values, problems)


def collect(
    struct: type[msgspec.Struct], file: Path | None, options: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[dict[str, Given], list[errors.ConfigError]]:
    """The values that were given, by key, and every problem. Arguments as in `load`.

    A value that has a problem is left out. A setting that is not in the result has its default.
    """
    known = {setting.key: setting for setting in reference(struct)}
    problems: list[errors.ConfigError] = []
    raw: list[_Raw] = []
    if file is not None:
        try:
            raw += _flatten(parse(read(file), file), file, "", known, problems)
        except errors.ConfigError as error:
            problems.append(error)
    raw += _from_environment(environ, known)
    raw += _from_options(options, known)
    values: dict[str, Given] = {}
    for one in raw:
        try:
            values[one.key] = Given(_convert(known[one.key], one.value, one.where, strict=one.strict), one.origin)
        except errors.ConfigError as error:
            problems.append(error)
    return values, problems


def made(struct: type[T], values: Mapping[str, Given], problems: Sequence[errors.ConfigError]) -> T:
    """The settings that `collect` found. Raises the first of ``problems``."""
    if problems:
        raise problems[0]
    return msgspec.convert(_nest({key: given.value for key, given in values.items()}), struct)


def parse_value(setting: Setting, text: str) -> Any:
    """The value that ``text`` means, as in an environment variable. Raises `errors.ConfigError` if it is not allowed."""
    return _convert(setting, text, f"`{setting.key}`", strict=False)


def value_of(settings: msgspec.Struct, key: str) -> Any:
    """The value of the setting ``key`` in ``settings``."""
    return functools.reduce(getattr, key.split("."), settings)


def is_secret(key: str) -> bool:
    """Whether the value of the setting ``key`` must not be shown."""
    return key.rpartition(".")[2] == "token"


def variable(key: str) -> str:
    """The environment variable of the setting ``key``."""
    return "SPLITEDGE_" + key.upper().replace(".", "_")


def words(kind: Any) -> list[str]:
    """The allowed words of a setting's type; an empty list if any text or number is allowed."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in words(part)] if get_origin(kind) else []


def base(kind: Any) -> type:
    """The Python type of a setting: ``str``, ``int``, ``float`` or ``bool``."""
    for found in (bool, float, int):
        if _has(kind, found):
            return found
    return str


def is_path(kind: Any) -> bool:
    """Whether a setting is a path, which may hold any bytes."""
    return _PATH in _metadata(kind)


def _settings(struct: Any, prefix: str) -> list[Setting]:
    found: list[Setting] = []
    for field in msgspec.structs.fields(struct):
        key = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found += _settings(field.type, f"{key}.")
        else:
            found.append(_setting(key, field))
    return found


def _setting(key: str, field: msgspec.structs.FieldInfo) -> Setting:
    kind = field.type
    (about,) = (part for part in _metadata(kind) if isinstance(part, About))
    (allowed,) = (part.description for part in _metadata(kind) if isinstance(part, Meta) and part.description)
    name = about.option or "--" + key.replace(".", "-").replace("_", "-")
    return Setting(
        key=key,
        option=f"{name}/--no-{name[2:]}" if base(kind) is bool else name,
        variable=variable(key),
        type="path" if is_path(kind) else " | ".join(words(kind)) or _TYPES[base(kind)],
        allowed=allowed,
        default=about.default or _default(field.default),
        sentence=about.sentence,
        group=about.group or key.partition(".")[0],
        kind=kind,
    )


_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _default(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value or "") if value != 0 else "0"


def _metadata(kind: Any) -> list[object]:
    """What `Annotated` adds to ``kind`` and to its parts, the outermost first."""
    found = list(getattr(kind, "__metadata__", ()))
    inside = (kind.__origin__,) if hasattr(kind, "__metadata__") else get_args(kind)
    return found + [one for part in inside if get_origin(kind) is not Literal for one in _metadata(part)]


def _has(kind: Any, wanted: type) -> bool:
    return kind is wanted or (
        get_origin(kind) is not Literal and any(_has(part, wanted) for part in get_args(kind) if part is not NoneType)
    )


def _convert(setting: Setting, value: object, where: str, *, strict: bool) -> Any:
    if isinstance(value, str) and not is_path(setting.kind) and not _is_text(value):
        raise _wrong(setting, value, where)
    try:
        converted = msgspec.convert(value, setting.kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _wrong(setting, value, where) from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise _wrong(setting, value, where)
    return converted


def _is_text(value: str) -> bool:
    """Whether ``value`` was valid UTF-8 where it came from."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(setting: Setting, value: object, where: str) -> errors.ConfigError:
    shown = "" if is_secret(setting.key) else f", not {repr(value)[:60]}"  # messages must not show a secret
    return errors.ConfigError(f"{where} must be {setting.allowed}{shown}", key=setting.key, where=where, reason="value")


def read(path: Path) -> bytes:
    """The content of a configuration file. Raises `errors.ConfigError` if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise errors.ConfigError(
            f"cannot read the configuration file {path} ({error.strerror}); give the path of a TOML file",
            reason="unreadable",
        ) from error
    if len(data) > limits.MAX_CONFIG_BYTES:
        raise errors.ConfigError(
            f"the configuration file {path} is larger than {limits.MAX_CONFIG_BYTES} bytes; give the path of a TOML "
            "file",
            reason="too-large",
        )
    return data


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """The TOML in ``data``, the content of ``path``. Raises `errors.ConfigError`."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise errors.ConfigError(
            f"the configuration file {path} is not UTF-8 (byte {error.start}); save it as UTF-8", reason="not-utf8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise errors.ConfigError(
            f"the configuration file {path} is not valid TOML: {str(error)[:200]}", reason="not-toml"
        ) from error


class _Raw(NamedTuple):
    """A value as it was given. ``where`` names it in messages; ``strict``: it must have the type of the setting."""

    key: str
    value: object
    where: str
    strict: bool
    origin: Origin


def _flatten(
    table: dict[str, Any], path: Path, prefix: str, known: Mapping[str, Setting], problems: list[errors.ConfigError]
) -> list[_Raw]:
    found: list[_Raw] = []
    for name, value in table.items():
        key = prefix + name
        if key in known:
            found.append(_Raw(key, value, f"`{key}` in {path}", True, Origin("file", str(path))))
        elif not any(one.startswith(f"{key}.") for one in known):
            allowed = _allowed(prefix, known)
            message = f"`{key[:100]}` in {path} is not a setting; allowed here: {allowed}"
            problems.append(errors.ConfigError(message, key=key, reason="unknown-key"))
        elif not isinstance(value, dict):
            allowed = _allowed(f"{key}.", known)
            message = f"`{key}` in {path} must be a table [{key}] with the keys {allowed}"
            problems.append(errors.ConfigError(message, key=key, reason="not-a-table"))
        else:
            found += _flatten(value, path, f"{key}.", known, problems)
    return found


def _allowed(prefix: str, known: Mapping[str, Setting]) -> str:
    names = [key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)]
    return ", ".join(dict.fromkeys(names))


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Setting]) -> list[_Raw]:
    given = [setting for setting in known.values() if environ.get(setting.variable)]
    return [
        _Raw(one.key, environ[one.variable], one.variable, False, Origin("variable", one.variable)) for one in given
    ]


def _from_options(options: Mapping[str, object], known: Mapping[str, Setting]) -> list[_Raw]:
    given = [(known[key], value) for key, value in options.items() if value is not None]
    return [_Raw(one.key, value, one.option, True, Origin("option", one.option.split("/")[0])) for one, value in given]


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return tree
