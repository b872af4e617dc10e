"""Checks of the configuration and the server. Each waits for at most `limits.DOCTOR_TIMEOUT`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import splitedge
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.doctor.check import Check, fail, ok, warn
from edge_agent.planning import peers
from splitedge import errors, limits
from splitedge.link import endpoint, tls_diagnosis
from splitedge.protocol.messages import PROTOCOL_VERSION, ModelInfo, is_served


def configuration(path: Path | None, options: Mapping[str, Any]) -> tuple[Settings | None, Check]:
    """The settings in effect, or None if they are not valid."""
    place, found = path, "no file; variables, options and defaults apply"
    try:
        place = path or config.file()
        found = str(place) if place else found
        return config.load(path, options), ok("configuration", found)
    except errors.ConfigError as error:
        return None, fail("configuration", found, error.message)


async def server(settings: Settings) -> Check:
    """Whether the server answers, accepts the token and has the model.

    At the default address, a missing server is no problem.
    """
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings) as client:
            models = {model.name: model for model in await client.models()}
        token = config.token(settings)
    except TimeoutError:
        advice = f"no answer within {limits.DOCTOR_TIMEOUT:g} s; check the network and that edge-server runs there"
        return _no_server(settings, advice)
    except errors.SplitEdgeError as error:
        return _no_server(settings, error.message)
    if settings.model and settings.model not in models:
        advice = f"the server has no model {settings.model!r}; `edge-agent models` lists its models"
        return fail("server", settings.server, advice)
    accepts = " and accepts the token" if token else ""
    found = f"{settings.server} answers{accepts}; models: {', '.join(models) or 'none'}"
    return _texts(found, models.get(settings.model))


def _texts(found: str, model: ModelInfo | None) -> Check:
    if model is not None and model.tokenizer is not None:
        from splitedge.head import text  # loads numpy, which is not needed without a model for texts

        if not text.installed():
            advice = f"{text.missing().message}; until then, {model.name} accepts only token ids"
            return warn("server", found, advice)
    return ok("server", found)


async def version(settings: Settings) -> Check | None:
    """Whether server and board have the same version; None if the server does not answer (`server` says why)."""
    try:
        async with asyncio.timeout(limits.DOCTOR_TIMEOUT), peers.client(settings) as client:
            theirs = await client.version()
    except (TimeoutError, errors.SplitEdgeError):
        return None
    found = (
        f"splitedge {splitedge.__version__}, protocol {PROTOCOL_VERSION}; the server: {theirs.version[:40]}, protocol "
        f"{theirs.protocol}"
    )
    older = "the server" if theirs.protocol < PROTOCOL_VERSION else "this board"
    if not is_served(theirs.protocol):
        return fail("version", found, f"upgrade splitedge on {older}: their protocols do not match")
    if theirs.version != splitedge.__version__:
        return warn("version", found, "install the same version on both sides")
    return ok("version", found)


async def certificate(settings: Settings, now: datetime | None = None) -> Check | None:
    """The days that the server's certificate is still valid; None without TLS or answer (`server` says why)."""
    try:
        address, _, ca = peers.server_address(settings)
        url = endpoint.server_url(address, None)
        if url.scheme != "https":
            return None
        expires = await tls_diagnosis.expiry(url, endpoint.tls_context(ca))
    except errors.SplitEdgeError:
        return None
    if expires is None:
        return None
    days = (expires - (now or datetime.now(UTC))).days
    found = f"valid for {days:,} days, until {expires:%Y-%m-%d}"
    if days < limits.CERTIFICATE_DAYS:
        return warn("certificate", found, "renew the server's certificate; after that day no board connects")
    return ok("certificate", found)


def _no_server(settings: Settings, advice: str) -> Check:
    if settings.server == Settings().server:
        return ok("server", f"none configured, and none at {settings.server}")
    return fail("server", settings.server, advice)
