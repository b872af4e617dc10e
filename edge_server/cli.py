"""The `edge-server` command. Only options here: each command imports its work when it is called, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The remote peer: imports and calibrates models, plans splits, serves the rest of the network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder with models and tokens [SPLITEDGE_STORE or ~/.local/share/splitedge/server]."),
]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"edge-server {version('splitedge')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The remote peer."""


@app.command()
def models(store: StoreFolder = None) -> None:
    """List the models in the store."""
    from edge_server.commands import models as command

    command.models(store)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="Name of the model.")], store: StoreFolder = None) -> None:
    """Remove a model and its segments."""
    from edge_server.commands import models as command

    command.remove(store, name)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What to call it: the board that will use it.")] = "default",
    revoke: Annotated[bool, typer.Option("--revoke", help="Make this token useless.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the tokens' names.")] = False,
    store: StoreFolder = None,
) -> None:
    """Make a bearer token for an agent and print it, once."""
    from edge_server.commands import token as command

    command.token(store, name, revoke=revoke, show=show)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8470,
    store: StoreFolder = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key (PEM).")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no token.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a token or TLS all the same.")
    ] = False,
) -> None:
    """Serve plans, segments and frame streams until told to stop."""
    from edge_server.commands import serve as command

    command.serve(store, host=host, port=port, cert=cert, key=key, auth=not no_auth, insecure=insecure)
