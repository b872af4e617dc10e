"""The server's self-signed certificate, which boards use as their certificate authority (`ca`)."""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge_server.host_names import is_address
from splitedge import errors, files, limits
from splitedge.link import http_server

DAYS: Final = 3653  # ten years

# A configuration of its own: that of the system may lack extensions. Python 3.13 refuses an authority without keyUsage.
_CONFIG: Final = """\
[req]
prompt = no
utf8 = yes
distinguished_name = subject
x509_extensions = extensions
[subject]
CN = {subject}
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, digitalSignature, keyCertSign
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key on the disk. ``names``: host names and addresses. ``until``: the end of its validity."""

    cert: Path
    key: Path
    names: tuple[str, ...]
    until: datetime


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the certificate: ``~/.config/splitedge``. Raises `errors.ConfigError` if this user has no home folder."""
    given = Path(environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (given if given.is_absolute() else Path("~/.config").expanduser()) / "splitedge"
    except RuntimeError as error:
        raise errors.ConfigError(
            "this user has no home folder for the certificate; give a folder with --folder", reason="no-home"
        ) from error


def paths(folder: Path) -> tuple[Path, Path]:
    """The files of the certificate and of its key in ``folder``."""
    return folder / "server.pem", folder / "server.key"


def make(folder: Path, names: Sequence[str]) -> Certificate:
    """Write a new key (mode 0600) and a certificate for ``names`` to ``folder``, and return them.

    Raises `errors.PlatformError` without a working ``openssl``, `errors.StoreError` if a file cannot be written.
    """
    cert, key = paths(folder)
    files.make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=files.PARTIAL, dir=folder) as place:
            made = _made(Path(place), names)
        files.replace(key, made[1], mode=0o600)
        files.replace(cert, made[0], mode=0o644)
    except OSError as error:
        raise errors.StoreError(
            f"the certificate cannot be written to {folder} ({error.strerror}); name another folder with --folder",
            reason="cannot-write",
        ) from error
    return read(folder)


def there(folder: Path) -> bool:
    """Whether ``folder`` holds a certificate. Raises `errors.ConfigError` if one of the two files is missing."""
    cert, key = (path.exists() for path in paths(folder))
    if cert != key:
        lost, kept = paths(folder) if key else reversed(paths(folder))
        raise errors.ConfigError(
            f"{lost} is missing beside {kept.name}; restore it, or make a new certificate and key with --renew",
            reason="half-missing",
        )
    return cert


def read(folder: Path) -> Certificate:
    """The certificate in ``folder``.

    Raises `errors.ConfigError` if it cannot be read, does not belong to the key, or was not made by `make`.
    """
    cert, key = paths(folder)
    http_server.tls(cert, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    for found in context.get_ca_certs():
        names = tuple(_name(*map(str, pair)) for pair in found.get("subjectAltName", ()))
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
        return Certificate(cert, key, names, until)
    raise errors.ConfigError(
        f"{cert} was not made by `edge-server init`; name another folder with --folder", reason="not-ours"
    )


def _name(kind: str, value: str) -> str:
    """A name in a certificate as `host_names` writes it. OpenSSL writes ``::1`` in full."""
    return str(ipaddress.ip_address(value.strip())) if kind == "IP Address" else value


def _made(place: Path, names: Sequence[str]) -> tuple[bytes, bytes]:
    """A certificate and its key in PEM format, made in the private folder ``place``."""
    program = shutil.which("openssl")
    if program is None:
        raise errors.PlatformError(
            "the program openssl, which makes the certificate, is not installed; run `sudo apt install openssl`",
            reason="no-openssl",
        )
    alternatives = ", ".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
    (place / "config").write_text(_CONFIG.format(subject=names[0][:64], names=alternatives))
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-sha256", "-days", str(DAYS), "-config", "config", "-out", "cert", "-keyout", "key"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=place,
            capture_output=True,
            timeout=limits.OPENSSL_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed("no end in time") from error
    if done.returncode != 0:
        raise _failed(done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or "no reason given")
    return (place / "cert").read_bytes(), (place / "key").read_bytes()


def _failed(why: str) -> errors.PlatformError:
    return errors.PlatformError(
        f"openssl cannot make a certificate ({why[:200]}); install OpenSSL 1.1.1 or newer", reason="openssl"
    )
