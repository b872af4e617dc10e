"""The systemd unit of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_server.config import ServeConfig
from splitedge.service.unit import Service, absolute, futile, new_code, plain, quotable, sandbox, word

SERVICE: Final = Service("edge-server", "serve", "splitedge-server", "certificate or key")
STATE, CACHE = Path("/var/lib/splitedge-server"), Path("/var/cache/splitedge-server")


@dataclass(frozen=True)
class UnitOptions:
    """Parameters of the unit. Paths are absolute."""

    executable: Path  # the installed edge-server
    #: Certificate and key are passed to the service as credentials, so only root must be able to read them.
    serve: ServeConfig = field(default_factory=ServeConfig)
    store: Path | None = None  # None: `STATE`, which belongs to a user of the service's own
    user: str = ""  # who owns ``store``, and runs the service
    home_visible: bool = False  # the executable or the store is in /home or /root
    compiles: bool = True  # the package has no kernels for this processor (`kernels.native`)
    start_timeout_s: int = 300  # a large store is swept, and the libraries are loaded, before the port opens
    watchdog_s: int = 30


def render(options: UnitOptions) -> str:
    """The text of the unit. Raises `ConfigError` for what a unit cannot contain."""
    return _TEMPLATE.format(
        command=" ".join([word(absolute(options.executable)), "serve", *_arguments(options)]),
        futile=futile(),
        start_timeout=options.start_timeout_s,
        watchdog=options.watchdog_s,
        credentials="".join(_credentials(options.serve)),
        user=_OWN_USER if options.store is None else _owner(options.user, options.store),
        new_code=new_code(compiles=options.compiles, program="server"),
        sandbox=sandbox(home_visible=options.home_visible, own_user=options.store is None),
    )


_TEMPLATE: Final = """\
# Written by `edge-server service install`. For changes, use a drop-in: systemctl edit splitedge-server
[Unit]
Description=splitedge server: the tails of split neural networks
Wants=network-online.target
After=network-online.target
# Restart without limit: boards wait for the server.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=on-failure
RestartSec=2
# A restart cannot cure a wrong option or platform, or a missing certificate.
RestartPreventExitStatus={futile}
TimeoutStartSec={start_timeout}
TimeoutStopSec=15
WatchdogSec={watchdog}

Environment=PYTHONUNBUFFERED=1
{credentials}
{user}CacheDirectory=splitedge-server
CacheDirectoryMode=0700
UMask=0077

{new_code}{sandbox}"""
_OWN_USER: Final = "DynamicUser=yes\nStateDirectory=splitedge-server\nStateDirectoryMode=0700\n"


def _arguments(options: UnitOptions) -> list[str]:
    """The options of `edge-server serve`, as words of ExecStart=."""
    serve = options.serve
    credentials = SERVICE.credentials
    words = ["--store", absolute(options.store or STATE), "--host", quotable(serve.host), "--port", str(serve.port)]
    if serve.cert:
        words += ["--cert", str(credentials / "server.pem"), "--key", str(credentials / "server.key")]
    words += [] if serve.auth else ["--no-auth"]
    words += ["--insecure"] if serve.insecure else []
    words += ["--quiet"] if serve.quiet else []
    return [word(one).replace("$", "$$") for one in words]


def _credentials(serve: ServeConfig) -> list[str]:
    """Lines that pass certificate and key. systemd reads the files as root."""
    pairs = (("server.pem", serve.cert), ("server.key", serve.key))
    return [f"LoadCredential={name}:{plain(absolute(Path(text)))}\n" for name, text in pairs if text]


def _owner(user: str, store: Path) -> str:
    return f"# The owner of the store.\nUser={plain(user)}\nReadWritePaths={word(absolute(store))}\n"
