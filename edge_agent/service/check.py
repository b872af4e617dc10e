"""Checks before the service is installed. They take the view of its user, who owns no files and has no home folder."""

from __future__ import annotations

import asyncio
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

import edge_agent
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.planning import peers
from edge_agent.service.unit import CACHE, CREDENTIALS, ENVIRONMENT_PATH, STATE, UnitOptions
from splitedge import errors, limits
from splitedge.link import endpoint, http_server
from splitedge.service.unit import HOMES, unreachable
from splitedge.settings import value_of, variable

_WRITABLE = (STATE, CACHE, Path("/var/lib/private/splitedge"), Path("/var/cache/private/splitedge"))
_READ = ("ca", "token_file", "profile", "chain.ca", "chain.token_file", "stage.token_file", "stage.cert", "stage.key")
_SECRET = ("token_file", "chain.token_file", "stage.token_file", "stage.key")


@dataclass
class Findings:
    """``problems``: faults that prevent the service from running, one sentence each. ``notes``: conditions that may
    pass.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(options: UnitOptions, environ: Mapping[str, str]) -> Findings:
    """Problems of a service with ``options`` and the environment ``environ``.

    Asks the server if there are no other problems, for at most `limits.DOCTOR_TIMEOUT`.
    """
    found = Findings(list(_installation(options)))
    if found.problems:
        return found
    try:
        settings = config.load(options.config, environ=environ)
    except errors.ConfigError as error:
        return Findings([error.message])
    credential = options.token_file is not None and variable("token_file") not in environ
    found.problems += _paths(settings, options, credential=credential)
    if not found.problems:
        found.problems += contents(settings)
    if not found.problems:
        _ask(msgspec.structs.replace(settings, token_file=str(options.token_file)) if credential else settings, found)
    return found


def contents(settings: Settings) -> Iterator[str]:
    """Problems in the files that the settings name, and between settings, one sentence each.

    Credentials of the service are not checked: only systemd can read them.
    """
    stage = settings.stage
    credentials = any(text.startswith(str(CREDENTIALS)) for text in (stage.token_file, stage.cert, stage.key))
    checks: list[Callable[[], object]] = [lambda: config.check_role(settings)]
    checks += [partial(_authority, text) for text in (settings.ca, settings.chain.ca) if text]
    if settings.profile:
        checks.append(lambda: _profile(settings))
    if not settings.chain.token_file.startswith(str(CREDENTIALS)):
        checks.append(lambda: config.chain_token(settings))
    if stage.port is not None and not credentials:
        checks.append(lambda: _exposure(settings))
        checks.append(
            lambda: http_server.tls(*(config.path_of(text) if text else None for text in (stage.cert, stage.key)))
        )
    for check in checks:
        try:
            check()
        except errors.UsageError as error:
            yield error.message


def environment(path: Path = ENVIRONMENT_PATH) -> dict[str, str]:
    """The variables in systemd's environment file ``path``; none if it does not exist. Raises `errors.ConfigError` if
    systemd cannot read it.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    if data.startswith(BOM_UTF8) or len(data) > limits.MAX_CONFIG_BYTES:
        raise errors.ConfigError(
            f"{path} begins with a byte-order mark or exceeds {limits.MAX_CONFIG_BYTES} bytes; save it as plain text",
            reason="not-plain-text",
        )
    lines = (line.strip() for line in data.decode("utf-8", "replace").splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and line[0] not in "#;")
    return {name.strip(): _unquoted(value.strip()) for name, _, value in pairs}


def _installation(options: UnitOptions) -> Iterator[str]:
    for path in (options.executable, Path(sys.executable), Path(edge_agent.__file__)):
        if why := unreachable(path):
            yield (
                f"the service user cannot read {path} ({why}); install splitedge where all users can read it, "
                "for example in a virtual environment in /opt/splitedge"
            )
            return
    if why := unreachable(options.config):
        yield (
            f"the service user cannot read the configuration {options.config} ({why}); "
            f"create it with `edge-agent config init --config {options.config}`, or make it readable for all users"
        )
    if options.token_file is not None and not options.token_file.is_file():  # systemd reads it as root
        yield (
            f"the token file {options.token_file} does not exist; create a token with `edge-server token` on the server"
        )


def _paths(settings: Settings, options: UnitOptions, *, credential: bool) -> Iterator[str]:
    """Paths in the settings that the service cannot use. ``credential``: systemd passes the token, so `token_file` is
    not used.
    """
    for key in (*_READ, "cache_dir"):
        text = "" if key == "token_file" and credential else value_of(settings, key)
        if text and (why := _unusable(key, text, options)):
            yield f"the service cannot use `{key}` = {text} ({why}); {_advice(key, Path(text).name)}"


def _unusable(key: str, text: str, options: UnitOptions) -> str:
    """Why the service cannot use the path ``text``, or an empty string."""
    path = Path(text)
    if text.startswith("~"):
        return "the service user has no home folder"
    if not path.is_absolute():
        return "the path is not absolute"
    if key == "cache_dir":
        return "" if any(path.is_relative_to(place) for place in _WRITABLE) else "the service cannot write there"
    if path.is_relative_to(CREDENTIALS):
        return ""
    if not options.home_visible and any(path.is_relative_to(home) for home in HOMES):
        return "the service cannot read home folders"
    return unreachable(path)


def _advice(key: str, name: str) -> str:
    if key == "cache_dir":
        return f"omit it, or use a folder in {CACHE}"
    if key == "token_file":
        return (
            "pass the file to `edge-agent service install --token-file`, or give an absolute path; "
            "only root needs to read it"
        )
    if key in _SECRET:
        return (
            f"make it readable for all users, or pass it as a credential: run `systemctl edit splitedge-agent`, add "
            f"LoadCredential={name}:/etc/splitedge/{name} below [Service], and set `{key}` to {CREDENTIALS / name}"
        )
    return f"move the file to /etc/splitedge, make it readable for all users, and set `{key}` to /etc/splitedge/{name}"


def _authority(text: str) -> None:
    endpoint.tls_context(config.path_of(text))


def _profile(settings: Settings) -> None:
    from edge_agent.planning.device import named_profile  # loads the kernels

    named_profile(settings)


def _exposure(settings: Settings) -> None:
    from edge_agent.runtime.stage_server import check_exposure  # loads the kernels

    check_exposure(settings, config.stage_token(settings))


def _ask(settings: Settings, found: Findings) -> None:
    """Ask the server whether it accepts the token and has the model."""
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
            found.notes.append(f"the token and the model are not checked yet: {error.message}")
    else:
        if settings.model and settings.model not in models:
            names = ", ".join(models) or "no models; add one there with `edge-server add`"
            found.problems.append(f"{settings.server} has no model {settings.model!r}; it has {names}")


def _no_token(settings: Settings) -> str:
    return (
        f"there is no token for {settings.server}; create one there with `edge-server token`, and pass its file to "
        "`edge-agent service install --token-file`"
    )


async def _models(settings: Settings) -> list[str]:
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings, patient=False) as client:
            return [model.name for model in await client.models()]
    except TimeoutError as error:
        raise errors.UnreachableError(
            f"no answer from {settings.server} within {limits.DOCTOR_TIMEOUT:g} s; check the network and that "
            "edge-server runs there",
            reason="timeout",
        ) from error


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
