"""A Debian system that systemd boots in a container, and the network that joins it to a server on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
ENVIRONMENT |= {"LANG": "C.UTF-8", "TERM": "dumb", "COLUMNS": "80"}
BOOT_S: Final = 90.0  # a boot under emulation takes some seconds, natively one or two
OFF_S: Final = 40.0  # longer than the stop timeout of the service

#: What systemd itself and the journal change in a system that only runs, and file systems in memory.
ITS_OWN: Final = (
    *("dev", "proc", "run", "sys", "tmp", "var/tmp"),
    *("etc/machine-id", "var/lib/dbus/machine-id", "etc/.updated", "var/.updated"),
    *("var/lib/systemd", "var/log/journal", "var/log/wtmp", "var/log/lastlog", "var/log/btmp"),
)

Snapshot: TypeAlias = dict[str, tuple[object, ...]]
"""Every path of a system, and what tells that it has changed."""


class LabError(Exception):
    """What went wrong in a step, in one sentence."""


def wait_for(what: str, holds: Callable[[], bool], limit: float, period: float = 0.1) -> float:
    """The seconds until ``holds`` is true. Raises `LabError` after ``limit`` seconds."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit:
            raise LabError(f"{what} did not happen within {limit:g} s")
        time.sleep(period)
    return time.monotonic() - began


@dataclass(frozen=True)
class Network:
    """A cable between two network namespaces: ``server``, for processes of this machine, and ``board``."""

    server: str
    board: str
    server_address: str = "10.77.0.1"
    board_address: str = "10.77.0.2"

    @property
    def plug(self) -> str:
        """The server's end of the cable."""
        return "lab0"

    def __enter__(self) -> Network:
        try:
            for name in (self.server, self.board):
                _ip("netns", "add", name)
            peer = ("peer", "name", "host0", "netns", self.board)
            _ip("link", "add", self.plug, "netns", self.server, "type", "veth", *peer)
            ends = ((self.server, self.plug, self.server_address), (self.board, "host0", self.board_address))
            for name, end, address in ends:
                _ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                for device in ("lo", end):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.server, self.board):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def pull(self) -> None:
        """Cut the cable: packets are lost, and no connection is closed."""
        _ip("-n", self.server, "link", "set", self.plug, "down")

    def plug_in(self) -> None:
        """Join the cable again."""
        _ip("-n", self.server, "link", "set", self.plug, "up")


class Machine:
    """A system in a copy of ``base``, which stays as it is. ``nspawn``: the program systemd-nspawn."""

    def __init__(
        self, base: Path, folder: Path, nspawn: Path, network: Network, shared: Path, environment: Mapping[str, str]
    ) -> None:
        self.root = folder / "root"
        self._base, self._folder, self._nspawn, self._network = base, folder, nspawn, network
        self._shared, self._variables, self._environment = shared, environment, ENVIRONMENT | environment
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Machine:
        upper, scratch = self._folder / "upper", self._folder / "scratch"
        for path in (self.root, upper, scratch):
            path.mkdir(parents=True)
        options = f"lowerdir={self._base},upperdir={upper},workdir={scratch}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], capture_output=True)
        if mounted.returncode != 0:  # an overlay does not lie on every file system
            self.root.rmdir()
            subprocess.run(["cp", "-a", "--reflink=auto", self._base, self.root], check=True)
        if self._variables:  # for services too: the emulator reads its processor from the environment
            text = " ".join(f"{name}={value}" for name, value in self._variables.items())
            self.write("/etc/systemd/system.conf.d/lab.conf", f"[Manager]\nDefaultEnvironment={text}\n")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.off()
        finally:
            subprocess.run(["umount", "--lazy", self.root], check=False, capture_output=True)
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- power

    def boot(self) -> float:
        """Boot; the seconds until the system is up. Raises `LabError`."""
        assert self._process is None
        began = time.monotonic()
        command = [
            *(
                "setpriv",
                "--pdeathsig",
                "KILL",
                self._nspawn,
                "--quiet",
                "-D",
                self.root,
                "--register=no",
                "--keep-unit",
            ),
            *("--boot", "--link-journal=no", "--resolv-conf=off", "--timezone=off", f"--machine={self._network.board}"),
            f"--network-namespace-path=/run/netns/{self._network.board}",
            f"--bind-ro={self._shared}:/mnt/lab",
        ]
        with (self._folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )  # fmt: skip
        wait_for("the end of the boot", lambda: self.boot_state() in ("running", "degraded"), BOOT_S)
        return time.monotonic() - began

    def off(self) -> None:
        """Shut down, within `OFF_S`; then pull the plug."""
        if self._process is None:
            return
        with suppress(LabError):  # from inside, because an emulator has other numbers for the real-time signals
            if self._init:
                self.run("kill", "-s", "RTMIN+4", "1")  # systemd's poweroff.target
        try:
            self._process.wait(OFF_S)
        except subprocess.TimeoutExpired:
            self.pull_plug()
        self._process, self._init = None, 0

    def pull_plug(self) -> None:
        """End every process at once, as a power cut does."""
        assert self._process is not None
        for pid in (self._init, self._process.pid):
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process, self._init = None, 0

    def boot_state(self) -> str:
        """What `systemctl is-system-running` says; empty before systemd answers."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise LabError(f"systemd-nspawn ended with status {self._process.returncode}: {self.console()}")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._init = int(children[-1]) if children else 0  # at first a process that starts the system's process 1
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() if self._init else ""

    def console(self) -> str:
        """The last lines of the console."""
        text = (self._folder / "console").read_text("utf-8", "replace")
        return "\n".join(text.splitlines()[-15:])

    # --- inside

    def command(self, *command: str, **environment: str) -> list[str]:
        """``command`` as one that enters the running system, as root."""
        variables = [f"{name}={value}" for name, value in (self._environment | environment).items()]
        return ["nsenter", "-t", str(self._init), "-a", "env", "-i", *variables, *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 120.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the running system, as root. Raises `LabError` if it fails and ``check``."""
        try:
            done = subprocess.run(
                self.command(*command, **environment), capture_output=True, text=True, errors="replace",
                timeout=timeout, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LabError(f"`{' '.join(command)[:100]}` did not end within {timeout:g} s") from error
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-600:]
            raise LabError(f"`{' '.join(command)[:100]}` ended with status {done.returncode}: {said}")
        return done

    def path(self, inside: str | Path) -> Path:
        """Where the absolute path ``inside`` the system is on this machine. No link of the system may be in it."""
        return self.root / Path(inside).relative_to("/")

    def write(self, inside: str | Path, data: str | bytes, mode: int = 0o644) -> None:
        """Write a file of the system, through the running system if it runs, so that no cache is stale."""
        text = data.encode() if isinstance(data, str) else data
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        path.chmod(mode)

    def show(self, unit: str, name: str) -> str:
        """The property ``name`` of ``unit``."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    @contextmanager
    def drop_in(self, unit: str, text: str) -> Iterator[None]:
        """``text`` is a drop-in of ``unit`` for the time of the block; the caller starts and restarts."""
        inside = f"/run/systemd/system/{unit}.d/lab.conf"
        self.run(
            "sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1" && systemctl daemon-reload', "sh", inside, text
        )
        try:
            yield
        finally:
            self.run("sh", "-c", 'rm -f "$1" && rmdir "${1%/*}" && systemctl daemon-reload', "sh", inside)

    def snapshot(self) -> Snapshot:
        """All that is in the system, which must be off, without `ITS_OWN`."""
        assert self._process is None
        return dict(_walk(self.root))


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """The paths that one of two snapshots lacks, or that differ."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _walk(root: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    for folder, folders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if str(place / name) not in ITS_OWN]
        for name in (*folders, *names):
            inside = str(place / name)
            if inside not in ITS_OWN:
                yield f"/{inside}", _fingerprint(root / inside)


def _fingerprint(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    owner = (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    if stat.S_ISLNK(found.st_mode):
        return (*owner, str(path.readlink()))
    return (*owner, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else owner


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")


def run_in(namespace: str, command: Sequence[str | Path]) -> list[str | Path]:
    """``command`` as one that runs in the network namespace."""
    return ["ip", "netns", "exec", namespace, *command]
