"""Settings of the agent: `Settings` defines each option, environment variable and TOML key, and its documentation (see
`settings`).

The configuration file is the one that ``--config`` or ``SPLITEDGE_CONFIG`` names, else the first that exists of
``~/.config/splitedge/agent.toml`` and ``/etc/splitedge/agent.toml``.
"""

from __future__ import annotations

import hashlib
import os
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from splitedge import errors, limits
from splitedge.demand import DemandConfig
from splitedge.protocol.messages import Objective
from splitedge.settings import About, Flag, Given, Milliseconds, PathText, Seconds, Setting, value_of
from splitedge.settings import collect as collect_settings
from splitedge.settings import made as settings_made
from splitedge.settings import reference as reference_of

SYSTEM_FILE = Path("/etc/splitedge/agent.toml")
_URLS = ("server", "chain.next")
_NO_ANSWER = ("token", "token_file", "ca", "allow_insecure", "cache_dir", "chain.token", "chain.token_file", "chain.ca")
CREDENTIAL = "splitedge-token"  # the name of the token in systemd's LoadCredential

_Address = Annotated[str, Meta(min_length=1, max_length=255, description="an IP address or a host name")]
_Port = Annotated[int, Meta(ge=0, le=65535, description="an integer from 0 (any free port) to 65535")]
_Token = Annotated[str, Meta(max_length=4096, description="a token")]


class ApiConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[api]``: the local HTTP API.

    It requires no token, so keep it on the loopback address unless you trust the network.
    """

    host: Annotated[
        _Address, About("Address on which the local HTTP API listens. The API requires no token.", "--host")
    ] = "127.0.0.1"
    port: Annotated[_Port, About("Port of the local HTTP API; 0 selects a free port.", "--port")] = 8471


class LinkConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[link]``: adaptation of the codec to the link, age limit of frames, and replanning."""

    controller: Annotated[
        Literal["adaptive", "quantpipe", "pipeedge", "fixed"],
        Meta(description='"adaptive", "quantpipe", "pipeedge" or "fixed"'),
        About("Method that adapts the codec to the link.", "--controller"),
    ] = "adaptive"
    bits: Annotated[
        int,
        Meta(ge=0, le=32, description="an integer from 0 (from the plan) to 32"),
        About("Maximum bits of the initial codec; 0 takes the codec of the plan.", "--bits"),
    ] = 0
    max_age_ms: Annotated[
        Milliseconds | None,
        About("Drop frames that wait longer than this before they are sent, in ms.", "--max-age", default="never"),
    ] = None
    replan: Annotated[
        Flag, About("Request a new plan after a lasting change of the link or of the measured times.", "--replan")
    ] = True


class ReuseConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[reuse]``: reuse of an answer for similar frames."""

    threshold: Annotated[
        float,
        Meta(ge=0, le=1, description="a number from 0 (off) to 1"),
        About(
            "Reuse the answer of an earlier frame if the new frame differs by at most this (0 to 1); 0 is off.",
            "--reuse",
        ),
    ] = 0.0
    max_age_s: Annotated[
        Seconds, About("Maximum age in seconds of the frame whose answer is reused.", "--reuse-max-age")
    ] = 2.0
    max_run: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="an integer from 1 to 1000000"),
        About("Maximum number of frames that reuse one answer.", "--reuse-max-run"),
    ] = 50


class ChainConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[chain]``: the next board, if several boards share a model.

    The first board also sets the objective of the chain.
    """

    next: Annotated[
        str,
        Meta(max_length=2048, description="a URL such as https://board:8472, or empty"),
        About("URL of the next board, to share the model among several boards.", "--next"),
    ] = ""
    token: Annotated[_Token, About("Token for the next board. Prefer a file or a variable.")] = ""
    token_file: Annotated[PathText, About("File that contains the token for the next board.")] = ""
    ca: Annotated[PathText, About("Certificate authority of the next board (PEM).", default="those of the system")] = ""
    objective: Annotated[
        Objective,
        Meta(description='"latency" or "rate"'),
        About("Objective of the chain: lowest latency or highest rate. Set it on the first board."),
    ] = "latency"
    exact: Annotated[
        Flag, About("Send tensors between boards without loss, so that the results equal those of one board.")
    ] = False
    spread: Annotated[
        Flag, About("Give a part of the model to every board and to the server, even if fewer are faster.")
    ] = False


class StageConfig(msgspec.Struct, forbid_unknown_fields=True):
    """``[stage]``: the address on which a later board of a chain listens.

    A board with ``stage.port`` has no ``model``.
    """

    host: Annotated[_Address, About("Address on which a later board listens for the previous board.")] = "127.0.0.1"
    port: Annotated[
        _Port | None,
        About("Serve as a later board of a chain on this port; 0 selects a free port.", default="off"),
    ] = None
    token: Annotated[_Token, About("Token that the previous board must send. Prefer a file or a variable.")] = ""
    token_file: Annotated[PathText, About("File that contains the token that the previous board must send.")] = ""
    cert: Annotated[
        PathText, About("Certificate chain for the previous board (PEM). Required beyond this machine.")
    ] = ""
    key: Annotated[PathText, About("Private key of the certificate (PEM).")] = ""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of the agent."""

    server: Annotated[
        str,
        Meta(max_length=2048, description="a URL such as https://host:8470"),
        About("URL of the edge-server.", group="server"),
    ] = "http://127.0.0.1:8470"
    token: Annotated[
        _Token,
        About(
            "Token for the server. Other users can see options: prefer SPLITEDGE_TOKEN or --token-file.", group="server"
        ),
    ] = ""
    token_file: Annotated[PathText, About("File that contains the token.", group="server")] = ""
    ca: Annotated[
        PathText,
        About("Certificate authority of the server (PEM).", default="those of the system", group="server"),
    ] = ""
    allow_insecure: Annotated[
        Flag, About("Allow unencrypted HTTP to another machine, which exposes the token.", group="server")
    ] = False
    model: Annotated[
        str,
        Meta(max_length=limits.MAX_NAME, description="the name of a model"),
        About("Name of the model on the server (`edge-agent models` lists them).", group="model"),
    ] = ""
    topk: Annotated[
        int,
        Meta(ge=0, le=1000, description="an integer from 0 (the complete output) to 1000"),
        About("Number of classes per answer; 0 also returns the complete output of the model.", group="output"),
    ] = 5
    profile: Annotated[
        PathText,
        About(
            "Measurements of this board, from `edge-agent profile --out FILE`.",
            default="measured at the first start",
            group="board",
        ),
    ] = ""
    threads: Annotated[
        int,
        Meta(ge=0, le=limits.MAX_THREADS, description=f"an integer from 0 (automatic) to {limits.MAX_THREADS}"),
        About("Maximum threads per frame; 0 takes the number that was fastest in the profile.", group="board"),
    ] = 0
    cache_dir: Annotated[
        PathText,
        About(
            "Folder for segments and measurements. SPLITEDGE_CACHE_DIR also moves the compiled kernels.",
            default="~/.cache/splitedge",
            group="board",
        ),
    ] = ""
    demand: DemandConfig = msgspec.field(default_factory=DemandConfig)
    link: LinkConfig = msgspec.field(default_factory=LinkConfig)
    reuse: ReuseConfig = msgspec.field(default_factory=ReuseConfig)
    api: ApiConfig = msgspec.field(default_factory=ApiConfig)
    chain: ChainConfig = msgspec.field(default_factory=ChainConfig)
    stage: StageConfig = msgspec.field(default_factory=StageConfig)

    def __repr__(self) -> str:
        return f"Settings(server={self.server!r}, model={self.model!r})"  # logs must not contain the token


def reference() -> tuple[Setting, ...]:
    """Every setting of the agent: key, option, variable, type, default and one sentence, in the order of `Settings`."""
    return reference_of(Settings)


def setting(key: str) -> Setting:
    """The setting ``key``. Raises `errors.ConfigError` for an unknown key."""
    known = {one.key: one for one in reference()}
    if key not in known:
        similar = [one for one in known if one.startswith(f"{key}.")] or get_close_matches(key, known)
        hint = f"similar: {', '.join(similar)}" if similar else "`edge-agent config show` lists all"
        raise errors.ConfigError(f"{key[:100]!r} is not a setting; {hint}", key=key, reason="unknown-key")
    return known[key]


def fingerprint(settings: Settings) -> str:
    """A hash of the settings that decide an answer: all but addresses to listen on, credentials and the cache folder."""
    keys = [one.key for one in reference() if one.group not in ("api", "stage") and one.key not in _NO_ANSWER]
    return hashlib.sha256(msgspec.json.encode({key: value_of(settings, key) for key in keys})).hexdigest()


def load(
    path: Path | None = None, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings in effect. ``path``: the file, instead of the one that `file` finds; ``options`` as in
    `settings.load`.

    Raises `errors.ConfigError` that names the option, variable or key, and the allowed values.
    """
    return made(*collect(path, options, environ))


def from_options(options: Mapping[str, Any]) -> Settings:
    """The settings of ``options`` alone, without file and environment. Raises as `load`."""
    return made(*_collected(None, options, {}))


def collect(
    path: Path | None = None, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, Given], list[errors.ConfigError]]:
    """The values that were given, by key, and every problem that `load` could raise. Arguments as in `load`."""
    return _collected(path or file(environ), options or {}, environ)


def made(values: Mapping[str, Given], problems: Sequence[errors.ConfigError]) -> Settings:
    """The settings that `collect` found. Raises the first of ``problems``."""
    return settings_made(Settings, values, problems)


def _collected(
    path: Path | None, options: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Given], list[errors.ConfigError]]:
    values, problems = collect_settings(Settings, path, options, environ)
    for key in _URLS:
        try:
            if key in values:
                check_url(key, values[key].value)
        except errors.ConfigError as error:
            problems.append(error)
    return values, problems


def check_url(key: str, value: object) -> None:
    """Raise `errors.ConfigError` if the setting ``key`` must be a URL and ``value`` is none."""
    needed = key == "server" or (key in _URLS and value)
    if needed and _split_url(str(value)) is None:
        raise errors.ConfigError(
            f"`{key}` must be a URL such as https://host:8470, not {str(value)[:100]!r}", key=key, reason="not-a-url"
        )


def check_role(settings: Settings) -> None:
    """Raise `errors.ConfigError` unless the board either accepts frames for a model or serves as a later board of a
    chain.
    """
    if settings.model and settings.stage.port is not None:
        raise errors.ConfigError(
            "`model` and `stage.port` are both set; unset `model` on a later board of a chain, or `stage.port` on "
            "the first",
            key="stage.port",
            reason="model-and-stage",
        )
    if settings.stage.port is None:
        require_model(settings)


def require_model(settings: Settings) -> None:
    """Raise `errors.ConfigError` if no model is selected."""
    if not settings.model:
        raise errors.ConfigError(
            "no model is selected; give --model or set `model` (`edge-agent models` lists them)",
            key="model",
            reason="no-model",
        )


def path_of(text: str) -> Path:
    """The path in a setting, with ``~`` expanded. Raises `errors.ConfigError` if this user has no home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise errors.ConfigError(
            f"{text} is in a home folder and this user has none; give an absolute path, such as "
            f"/etc/splitedge/{Path(text).name}",
            reason="no-home",
        ) from error


def file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file without ``--config``, or None if there is none."""
    if environ.get("SPLITEDGE_CONFIG"):
        return path_of(environ["SPLITEDGE_CONFIG"])
    return next((place for place in _places(environ) if _is_file(place)), None)


def new_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The place of a new configuration file: where `file` looks first."""
    return path_of(environ["SPLITEDGE_CONFIG"]) if environ.get("SPLITEDGE_CONFIG") else _places(environ)[0]


def _places(environ: Mapping[str, str]) -> list[Path]:
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "")
    users = [Path(home) / "splitedge/agent.toml"] if Path(home).is_absolute() else []  # as the XDG specification says
    return [*users, SYSTEM_FILE]


def _is_file(place: Path) -> bool:
    """Whether ``place`` is a file. A folder that this user cannot read counts as empty."""
    try:
        return place.is_file()
    except OSError:
        return False


def token(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """The bearer token from ``token``, ``token_file`` or systemd's credential, in this order; an empty string without
    any.

    Raises `errors.ConfigError` if the file cannot be read or does not contain one line of printable ASCII.
    """
    return _token(settings.token, settings.token_file, "", _credential(environ))


def chain_token(settings: Settings) -> str:
    """The token for the next board, or an empty string. Raises like `token`."""
    return _token(settings.chain.token, settings.chain.token_file, "chain.", None)


def stage_token(settings: Settings) -> str:
    """The token that the previous board must send, or an empty string. Raises like `token`."""
    return _token(settings.stage.token, settings.stage.token_file, "stage.", None)


def check_token(text: str, where: str) -> str:
    """Return ``text``, which ``where`` contains. Raises `errors.ConfigError` if it is no token."""
    if not text or len(text) > 4096 or not text.isascii() or not text.isprintable() or " " in text:
        raise errors.ConfigError(
            f"{where} does not contain a token; create one with `edge-server token` on the server", reason="not-a-token"
        )
    return text


def _token(given: str, file: str, prefix: str, otherwise: Path | None) -> str:
    if given:
        return check_token(given, f"the setting `{prefix}token`")
    path = path_of(file) if file else otherwise
    if path is None:
        return ""
    try:
        with path.open("rb") as opened:
            text = opened.read(8192)
    except OSError as error:
        remedy = "run the command with sudo, or " if isinstance(error, PermissionError) else ""
        raise errors.ConfigError(
            f"cannot read the token file {path} ({error.strerror}); {remedy}correct `{prefix}token_file`",
            reason="token-unreadable",
        ) from error
    return check_token(text.removeprefix(BOM_UTF8).decode("ascii", "replace").strip(), f"the token file {path}")


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
