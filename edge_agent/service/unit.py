"""The systemd unit of the agent, rendered from typed options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import CREDENTIAL, SYSTEM_FILE, variable
from splitedge.errors import ConfigError, PlatformError, UsageError

NAME = "splitedge-agent.service"
UNIT_PATH = Path("/etc/systemd/system") / NAME
CONFIG_PATH = SYSTEM_FILE
TOKEN_PATH = Path("/etc/splitedge/token")
ENVIRONMENT_PATH = Path("/etc/splitedge/agent.env")
DROP_INS = UNIT_PATH.with_name(f"{NAME}.d")  # what `systemctl edit` writes
CREDENTIALS = Path("/run/credentials") / NAME
HANDED_OVER = {
    variable("token_file"): str(CREDENTIALS / CREDENTIAL)
}  # where the service finds the token file that only root reads
STATE, CACHE = Path("/var/lib/splitedge"), Path("/var/cache/splitedge")
NO_CREDENTIAL = 243  # systemd's own exit status where a file of LoadCredential= cannot be read


@dataclass(frozen=True)
class UnitOptions:
    """What the unit depends on. Paths are absolute and as the running system sees them."""

    executable: Path  # the installed edge-agent
    config: Path = CONFIG_PATH
    token_file: Path | None = None  # root-only; the service gets it as a systemd credential
    home_visible: bool = False  # the executable or the configuration lies below /home or /root
    start_timeout_s: int = 900  # for each command of a start: compiling on a small board takes minutes
    watchdog_s: int = 30


def render(options: UnitOptions) -> str:
    """The unit's text. Raises `ConfigError` for paths that a unit cannot hold."""
    futile = sorted({UsageError.exit_status, PlatformError.exit_status, NO_CREDENTIAL})
    executable = _word(_absolute(options.executable))
    return _TEMPLATE.format(
        executable=executable,
        command=f"{executable} run --config {_word(_absolute(options.config)).replace('$', '$$')}",
        environment_file=_plain(str(ENVIRONMENT_PATH)),
        credential="" if options.token_file is None else _credential(options.token_file),
        futile=" ".join(map(str, futile)),
        start_timeout=options.start_timeout_s,
        watchdog=options.watchdog_s,
        protect_home="read-only" if options.home_visible else "yes",
    )


# MemoryDenyWriteExecute=yes would kill the just-in-time compiler; so would SystemCallFilter=~@resources, and ProcSubset=pid would hide
# /proc/cpuinfo from it.
_TEMPLATE = """\
# Written by `edge-agent service install`; put changes into a drop-in: systemctl edit splitedge-agent
[Unit]
Description=splitedge agent: the head of a split neural network
Wants=network-online.target
After=network-online.target
# A board has nobody who would start it again: no number of failures is the last.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
# Compiles the kernels into CacheDirectory as the user that will run them, in the same sandbox: what lies there is run, so nobody else may write
# it, and before a first start there is no such user. Once for each version of splitedge and each processor; later it finds them there in a
# second or two, and neither the start nor a new plan compiles anything. Where it fails ("-") the agent compiles what it needs itself.
ExecStartPre=-{executable} warm
ExecStart={command}
Restart=on-failure
RestartSec=10
# A wrong configuration or platform, or a token file that is gone, is not cured by another start.
RestartPreventExitStatus={futile}
# Each of the two commands may take so long. What is compiled is kept, so after a timeout the next start gets further.
TimeoutStartSec={start_timeout}
TimeoutStopSec=15
WatchdogSec={watchdog}

Environment=PYTHONUNBUFFERED=1
{credential}EnvironmentFile=-{environment_file}

DynamicUser=yes
StateDirectory=splitedge
StateDirectoryMode=0700
CacheDirectory=splitedge
CacheDirectoryMode=0700
ConfigurationDirectory=splitedge
UMask=0077

# Kernels are compiled here: memory must be writable and then executable.
MemoryDenyWriteExecute=no
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
RemoveIPC=yes

[Install]
WantedBy=multi-user.target
"""


def _credential(token_file: Path) -> str:
    """systemd reads the file as root; the variable beats `token_file` of the configuration, which the service's user may not be able to read."""
    variables = "".join(f"Environment={name}={value}\n" for name, value in HANDED_OVER.items())
    return f"LoadCredential={CREDENTIAL}:{_plain(_absolute(token_file))}\n{variables}"


def _absolute(path: Path) -> str:
    if not path.is_absolute():
        raise ConfigError(f"the service needs an absolute path and '{path}' is not one: give it in full")
    if set(str(path)) & set("\"'\\"):
        raise ConfigError(f"systemd accepts no quotes and backslashes in a path: rename {path}")
    return str(path)


def _plain(text: str) -> str:
    """A value that runs to the end of its line; ``%`` would be a specifier."""
    if not text.isprintable():
        raise ConfigError("a systemd unit cannot hold a control character: use another path")
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a line that systemd splits, quoted where it must be; see `_absolute` for what it cannot hold."""
    plain = _plain(text)
    if re.fullmatch(r"[\w./%$:@+=,-]+", plain):
        return plain
    return f'"{plain}"'
