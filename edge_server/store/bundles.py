"""Calibrated models: one folder each, replaced and removed in one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from calibration.samples.labels import NAMES
from edge_server.store import folders
from edge_server.store.database import Database
from edge_server.store.names import NAME, check_name
from splitedge import errors, files

_REPLACED: Final = ".old-"  # holds a bundle while another takes its name
_REMOVED: Final = ".gone-"  # holds a bundle while it is deleted


class Bundles:
    """The bundles of one store, in ``folder``."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder

    def names(self) -> list[str]:
        """The names of all bundles, sorted."""
        with self._database.guard():
            return sorted(p.name for p in self.folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())

    def path(self, name: str) -> Path:
        """The folder of the bundle ``name``. Raises `errors.UnknownModelError`."""
        path = self.folder / name
        if not NAME.fullmatch(name) or not path.is_dir():
            names = self.names()[:10]
            advice = f"choose one of {', '.join(names)}" if names else "add it with `edge-server add`"
            raise errors.UnknownModelError(
                f"no model is named {name[:80]!r}: {advice}", reason="unknown-model", known=names
            )
        return path

    def check_free(self, name: str, *, replace: bool) -> None:
        """Raise `errors.UsageError` if the model ``name`` exists and ``replace`` is False."""
        if not replace and (self.folder / name).exists():
            raise errors.UsageError(
                f"a model named {name!r} exists: pass --replace to replace it, or another --name", reason="model-exists"
            )

    @contextlib.contextmanager
    def create(self, name: str, *, replace: bool = True) -> Iterator[Path]:
        """A path to build the bundle ``name`` in; it takes its place when the block ends without an error.

        The folder around it is locked meanwhile, so that `sweep` of another process spares it.
        """
        check_name(name, "model")
        with self._database.guard():
            work, lock = folders.create_locked(self.folder, files.PARTIAL)
        try:
            yield work / name
            self.check_free(name, replace=replace)
            with self._database.guard(), self._set_aside(self.folder / name, _REPLACED) as old:
                try:
                    (work / name).rename(self.folder / name)
                except BaseException:
                    if (old / name).exists():
                        (old / name).rename(self.folder / name)
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)

    def set_class_names(self, name: str, names: list[str]) -> None:
        """Write the class names of the model ``name`` beside its bundle, whole or not at all; its hash stays."""
        with self._database.guard():
            files.replace(self.path(name) / NAMES, msgspec.json.encode(names), mode=0o600)

    def remove(self, name: str) -> None:
        """Delete the folder of the bundle ``name``; `Store.forget` deletes what was built from it."""
        path = self.path(name)
        with self._database.guard(), self._set_aside(path, _REMOVED):
            pass

    def sweep(self) -> None:
        """Delete the leftovers of killed processes, and restore a bundle that was set aside and not replaced."""
        with self._database.guard():
            for prefix in (_REPLACED, _REMOVED, files.PARTIAL):
                for left in self.folder.glob(f"{prefix}*"):
                    # FileNotFoundError: another process sweeps too, or its import just ended.
                    with contextlib.suppress(FileNotFoundError), folders.try_lock(left) as free:
                        if free:
                            self._clear(left, restore=prefix == _REPLACED)
            folders.delete_old(self._partial_names())

    def _clear(self, left: Path, *, restore: bool) -> None:
        for bundle in left.iterdir() if restore else ():
            if not (self.folder / bundle.name).exists():
                bundle.rename(self.folder / bundle.name)
        shutil.rmtree(left)

    def _partial_names(self) -> Iterator[Path]:
        """Partial files of class names. A folder that another process removes meanwhile has none."""
        for bundle in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from [path for path in bundle.iterdir() if path.name.startswith(files.PARTIAL)]

    @contextlib.contextmanager
    def _set_aside(self, path: Path, prefix: str) -> Iterator[Path]:
        """Move ``path``, if it exists, into a locked folder, which is deleted when the block ends without an error."""
        trash, lock = folders.create_locked(self.folder, prefix)
        try:
            if path.exists():
                path.rename(trash / path.name)
            yield trash
            shutil.rmtree(trash)
        except BaseException:
            with contextlib.suppress(OSError):
                trash.rmdir()
            raise
        finally:
            os.close(lock)
