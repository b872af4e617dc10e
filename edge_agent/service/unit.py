"""The systemd unit of the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import CREDENTIAL, SYSTEM_FILE
from splitedge.errors import ConfigError, PlatformError, UsageError
from splitedge.settings import variable

NAME = "splitedge-agent.service"
UNIT_PATH = Path("/etc/systemd/system") / NAME
CONFIG_PATH = SYSTEM_FILE
TOKEN_PATH = Path("/etc/splitedge/token")
ENVIRONMENT_PATH = Path("/etc/splitedge/agent.env")
DROP_INS = UNIT_PATH.with_name(f"{NAME}.d")  # what `systemctl edit` writes
CREDENTIALS = Path("/run/credentials") / NAME
HANDED_OVER = {
    variable("token_file"): str(CREDENTIALS / CREDENTIAL)
}  # the token file, which only root can read, as a credential
STATE, CACHE = Path("/var/lib/splitedge"), Path("/var/cache/splitedge")
NO_CREDENTIAL = 243  # systemd's exit status if it cannot read a file of LoadCredential=


@dataclass(frozen=True)
class UnitOptions:
    """Parameters of the unit. Paths are absolute."""

    executable: Path  # the installed edge-agent
    config: Path = CONFIG_PATH
    token_file: Path | None = (
        None  # passed to the service as a systemd credential, so only root must be able to read it
    )
    home_visible: bool = False  # the executable or the configuration is in /home or /root
    compiles: bool = True  # the package has no kernels for this processor (`kernels.native`)
    start_timeout_s: int = 900  # for each command of a start: compiling on a small board takes minutes
    watchdog_s: int = 30


def render(options: UnitOptions) -> str:
    """The text of the unit. Raises `ConfigError` for paths that a unit cannot contain."""
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
        warm=_WARM.format(executable=executable) if options.compiles else "",
        compiler="# The agent compiles kernels, so it needs memory that is writable and then executable.\n"
        if options.compiles
        else "",
        no_new_code="no" if options.compiles else "yes",
    )


_WARM = """\
# Compile the kernels into CacheDirectory, once for each version of splitedge and each processor. This runs as the
# service user, because only the user that runs the compiled code may be able to write it. If it fails ("-"), the agent
# compiles kernels when it needs them.
ExecStartPre=-{executable} warm
"""

# The just-in-time compiler does not work with MemoryDenyWriteExecute=yes or SystemCallFilter=~@resources. The choice of
# kernels needs /proc/cpuinfo, which ProcSubset=pid hides.
_TEMPLATE = """\
# Written by `edge-agent service install`. For changes, use a drop-in: systemctl edit splitedge-agent
[Unit]
Description=splitedge agent: the head of a split neural network
Wants=network-online.target
After=network-online.target
# Restart without limit: nobody may be near the board to start the service.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{warm}ExecStart={command}
Restart=on-failure
RestartSec=10
# A restart cannot cure a wrong configuration or platform, or a missing token file.
RestartPreventExitStatus={futile}
# The limit for each of the two commands. Compiled kernels are kept, so after a timeout the next start continues.
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

{compiler}MemoryDenyWriteExecute={no_new_code}
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
    """Lines that pass the token. systemd reads the file as root; the variable overrides `token_file` in the
    configuration.
    """
    variables = "".join(f"Environment={name}={value}\n" for name, value in HANDED_OVER.items())
    return f"LoadCredential={CREDENTIAL}:{_plain(_absolute(token_file))}\n{variables}"


def _absolute(path: Path) -> str:
    if not path.is_absolute():
        raise ConfigError(
            f"'{path}' is not an absolute path, which the service needs; give the full path", reason="not-absolute"
        )
    if set(str(path)) & set("\"'\\"):
        raise ConfigError(f"systemd accepts no quotes or backslashes in a path; rename {path}", reason="quotes")
    return str(path)


def _plain(text: str) -> str:
    """A value up to the end of its line, with ``%`` escaped, which begins a specifier."""
    if not text.isprintable():
        raise ConfigError(
            "a systemd unit cannot contain a control character; use another path", reason="control-character"
        )
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a line that systemd splits, quoted if necessary. `_absolute` lists the characters that it cannot
    contain.
    """
    plain = _plain(text)
    if re.fullmatch(r"[\w./%$:@+=,-]+", plain):
        return plain
    return f'"{plain}"'
