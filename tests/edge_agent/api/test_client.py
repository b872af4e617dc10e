"""Which running agent may see a user's frames, and where it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.api import client
from edge_agent.config import ApiConfig, Settings

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def rows(*sockets: tuple[int, str, int]) -> str:
    """/proc/net/tcp with (port, state, user) each."""
    return HEADER + "".join(
        f"{i:4}: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {user:5}        0 1 1 0 1\n"
        for i, (port, state, user) in enumerate(sockets)
    )


def test_the_owner_of_a_port_is_the_user_who_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert client.owners(port) == {os.geteuid()}
        assert client.trusted(port)
    assert not client.trusted(port)


@pytest.mark.parametrize(
    ("users", "trusted"),
    [
        ([0], True), ([61184], True), ([65519], True), ([65520], False), ([65534], False), ([33], False), ([os.geteuid()], True),
        ([4242], False), ([0, 4242], False), ([], False),
    ],
)  # fmt: skip
def test_frames_go_to_root_to_this_user_and_to_services(tmp_path: Path, users: list[int], trusted: bool) -> None:
    others = [(8471, "01", 4242), (8472, "0A", 4242)]  # a connection, and another port
    (tmp_path / "tcp").write_text(rows(*others, *((8471, "0A", user) for user in users[:1])))
    (tmp_path / "tcp6").write_text(rows(*((8471, "0A", user) for user in users[1:])))
    assert client.trusted(8471, tmp_path) == trusted


def test_without_the_kernels_list_nobody_is_trusted(tmp_path: Path) -> None:
    assert not client.trusted(8471, tmp_path)


@given(text=st.text(st.characters(max_codepoint=127)))
def test_any_list_is_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("net")
    (folder / "tcp").write_text(HEADER + text)
    assert not client.trusted(8471, folder)


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 8471, "http://127.0.0.1:8471"), ("localhost", 1, "http://localhost:1"), ("0.0.0.0", 8471, "http://127.0.0.1:8471"),
        ("::", 8471, "http://[::1]:8471"), ("::1", 8471, "http://[::1]:8471"), ("127.0.0.1", 0, None), ("192.0.2.1", 8471, None), ("board", 8471, None),
    ],
)  # fmt: skip
def test_only_the_loopback_is_asked(host: str, port: int, url: str | None) -> None:
    assert client.address(Settings(api=ApiConfig(host, port))) == url
