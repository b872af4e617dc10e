"""Readiness and watchdog, against a real datagram socket as systemd opens it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.errors import PlatformError
from splitedge.service import notify
from tests.raising import raises


def _systemd(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(address)
    listener.settimeout(5)
    return listener


def _drain(listener: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while listener.recv(64):
            count += 1
    return count


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    name = str(tmp_path / "notify") if request.param == "path" else "@splitedge-" + uuid.uuid4().hex
    with _systemd(name.replace("@", "\0", 1) if request.param == "abstract" else name) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_ready_with_a_status_is_one_message(systemd):
    assert notify.ready("waiting for frames")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=waiting for frames"


def test_status_watchdog_and_stopping_say_what_systemd_expects(systemd):
    assert notify.status("12 frames/s")
    assert notify.watchdog()
    assert notify.stopping()
    assert [systemd.recv(4096) for _ in range(3)] == [b"STATUS=12 frames/s", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_cannot_smuggle_in_another_field(systemd):
    notify.status("all well\nSTOPPING=1\0MAINPID=1")
    assert systemd.recv(4096) == b"STATUS=all well STOPPING=1 MAINPID=1"


def test_a_status_begins_with_ready_if_frames_are_served_meanwhile():
    assert notify.state("measuring the link", ready=True) == "ready: measuring the link"
    assert notify.state("measuring the link", ready=False) == "measuring the link"
    assert notify.state(notify.READY, ready=False) == notify.state(notify.READY, ready=True) == notify.READY


@given(text=st.text())
def test_any_status_stays_one_short_line(text):
    cleaned = notify._clean(text)
    assert len(cleaned.splitlines()) <= 1
    assert len(cleaned) <= notify.MAX_STATUS


def test_without_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready()


def test_a_socket_that_is_gone_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with raises(PlatformError, reason="refused"):
        notify.watchdog()


def test_a_socket_of_another_kind_is_an_error(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with raises(PlatformError, reason="not-a-socket"):
        notify.ready()


def test_a_full_queue_never_blocks(systemd):
    sent = 0
    while notify.watchdog():
        sent += 1
        assert sent < 100_000
    assert sent > 0


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_interval_is_read_for_this_process_only(environ, seconds):
    assert notify.watchdog_interval(environ) == seconds


async def test_the_watchdog_is_fed_until_the_loop_is_stuck(systemd, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    feeding = asyncio.create_task(notify.keep_alive())
    await asyncio.sleep(0.05)
    assert systemd.recv(64) == b"WATCHDOG=1"
    systemd.setblocking(False)
    _drain(systemd)
    time.sleep(0.05)  # noqa: ASYNC251
    assert _drain(systemd) == 0
    feeding.cancel()


async def test_without_a_watchdog_there_is_nothing_to_feed(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await asyncio.wait_for(notify.keep_alive(), 1)


async def test_the_watchdog_is_fed_only_while_the_program_works(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "socket"))
        monkeypatch.setattr(notify, "watchdog_interval", lambda: 0.03)
        works = True
        feeding = asyncio.create_task(notify.keep_alive(lambda: works))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            assert await loop.sock_recv(listener, 100) == b"WATCHDOG=1"
            works = False
            await asyncio.sleep(0.1)
            while select.select([listener], [], [], 0)[0]:
                listener.recv(100)
            await asyncio.sleep(0.1)
            assert not select.select([listener], [], [], 0)[0]
            works = True
            assert await loop.sock_recv(listener, 100) == b"WATCHDOG=1"
        feeding.cancel()
