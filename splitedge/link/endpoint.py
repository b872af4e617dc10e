"""What both ways to a server share: its address, TLS, when a token may be sent, and what a failed connection means to a user."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from codecs import BOM_UTF8
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import yarl

from splitedge import errors, limits
from splitedge.link import tls_diagnosis


def tls_context(ca_file: Path | None) -> ssl.SSLContext | None:
    """A context that accepts servers certified by ``ca_file`` (PEM); None stands for the system's authorities.

    Raises `errors.ConfigError` if the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return None
    try:
        with ca_file.open("rb") as file:
            marked = file.read(len(BOM_UTF8)) == BOM_UTF8  # OpenSSL does not find the certificate behind the mark
            text = file.read(limits.MAX_CA_BYTES).decode("ascii", "replace") if marked else None
        return ssl.create_default_context(cadata=text) if text else ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError as error:
        raise errors.ConfigError(
            f"{ca_file} holds no certificate in PEM form; give the server's CA certificate"
        ) from error
    except OSError as error:
        raise errors.ConfigError(f"the CA file {ca_file} cannot be read ({error.strerror}); check the path") from error


def server_url(base_url: str, token: str | None, *, allow_insecure: bool = False) -> yarl.URL:
    """``base_url`` as a URL without a slash at its end. A path is the prefix under which a reverse proxy shows the server.

    Raises `errors.UsageError` if it is not ``http(s)://host[:port][/path]``, or if ``token`` would cross a network in the clear. No message
    shows what may be a password.
    """
    try:
        url = yarl.URL(base_url.rstrip("/"))
        extra = url.user or url.password or url.query_string or url.fragment
        valid = url.scheme in ("http", "https") and bool(url.host) and not extra
    except ValueError:
        valid = False
    if not valid:
        shown = "what was given" if re.search("[@?#]", base_url) else repr(base_url[:200])
        raise errors.UsageError(
            f"{shown} is not a server's address; write it as https://host:port, without a user or a query"
        )
    if token and url.scheme == "http" and not allow_insecure and not is_loopback(url.host or ""):
        raise errors.UsageError(
            f"the token would cross the network unencrypted to {url}; use https://, or allow it with `--allow-insecure`"
        )
    return url


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def headers(token: str | None) -> dict[str, str]:
    """Request headers: the token, and no compression (a compressed answer could exceed its bound once unpacked)."""
    plain = {"Accept-Encoding": "identity"}
    return plain | {"Authorization": f"Bearer {token}"} if token else plain


async def explained(error: BaseException, url: yarl.URL, context: ssl.SSLContext | None) -> errors.SplitEdgeError:
    """As `explain`, but where TLS may be the reason the server is asked once more, for what it speaks or what names its certificate holds."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        if getattr(error.certificate_error, "verify_code", None) in tls_diagnosis.OTHER_NAME:
            return _other_name(url, await tls_diagnosis.names(url, context))
    elif url.scheme == "http" and isinstance(error, _NO_HTTP) and await tls_diagnosis.spoken(url):
        return errors.UnreachableError(f"{url.origin()} speaks TLS; write the address with https://", tls=True)
    return explain(error, url)


# What a client of plain HTTP meets at a port that speaks TLS: a closed connection, or an alert in place of a status line.
_NO_HTTP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientResponseError)


def explain(error: BaseException, url: yarl.URL) -> errors.SplitEdgeError:
    """The error that a caller sees when a request to ``url`` failed with ``error`` (of aiohttp, asyncio, ssl or the socket)."""
    where = url.origin()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(error, where)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        reason = getattr(getattr(error, "os_error", error), "reason", None)
        if reason in tls_diagnosis.PLAIN:
            return errors.UnreachableError(
                f"{where} speaks HTTP without TLS; write the address with http://, or give edge-server a certificate",
                tls=True,
            )
        return errors.UnreachableError(
            f"{where} does not speak TLS as expected ({reason or 'no reason given'}); check that the server has a certificate and the address its port"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return errors.UnreachableError(
            f"the host name {where.host!r} is not known here; check the server's address and this machine's DNS"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.UnreachableError(
            f"nothing answers at {where} ({os_reason(error.os_error)}); start edge-server there or correct the address"
        )
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.SocketTimeoutError):
        return errors.UnreachableError(
            f"{where} did not answer in time; check the network and that edge-server runs there"
        )
    return errors.LinkLostError(
        f"the connection to {where} broke ({type(error).__name__}); check the network and the server's log"
    )


def _certificate(error: aiohttp.ClientConnectorCertificateError, where: yarl.URL) -> errors.UnreachableError:
    """Why the certificate of ``where`` is refused. Time cures one that is not valid yet: a board without a clock of its own has the right time late."""
    code = getattr(error.certificate_error, "verify_code", None)
    reason = getattr(error.certificate_error, "verify_message", "") or "it cannot be verified"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by this machine's clock"
    if code == tls_diagnosis.NOT_YET_VALID:
        return errors.UnreachableError(
            f"the certificate of {where} is not valid yet: it is {now}, which is behind; wait until the clock is synchronized, or set it",
            clock=True,
        )
    if code == tls_diagnosis.EXPIRED:
        return errors.UnreachableError(
            f"the certificate of {where} has expired: it is {now}; renew the certificate, or set the clock", tls=True
        )
    return errors.UnreachableError(
        f"the certificate of {where} is not accepted ({reason}); name the CA file that signed it with `--ca`, or mend the certificate",
        tls=True,
    )


def _other_name(url: yarl.URL, names: list[str]) -> errors.UnreachableError:
    holds = ", ".join(names) or "other names"
    return errors.UnreachableError(
        f"the certificate of {url.origin()} does not hold {url.host}; it holds {holds}: use one of those in the server's address, or make a certificate for {url.host}",
        tls=True, names=names,
    )  # fmt: skip


def os_reason(error: OSError) -> str:
    """What the operating system said, in its words: asyncio's own text holds addresses as Python writes them."""
    number = error.errno or 0  # a name's lookup fails with negative numbers and its own words
    return (os.strerror(number) if number > 0 else error.strerror or "no connection").lower()


def status_error(status: int, url: yarl.URL) -> errors.SplitEdgeError:
    """The error of an HTTP status that came without a reason of ours."""
    where = url.origin()
    if status in (401, 403):
        return errors.AuthError(
            f"{where} refused the token; make one with 'edge-server token' and give it to the agent"
        )
    if status == 404:
        return errors.ProtocolError(
            f"{where} has no {url.path}; check that the address is an edge-server of this version"
        )
    if status >= 500 or status == 429:
        return errors.UnreachableError(f"{where} cannot serve now (HTTP status {status}); look into the server's log")
    return errors.ProtocolError(
        f"{where} answered with the unexpected HTTP status {status}; check that it is an edge-server"
    )


def heals(error: errors.SplitEdgeError) -> bool:
    """Whether the same request may succeed later without anybody's doing here: trouble of the server's own (a full disk, a fault) is one."""
    if isinstance(error, errors.LinkError):
        return not isinstance(error, errors.AuthError) and not error.data.get("tls")
    return isinstance(error, errors.BusyError) or (error.remote and error.http_status >= 500)
