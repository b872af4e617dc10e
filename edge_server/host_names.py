"""The names and addresses under which this machine can be reached. No function sends a packet."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from splitedge import errors

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SIOCGIFCONF: Final = 0x8912  # ioctl of netdevice(7): the IPv4 addresses of all interfaces
_IFREQ: Final = 40  # bytes of one entry on a 64-bit system: the interface's name (16), then a sockaddr
_MOST_IPV4: Final = 1024
#: A documentation address (RFC 5737). A connected UDP socket asks the routing table and sends nothing.
_ELSEWHERE: Final = ("192.0.2.1", 9)


def checked(text: str) -> str:
    """The host name or IP address ``text``, normalized: lower case, an address without brackets.

    Raises `errors.UsageError` for anything else.
    """
    name = text.strip().lower().rstrip(".")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        if not getattr(address, "scope_id", None):
            return str(address)
    if len(name) > 253 or not _NAME.fullmatch(name) or name.rpartition(".")[2].isdecimal():
        raise errors.UsageError(
            f"{text[:100]!r} is not a host name or an IP address; write it as boards do, such as server.example or "
            "192.0.2.10",
            reason="host-name",
        )
    return name


def is_address(name: str) -> bool:
    """Whether ``name`` is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def all_names() -> list[str]:
    """The host name, also with each domain of this machine, all addresses, and those of the loopback."""
    return [*names(socket.gethostname(), _read("/etc/hosts"), _read("/etc/resolv.conf")), *addresses(), *LOOPBACK]


def names(host: str, hosts: str, resolver: str) -> list[str]:
    """The names of a machine called ``host``: that name, its ``.local`` name, and its fully qualified names.

    ``hosts`` and ``resolver`` are the texts of /etc/hosts and /etc/resolv.conf. What is not a valid name is left out.
    """
    host = host.lower()
    short = host.partition(".")[0]
    found = [short, f"{short}.local", host, *_in_hosts(host, hosts)]
    found += [f"{short}.{domain}" for domain in _domains(resolver)]
    return [name for name in dict.fromkeys(found) if _valid(name) and name not in (*LOOPBACK, "localhost.local")]


def addresses() -> list[str]:
    """The IP addresses of this machine without those of the loopback: IPv4 first, each in the order of interfaces."""
    found = map(ipaddress.ip_address, [*_ipv4(), *ipv6(_read("/proc/net/if_inet6"))])
    return list(dict.fromkeys(str(one) for one in found if not (one.is_loopback or one.is_unspecified)))


def ipv6(table: str) -> list[str]:
    """The addresses in ``table``, the text of /proc/net/if_inet6. Other lines are ignored."""
    rows = re.findall(r"^([0-9a-f]{32}) [0-9a-f]+ [0-9a-f]+ [0-9a-f]+ [0-9a-f]+ +\S+$", table, re.MULTILINE)
    return [str(ipaddress.IPv6Address(int(row, 16))) for row in rows]


def main_address() -> str | None:
    """The address of this machine on the way to other networks, or None without a network."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_ELSEWHERE)
        return str(probe.getsockname()[0])
    return next(iter(addresses()), None)


def _in_hosts(host: str, hosts: str) -> Iterator[str]:
    """Every name with a domain that ``hosts`` gives the machine ``host``."""
    for line in hosts.lower().splitlines():
        _, *known = line.partition("#")[0].split() or [""]
        if host in known:
            yield from (name for name in known if name.partition(".")[0] == host.partition(".")[0] and "." in name)


def _domains(resolver: str) -> Iterable[str]:
    lines = (line.split() for line in resolver.lower().splitlines())
    return dict.fromkeys(word.strip(".") for line in lines if line[:1] in (["domain"], ["search"]) for word in line[1:])


def _valid(name: str) -> bool:
    try:
        return checked(name) == name and not is_address(name)
    except errors.UsageError:
        return False


def _ipv4() -> list[str]:
    buffer = array.array("B", bytes(_IFREQ * _MOST_IPV4))
    request = struct.pack("iP", len(buffer), buffer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            used, _ = struct.unpack("iP", fcntl.ioctl(asked, _SIOCGIFCONF, request))
    except OSError:  # no IPv4
        return []
    return [socket.inet_ntoa(buffer[at + 20 : at + 24]) for at in range(0, used, _IFREQ)]


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
