"""The bundle of `edge-agent doctor --bundle`: an archive for a report to others, without secrets."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from device_profiles import machine, tools
from edge_agent import config
from edge_agent.config import Settings
from edge_agent.service.unit import NAME
from splitedge import errors, limits
from splitedge.protocol.messages import PROTOCOL_VERSION
from splitedge.versions import installation

HIDDEN: Final = "(redacted)"
_FORMS: Final = (".zip", ".tar.gz")
#: Texts that are secret wherever they are: tokens of edge-server, headers, passwords in URLs, assignments.
_SECRETS: Final = (
    (re.compile(r"\bse_[A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"(?i)\b(bearer\s+)[^\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(://)[^/\s@\"']+@"), rf"\1{HIDDEN}@"),
    (
        re.compile(r"(?i)((?:token|password|passwd|secret|api[-_]?key)[\"']?\s*[=:]\s*)[\"']?[^\s\"',;]+"),
        rf"\1{HIDDEN}",
    ),
)


def check(path: Path) -> None:
    """Raise `errors.UsageError` unless ``path`` can become a bundle. Nothing is written."""
    if not path.name.endswith(_FORMS):
        raise errors.UsageError(
            f"{path} is not an archive that doctor writes; end the name in .zip or .tar.gz", reason="bundle-form"
        )
    if os.path.lexists(path):
        raise errors.UsageError(f"{path} exists and is not overwritten; give another name", reason="exists")
    if not path.parent.is_dir():
        raise errors.UsageError(f"the folder {path.parent} does not exist; create it first", reason="no-folder")


def write(path: Path, report: Mapping[str, Any], settings: Settings | None, root: Path = machine.ROOT) -> None:
    """Write report, settings in effect, versions and the service's journal to the new archive ``path``, mode 0600.

    ``settings``: None if the configuration is not valid. Raises as `check`, and `errors.StoreError`.
    """
    check(path)
    known = secrets(settings, os.environ)
    parts = {
        "report.json": _json(clean(report, known)),
        "configuration.json": _json(clean(configuration(settings, os.environ), known)),
        "versions.json": _json(clean(versions(root), known)),
        "journal.txt": str(clean(journal(root), known)).encode("utf-8", "replace"),
    }
    _create(path, zipped(parts) if path.name.endswith(".zip") else tarred(parts))


def configuration(settings: Settings | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings in effect and the variables of splitedge, without tokens."""
    found = None if settings is None else _hidden(msgspec.to_builtins(settings))
    return {"settings": found, "variables": _hidden({k: v for k, v in environ.items() if k.startswith("SPLITEDGE_")})}


def versions(root: Path = machine.ROOT) -> dict[str, Any]:
    """Versions of splitedge, Python, the libraries that it uses, and the system. Loads no kernels: they may crash."""
    return installation("edge-agent") | {
        "protocol": PROTOCOL_VERSION,
        "board": machine.board(root),
        "system": machine.machine("", root)[0].os,
    }


def journal(root: Path = machine.ROOT) -> str:
    """The last lines of the service in the journal, or why there are none."""
    shown = tools.output(
        root,
        "journalctl",
        f"--unit={NAME}",
        "--output=short-iso",
        "--no-hostname",
        f"--lines={limits.JOURNAL_LINES}",
        "--no-pager",
        "--quiet",
        timeout=limits.JOURNAL_TIMEOUT,
    )
    return shown or f"no lines of {NAME} in the journal that this user can read\n"


def secrets(settings: Settings | None, environ: Mapping[str, str]) -> set[str]:
    """Every token that the settings, their files and the environment hold."""
    found = {value for name, value in environ.items() if name.startswith("SPLITEDGE_") and name.endswith("TOKEN")}
    if settings is not None:
        found |= {settings.token, settings.chain.token, settings.stage.token}
        for read in (config.token, config.chain_token, config.stage_token):
            with suppress(errors.ConfigError):  # an unreadable file is in the report, and gives nothing away
                found.add(read(settings))
    return found - {""}


def clean(value: Any, known: Iterable[str]) -> Any:
    """``value`` (of JSON) with the secrets in its texts replaced: those ``known``, and what looks like one."""
    if isinstance(value, str):
        for secret in sorted(known, key=len, reverse=True):
            value = value.replace(secret, HIDDEN)
        for pattern, instead in _SECRETS:
            value = pattern.sub(instead, value)
        return value
    if isinstance(value, Mapping):
        return {key: clean(one, known) for key, one in value.items()}
    return [clean(one, known) for one in value] if isinstance(value, list | tuple) else value


def zipped(parts: Mapping[str, bytes]) -> bytes:
    """A .zip archive of ``parts``. Its dates are fixed: a clock before 1980 does not fit the format."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def tarred(parts: Mapping[str, bytes]) -> bytes:
    """A .tar.gz archive of ``parts``."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def _hidden(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the tokens in it replaced, at every depth."""
    return {
        name: _hidden(value) if isinstance(value, dict) else HIDDEN if value and _is_secret(name) else value
        for name, value in values.items()
    }


def _is_secret(name: str) -> bool:
    return name.lower().endswith("token")


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def _create(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, which only this user can read."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise errors.UsageError(f"{path} exists and is not overwritten; give another name", reason="exists") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> errors.StoreError:
    return errors.StoreError(f"{path} cannot be written ({error.strerror}); name another file", reason="cannot-write")
