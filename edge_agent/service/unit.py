"""The systemd unit of the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import CREDENTIAL, SYSTEM_FILE
from splitedge.service.unit import Service, absolute, futile, new_code, plain, sandbox, word
from splitedge.settings import variable

SERVICE = Service("edge-agent", "run", "splitedge-agent")
NAME, UNIT_PATH, DROP_INS, CREDENTIALS = SERVICE.unit, SERVICE.path, SERVICE.drop_ins, SERVICE.credentials
CONFIG_PATH = SYSTEM_FILE
TOKEN_PATH = Path("/etc/splitedge/token")
ENVIRONMENT_PATH = Path("/etc/splitedge/agent.env")
HANDED_OVER = {
    variable("token_file"): str(CREDENTIALS / CREDENTIAL)
}  # the token file, which only root can read, as a credential
STATE, CACHE = Path("/var/lib/splitedge"), Path("/var/cache/splitedge")


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
    camera: bool | None = None  # the service may use cameras; None: as it was
    threads: int | None = None  # limit the service to so many cores, and its memory; 0: no limits; None: as it was


def render(options: UnitOptions) -> str:
    """The text of the unit. Raises `ConfigError` for paths that a unit cannot contain."""
    executable = word(absolute(options.executable))
    return _TEMPLATE.format(
        executable=executable,
        command=f"{executable} run --config {word(absolute(options.config)).replace('$', '$$')}",
        environment_file=plain(str(ENVIRONMENT_PATH)),
        credential="" if options.token_file is None else _credential(options.token_file),
        futile=futile(),
        start_timeout=options.start_timeout_s,
        watchdog=options.watchdog_s,
        sandbox=sandbox(home_visible=options.home_visible),
        warm=_WARM.format(executable=executable) if options.compiles else "",
        new_code=new_code(compiles=options.compiles, program="agent"),
    )


def named(unit: str) -> list[tuple[str, Path]]:
    """The files that the text of a ``unit`` names, each with the option of `service install` that wrote it."""
    found = re.findall(r'^(?:ExecStart=.* --config "?([^"\n]+)"?|LoadCredential=[\w-]+:(.+))$', unit, re.MULTILINE)
    return [
        ("--config" if settings else "--token-file", Path((settings or token).replace("%%", "%").replace("$$", "$")))
        for settings, token in found
    ]


def drop_ins(options: UnitOptions) -> dict[str, str | None]:
    """The files beside the unit that ``options`` change: name and text, or None for a file to remove."""
    found: dict[str, str | None] = {}
    if options.camera is not None:
        found["camera.conf"] = _CAMERA if options.camera else None
    if options.threads is not None:
        found["limits.conf"] = _LIMITS.format(percent=100 * options.threads) if options.threads else None
    return found


_CAMERA = """\
# Written by `edge-agent service install --camera`
[Service]
# /dev/video* and /dev/media*; PrivateDevices=yes would hide them. No other device can be opened.
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-video4linux rw
DeviceAllow=char-media rw
SupplementaryGroups=video
"""

_LIMITS = """\
# Written by `edge-agent service install --limits`
[Service]
# The cores that the profile of the board uses. Above MemoryHigh the kernel slows the service down and takes memory back.
CPUQuota={percent}%
MemoryHigh=75%
"""

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
RestartSec=2
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
# In memory, in place of a cache folder that is full or read-only.
RuntimeDirectory=splitedge
RuntimeDirectoryMode=0700
ConfigurationDirectory=splitedge
UMask=0077

{new_code}{sandbox}"""


def _credential(token_file: Path) -> str:
    """Lines that pass the token. systemd reads the file as root; the variable overrides `token_file` in the
    configuration.
    """
    variables = "".join(f"Environment={name}={value}\n" for name, value in HANDED_OVER.items())
    return f"LoadCredential={CREDENTIAL}:{plain(absolute(token_file))}\n{variables}"
