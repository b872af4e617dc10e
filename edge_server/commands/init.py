"""`edge-server init`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_server import certificate, host_names
from edge_server.certificate import Certificate
from edge_server.store.names import check_name
from edge_server.store.store import Store
from splitedge import errors, terminal
from splitedge.link import http_server

WIDTH = 80  # columns of the screen
_BOARD = "~/.config/splitedge"  # the agent's settings on the board


def init(
    store: Path, folder: Path, names: Sequence[str], token: str, *, renew: bool, port: int, store_option: str = ""
) -> None:
    """Make what is missing of certificate and token, and print what to copy to a board and how to serve.

    ``names`` are certified beside those of this machine. ``store_option``: appended to the shown commands. A token
    that cannot be printed is revoked: it cannot be shown again. Raises `errors.UsageError` if the certificate is there
    and lacks one of ``names``.
    """
    check_name(token, "token")
    given = list(dict.fromkeys(map(host_names.checked, names)))
    with Store(store) as opened:
        made, notes = _certificate(folder, given, renew=renew)
        fresh = None if any(known.name == token for known in opened.tokens.all()) else opened.tokens.add(token)
        models = opened.bundles.names()
        try:
            for note in notes:
                print(f"edge-server: {note}", file=sys.stderr)
            url = _url(made, port)
            model = models[0] if len(models) == 1 else ""
            print("\n".join(screen(made, url, token, fresh, model, store_option)), flush=True)
        except OSError:
            if fresh is not None:
                opened.tokens.revoke(token)
            raise


def screen(made: Certificate, url: str, name: str, token: str | None, model: str, store_option: str = "") -> list[str]:
    """The lines to show. ``token``: None if the one called ``name`` was made earlier. ``model``: its name, or empty."""
    lines = [*terminal.wrap(_listed(made), WIDTH, "  "), "", "1. Copy the certificate to the board:"]
    lines += [f"ssh BOARD mkdir -p {_BOARD[2:]}", f"scp {_shell(made.cert)} BOARD:{_BOARD[2:]}/server.pem", ""]
    if token is None:
        lines += [f"2. On the board, write the token {name} to {_BOARD}/token."]
        lines += ["   It was shown when it was made. To make another:", f"edge-server token NAME{store_option}", ""]
    else:
        lines += [f"2. On the board, save the token {name}, which is not shown again:"]
        lines += [f"cd {_BOARD}", f"(umask 077; echo {token} > token)", ""]
    lines += [f"3. On the board, write these lines at the top of {_BOARD}/agent.toml:"]
    lines += [f'server = "{url}"', f'ca = "{_BOARD}/server.pem"', f'token_file = "{_BOARD}/token"']
    lines += [f'model = "{model}"'] if model else []
    lines += [
        "",
        "4. On this machine, serve:",
        "edge-server serve --host 0.0.0.0 \\",
        f"  --cert {_shell(made.cert)} \\",
    ]
    return [*lines, f"  --key {_shell(made.key)}{store_option}"]


def _listed(made: Certificate) -> str:
    """The validity of a certificate and its names, so many that they fit about three lines."""
    shown = list(made.names)
    while len(", ".join(shown)) > 2 * WIDTH and len(shown) > 1:
        shown.pop()
    rest = len(made.names) - len(shown)
    return f"Certificate until {made.until:%Y-%m-%d} for {', '.join(shown)}{f' and {rest} more' if rest else ''}"


def _certificate(folder: Path, given: list[str], *, renew: bool) -> tuple[Certificate, list[str]]:
    """The certificate in ``folder``, made if there is none or with ``renew``, and notes about its names."""
    wanted = list(dict.fromkeys([*given, *host_names.all_names()]))
    if renew:
        old = _names(folder)
        made = certificate.make(folder, wanted)
        notes = [_lost([name for name in old if name not in wanted])] if old else []
        return made, [*filter(None, notes), "copy the new certificate to every board, and restart the server"]
    if not certificate.there(folder):
        return certificate.make(folder, wanted), []
    found = certificate.read(folder)
    if lacking := [name for name in given if name not in found.names]:
        raise errors.UsageError(
            f"the certificate {found.cert} lacks {', '.join(lacking)}; make a new one with --renew",
            reason="name-not-certified",
            names=lacking,
        )
    new = [name for name in wanted if name not in found.names]
    return found, [f"the certificate lacks {', '.join(new)}; --renew makes a new one"] if new else []


def _names(folder: Path) -> tuple[str, ...]:
    """The names in the certificate in ``folder``; none without a valid one."""
    try:
        return certificate.read(folder).names
    except errors.ConfigError:
        return ()


def _lost(names: Sequence[str]) -> str:
    return f"no longer in the certificate: {', '.join(names)}; add a name with --name" if names else ""


def _url(made: Certificate, port: int) -> str:
    """The address for boards: the user's first name, else the main address if it is certified, else the host name."""
    first, main = made.names[0], host_names.main_address()
    host = main if first == host_names.all_names()[0] and main in made.names else first
    return http_server.url(host, port, tls=True)


def _shell(path: Path) -> str:
    """``path`` as a word for a shell, with ``~`` for the home folder."""
    quoted = shlex.quote(str(path))
    home = os.environ.get("HOME", "").rstrip("/")
    return f"~{quoted.removeprefix(home)}" if home and quoted.startswith(f"{home}/") else quoted
