"""The names and addresses of this machine, and what counts as a name."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server import host_names
from splitedge import errors
from tests.raising import raises

HOSTS = """\
127.0.0.1 localhost
127.0.1.1 Server.home.example server other.example # server.comment.example
192.168.1.9 elsewhere.example elsewhere
"""
RESOLVER = "nameserver 192.168.1.1\nsearch lan tail.example. .\n# search no.example\noptions ndots:1\n"


def test_a_machine_has_its_name_its_local_name_and_its_qualified_names() -> None:
    expected = ["server", "server.local", "server.home.example", "server.lan", "server.tail.example"]
    assert host_names.names("Server", HOSTS, RESOLVER) == expected
    assert host_names.names("server.a.example", "", "") == ["server", "server.local", "server.a.example"]
    assert host_names.names("server", "", "") == ["server", "server.local"]


@pytest.mark.parametrize("host", ["", "localhost", "a b", "x, IP:6.6.6.6", "-x"])
def test_a_machine_without_a_valid_name_has_none(host: str) -> None:
    assert host_names.names(host, HOSTS, "search\n") == []


@given(host=st.text(), hosts=st.text(), resolver=st.text())
def test_whatever_the_files_hold_the_names_are_valid(host: str, hosts: str, resolver: str) -> None:
    found = host_names.names(host, f"127.0.1.1 {host} {hosts}", f"search {resolver}")
    assert [host_names.checked(name) for name in found] == found


@given(text=st.text() | st.from_regex(r"[\w.,:\[\]\n$-]{1,40}"))
def test_a_name_is_checked_or_refused(text: str) -> None:
    try:
        name = host_names.checked(text)
    except errors.UsageError:
        return
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.:-_")
    assert host_names.checked(name) == name


@given(address=st.ip_addresses())
def test_every_address_is_a_name(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert host_names.checked(f"[{address}]") == host_names.checked(str(address).upper()) == str(address)
    assert host_names.is_address(str(address))


@pytest.mark.parametrize("text", ["", ".", "a..b", "a b", "1.2.3", "256.1.1.1", "fe80::1%eth0", "ä.example", "a" * 64])
def test_what_is_no_name_is_refused(text: str) -> None:
    with raises(errors.UsageError, reason="host-name"):
        host_names.checked(text)


def test_the_addresses_of_this_machine_can_be_bound_and_none_is_of_the_loopback() -> None:
    for text in host_names.addresses():
        address = ipaddress.ip_address(text)
        assert not address.is_loopback
        if not address.is_link_local:  # it needs the number of an interface
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as bound:
                bound.bind((text, 0))


def test_the_main_address_is_one_of_this_machine() -> None:
    assert host_names.main_address() in [*host_names.addresses(), None]


@given(addresses=st.lists(st.ip_addresses(v=6)), noise=st.text())
def test_the_kernels_table_of_addresses_is_read_line_by_line(
    addresses: list[ipaddress.IPv6Address], noise: str
) -> None:
    rows = [f"{int(one):032x} 02 40 20 80     eth0" for one in addresses]
    assert host_names.ipv6("\n".join(rows)) == [str(one) for one in addresses]
    host_names.ipv6(noise)


def test_nothing_is_sent_and_no_name_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(arguments)

    for name in ("getaddrinfo", "gethostbyaddr", "gethostbyname", "getfqdn", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    found = host_names.all_names()
    assert set(host_names.LOOPBACK) <= set(found)
    assert len(found) == len(set(found))
