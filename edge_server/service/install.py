"""Install and remove the systemd service.

A ``root`` other than ``/`` prepares a system image: files are written or removed below it, and nothing is started or
checked.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

import edge_server
from edge_server import certificate
from edge_server.api import serve as listening
from edge_server.config import ServeConfig
from edge_server.service.unit import CACHE, SERVICE, STATE, UnitOptions, render
from kernels import native
from splitedge.errors import ConfigError, UsageError
from splitedge.link import http_server
from splitedge.service import install as steps
from splitedge.service.install import ROOT, Removed, below, require_root, start, write
from splitedge.service.status import ServiceStatus, query
from splitedge.service.unit import HOMES, unreachable


def default_options(serve: ServeConfig, store: Path | None, folder: Path | None) -> UnitOptions:
    """Options for this installation.

    Without a certificate in ``serve``: that of `edge-server init` in ``folder``, if there is one. ``store``: None for
    one in /var/lib. Raises `ConfigError` for a store that does not exist or belongs to root.
    """
    executable = Path(sys.executable).parent / "edge-server"
    seen = [executable.resolve(), Path(sys.executable).resolve(), Path(edge_server.__file__).resolve()]
    seen += [store] if store else []
    return UnitOptions(
        executable,
        _certified(serve, folder or default_folder()),
        store,
        _owner(store) if store else "",
        home_visible=any(path.is_relative_to(home) for path in seen for home in HOMES),
        compiles=native.LIBRARY is None,
    )


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder in which `edge-server init` put the certificate; of the user who called sudo, not of root."""
    try:
        return Path(pwd.getpwnam(environ["SUDO_USER"]).pw_dir) / ".config/splitedge"
    except KeyError:
        return certificate.default_folder(environ)


def install(
    options: UnitOptions,
    *,
    dry_run: bool = False,
    root: Path = ROOT,
    say: Callable[[str], object] = lambda _: None,
) -> str:
    """Check the options, write the unit, enable it and (re)start it. Returns its text when the port is open.

    With ``dry_run``, nothing changes and ``say`` receives the problems. Raises `PlatformError` without root or systemd;
    `ConfigError` for options that cannot work (``data["problems"]`` lists all; nothing is changed); `SplitEdgeError`
    with the last error of a service that started and does not run; `StoreError` for a file that cannot be written.
    """
    text = render(options)
    if root == ROOT:
        if not dry_run:
            require_root(SERVICE)
        found = list(problems(options))
        if found and not dry_run:
            raise ConfigError(found[0], reason="problems", problems=found)
        for problem in found:
            say(f"problem: {problem}")
    if dry_run:
        return text
    write(below(root, SERVICE.path), text)
    if root == ROOT:
        start(SERVICE, say)
    return text


def problems(options: UnitOptions) -> Iterator[str]:
    """Faults that prevent the service from running, one sentence each."""
    if options.store is None:  # a user of its own, who owns nothing
        for path in (options.executable, Path(sys.executable), Path(edge_server.__file__)):
            if why := unreachable(path):
                yield (
                    f"the service user cannot read {path} ({why}); install splitedge where all users can read it, for "
                    "example in a virtual environment in /opt/splitedge, or pass --store to run as its owner"
                )
                break
    serve = options.serve
    checks: list[Callable[[], object]] = [lambda: listening.check(serve)]
    checks += [lambda: http_server.tls(Path(serve.cert), Path(serve.key))] if serve.cert and serve.key else []
    for check in checks:
        try:
            check()
        except UsageError as error:
            yield error.message


def uninstall(*, purge: bool = False, root: Path = ROOT) -> Removed:
    """Stop and remove the service. Models, tokens and cache remain, unless ``purge``.

    ``purge`` also removes them where the service has its own store, and changes made by `systemctl edit`. A store and a
    certificate that the unit names remain. Raises `UsageError` if there is nothing to remove.
    """
    own = [below(root, one) for one in (SERVICE.drop_ins, *steps.dynamic(STATE, CACHE))]
    return steps.uninstall(SERVICE, own, _named(root), purge=purge, root=root)


def status(*, root: Path = ROOT) -> ServiceStatus:
    """The state of the service. Raises `UsageError` if it is not installed, `PlatformError` if systemd does not run."""
    steps.require_installed(SERVICE, root)
    return query(SERVICE)


def _certified(serve: ServeConfig, folder: Path) -> ServeConfig:
    """``serve`` with absolute paths of a certificate: its own, else that in ``folder``, if it is there."""
    cert, key = (str(Path(text).expanduser().absolute()) if text else "" for text in (serve.cert, serve.key))
    if not cert and not key and certificate.there(folder):
        cert, key = map(str, certificate.paths(folder))
    return msgspec.structs.replace(serve, cert=cert, key=key)


def _owner(store: Path) -> str:
    """The user who owns ``store``, who is not root."""
    try:
        user = pwd.getpwuid(store.stat().st_uid).pw_name
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"the store {store} does not exist or has no owner; add a model with `edge-server add`, or leave out "
            "--store for a new store",
            reason="no-store",
        ) from error
    if user == "root":
        raise ConfigError(
            f"the store {store} belongs to root, and the service must not run as root; give it to another user with "
            "chown, or leave out --store for a new store",
            reason="store-of-root",
        )
    return user


def _named(root: Path) -> list[Path]:
    """The store, the certificate and the key in the text of the unit."""
    unit = below(root, SERVICE.path)
    text = unit.read_text("utf-8", "replace") if unit.is_file() else ""
    found = re.findall(r'^(?:ReadWritePaths="?([^"\n]+)"?|LoadCredential=[\w.-]+:(.+))$', text, re.MULTILINE)
    return [below(root, Path("".join(pair).replace("%%", "%"))) for pair in found]
