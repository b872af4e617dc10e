"""What every step of the lab works with: the machine with its service, and the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_agent.service.upgrade import SETTLE
from tests.systemd import release
from tests.systemd.install import MOUNT
from tests.systemd.machine import LabError, Machine, Network, Snapshot, wait_for
from tests.systemd.server import Server

FRAME: Final = "/run/frame.jpg"  # of the running system, in memory
UNIT: Final = "splitedge-agent.service"
API: Final = "http://127.0.0.1:8471"
STATE, CACHE = "/var/lib/private/splitedge", "/var/cache/private/splitedge"
WARNING: Final = 4  # a priority of the journal


class SkippedError(Exception):
    """Why a step cannot run here, in a few words."""


@dataclass
class Lab:
    """``shared``: a folder that the machine sees as `install.MOUNT`. ``figures``: what steps measured."""

    machine: Machine
    network: Network
    server: Server
    shared: Path
    key: Path  # that signs releases
    quick: bool
    emulated: bool = False  # by qemu-user, which cannot do all that systemd asks for (`tests.systemd.emulated`)
    patience: float = 1.0  # factor of every limit in seconds
    figures: dict[str, float] = field(default_factory=dict)
    before: Snapshot = field(default_factory=dict)

    # --- releases

    def variant(self, version: str, *, broken: bool = False) -> str:
        """Where the running system sees the release as another version; ``broken``: it cannot start."""
        original = release.archive(self.shared / "release", self.processor())
        folder = self.shared / "variants"
        folder.mkdir(exist_ok=True)
        made = release.variant(original, self.key, version, folder, broken=broken)
        return f"{MOUNT}/variants/{made.name}"

    def processor(self) -> str:
        """The kind of processor of the system, as `uname -m`."""
        return self.machine.run("uname", "-m").stdout.strip()

    def version(self) -> str:
        """The version of the agent that the link `current` leads to."""
        return self.machine.run("edge-agent", "--version").stdout.split()[-1]

    # --- the service

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/healthz`; 0 if nothing answers."""
        done = self.machine.run("curl", "-s", "-m", "3", "-w", "\n%{http_code}", f"{API}/healthz", check=False)
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), json.loads(body) if body.startswith("{") else {}

    def ready(self, limit: float, what: str = "ready") -> float:
        """The seconds until the service answers frames. Raises `LabError` with its last message."""
        try:
            return wait_for(what, lambda: self.health()[0] == 200, limit * self.patience)
        except LabError as error:
            raise LabError(f"{error}; {self.health()[1].get('state', 'no answer')}; {self.says()}") from None

    def answer(self) -> dict[str, Any]:
        """The answer to a frame by the local API. Raises `LabError` if there is none that crossed the link."""
        self.put_frame()
        options = ("-s", "-m", "20", "-H", "Content-Type: image/jpeg", "--data-binary", f"@{FRAME}")
        said = self.machine.run("curl", *options, f"{API}/v1/infer").stdout
        found: dict[str, Any] = json.loads(said)
        if not found.get("payload_bytes") or not found.get("top"):
            raise LabError(f"the answer did not cross the link: {said[:300]}")
        return found

    def put_frame(self) -> None:
        """Copy a frame for the model to `FRAME`."""
        (self.shared / "frame.jpg").write_bytes(self.server.frame)
        self.machine.run("cp", f"{MOUNT}/frame.jpg", FRAME)

    def pid(self) -> int:
        """The process of the service; 0 if it does not run."""
        return int(self.machine.show(UNIT, "MainPID"))

    def restarts(self) -> int:
        """How often systemd restarted the service."""
        return int(self.machine.show(UNIT, "NRestarts"))

    def says(self) -> str:
        """The status line of the service."""
        return self.machine.show(UNIT, "StatusText")

    def systemctl(self, verb: str, *options: str) -> None:
        """`systemctl VERB` on the service."""
        self.machine.run("systemctl", verb, *options, UNIT)

    def signal(self, name: str) -> None:
        """Send a signal to the main process."""
        self.machine.run("kill", f"-{name}", str(self.pid()))

    @contextmanager
    def changed(self, text: str, *, settle: bool = True) -> Iterator[None]:
        """The service runs with the drop-in ``text`` in the block, and without it afterwards."""
        with self.machine.drop_in(UNIT, text):
            self.systemctl("restart")
            if settle:
                self.ready(60)
            yield
        self.systemctl("restart")
        self.ready(60)

    # --- the journal

    def cursor(self) -> str:
        """The end of the journal now."""
        said = self.machine.run("journalctl", "-n0", "--show-cursor").stdout
        return said.rpartition("-- cursor: ")[2].strip()

    def journal(self, cursor: str = "") -> list[tuple[int, str]]:
        """Priority and text of the agent's own messages, after ``cursor``."""
        after = [f"--after-cursor={cursor}"] if cursor else []
        said = self.machine.run("journalctl", "-b", "-u", UNIT, "-o", "json", "--no-pager", *after).stdout
        entries = [json.loads(line) for line in said.splitlines()]
        own = [one for one in entries if one.get("SYSLOG_IDENTIFIER") != "systemd"]
        return [(int(one.get("PRIORITY", 6)), str(one.get("MESSAGE", ""))) for one in own]

    def last_lines(self, count: int = 30) -> str:
        """The end of the journal of the service and of its upgrade, for a step that failed."""
        units = ("-u", UNIT, "-u", SETTLE.unit)
        options = ("--no-pager", "--no-hostname", f"-n{count}", "-o", "short-precise")
        return self.machine.run("journalctl", *units, *options, check=False).stdout
