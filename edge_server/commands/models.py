"""`edge-server models`, `names` and `remove`."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calibration.samples.labels import read_names
from edge_server.store.catalog import Catalog
from edge_server.store.store import Store, default_folder
from splitedge import errors
from splitedge.protocol.messages import ModelInfo


def models(folder: Path | None, *, json: bool = False) -> None:
    """One row for each model."""
    with Store(folder or default_folder()) as store:
        found = Catalog(store).models()
    if json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table("model", "input", "cuts offered", "metric", "samples", "not in the integer head")
    for info in found:
        table.add_row(*_row(info))
    Console(highlight=False).print(table if found else "there is no model yet: run edge-server add")


def names(folder: Path | None, model: str, file: Path) -> None:
    """Sets class names; plans that are made from now on hold them."""
    known = read_names(file)
    with Store(folder or default_folder()) as store:
        output = Catalog(store).bundle(model).output
        classes = math.prod(output.shape)
        if not output.has_classes:
            raise errors.UsageError(f"the output of {model}, a tensor of {output.shape}, has no classes to name")
        if len(known) != classes:
            raise errors.InputError(
                f"{file} holds {len(known)} class names and {model} has {classes} classes; give one name for each"
            )
        store.set_names(model, known)
    print(f"{model} has {classes} class names; agents show them with their next plan")


def remove(folder: Path | None, name: str) -> None:
    """Removes the bundle and what was built from it."""
    with Store(folder or default_folder()) as store:
        sha256 = _hash(store, name)
        store.remove_bundle(name)
        if sha256 is not None:
            store.forget(sha256)
    print(f"removed {name}")


def _hash(store: Store, name: str) -> str | None:
    """None for a bundle that is damaged: it can be removed all the same."""
    try:
        return Catalog(store).bundle(name).sha256
    except errors.ModelError:
        return None


def _row(info: ModelInfo) -> list[str]:
    missing = ", ".join(info.unsupported) or "-"
    shape = "x".join(map(str, info.preprocess.shape))
    if info.tokenizer is not None:
        shape = f"text, {shape} tokens"
    metric = info.metric if info.float_top1 is None else f"{info.metric}, float {info.float_top1:.1f} %"
    return [
        escape(info.name),
        shape,
        f"{len(info.offered)} of {len(info.cuts)}",
        metric,
        str(info.samples),
        escape(missing),
    ]
