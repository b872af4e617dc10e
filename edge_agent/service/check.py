"""Whether the service would run with its settings, looked at as the user that it runs as sees them: one that owns nothing and has no home folder."""

from __future__ import annotations

import asyncio
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

import device_profiles
import edge_agent
from device_profiles import schema
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import peers
from edge_agent.service.unit import CACHE, CREDENTIALS, ENVIRONMENT_PATH, STATE, UnitOptions
from splitedge import errors, limits
from splitedge.link import endpoint, http_server

_HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
_WRITABLE = (STATE, CACHE, Path("/var/lib/private/splitedge"), Path("/var/cache/private/splitedge"))
_READ = ("ca", "token_file", "profile", "chain.ca", "chain.token_file", "stage.token_file", "stage.cert", "stage.key")
_SECRET = ("token_file", "chain.token_file", "stage.token_file", "stage.key")


@dataclass
class Findings:
    """``problems``: what a person must put right before the service can run, one sentence each. ``notes``: what may pass by itself."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(options: UnitOptions, environ: Mapping[str, str]) -> Findings:
    """What is wrong with the service of ``options``, whose environment is ``environ``. Asks the server, if the rest is right; takes
    `limits.DOCTOR_TIMEOUT` at most.
    """
    found = Findings(list(_installation(options)))
    if found.problems:
        return found
    try:
        settings = config.load(options.config, environ=environ)
    except errors.ConfigError as error:
        return Findings([error.message])
    credential = options.token_file is not None and config.variable("token_file") not in environ
    found.problems += _paths(settings, options, credential=credential)
    if not found.problems:
        found.problems += _contents(settings)
    if not found.problems:
        _ask(msgspec.structs.replace(settings, token_file=str(options.token_file)) if credential else settings, found)
    return found


def environment(path: Path = ENVIRONMENT_PATH) -> dict[str, str]:
    """The variables that systemd takes from the file ``path``, if it is there. Raises `errors.ConfigError` for one that it cannot take."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    if data.startswith(BOM_UTF8) or len(data) > limits.MAX_CONFIG_BYTES:
        raise errors.ConfigError(
            f"{path} begins with a byte-order mark or is too large for systemd; save it as plain text"
        )
    lines = (line.strip() for line in data.decode("utf-8", "replace").splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and line[0] not in "#;")
    return {name.strip(): _unquoted(value.strip()) for name, _, value in pairs}


def unreachable(path: Path) -> str:
    """Why a user who owns nothing cannot read the file ``path``, by the permission bits; an empty string if such a user can."""
    try:
        real = path.resolve(strict=True)
        if any(real.is_relative_to(place) for place in ("/tmp", "/var/tmp")):  # noqa: S108
            return "the service has its own /tmp and /var/tmp"
        closed = next((parent for parent in reversed(real.parents) if not parent.stat().st_mode & 0o001), None)
        if closed is not None:
            return f"{closed} is closed to other users"
        if real.is_dir():
            return "it is a folder"
        return "" if real.stat().st_mode & 0o004 else "its permissions"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except RuntimeError:
        return "a loop of symbolic links"


def _installation(options: UnitOptions) -> Iterator[str]:
    for path in (options.executable, Path(sys.executable), Path(edge_agent.__file__)):
        if why := unreachable(path):
            yield (
                f"the service's user cannot use {path} ({why}): install splitedge where every user may read, "
                "for instance in a virtual environment in /opt/splitedge"
            )
            return
    if why := unreachable(options.config):
        yield (
            f"the service's user cannot read the configuration {options.config} ({why}): "
            "write it there with at least `server` and `model`, and let everybody read it"
        )
    if options.token_file is not None and not options.token_file.is_file():  # systemd reads it as root
        yield f"the token file {options.token_file} is not there: make a token with 'edge-server token'"


def _paths(settings: Settings, options: UnitOptions, *, credential: bool) -> Iterator[str]:
    """``credential``: the service has its token from systemd, whatever `token_file` is."""
    for key in (*_READ, "cache_dir"):
        text = "" if key == "token_file" and credential else _value(settings, key)
        if text and (why := _unusable(key, text, options)):
            yield f"`{key}` is {text}, which the service cannot use ({why}): {_advice(key, Path(text).name)}"


def _unusable(key: str, text: str, options: UnitOptions) -> str:
    """Why the service cannot use the path ``text``, or an empty string."""
    path = Path(text)
    if text.startswith("~"):
        return "its user has no home folder"
    if not path.is_absolute():
        return "the path is not absolute"
    if key == "cache_dir":
        return "" if any(path.is_relative_to(place) for place in _WRITABLE) else "it may not write there"
    if path.is_relative_to(CREDENTIALS):
        return ""
    if not options.home_visible and any(path.is_relative_to(home) for home in _HOMES):
        return "it cannot see home folders"
    return unreachable(path)


def _advice(key: str, name: str) -> str:
    if key == "cache_dir":
        return f"leave it out, or name a folder in {CACHE}"
    if key == "token_file":
        return (
            "give the file to `edge-agent service install --token-file`, or name it in full; only root needs to read it"
        )
    if key in _SECRET:
        return (
            f"let everybody read it, or keep it to root: `systemctl edit splitedge-agent`, [Service], "
            f"LoadCredential={name}:/etc/splitedge/{name}, and set `{key}` to {CREDENTIALS / name}"
        )
    return f"put the file into /etc/splitedge, let everybody read it, and set `{key}` to /etc/splitedge/{name}"


def _contents(settings: Settings) -> Iterator[str]:
    """What is wrong in the files that the settings name, and between settings."""
    from edge_agent.runtime.stage import check_exposure

    stage = settings.stage
    credentials = any(text.startswith(str(CREDENTIALS)) for text in (stage.token_file, stage.cert, stage.key))
    checks: list[Callable[[], object]] = [lambda: config.check_role(settings)]
    checks += [partial(endpoint.tls_context, Path(text)) for text in (settings.ca, settings.chain.ca) if text]
    if settings.profile:
        checks.append(lambda: schema.require_measured(device_profiles.load(Path(settings.profile))))
    if not settings.chain.token_file.startswith(str(CREDENTIALS)):
        checks.append(lambda: config.chain_token(settings))
    if stage.port is not None and not credentials:
        checks.append(lambda: check_exposure(settings, config.stage_token(settings)))
        checks.append(lambda: http_server.tls(*(Path(text) if text else None for text in (stage.cert, stage.key))))
    for check in checks:
        try:
            check()
        except errors.UsageError as error:
            yield error.message


def _ask(settings: Settings, found: Findings) -> None:
    """Ask the server for what only it knows: whether it takes the token and has the model."""
    lacks = "" if settings.token or settings.token_file else _no_token(settings)
    try:
        models = asyncio.run(_models(settings))
    except errors.AuthError as error:
        found.problems.append(lacks or error.message)
    except errors.SplitEdgeError as error:
        if not endpoint.heals(error):
            found.problems.append(error.message)
        elif lacks and not endpoint.is_loopback(endpoint.server_url(settings.server, None).host or ""):
            found.problems.append(lacks)
        else:
            found.notes.append(f"whether the token and the model are right is not known yet: {error.message}")
    else:
        if settings.model and settings.model not in models:
            names = ", ".join(models) or "none yet, add one there with 'edge-server add'"
            found.problems.append(f"{settings.server} has no model {settings.model!r}; it has {names}")


def _no_token(settings: Settings) -> str:
    return (
        f"there is no token for {settings.server}: make one there with 'edge-server token', and give its file to "
        "`edge-agent service install --token-file`"
    )


async def _models(settings: Settings) -> list[str]:
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings, patient=False) as client:
            return [model.name for model in await client.models()]
    except TimeoutError as error:
        raise errors.UnreachableError(
            f"{settings.server} did not answer within {limits.DOCTOR_TIMEOUT:g} s; check the network and that edge-server runs there"
        ) from error


def _value(settings: Settings, key: str) -> str:
    *sections, name = key.split(".")
    holder = getattr(settings, sections[0]) if sections else settings
    return str(getattr(holder, name))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
