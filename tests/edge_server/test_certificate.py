"""The self-signed certificate: what OpenSSL and the agent's TLS make of it, and files that are not whole."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from edge_server import certificate
from edge_server.certificate import Certificate
from splitedge import errors
from splitedge.link import http_server
from splitedge.link.endpoint import tls_context
from tests.raising import raises

NAMES = ("server.example", "my_host", "192.0.2.10", "2001:db8::1", "localhost", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate.make(tmp_path_factory.mktemp("made"), NAMES)


def shake_hands(made: Certificate, name: str, client: ssl.SSLContext) -> None:
    """A handshake in memory with a client that wants ``name``."""
    server = http_server.tls(made.cert, made.key)
    assert server is not None
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    (client_in, client_out), (server_in, server_out) = ends
    sides = [
        client.wrap_bio(client_in, client_out, server_hostname=name),
        server.wrap_bio(server_in, server_out, server_side=True),
    ]
    done = [False, False]
    while not all(done):
        for i, side in enumerate(sides):
            try:
                side.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
        server_in.write(client_out.read())
        client_in.write(server_out.read())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_agent_with_it_as_ca_trusts_each_name(made: Certificate, name: str, strict: bool) -> None:
    context = tls_context(made.cert)
    assert context is not None
    if strict:  # the default of Python 3.13
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    shake_hands(made, name, context)


@pytest.mark.parametrize("name", ["other.example", "192.0.2.11"])
def test_another_name_is_refused(made: Certificate, name: str) -> None:
    context = tls_context(made.cert)
    assert context is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(made, name, context)


def test_it_lasts_ten_years_and_its_key_is_private(made: Certificate) -> None:
    assert made.until > datetime.now(UTC) + timedelta(days=3651)
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in made.cert.parent.iterdir()) == ["server.key", "server.pem"]


def test_it_is_read_as_it_was_made(made: Certificate) -> None:
    assert certificate.there(made.cert.parent)
    assert certificate.read(made.cert.parent) == made
    assert made.names == NAMES


def test_many_names_fit(tmp_path: Path) -> None:
    names = [f"{'x' * 50}{i}.example" for i in range(100)] + [f"10.0.0.{i}" for i in range(100)]
    assert certificate.make(tmp_path, names).names == tuple(names)


def test_a_new_one_replaces_the_old(tmp_path: Path) -> None:
    first = certificate.make(tmp_path, ["a.example"]).cert.read_bytes()
    assert certificate.make(tmp_path, ["b.example"]).names == ("b.example",)
    assert first != (tmp_path / "server.pem").read_bytes()


@pytest.mark.parametrize("lost", ["server.pem", "server.key"])
def test_half_a_certificate_is_an_error_and_stays(tmp_path: Path, lost: str) -> None:
    certificate.make(tmp_path, ["a.example"])
    (tmp_path / lost).unlink()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with raises(errors.ConfigError, reason="half-missing"):
        certificate.there(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_certificate_of_another_maker_is_not_taken_for_ours(tmp_path: Path) -> None:
    leaf = trustme.CA().issue_cert("server.example")
    leaf.private_key_pem.write_to_path(tmp_path / "server.key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    with raises(errors.ConfigError, reason="not-ours"):
        certificate.read(tmp_path)


def test_a_certificate_and_the_key_of_another_are_an_error(tmp_path: Path) -> None:
    key = certificate.make(tmp_path / "a", ["a.example"]).key.read_bytes()
    certificate.make(tmp_path / "b", ["b.example"])
    (tmp_path / "b/server.key").write_bytes(key)
    with raises(errors.ConfigError, reason="certificate-and-key"):
        certificate.read(tmp_path / "b")


def test_without_openssl_there_is_one_sentence_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(errors.PlatformError, reason="no-openssl"):
        certificate.make(tmp_path / "new", NAMES)
    assert list((tmp_path / "new").iterdir()) == []


def test_an_openssl_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "openssl"
    program.write_text("#!/bin/sh\necho 'unknown option -x509' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(errors.PlatformError, reason="openssl"):
        certificate.make(tmp_path / "new", NAMES)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(errors.StoreError, reason="cannot-write"):
        certificate.make(tmp_path / "file/folder", NAMES)


async def test_a_real_server_with_it_is_reached_over_tls(made: Certificate) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=http_server.tls(made.cert, made.key)
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls_context(made.cert))
        writer.close()
