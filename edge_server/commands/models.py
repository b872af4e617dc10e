"""`edge-server models`, `names` and `remove`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from calibration.samples.labels import read_names
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from splitedge import errors, report, tasks, terminal


def models(folder: Path, *, json: bool = False) -> None:
    """Print the models in the store."""
    with Store(folder) as store:
        found = Catalog(store).models()
    if json:
        print(msgspec.json.encode(found).decode())
    elif found:
        terminal.show(report.models(found, terminal.width()))
    else:
        print("the store contains no models; add one with `edge-server add`")


def names(folder: Path, model: str, file: Path) -> None:
    """Set the class names of ``model``. Plans that exist already keep the old names."""
    known = read_names(file)
    with Store(folder) as store:
        output = Catalog(store).bundle(model).output
        classes = tasks.classes(output) or len(known)
        if not output.has_classes and output.task is None:
            raise errors.UsageError(
                f"the output of {model} is a tensor of shape {output.shape} and has no classes to name",
                reason="no-classes",
            )
        if len(known) != classes:
            raise errors.InputError(
                f"{file} contains {len(known)} class names and {model} has {classes} classes; give one name per class",
                reason="class-names",
            )
        store.bundles.set_class_names(model, known)
    print(f"set {classes} class names of {model}; agents show them from their next plan on")


def remove(folder: Path, name: str) -> None:
    """Remove a model and all files derived from it."""
    with Store(folder) as store:
        sha256 = _hash(store, name)
        store.bundles.remove(name)
        if sha256 is not None:
            store.forget(sha256)
    print(f"removed {name}")


def _hash(store: Store, name: str) -> str | None:
    """The SHA-256 of a bundle; None if it is damaged, so that it can still be removed."""
    try:
        return Catalog(store).bundle(name).sha256
    except errors.ModelError:
        return None
