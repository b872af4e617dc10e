"""`edge-server models` and `edge-server remove`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agent import errors
from edge_agent.protocol.messages import ModelInfo
from edge_server.catalog import Catalog
from edge_server.store import Store, default_folder


def models(folder: Path | None) -> None:
    """One row for each model."""
    with Store(folder or default_folder()) as store:
        catalog = Catalog(store)
        table = Table("model", "input", "cuts offered", "metric", "samples", "not in the integer head")
        for info in catalog.models():
            table.add_row(*_row(info, len(catalog.bundle(info.name).offered)))
        Console(highlight=False).print(table if table.row_count else "there is no model yet: run edge-server add")


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


def _row(info: ModelInfo, offered: int) -> list[str]:
    missing = ", ".join(info.unsupported) or "-"
    shape = "x".join(map(str, info.preprocess.shape))
    if info.tokenizer is not None:
        shape = f"text, {shape} tokens"
    metric = info.metric if info.float_top1 is None else f"{info.metric}, float {info.float_top1:.1f} %"
    return [escape(info.name), shape, f"{offered} of {len(info.cuts)}", metric, str(info.samples), escape(missing)]
