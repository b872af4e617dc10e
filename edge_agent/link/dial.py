"""What both ways to a server share: its address, TLS, when a token may be sent, and what a failed connection means to a user."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path

import aiohttp
import yarl

from edge_agent import errors


def tls_context(ca_file: Path | None) -> ssl.SSLContext | None:
    """A context that accepts servers certified by ``ca_file`` (PEM); None stands for the system's authorities.

    Raises `errors.ConfigError` if the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(ca_file))
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
            f"the token would cross the network unencrypted to {url}; use https://, or allow it explicitly"
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


def explain(error: BaseException, url: yarl.URL) -> errors.SplitEdgeError:
    """The error that a caller sees when a request to ``url`` failed with ``error`` (of aiohttp, asyncio, ssl or the socket)."""
    where = url.origin()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it cannot be verified"
        return errors.UnreachableError(
            f"the certificate of {where} is not accepted ({reason}); give the CA file that signed it, or mend the certificate",
            certificate=True,
        )
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return errors.UnreachableError(
            f"{where} does not speak TLS as expected; check that the server has a certificate and the address its port"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return errors.UnreachableError(
            f"the host name {where.host!r} is not known here; check the server's address and this machine's DNS"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = (error.os_error.strerror or "no connection").lower()
        return errors.UnreachableError(
            f"nothing answers at {where} ({reason}); start edge-server there or correct the address"
        )
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.SocketTimeoutError):
        return errors.UnreachableError(
            f"{where} did not answer in time; check the network and that edge-server runs there"
        )
    return errors.LinkLostError(
        f"the connection to {where} broke ({type(error).__name__}); check the network and the server's log"
    )


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
        return not isinstance(error, errors.AuthError) and not error.data.get("certificate")
    return isinstance(error, errors.BusyError) or (error.remote and error.http_status >= 500)
