"""Emulated links: network namespaces and a relay between them that sets rate and delay per direction.

    python -m benchmarks.links [--json OUT] [--quick]

    with Network(2) as network:
        network.link(0, 1, mbps=20, rtt_ms=30)
        subprocess.run([*network.inside(0), "edge-agent", ...])  # reaches network.address(1)

Each node is a namespace with one TUN device. The relay is a process that moves packets between them. You can change
rates and delays while it runs. A packet waits until its last bit leaves at the current rate, then for half of the round
trip. The queue is bounded; it drops packets beyond its limit, as a router does.

Large TCP packets cross the devices whole (segmentation offload), because a relay in Python cannot reach 1,000 Mbit/s
otherwise. Their headers count as if each segment were sent separately. The namespaces have no name. They disappear with
the relay, which ends when its parent process ends for any reason.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO, TypeVar

from benchmarks.processes import reap
from benchmarks.report import parser, report
from splitedge import errors

T = TypeVar("T")

RATES: Final = (0.25, 1.0, 4.0, 16.0, 64.0, 250.0, 1000.0)  # Mbit/s
ROUND_TRIPS: Final = (1.0, 20.0, 200.0)  # ms

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_PR_SET_TIMERSLACK: Final = 29
_VNET: Final = struct.Struct("<BBHHHH")  # flags, kind, header bytes, segment bytes, checksum's start and place
_LARGEST: Final = _VNET.size + 65_536
_MTU: Final = 1500
#: Queue limits of a direction, in bytes and in seconds beyond a round trip; the larger one applies.
_QUEUE_BYTES, _QUEUE_S = 128 * 1024, 0.1
_START_S: Final = 20.0
_IPV4: Final = Path("/proc/sys/net/ipv4")
_ALLOWED: Final = _IPV4 / "tcp_allowed_congestion_control"


class Network:
    """A network of ``nodes`` namespaces; a context manager.

    Every pair starts with a link of 1,000 Mbit/s and 1 ms; change it with `link`. Raises `errors.UsageError` if the
    system or the user's rights do not permit namespaces.
    """

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = nodes

    def __enter__(self) -> Self:
        if lacking := missing():
            raise errors.UsageError(
                f"emulated links need {lacking}: run this as root on Linux with iproute2 installed",
                reason="no-emulation",
            )
        command = [sys.executable, "-m", "benchmarks.links", "--relay", str(self.nodes)]
        root = Path(__file__).resolve().parent.parent
        # A separate session: on Ctrl-C the relay must outlive the programs in the namespaces. It ends by its input.
        self._relay = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self._namespaces: list[int] = json.loads(self._answer())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.close()
        reap(self._relay, patience=10)
        self._relay.stdout.close()

    def link(self, a: int, b: int, *, mbps: float, rtt_ms: float, back_mbps: float | None = None) -> None:
        """Set ``mbps`` from ``a`` to ``b``, ``back_mbps`` (default: the same) back, and a round trip of ``rtt_ms``.

        The change also applies to queued packets.
        """
        for source, target, rate in ((a, b, mbps), (b, a, mbps if back_mbps is None else back_mbps)):
            self._tell({"source": source, "target": target, "mbps": rate, "delay_ms": rtt_ms / 2})

    def address(self, node: int) -> str:
        """Return the IP address of ``node``."""
        return _address(node)

    def inside(self, node: int) -> list[str]:
        """Return a command prefix that runs a command in the namespace of ``node``."""
        return ["nsenter", f"--net={self._namespace(node)}", "--"]

    def run(self, node: int, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread inside the namespace of ``node``; return its result or raise its error.

        Sockets that it makes stay in the namespace.
        """
        found: list[T] = []
        raised: list[BaseException] = []

        def enter() -> None:
            try:
                descriptor = os.open(self._namespace(node), os.O_RDONLY)
                try:
                    _system("setns", descriptor, _CLONE_NEWNET)
                finally:
                    os.close(descriptor)
                found.append(work())
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return found[0]

    def _namespace(self, node: int) -> str:
        return f"/proc/{self._relay.pid}/fd/{self._namespaces[node]}"

    def _tell(self, message: dict[str, float]) -> None:
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps(message) + "\n")
        self._relay.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._relay.stdout is not None
        ready, _, _ = select.select([self._relay.stdout], [], [], _START_S)
        line = self._relay.stdout.readline() if ready else ""
        if not line:
            raise errors.UsageError("the relay did not start or has ended; see its message above, and run this as root")
        return line


def missing() -> str:
    """Return the missing requirement of emulated links in words; empty if all are met."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "root on Linux"
    if not Path("/dev/net/tun").exists():
        return "the TUN device /dev/net/tun"
    absent = [name for name in ("ip", "nsenter") if not any((Path(p) / name).exists() for p in os.get_exec_path())]
    return " and ".join(f"the command `{name}`" for name in absent)


# --- the relay: a separate process ------------------------------------------------------------------------------------


class _Direction:
    """Packets from one node to another, in order: a queue, transmission at the current rate, then a delay."""

    def __init__(self, now: float) -> None:
        self._line: deque[tuple[int, bytes]] = deque()  # bytes on the link, packet; the link is sending the first
        self._flying: deque[tuple[float, int, bytes]] = deque()  # arrival time, bytes on the link, packet
        self._held = 0
        self._left, self._now = 0.0, now  # unsent bytes of the first packet at that time
        self._bytes_per_s = 0.0
        self.shape(1000.0, 0.5, now)

    def shape(self, mbps: float, delay_ms: float, now: float) -> None:
        """Send at ``mbps`` from now on, including queued packets; 0 stops the link."""
        self._advance(now)
        self._bytes_per_s, self._delay_s = mbps * 1e6 / 8, delay_ms / 1e3
        self._most = max(_QUEUE_BYTES, self._bytes_per_s * (_QUEUE_S + 2 * self._delay_s))

    def take(self, packet: bytes, now: float) -> None:
        self._advance(now)
        size = _wire_bytes(packet)
        if self._held + size > self._most:
            return
        if not self._line:
            self._left = size
        self._line.append((size, packet))
        self._held += size

    def due(self, now: float) -> bytes | None:
        """Return a packet that has arrived by ``now``, or None."""
        self._advance(now)
        if not self._flying or self._flying[0][0] > now:
            return None
        _, size, packet = self._flying.popleft()
        self._held -= size
        return packet

    def next_due(self) -> float:
        """Return the arrival time of the next packet; infinity if there is none."""
        if self._flying:
            return self._flying[0][0]
        if not self._line or not self._bytes_per_s:
            return math.inf
        return self._now + self._left / self._bytes_per_s + self._delay_s

    def _advance(self, now: float) -> None:
        """Advance the link's transmission to ``now``."""
        while self._line and self._bytes_per_s and self._now + self._left / self._bytes_per_s <= now:
            self._now += self._left / self._bytes_per_s
            size, packet = self._line.popleft()
            arrives = self._now + self._delay_s
            self._flying.append((max(arrives, self._flying[-1][0]) if self._flying else arrives, size, packet))
            self._left = self._line[0][0] if self._line else 0.0
        if self._line:
            self._left -= (now - self._now) * self._bytes_per_s
        self._now = now


def _wire_bytes(packet: bytes) -> int:
    """Return the IP bytes of ``packet`` on a link, where a large one is cut into segments with headers."""
    _, kind, header, segment, _, _ = _VNET.unpack_from(packet)
    size = len(packet) - _VNET.size
    return size if not kind or not segment else size + header * ((size - header - 1) // segment)


def _relay(nodes: int) -> None:
    """Make the namespaces, print their file descriptors, then move packets until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _cubic_allowed():
        namespaces, devices = zip(*[_node(i) for i in range(nodes)], strict=True)
    directions = {(a, b): _Direction(time.monotonic()) for a in range(nodes) for b in range(nodes) if a != b}
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))  # packets must not wait for a core
    _say(list(namespaces))
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as control:
        while True:
            now = time.monotonic()
            next_due = min(now + 1, *(d.next_due() for d in directions.values()))
            ready, _, _ = select.select([control, *devices], [], [], max(0.0, next_due - now))
            if control in ready and not _obey(control.readline(), directions):
                return
            _take(ready, devices, directions)
            _deliver(devices, directions)


def _obey(line: bytes, directions: dict[tuple[int, int], _Direction]) -> bool:
    if line:
        message = json.loads(line)
        directions[message["source"], message["target"]].shape(message["mbps"], message["delay_ms"], time.monotonic())
        _say("done")
    return bool(line)


def _take(ready: list[Any], devices: Sequence[int], directions: dict[tuple[int, int], _Direction]) -> None:
    for source, device in enumerate(devices):
        if device not in ready:
            continue
        for _ in range(64):
            try:
                packet = os.read(device, _LARGEST)
            except BlockingIOError:
                break
            target = packet[_VNET.size + 19] - 1  # the last byte of the address
            if packet[_VNET.size] >> 4 == 4 and (source, target) in directions:
                directions[source, target].take(packet, time.monotonic())


def _deliver(devices: Sequence[int], directions: dict[tuple[int, int], _Direction]) -> None:
    now = time.monotonic()
    for (_, target), direction in directions.items():
        while (packet := direction.due(now)) is not None:
            os.write(devices[target], packet)


def _node(index: int) -> tuple[int, int]:
    """Enter a new namespace and make its TUN device; return both file descriptors."""
    _system("unshare", _CLONE_NEWNET)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"board", _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    for arguments in (
        "link set lo up",
        f"link set board mtu {_MTU} up",
        f"addr add {_address(index)}/24 dev board",
    ):
        subprocess.run(["ip", *arguments.split()], check=True)
    (_IPV4 / "tcp_no_metrics_save").write_text("1")  # new connections must not reuse metrics of the former link
    (_IPV4 / "tcp_congestion_control").write_text("cubic")  # the default of most boards
    return namespace, device


@contextmanager
def _cubic_allowed() -> Iterator[None]:
    """Temporarily allow cubic machine-wide, because a namespace may select only what the machine allows."""
    with _ALLOWED.open("r+") as file:  # writable in the initial namespace only
        before = file.read()
        _rewrite(file, f"{before.strip()} cubic" if "cubic" not in before.split() else before)
        try:
            yield
        finally:
            _rewrite(file, before)


def _rewrite(file: TextIO, text: str) -> None:
    file.seek(0)
    file.write(text)
    file.flush()


def _address(node: int) -> str:
    return f"10.77.0.{node + 1}"


def _system(name: str, *arguments: int) -> None:
    """Call the C library function ``name``. The module os provides these functions only from Python 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


# --- measured properties of a link ------------------------------------------------------------------------------------


def achieved(network: Network, a: int, b: int, mbps: float, seconds: float = 1.0) -> tuple[float, float]:
    """Measure Mbit/s of a TCP transfer from ``a`` to ``b`` and the round trip in ms (the least of 8).

    The measured half of the transfer lasts ``seconds`` at ``mbps``.
    """
    with network.run(b, lambda: socket.create_server((network.address(b), 0))) as listening:
        port = listening.getsockname()[1]
        with network.run(a, lambda: socket.create_connection((network.address(b), port), 20)) as near:
            far, _ = listening.accept()
            with far:
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far.settimeout(60)
                trip = min(_trip(near, far) for _ in range(8))
                return _rate(near, far, int(mbps * 1e6 / 8 * seconds)), 1e3 * trip


def _trip(near: socket.socket, far: socket.socket) -> float:
    start = time.perf_counter()
    near.sendall(b"x")
    far.recv(1)
    far.sendall(b"x")
    near.recv(1)
    return time.perf_counter() - start


def _rate(near: socket.socket, far: socket.socket, size: int) -> float:
    """Return Mbit/s of the second half of a transfer of twice ``size`` bytes; slow start is in the first half."""
    sender = threading.Thread(target=near.sendall, args=(bytes(2 * size),))
    sender.start()
    got, began, before = 0, 0.0, 0
    while got < 2 * size:
        got += len(far.recv(1 << 20))
        if not began and got >= size:
            began, before = time.perf_counter(), got
    sender.join()
    return (got - before) * 8 / (time.perf_counter() - began) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument(
        "--relay", type=int, metavar="NODES", help="run as the relay of this many namespaces (internal)"
    )
    given = options.parse_args(arguments)
    if given.relay:
        _relay(given.relay)
        return
    rows = []
    with Network(2) as network:
        for mbps in RATES[::3] if given.quick else RATES:
            for rtt in ROUND_TRIPS[:2] if given.quick else ROUND_TRIPS:
                network.link(0, 1, mbps=mbps, rtt_ms=rtt)
                rate, trip = achieved(network, 0, 1, mbps, 1.0 + 5 * rtt / 1e3)
                rows.append({"Mbit/s": mbps, "achieved": rate, "round trip ms": rtt, "achieved ms": trip})
    least = min(row["achieved"] / row["Mbit/s"] for row in rows)
    late = max(row["achieved ms"] - row["round trip ms"] for row in rows)
    notes = ["rates are of TCP's payload: headers take 3 % of them; on long fast links TCP's own windows are the limit"]
    summary = {"links.least_rate_share": least, "links.most_ms_over": late}
    report("Emulated links: one TCP transfer, cubic", rows, summary, given.json, notes)


if __name__ == "__main__":
    main()
