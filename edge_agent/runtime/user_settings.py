"""Settings from the keywords of the Python API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent import config
from edge_agent.config import Settings
from splitedge import errors


def user_settings(
    server: str | None, model: str | None, file: str | Path | None, keywords: Mapping[str, Any]
) -> Settings:
    """The settings: ``keywords`` override environment variables, which override the TOML ``file``. None stands for the
    default file.

    A keyword is a setting or, as a dict, a table of the file. Raises `errors.ConfigError` for an unknown or wrong
    setting, and if no model is set.
    """
    options = dict(_flat(keywords)) | {"server": server, "model": model}
    known = [setting.key for setting in config.reference()]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise errors.ConfigError(f"{unknown[0]!r} is not a setting; use one of {', '.join(known)}", key=unknown[0])
    paths = {key: str(value) for key, value in options.items() if isinstance(value, Path)}
    settings = config.load(Path(file) if file is not None else None, options | paths)
    config.require_model(settings)
    return settings


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
