"""The Prometheus text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

HEADERS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


def family(
    name: str,
    kind: Literal["counter", "gauge"],
    description: str,
    samples: Iterable[tuple[Mapping[str, str], float]],
) -> str:
    """One metric with its samples: the labels and the value of each. Ends with a line end."""
    lines = [
        *_head(name, kind, description),
        *(f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples),
    ]
    return "\n".join(lines) + "\n"


def histogram(name: str, description: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> str:
    """A histogram.

    ``counts``: of each bucket alone; the last one is above all ``bounds``. ``total``: the sum of all values.
    """
    lines, below = _head(name, "histogram", description), 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{_labels({'le': bound})} {below}")
    return "\n".join([*lines, f"{name}_sum {_number(total)}", f"{name}_count {below}"]) + "\n"


def _head(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}" if labels else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
