"""Names of models and tokens."""

from __future__ import annotations

import re
from typing import Final

from splitedge import errors, limits

NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.MAX_NAME - 1}}}")


def check_name(name: str, kind: str) -> None:
    """Raise `errors.UsageError` unless ``name`` is a valid file name on every system."""
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name[:80]!r} is not a valid name of a {kind}: use up to {limits.MAX_NAME} letters, digits, '.', '_' "
            "and '-', starting with a letter or digit",
            reason="name",
        )
