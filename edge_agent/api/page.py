"""`GET /`: the agent's state as a page. Plain HTML: no script, no style, no external resources."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cache-Control": "no-store"}
_SHOWN: Final = (
    ("state", "State"),
    ("model", "Model"),
    ("server", "Server"),
    ("stage", "Stage"),
    ("version", "Version"),
)
_PLAN: Final = (
    ("mode", "Mode"),
    ("cut", "Cut after"),
    ("weight_bits", "Bits per weight"),
    ("activation_bits", "Bits per activation"),
)
_PATHS: Final = (
    ("POST", "/v1/infer", "answer one frame: an image, a .npy array, a text or a tensor"),
    ("GET", "/v1/status", "state, plan and counts, as JSON"),
    ("GET", "/healthz", "200 while frames are served, else 503"),
    ("GET", "/metrics", "Prometheus text"),
)


def render(status: Mapping[str, Any]) -> str:
    """The page for ``status``, the fields of `/v1/status`."""
    plan, frames = status.get("plan") or {}, status.get("frames") or {}
    facts = [(name, status[key]) for key, name in _SHOWN if status.get(key)]
    facts += [(name, plan[key]) for key, name in _PLAN if plan.get(key) not in (None, "", "0.00")]
    facts += [("Frames answered", frames["answered"])] if "answered" in frames else []
    rows = "".join(f"<tr><th align=left>{_text(name)}<td>{_text(value)}\n" for name, value in facts)
    paths = "".join(f"<tr><td>{method}<td>{_path(method, path)}<td>{_text(what)}\n" for method, path, what in _PATHS)
    title = f"splitedge agent: {'ready' if status.get('ready') else 'not ready'}"
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n<h1>{title}</h1>\n"
        f"<table>\n{rows}</table>\n<h2>Endpoints</h2>\n<table>\n{paths}</table>\n</html>\n"
    )


def _path(method: str, path: str) -> str:
    return f'<a href="{path}">{path}</a>' if method == "GET" else path


def _text(value: object) -> str:
    return escape(str(value))
