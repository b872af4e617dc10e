"""The ways to install the agent in the lab, and to remove it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.systemd.machine import Machine
from tests.systemd.server import MODEL, Server, configuration

MOUNT: Final = "/mnt/lab"  # where the running system sees the lab's shared folder
SETTINGS: Final = "/etc/splitedge"
AGENT: Final = "/opt/splitedge/current/bin/edge-agent"
INSTALL_S: Final = 900.0  # under emulation


def configure(machine: Machine, server: Server) -> None:
    """Write settings, token, certificate and profile, as a user does."""
    machine.write(f"{SETTINGS}/agent.toml", configuration(server.url))
    machine.write(f"{SETTINGS}/token", f"{server.token}\n", 0o600)
    machine.write(f"{SETTINGS}/server.pem", server.certificate)
    machine.write(f"{SETTINGS}/profile.json", server.profile)


def forget(machine: Machine) -> None:
    """Remove the files of `configure` that a purge may leave: it removes what belongs to the service alone."""
    machine.run("rm", "-f", f"{SETTINGS}/server.pem", f"{SETTINGS}/profile.json")
    machine.run("rmdir", SETTINGS, check=False)


def by_hand(machine: Machine, server: Server, shared: Path) -> None:
    """Wheels into a virtual environment, and `service install`."""
    wheel = next(iter(sorted((shared / "wheels").glob("splitedge-*.whl"))))
    version = wheel.name.split("-")[1]
    home = f"/opt/splitedge/{version}"
    machine.run("python3", "-m", "venv", home, timeout=INSTALL_S)
    options = ("--quiet", "--no-index", "--disable-pip-version-check", "--find-links", f"{MOUNT}/wheels")
    machine.run(f"{home}/bin/pip", "install", *options, f"{MOUNT}/wheels/{wheel.name}", timeout=INSTALL_S)
    machine.run("touch", f"{home}/.complete")
    machine.run("ln", "-sfn", version, "/opt/splitedge/current")
    machine.run("ln", "-sfn", AGENT, "/usr/local/bin/edge-agent")
    configure(machine, server)
    machine.run("edge-agent", "service", "install", timeout=INSTALL_S)


def remove_by_hand(machine: Machine) -> None:
    machine.run(AGENT, "service", "uninstall", "--purge")
    machine.run("rm", "-rf", "/opt/splitedge", "/usr/local/bin/edge-agent")
    forget(machine)


def by_installer(machine: Machine, server: Server, shared: Path) -> None:
    """`install-agent --offline`, with settings as options."""
    (shared / "token").write_text(f"{server.token}\n")
    (shared / "server.pem").write_bytes(server.certificate)
    machine.write(f"{SETTINGS}/profile.json", server.profile)
    machine.write(f"{SETTINGS}/agent.toml", configuration(server.url))
    machine.run(
        "sh", f"{MOUNT}/release/install-agent", "--offline", f"{MOUNT}/release", "--server", server.url,
        "--model", MODEL, "--token-file", f"{MOUNT}/token", "--ca", f"{MOUNT}/server.pem", timeout=INSTALL_S,
    )  # fmt: skip


def remove_by_installer(machine: Machine) -> None:
    machine.run("sh", f"{MOUNT}/release/install-agent", "--uninstall")
    forget(machine)


def by_deb(machine: Machine, server: Server, shared: Path) -> None:
    """The Debian package, and `service install`."""
    package = next(iter(sorted((shared / "release").glob("*.deb"))))
    machine.run("dpkg", "--install", f"{MOUNT}/release/{package.name}", timeout=INSTALL_S)
    configure(machine, server)
    machine.run("edge-agent", "service", "install", timeout=INSTALL_S)


def remove_deb(machine: Machine) -> None:
    machine.run("dpkg", "--purge", "splitedge-agent", timeout=INSTALL_S)
    forget(machine)
