"""The systemd unit of the agent, rendered from typed options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.config import CREDENTIAL
from edge_agent.errors import ConfigError, PlatformError, UsageError

NAME = "splitedge-agent.service"
UNIT_PATH = Path("/etc/systemd/system") / NAME
CONFIG_PATH = Path("/etc/splitedge/agent.toml")
TOKEN_PATH = Path("/etc/splitedge/token")
ENVIRONMENT_PATH = Path("/etc/splitedge/agent.env")


@dataclass(frozen=True)
class UnitOptions:
    """What the unit depends on. Paths are absolute and as the running system sees them."""

    executable: Path  # the installed edge-agent
    config: Path = CONFIG_PATH
    token_file: Path | None = None  # root-only; the service gets it as a systemd credential
    environment: Mapping[str, str] = field(default_factory=dict)  # no secrets: the unit is readable by everyone
    home_visible: bool = False  # the executable or the configuration lies below /home or /root
    start_timeout_s: int = 300  # a first start compiles the kernels
    watchdog_s: int = 30


def render(options: UnitOptions) -> str:
    """The unit's text. Raises `ConfigError` for paths or variables that a unit cannot hold."""
    futile = sorted({UsageError.exit_status, PlatformError.exit_status})
    return _TEMPLATE.format(
        command=f"{_word(_absolute(options.executable))} run --config {_word(_absolute(options.config)).replace('$', '$$')}",
        environment_file=_plain(str(ENVIRONMENT_PATH)),
        environment="".join(f"Environment={_assignment(k, v)}\n" for k, v in sorted(options.environment.items())),
        credential=f"LoadCredential={CREDENTIAL}:{_plain(_absolute(options.token_file))}\n"
        if options.token_file
        else "",
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
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=on-failure
RestartSec=5
# A wrong configuration or platform is not cured by another start.
RestartPreventExitStatus={futile}
TimeoutStartSec={start_timeout}
TimeoutStopSec=15
WatchdogSec={watchdog}

Environment=PYTHONUNBUFFERED=1
{environment}EnvironmentFile=-{environment_file}
{credential}
DynamicUser=yes
StateDirectory=splitedge
StateDirectoryMode=0700
CacheDirectory=splitedge
CacheDirectoryMode=0700
ConfigurationDirectory=splitedge
UMask=0077

# The agent compiles its kernels when it starts: memory must be writable and then executable.
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


def _absolute(path: Path) -> str:
    if not path.is_absolute():
        raise ConfigError(f"the service needs an absolute path and '{path}' is not one: give it in full")
    if set(str(path)) & set("\"'\\"):
        raise ConfigError(f"systemd accepts no quotes and backslashes in a path: rename {path}")
    return str(path)


def _plain(text: str) -> str:
    """A value that runs to the end of its line; ``%`` would be a specifier."""
    if not text.isprintable():
        raise ConfigError("a systemd unit cannot hold a control character: use another path or value")
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a line that systemd splits, quoted where it must be."""
    plain = _plain(text)
    if re.fullmatch(r"[\w./%$:@+=,-]+", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _assignment(name: str, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(
            f"'{name[:100]}' is not the name of an environment variable: use letters, digits and underscores"
        )
    if re.search("TOKEN|PASSWORD|SECRET", name.upper()):
        raise ConfigError(
            f"{name} looks like a secret and the unit is readable by everyone: put it into {ENVIRONMENT_PATH}"
        )
    return _word(f"{name}={value}")
