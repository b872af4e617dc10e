"""What the lab does otherwise where the emulator qemu-user, and no processor, runs the programs of an ARM system.

Everything that a run under emulation leaves unproven is in this file: `DROPPED`, `UNENFORCED` and `DROP_IN`.
"""

from __future__ import annotations

from typing import Final

from tests.systemd.machine import Machine

#: The instruction set of a Cortex-A76, which `scripts/test-systemd` names.
ISA: Final = "dotprod"
#: Settings of the agent's unit that the lab resets, and why.
DROPPED: Final = {
    # systemd reads the credential in a child that it makes with clone(CLONE_NEWNS), for which qemu-user has EINVAL; then
    # the unit fails with "Failed to set up credentials: Invalid argument". unshare(CLONE_NEWNS) works, and so does all of
    # the sandbox that systemd builds with it.
    "LoadCredential=": "qemu-user refuses clone() with a new mount namespace, in which systemd reads credentials",
}
#: Settings of the unit that systemd accepts and then does not apply, because qemu-user has no seccomp().
UNENFORCED: Final = (
    "LockPersonality=",
    "MemoryDenyWriteExecute=",
    "RestrictAddressFamilies=",
    "RestrictNamespaces=",
    "RestrictRealtime=",
    "RestrictSUIDSGID=",
    "SystemCallArchitectures=",
    "SystemCallFilter=",
)
#: Those that forbid system calls by seccomp beside what they do by namespaces and capabilities, which works.
HALF_ENFORCED: Final = (
    "ProtectClock=",
    "ProtectHostname=",
    "ProtectKernelLogs=",
    "ProtectKernelModules=",
    "ProtectKernelTunables=",
)
#: The file of the token, which replaces the credential. All users can read it; the lab's system has no others.
TOKEN: Final = "/etc/splitedge-lab/token"
#: Among the units of the system's administrator, so that neither an installation nor a purge of the agent touches it.
PLACE: Final = "/usr/local/lib/systemd/system/splitedge-agent.service.d/emulated.conf"
DROP_IN: Final = (
    "[Service]\n" + "".join(f"{name}\n" for name in DROPPED) + f"Environment=SPLITEDGE_TOKEN_FILE={TOKEN}\n"
)


def prepare(machine: Machine, token: str) -> None:
    """Write `DROP_IN` and the ``token`` into the system, before its first boot."""
    machine.write(TOKEN, f"{token}\n")
    machine.write(PLACE, DROP_IN)


def notes(cpu: str) -> list[str]:
    """What a reader of the results of a run on the emulated processor ``cpu`` must know, one sentence each."""
    return [
        f"emulated: qemu-user runs the programs as a {cpu}, so the seconds mean nothing",
        *(f"the unit runs without {name} because {why}" for name, why in DROPPED.items()),
        f"not enforced, because qemu-user has no seccomp: {', '.join(UNENFORCED)}, and the system calls that "
        f"{', '.join(HALF_ENFORCED)} forbid",
    ]
