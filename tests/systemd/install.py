"""The ways to install the agent in the lab, and to remove it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.systemd.machine import Machine
from tests.systemd.server import MODEL, Server

MOUNT: Final = "/mnt/lab"  # where the running system sees the lab's shared folder
SETTINGS: Final = "/etc/splitedge"
AGENT: Final = "/opt/splitedge/current/bin/edge-agent"
#: A profile, since a measurement takes most of a minute, and the demand of a model that was calibrated on few images.
DEMAND: Final = f'profile = "{SETTINGS}/profile.json"\n\n[demand]\nkeep = "input"\nmax_drop_points = 100\n'
INSTALL_S: Final = 900.0  # under emulation


def by_installer(machine: Machine, server: Server, shared: Path) -> None:
    """`install-agent --offline`, with the settings of a board as options."""
    (shared / "token").write_text(f"{server.token}\n")
    (shared / "server.pem").write_bytes(server.certificate)
    machine.write(f"{SETTINGS}/profile.json", server.profile)
    if not machine.path(f"{SETTINGS}/agent.toml").exists():
        machine.write(f"{SETTINGS}/agent.toml", DEMAND)
    machine.run(
        "sh", f"{MOUNT}/release/install-agent", "--offline", f"{MOUNT}/release", "--server", server.url,
        "--model", MODEL, "--token-file", f"{MOUNT}/token", "--ca", f"{MOUNT}/server.pem", timeout=INSTALL_S,
    )  # fmt: skip


def remove_by_installer(machine: Machine) -> None:
    """`install-agent --uninstall`, and the one file that is not the agent's."""
    machine.run("rm", f"{SETTINGS}/profile.json")
    machine.run("sh", f"{MOUNT}/release/install-agent", "--uninstall")


def by_deb(machine: Machine, server: Server, shared: Path) -> None:
    """The Debian package, settings, and `service install`."""
    package = next(iter(sorted((shared / "release").glob("*.deb"))))
    machine.run("dpkg", "--install", f"{MOUNT}/release/{package.name}", timeout=INSTALL_S)
    lines = f'server = "{server.url}"\nca = "{SETTINGS}/server.pem"\nmodel = "{MODEL}"\n'
    machine.write(f"{SETTINGS}/agent.toml", lines + DEMAND)
    machine.write(f"{SETTINGS}/token", f"{server.token}\n", 0o600)
    machine.write(f"{SETTINGS}/server.pem", server.certificate)
    machine.write(f"{SETTINGS}/profile.json", server.profile)
    machine.run("edge-agent", "service", "install", timeout=INSTALL_S)
