"""How many examples the property tests draw: each its own number, or that of the profile "long" (``scripts/test --long``)."""

from __future__ import annotations

from hypothesis import settings

LONG = 2000  # examples of the profile "long", which conftest.py registers


def drawn(usually: int) -> settings:
    """Decorates a test that draws so many examples, or `LONG`."""
    return settings(max_examples=LONG if settings.default.max_examples == LONG else usually)
