"""Settings of the server: `Settings` defines each option and environment variable, and its documentation.

There is no configuration file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from splitedge import errors
from splitedge.demand import DemandConfig
from splitedge.settings import About, Flag, PathText, Setting
from splitedge.settings import load as load_settings
from splitedge.settings import reference as reference_of


class ServeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Settings of `edge-server serve`."""

    host: Annotated[
        str,
        Meta(min_length=1, max_length=255, description="an IP address or a host name"),
        About("Address on which the server listens.", "--host"),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Meta(ge=0, le=65535, description="an integer from 0 (any free port) to 65535"),
        About("Port of the server; 0 selects a free port.", "--port"),
    ] = 8470
    cert: Annotated[PathText, About("Certificate chain for TLS (PEM).", "--cert")] = ""
    key: Annotated[PathText, About("Private key of the certificate (PEM).", "--key")] = ""
    auth: Annotated[Flag, About("Require a token from each agent.", "--auth")] = True
    insecure: Annotated[
        Flag, About("Allow other machines to connect without a token or without TLS.", "--insecure")
    ] = False
    quiet: Annotated[Flag, About("Do not log connections and refusals.", "--quiet")] = False


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of the server."""

    store: Annotated[
        PathText, About("Folder for models and tokens.", default="~/.local/share/splitedge/server", group="store")
    ] = ""
    serve: ServeConfig = msgspec.field(default_factory=ServeConfig)
    demand: DemandConfig = msgspec.field(default_factory=DemandConfig)

    def folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The folder of the store. Raises `errors.StoreError` if it is in a home folder and this user has none."""
        try:
            if self.store:
                return Path(self.store).expanduser()
            data = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise errors.StoreError(
                "this user has no home folder for the store; give its folder with --store or SPLITEDGE_STORE",
                reason="no-home",
            ) from error
        return Path(data) / "splitedge" / "server"


def load(options: Mapping[str, object] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in effect: an option overrides an environment variable, which overrides the default.

    ``options`` maps keys to values; None means not given. Raises `errors.ConfigError` that names the option or
    variable.
    """
    return load_settings(Settings, None, options or {}, environ)


def reference() -> tuple[Setting, ...]:
    """Every setting of the server: option, variable, type, default and one sentence, in the order of `Settings`."""
    return reference_of(Settings)
