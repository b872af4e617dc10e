"""The server as a process: where it listens, what it refuses to do, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from edge_server.api import serve as serving_module
from edge_server.api.app import make_app
from edge_server.api.serve import check, serve
from edge_server.config import ServeConfig
from edge_server.store.store import Store
from edge_server.tails import pool
from splitedge import errors
from splitedge.link.http_server import tls
from splitedge.protocol.messages import PROTOCOL_VERSION
from tests.raising import raises

COMMAND = [sys.executable, "-m", "edge_server"]


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its URL."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("edge-server ready on http"), process.communicate()[1]
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def refused(*options: str) -> tuple[int, str]:
    """Exit status and the sentence of a command that must fail."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("edge-server: warning: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("edge-server: ")
    return done.returncode, lines[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_it_is_told_to_stop_and_leaves_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with serving("--store", str(tmp_path)) as (process, url):
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(number)
        _, complaints = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "`edge-server token`" in complaints


@pytest.mark.thorough
def test_systemd_is_told_once_the_port_is_open_and_why_a_start_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        with serving("--store", str(tmp_path / "s")) as (_, url):
            assert systemd.recv(4096) == f"READY=1\nSTATUS=ready: {url}".encode()
            port = url.rpartition(":")[2]
            _, sentence = refused("serve", "--port", port, "--store", str(tmp_path / "s"))
        assert systemd.recv(4096) == f"STATUS={sentence.removeprefix('edge-server: ')}".encode()


@pytest.mark.thorough
def test_the_event_loop_feeds_the_watchdog_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process feeds nothing, and a stop on request is said at once."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        with serving("--store", str(tmp_path / "s")) as (process, url):
            assert systemd.recv(4096) == f"READY=1\nSTATUS=ready: {url}".encode()
            assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            systemd.setblocking(False)
            with suppress(BlockingIOError):
                while True:  # what was sent before the stop
                    systemd.recv(4096)
            time.sleep(0.5)
            with pytest.raises(BlockingIOError):
                systemd.recv(4096)
            process.send_signal(signal.SIGCONT)
            systemd.settimeout(10)
            assert systemd.recv(4096) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            said = [systemd.recv(4096)]
            while said[-1] == b"WATCHDOG=1":
                said.append(systemd.recv(4096))
    assert (said[-1], process.returncode) == (b"STOPPING=1", 0)


async def test_a_server_that_fails_before_it_listens_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[web.Application] = []

    async def note(app: web.Application) -> None:
        cleaned.append(app)

    def noting(store: Store, *, auth: bool) -> web.Application:
        app = make_app(store, auth=auth)
        app.on_cleanup.append(note)
        return app

    monkeypatch.setattr(serving_module, "make_app", noting)
    monkeypatch.setattr(pool, "warm", lambda: 1 / 0)
    with Store(tmp_path) as store, pytest.raises(ZeroDivisionError):
        await serve(store, ServeConfig(port=0), print)
    assert len(cleaned) == 1


def test_tls_by_certificate_and_key(tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost", "127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    with serving(
        "--store", str(tmp_path / "s"), "--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")
    ) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(f"{url}/v1/version", timeout=10, context=trusting) as response:
            assert json.load(response)["protocol"] == PROTOCOL_VERSION


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        status, sentence = refused("serve", "--port", str(port), "--store", str(tmp_path))
    assert status == errors.AddressError.exit_status
    assert f"port {port} of 127.0.0.1 is in use" in sentence


def test_a_host_that_is_not_ours_is_one_sentence(tmp_path: Path) -> None:
    status, sentence = refused("serve", "--host", "192.0.2.1", "--insecure", "--port", "0", "--store", str(tmp_path))
    assert status == errors.AddressError.exit_status
    assert "not an address of this machine" in sentence


@pytest.mark.parametrize(
    ("listen", "lacks"),
    [
        (ServeConfig("0.0.0.0"), "TLS"),
        (ServeConfig("0.0.0.0", auth=False, cert="c", key="k"), "a token"),
        (ServeConfig("::", auth=False), "a token and without TLS"),
        (ServeConfig("server.example"), "TLS"),
    ],
)
def test_beyond_this_machine_only_with_token_and_tls(listen: ServeConfig, lacks: str) -> None:
    with raises(errors.UsageError, reason="open-to-others"):
        check(listen)


def test_the_risk_may_be_accepted_and_is_said_aloud() -> None:
    assert check(ServeConfig("0.0.0.0", insecure=True)) == ["warning: other machines reach 0.0.0.0 without TLS"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_this_machine_anything_goes(host: str) -> None:
    assert check(ServeConfig(host, auth=False)) == []


def test_a_certificate_without_its_key_is_refused() -> None:
    with raises(errors.UsageError, reason="cert-and-key"):
        check(ServeConfig(cert="c"))


def test_a_certificate_that_is_missing_or_none_is_one_sentence(tmp_path: Path) -> None:
    with raises(errors.ConfigError, reason="certificate-unreadable"):
        tls(tmp_path / "no.pem", tmp_path / "no.key")
    (tmp_path / "x.pem").write_text("nonsense")
    with raises(errors.ConfigError, reason="certificate-and-key"):
        tls(tmp_path / "x.pem", tmp_path / "x.pem")


def test_a_key_with_a_password_is_refused_not_asked_for(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    leaf = trustme.CA().issue_cert("localhost")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "key.pem").write_bytes(sealed)
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    with raises(errors.ConfigError, reason="certificate-and-key"):
        tls(tmp_path / "cert.pem", tmp_path / "key.pem")
