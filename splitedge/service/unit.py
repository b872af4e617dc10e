"""What the units of all our services have in common: their names, their sandbox, and how text becomes part of a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitedge.errors import ConfigError, PlatformError, UsageError

NO_CREDENTIAL: Final = 243  # systemd's exit status if it cannot read a file of LoadCredential=
HOMES: Final = tuple(map(Path, ("/home", "/root", "/run/user")))


@dataclass(frozen=True)
class Service:
    """The names of a service."""

    program: str  # "edge-agent"
    command: str  # "run"
    name: str  # "splitedge-agent"
    credential: str = "token file"  # what LoadCredential= passes, in words

    @property
    def unit(self) -> str:
        """The name of the unit."""
        return f"{self.name}.service"

    @property
    def path(self) -> Path:
        """The file of the unit."""
        return Path("/etc/systemd/system") / self.unit

    @property
    def drop_ins(self) -> Path:
        """What `systemctl edit` writes."""
        return self.path.with_name(f"{self.unit}.d")

    @property
    def credentials(self) -> Path:
        """Where the running service finds what LoadCredential= passes to it."""
        return Path("/run/credentials") / self.unit


_SANDBOX: Final = """\
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC={own_user}

[Install]
WantedBy=multi-user.target
"""


def new_code(*, compiles: bool, program: str) -> str:
    """The lines of a unit that forbid memory to become code, unless the ``program`` compiles kernels."""
    if not compiles:
        return "MemoryDenyWriteExecute=yes\n"
    return (
        f"# The {program} compiles kernels, so it needs memory that is writable and then executable.\n"
        "MemoryDenyWriteExecute=no\n"
    )


def futile() -> str:
    """The exit statuses that a restart cannot cure, for RestartPreventExitStatus=."""
    return " ".join(map(str, sorted({UsageError.exit_status, PlatformError.exit_status, NO_CREDENTIAL})))


def sandbox(*, home_visible: bool, own_user: bool = True) -> str:
    """The end of a unit. ``own_user``: nobody else uses the account, so its leftovers can be removed."""
    return _SANDBOX.format(protect_home="read-only" if home_visible else "yes", own_user="yes" if own_user else "no")


def absolute(path: Path) -> str:
    """``path`` as text for a unit. Raises `ConfigError` if it is relative or a unit cannot contain it."""
    if not path.is_absolute():
        raise ConfigError(
            f"'{path}' is not an absolute path, which the service needs; give the full path", reason="not-absolute"
        )
    return quotable(str(path))


def quotable(text: str) -> str:
    """``text``. Raises `ConfigError` if it contains quotes or backslashes, which `word` does not write."""
    if set(text) & set("\"'\\"):
        raise ConfigError(f"systemd accepts no quotes or backslashes in a path; rename {text}", reason="quotes")
    return text


def plain(text: str) -> str:
    """A value up to the end of its line, with ``%`` escaped, which begins a specifier. Raises `ConfigError`."""
    if not text.isprintable():
        raise ConfigError(
            "a systemd unit cannot contain a control character; use another path", reason="control-character"
        )
    return text.replace("%", "%%")


def word(text: str) -> str:
    """One word of a line that systemd splits, quoted if necessary. `quotable` lists the characters that it cannot
    contain.
    """
    found = plain(text)
    if re.fullmatch(r"[\w./%$:@+=,-]+", found):
        return found
    return f'"{found}"'


def unreachable(path: Path) -> str:
    """Why a user who owns no files cannot read ``path``, by its permission bits; an empty string if the user can."""
    try:
        real = path.resolve(strict=True)
        if any(real.is_relative_to(place) for place in ("/tmp", "/var/tmp")):  # noqa: S108
            return "the service has its own /tmp and /var/tmp"
        closed = next((parent for parent in reversed(real.parents) if not parent.stat().st_mode & 0o001), None)
        if closed is not None:
            return f"other users cannot enter {closed}"
        if real.is_dir():
            return "it is a folder, not a file"
        return "" if real.stat().st_mode & 0o004 else "other users have no permission"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except RuntimeError:
        return "a loop of symbolic links"
