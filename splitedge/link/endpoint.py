"""A server's address, TLS and token, and the errors of failed connections. The stream and the HTTP client share it."""

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
    """A context that accepts servers certified by ``ca_file`` (PEM), or None for the system's CA certificates.

    Raises `errors.ConfigError` if the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return None
    try:
        with ca_file.open("rb") as file:
            marked = file.read(len(BOM_UTF8)) == BOM_UTF8  # OpenSSL finds no certificate after a byte order mark
            text = file.read(limits.MAX_CA_BYTES).decode("ascii", "replace") if marked else None
        return ssl.create_default_context(cadata=text) if text else ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError as error:
        raise errors.ConfigError(
            f"{ca_file} contains no certificate in PEM format; pass the server's CA certificate", reason="not-pem"
        ) from error
    except OSError as error:
        raise errors.ConfigError(
            f"the CA file {ca_file} cannot be read ({error.strerror}); check the path", reason="ca-unreadable"
        ) from error


def server_url(base_url: str, token: str | None, *, allow_insecure: bool = False) -> yarl.URL:
    """``base_url`` as a URL without a trailing slash. A path is the prefix of a reverse proxy.

    Raises `errors.UsageError` if it is not ``http(s)://host[:port][/path]``, or if ``token`` would cross a network
    unencrypted. No message repeats a possible password.
    """
    try:
        url = yarl.URL(base_url.rstrip("/"))
        extra = url.user or url.password or url.query_string or url.fragment
        valid = url.scheme in ("http", "https") and bool(url.host) and not extra
    except ValueError:
        valid = False
    if not valid:
        shown = "the given value" if re.search("[@?#]", base_url) else repr(base_url[:200])
        raise errors.UsageError(
            f"{shown} is not a server address; write https://host:port, without a user or a query",
            reason="address",
        )
    if token and url.scheme == "http" and not allow_insecure and not is_loopback(url.host or ""):
        raise errors.UsageError(
            f"the token would be sent unencrypted to {url}; use https://, or allow it with `--allow-insecure`",
            reason="unencrypted-token",
        )
    return url


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def headers(token: str | None) -> dict[str, str]:
    """Request headers: the token, and no compression, since a compressed answer could exceed its bound when
    unpacked.
    """
    plain = {"Accept-Encoding": "identity"}
    return plain | {"Authorization": f"Bearer {token}"} if token else plain


async def explained(error: BaseException, url: yarl.URL, context: ssl.SSLContext | None) -> errors.SplitEdgeError:
    """As `explain`.

    Where TLS may be the reason, one more connection finds out whether the server uses TLS and which names its
    certificate has.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        if getattr(error.certificate_error, "verify_code", None) in tls_diagnosis.OTHER_NAME:
            return _other_name(url, await tls_diagnosis.names(url, context))
    elif url.scheme == "http" and isinstance(error, _NO_HTTP) and await tls_diagnosis.spoken(url):
        return errors.UnreachableError(
            f"{url.origin()} requires TLS; write the address with https://", tls=True, reason="speaks-tls"
        )
    return explain(error, url)


# What plain HTTP gets from a TLS port: a closed connection, or an alert in place of a status line.
_NO_HTTP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientResponseError)


def explain(error: BaseException, url: yarl.URL) -> errors.SplitEdgeError:
    """The error for callers of a request to ``url`` that failed with ``error`` (of aiohttp, asyncio, ssl or the
    socket).
    """
    where = url.origin()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(error, where)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        reason = getattr(getattr(error, "os_error", error), "reason", None)
        if reason in tls_diagnosis.PLAIN:
            return errors.UnreachableError(
                f"{where} does not use TLS; write the address with http://, or start edge-server with a certificate",
                tls=True,
                reason="speaks-no-tls",
            )
        return errors.UnreachableError(
            f"the TLS handshake with {where} failed ({reason or 'no reason given'}); check the server's certificate "
            "and the port of the address",
            reason="tls-handshake",
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return errors.UnreachableError(
            f"the host name {where.host!r} cannot be resolved; check the server's address and this machine's DNS",
            reason="unknown-host",
            host=where.host,
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return errors.UnreachableError(
            f"no answer from {where} ({os_reason(error.os_error)}); start edge-server there or correct the address",
            reason="refused",
            port=where.port,
        )
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.SocketTimeoutError):
        return errors.UnreachableError(
            f"{where} did not answer in time; check the network, and that edge-server runs there", reason="timeout"
        )
    return errors.LinkLostError(
        f"the connection to {where} broke ({type(error).__name__}); check the network and the server's log",
        reason="broken",
    )


def _certificate(error: aiohttp.ClientConnectorCertificateError, where: yarl.URL) -> errors.UnreachableError:
    """Why the certificate of ``where`` is refused.

    A board without a real-time clock may see one as not yet valid until its time is synchronized.
    """
    code = getattr(error.certificate_error, "verify_code", None)
    reason = getattr(error.certificate_error, "verify_message", "") or "it cannot be verified"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by this machine's clock"
    if code == tls_diagnosis.NOT_YET_VALID:
        return errors.UnreachableError(
            f"the certificate of {where} is not yet valid: it is {now}, and that clock is behind; wait until it is "
            "synchronized, or set it",
            clock=True,
            reason="certificate-not-yet",
        )
    if code == tls_diagnosis.EXPIRED:
        return errors.UnreachableError(
            f"the certificate of {where} has expired: it is {now}; renew the certificate, or set the clock",
            tls=True,
            reason="certificate-expired",
        )
    return errors.UnreachableError(
        f"the certificate of {where} is not trusted ({reason}); pass the CA certificate with `--ca`, or renew the "
        "certificate",
        tls=True,
        reason="certificate",
    )


def _other_name(url: yarl.URL, names: list[str]) -> errors.UnreachableError:
    holds = ", ".join(names) or "other names"
    return errors.UnreachableError(
        f"the certificate of {url.origin()} is for {holds}, not for {url.host}; use one of these names in the "
        f"address, or make a certificate for {url.host}",
        tls=True,
        names=names,
        reason="certificate-name",
    )


def os_reason(error: OSError) -> str:
    """The operating system's text of ``error``. asyncio's own text contains addresses in Python syntax."""
    number = error.errno or 0  # a failed name lookup has a negative number and its own text
    return (os.strerror(number) if number > 0 else error.strerror or "no connection").lower()


def status_error(status: int, url: yarl.URL) -> errors.SplitEdgeError:
    """The error of an HTTP status whose body is not an error document of an edge-server."""
    where = url.origin()
    if status in (401, 403):
        return errors.AuthError(
            f"{where} refused the token; create one with 'edge-server token' and configure it on the agent",
            reason="token",
        )
    if status == 404:
        return errors.ProtocolError(
            f"{where} has no {url.path}; check that the address is an edge-server of the same version",
            reason="no-such-path",
            path=url.path,
        )
    if status >= 500 or status == 429:
        return errors.UnreachableError(
            f"{where} is not available (HTTP status {status}); see the server's log",
            reason="cannot-serve",
            status=status,
        )
    return errors.ProtocolError(
        f"{where} answered with HTTP status {status}; check that it is an edge-server",
        reason="http-status",
        status=status,
    )


def heals(error: errors.SplitEdgeError) -> bool:
    """True if a retry may succeed, for instance after a network failure or a fault of the server."""
    if isinstance(error, errors.LinkError):
        return not isinstance(error, errors.AuthError) and not error.data.get("tls")
    return isinstance(error, errors.BusyError) or (error.remote and error.http_status >= 500)
