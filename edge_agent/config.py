"""The agent's settings: an option beats an environment variable, that beats the TOML file, that beats the default.

Each key of the file is also a variable: ``api.port`` is ``SPLITEDGE_API_PORT``, ``demand.max_drop_points`` is
``SPLITEDGE_DEMAND_MAX_DROP_POINTS``. The file is the one that ``--config`` or ``SPLITEDGE_CONFIG`` names, else the first of
``~/.config/splitedge/agent.toml`` and ``/etc/splitedge/agent.toml`` that is there. An unknown key is an error: a setting that is
misspelt and therefore not in force is worse than a start that fails.
"""

from __future__ import annotations

import math
import os
import tomllib
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from splitedge import errors, limits
from splitedge.protocol.messages import Demand, Mode, Objective, Weights

SYSTEM_FILE = Path("/etc/splitedge/agent.toml")
CREDENTIAL = "splitedge-token"  # the name under which systemd's LoadCredential hands the token over

_Weight = Annotated[float, Meta(ge=0, le=1e9, description="a number, 0 or more")]
_Path = Annotated[str, Meta(max_length=4096, pattern="^[^\0]*$", description="a path in quotes")]


class WeightsConfig(Weights, forbid_unknown_fields=True):
    """``[demand.weights]``: what a second, a joule and a second of server time are worth."""

    time: _Weight = 1.0
    energy: _Weight = 0.0
    cost: _Weight = 0.0


class DemandConfig(Demand, forbid_unknown_fields=True):
    """``[demand]``: what is asked of the plan."""

    max_drop_points: Annotated[float, Meta(ge=0, le=100, description="a number of points from 0 to 100")] = 1.0
    max_latency_ms: Annotated[float, Meta(gt=0, le=1e6, description="a number of milliseconds above 0")] | None = None
    min_rate_fps: Annotated[float, Meta(gt=0, le=1e6, description="a number of frames a second above 0")] | None = None
    weights: WeightsConfig = msgspec.field(default_factory=WeightsConfig)
    keep: Annotated[
        str, Meta(min_length=1, max_length=limits.MAX_NAME, description='"nothing", "input" or a layer\'s name')
    ] = "nothing"
    frames: Annotated[float, Meta(gt=0, le=1e12, description="a number of frames above 0")] | None = None
    max_away_s: Annotated[float, Meta(gt=0, le=3600, description="a number of seconds above 0, at most 3600")] = 10.0
    mode: Annotated[Literal["any"] | Mode, Meta(description='"any", "server", "split" or "device"')] = "any"


class ApiConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[api]``: where the local HTTP API listens. It asks for no token, so leave it on the loopback unless the network is trusted."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="an address in quotes")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="a whole number from 0 (any free port) to 65535")] = 8471


class LinkConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[link]``: what moves along the codecs that a plan allows, where it begins (0: where the plan does), when frames age, and whether a lasting change
    of the link leads to a new plan.
    """

    controller: Annotated[
        Literal["adaptive", "quantpipe", "pipeedge", "fixed"],
        Meta(description='"adaptive", "quantpipe", "pipeedge" or "fixed"'),
    ] = "adaptive"
    bits: Annotated[int, Meta(ge=0, le=32, description="a whole number from 0 (as the plan says) to 32")] = 0
    max_age_ms: Annotated[float, Meta(gt=0, le=1e6, description="a number of milliseconds above 0")] | None = None
    replan: Annotated[bool, Meta(description="true or false")] = True


class ReuseConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[reuse]``: whether an answer serves again for frames that are nearly the one it was given for: see `edge_agent.runtime.answer_reuse`.

    ``threshold``: the greatest distance at which it does, 0: never. ``max_age_s``: how old that frame may be; ``max_run``: how many frames in all.
    """

    threshold: Annotated[float, Meta(ge=0, le=1, description="a number from 0 (never) to 1")] = 0.0
    max_age_s: Annotated[float, Meta(gt=0, le=3600, description="a number of seconds above 0, at most 3600")] = 2.0
    max_run: Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1000000")] = 50


class ChainConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[chain]``: the board after this one, if a model is shared among several, and, on the first of them, what the chain is planned for.

    ``next`` is its address as a stage, ``token`` or ``token_file`` what it asks for. ``exact``: send tensors as they are.
    ``spread``: give every board a part.
    """

    next: Annotated[str, Meta(max_length=2048, description="a URL like https://board:8472, or empty")] = ""
    token: Annotated[str, Meta(max_length=4096, description="the token in quotes")] = ""
    token_file: _Path = ""
    ca: _Path = ""
    objective: Annotated[Objective, Meta(description='"latency" or "rate"')] = "latency"
    exact: Annotated[bool, Meta(description="true or false")] = False
    spread: Annotated[bool, Meta(description="true or false")] = False


class StageConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[stage]``: where boards before this one reach it, if it serves as a later stage of a chain: with a port and without `model` it does."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="an address in quotes")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="a whole number from 0 (any free port) to 65535")] | None = (
        None
    )
    token: Annotated[str, Meta(max_length=4096, description="the token in quotes")] = ""
    token_file: _Path = ""
    cert: _Path = ""
    key: _Path = ""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings. ``profile`` is a file that `edge-agent profile --out` wrote; without it the machine is measured once and remembered."""

    server: Annotated[str, Meta(max_length=2048, description="a URL like https://host:8470")] = "http://127.0.0.1:8470"
    token: Annotated[str, Meta(max_length=4096, description="the token in quotes")] = ""
    token_file: _Path = ""
    model: Annotated[str, Meta(max_length=limits.MAX_NAME, description="a model's name in quotes")] = ""
    topk: Annotated[int, Meta(ge=0, le=1000, description="a whole number from 0 (the whole output) to 1000")] = 5
    ca: _Path = ""
    allow_insecure: Annotated[bool, Meta(description="true or false")] = False
    cache_dir: _Path = ""
    profile: _Path = ""
    threads: Annotated[
        int, Meta(ge=0, le=limits.MAX_THREADS, description="a whole number from 0 (as many as help) to 64")
    ] = 0
    api: ApiConfig = msgspec.field(default_factory=ApiConfig)
    chain: ChainConfig = msgspec.field(default_factory=ChainConfig)
    stage: StageConfig = msgspec.field(default_factory=StageConfig)
    demand: DemandConfig = msgspec.field(default_factory=DemandConfig)
    link: LinkConfig = msgspec.field(default_factory=LinkConfig)
    reuse: ReuseConfig = msgspec.field(default_factory=ReuseConfig)

    def __repr__(self) -> str:
        return f"Settings(server={self.server!r}, model={self.model!r})"  # a log never holds the token


def load(
    path: Path | None = None, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings in force. ``options`` maps keys ("demand.keep") to values; None means not given.

    Raises `errors.ConfigError` naming the key, where it stands and what is allowed.
    """
    values = _from_file(path, environ) | _from_environment(environ) | _from_options(options or {})
    settings = msgspec.convert(_nest(values), Settings)
    for key, url in (("server", settings.server), ("chain.next", settings.chain.next)):
        if (url or key == "server") and _split_url(url) is None:
            raise errors.ConfigError(f"`{key}` must be a URL like https://host:8470, not {url[:100]!r}", key=key)
    return settings


def check_role(settings: Settings) -> None:
    """Raise `errors.ConfigError` unless the board either takes frames of a model or serves as a later stage of a chain."""
    if settings.model and settings.stage.port is not None:
        raise errors.ConfigError(
            "a board takes frames of a model or serves as a later stage, not both; unset `model` or `stage.port`",
            key="stage.port",
        )
    if settings.stage.port is None:
        require_model(settings)


def require_model(settings: Settings) -> None:
    """Raise `errors.ConfigError` if no model is chosen."""
    if not settings.model:
        raise errors.ConfigError(
            "no model is chosen; give `--model` or set `model` (`edge-agent models` lists them)", key="model"
        )


def path_of(text: str) -> Path:
    """The path that a setting names, with ~ as the home folder. Raises `errors.ConfigError` where this user has none, as that of the service."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise errors.ConfigError(
            f"{text} names a home folder and this user has none; give the path in full, such as /etc/splitedge/{Path(text).name}"
        ) from error


def file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file where no option names one, or None if there is none."""
    if environ.get("SPLITEDGE_CONFIG"):
        return path_of(environ["SPLITEDGE_CONFIG"])
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "")
    places = [Path(home) / "splitedge/agent.toml"] if Path(home).is_absolute() else []  # as the XDG specification says
    return next((place for place in [*places, SYSTEM_FILE] if _is_file(place)), None)


def _is_file(place: Path) -> bool:
    """Whether there is such a file; one that this user may not even look for is not there for it."""
    try:
        return place.is_file()
    except OSError:
        return False


def token(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """The bearer token: the setting itself, else the file it names, else systemd's credential, else an empty string.

    Raises `errors.ConfigError` if the file cannot be read or holds no single line of printable ASCII.
    """
    return _token(settings.token, settings.token_file, "", _credential(environ))


def chain_token(settings: Settings) -> str:
    """The token for the next board, or an empty string. Raises as `token`."""
    return _token(settings.chain.token, settings.chain.token_file, "chain.", None)


def stage_token(settings: Settings) -> str:
    """The token that boards before this one must bear, or an empty string. Raises as `token`."""
    return _token(settings.stage.token, settings.stage.token_file, "stage.", None)


def _token(given: str, file: str, prefix: str, otherwise: Path | None) -> str:
    if given:
        return _checked_token(given, f"the setting `{prefix}token`")
    path = path_of(file) if file else otherwise
    if path is None:
        return ""
    try:
        with path.open("rb") as opened:
            text = opened.read(8192)
    except OSError as error:
        raise errors.ConfigError(
            f"the token file {path} cannot be read ({error.strerror}); check `{prefix}token_file`"
        ) from error
    return _checked_token(text.removeprefix(BOM_UTF8).decode("ascii", "replace").strip(), f"the token file {path}")


def keys() -> dict[str, str]:
    """Every key ("api.port") and what it must be, in the order of the file."""
    return {key: _description(kind) for key, kind in _KINDS.items()}


def variable(key: str) -> str:
    """The environment variable of ``key``."""
    return "SPLITEDGE_" + key.upper().replace(".", "_")


def _kinds(struct: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        key = prefix + field.name
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found |= _kinds(field.type, key + ".") if nested else {key: field.type}
    return found


def _description(kind: Any) -> str:
    for part in (kind, *getattr(kind, "__args__", ())):
        for meta in getattr(part, "__metadata__", ()):
            return str(meta.description)
    raise AssertionError(kind)


def _convert(key: str, value: object, where: str, *, strict: bool) -> Any:
    if isinstance(value, str) and _KINDS[key] is not _Path and not _is_text(value):
        raise _wrong(key, value, where)
    try:
        converted = msgspec.convert(value, _KINDS[key], strict=strict)
    except msgspec.ValidationError as error:
        raise _wrong(key, value, where) from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise _wrong(key, value, where)
    return converted


def _is_text(value: str) -> bool:
    """Whether ``value`` was valid UTF-8 where it came from; a path may be any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(key: str, value: object, where: str) -> errors.ConfigError:
    shown = "what is there" if key.endswith("token") else repr(value)[:60]
    return errors.ConfigError(f"{where} must be {_description(_KINDS[key])}, not {shown}", key=key)


def _from_file(path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    path = path or file(environ)
    if path is None:
        return {}
    return _flatten(_parse(path), path, "")


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise errors.ConfigError(
            f"the configuration {path} cannot be read ({error.strerror}); give the path of a TOML file"
        ) from error
    if len(data) > limits.MAX_CONFIG_BYTES:
        raise errors.ConfigError(
            f"the configuration {path} is over {limits.MAX_CONFIG_BYTES} bytes; give the path of a TOML file"
        )
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise errors.ConfigError(
            f"the configuration {path} is not in UTF-8 (byte {error.start}); save it in that encoding"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise errors.ConfigError(f"the configuration {path} is not valid TOML: {str(error)[:200]}") from error


def _flatten(table: dict[str, Any], path: Path, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        if key in _KINDS:
            found[key] = _convert(key, value, f"`{key}` in {path}", strict=True)
        elif not any(known.startswith(key + ".") for known in _KINDS):
            raise errors.ConfigError(
                f"`{key[:100]}` in {path} is not a setting; allowed here: {', '.join(_allowed(prefix))}", key=key
            )
        elif not isinstance(value, dict):
            raise errors.ConfigError(
                f"`{key}` in {path} must be a table [{key}] with the keys {', '.join(_allowed(key + '.'))}", key=key
            )
        else:
            found |= _flatten(value, path, key + ".")
    return found


def _allowed(prefix: str) -> list[str]:
    names = [key.removeprefix(prefix).split(".")[0] for key in _KINDS if key.startswith(prefix)]
    return list(dict.fromkeys(names))


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    given = {key: environ[variable(key)] for key in _KINDS if environ.get(variable(key))}
    return {key: _convert(key, text, f"the variable {variable(key)}", strict=False) for key, text in given.items()}


def _from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    return {key: _convert(key, value, f"the option for `{key}`", strict=True) for key, value in given.items()}


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return tree


def _split_url(text: str) -> str | None:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return None
    return url.hostname if url.scheme in ("http", "https") else None


def _credential(environ: Mapping[str, str]) -> Path | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    return path if path is not None and path.exists() else None


def _checked_token(text: str, where: str) -> str:
    if not text or len(text) > 4096 or not text.isascii() or not text.isprintable() or " " in text:
        raise errors.ConfigError(f"{where} does not hold a token; `edge-server token` on the server prints one")
    return text


_KINDS = _kinds(Settings)
