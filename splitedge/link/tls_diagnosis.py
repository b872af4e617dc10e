"""Diagnosis of TLS connections: whether the server uses TLS, the names of its certificate, and when it expires."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from typing import Any, Final

import yarl

from splitedge import limits

NOT_YET_VALID: Final = 9  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID
EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
#: OpenSSL's reasons when a peer answers a handshake in plain HTTP.
PLAIN: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_SHOWN: Final = 8  # names of a certificate in a message


async def spoken(url: yarl.URL) -> bool:
    """Whether the port of ``url`` completes a TLS handshake. Verifies no certificate and sends no data."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await _peer(url, context) is not None


async def names(url: yarl.URL, trusted: ssl.SSLContext | None) -> list[str]:
    """The names and addresses in the certificate at ``url``; none if they cannot be found out. Sends no data.

    ``trusted`` has the CA certificates, None means those of the system. An untrusted certificate yields no names.
    """
    context = ssl.create_default_context()
    if trusted is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not (
            known := trusted.get_ca_certs(binary_form=True)
        ):  # a self-signed certificate may not be marked as a CA's
            return []
        context.load_verify_locations(cadata=b"".join(known))
    context.check_hostname = False
    found = await _peer(url, context) or {}
    return [str(value)[: limits.MAX_NAME] for _, value in found.get("subjectAltName", ())][:_SHOWN]


async def expiry(url: yarl.URL, trusted: ssl.SSLContext | None) -> datetime | None:
    """When the certificate at ``url`` expires; None if it is not trusted or there is no answer. Sends no data.

    ``trusted`` as in `names`.
    """
    found = await _peer(url, trusted or ssl.create_default_context()) or {}
    text = found.get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC) if isinstance(text, str) else None


async def _peer(url: yarl.URL, context: ssl.SSLContext) -> dict[str, Any] | None:
    """The certificate of the peer, empty if it is not verified; None if the handshake fails."""
    try:
        async with asyncio.timeout(limits.TLS_LOOK):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except (OSError, TimeoutError):
        return None
    certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
    writer.transport.abort()
    return certificate
