"""The relay that makes a slow link."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import relay
from benchmarks.relay import Relay


@contextmanager
def echo() -> Iterator[int]:
    """A server that answers each connection with what it sends; yields its port."""

    def serve() -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            with link:
                while data := link.recv(4096):
                    link.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]


def asked(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 20) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        found = b""
        while more := link.recv(4096):
            found += more
    return found


@pytest.mark.parametrize("mbps", [None, 50.0])
def test_what_passes_comes_back_whole(mbps: float | None) -> None:
    data = bytes(range(256)) * 64
    with echo() as port, Relay(port, mbps) as link:
        assert asked(link.port, data) == data
        assert asked(link.port, data) == data


def test_it_stops_while_a_connection_is_open() -> None:
    with echo() as port, Relay(port, 1.0) as link:
        held = socket.create_connection(("127.0.0.1", link.port), 20)
        held.sendall(b"x")
        assert held.recv(1) == b"x"
    held.close()


def test_connections_share_the_rate_of_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay.time, "monotonic", lambda: 100.0)
    with echo() as port, Relay(port, 1.0) as link:
        assert link._wait_s(0, 1000) == pytest.approx(0.008)
        assert link._wait_s(0, 1000) == pytest.approx(0.016)
        assert link._wait_s(1, 500) == pytest.approx(0.004)
        link.mbps = None
        assert link._wait_s(0, 1000) == 0.0
