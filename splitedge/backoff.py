"""Exponential back-off with jitter, for everything that tries again."""

from __future__ import annotations

import random

from splitedge import limits


class Backoff:
    """Delays in seconds that double from ``first`` to ``most``, each times a random factor from 0.5 to 1.

    The jitter keeps boards that lost the same server from returning to it all at once.
    """

    def __init__(self, first: float = limits.BACKOFF_FIRST, most: float = limits.BACKOFF_MAX) -> None:
        self._first, self._most = first, most
        self._base = 0.0

    def next(self) -> float:
        """The delay before the next attempt."""
        self._base = min(2 * self._base or self._first, self._most)
        return self._base * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again from ``first``: an attempt succeeded."""
        self._base = 0.0

    @property
    def base(self) -> float:
        """The last delay without its jitter; 0 before the first."""
        return self._base
