"""The program on the board: the integer head, the stream to the server, the local API.

Its Python API is `connect` for blocking code and `Agent` for asyncio. The names below are imported on first use, so
that ``import edge_agent`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from splitedge import __version__ as __version__

if TYPE_CHECKING:
    from edge_agent.blocking import BlockingAgent as BlockingAgent
    from edge_agent.blocking import connect as connect
    from edge_agent.config import Settings as Settings
    from edge_agent.inputs.sources import Text as Text
    from edge_agent.runtime.agent import Agent as Agent
    from edge_agent.runtime.results import Result as Result
    from edge_agent.runtime.results import Timing as Timing
    from edge_agent.runtime.results import TopClass as TopClass

_MODULES: Final = {
    "Agent": "edge_agent.runtime.agent",
    "BlockingAgent": "edge_agent.blocking",
    "Result": "edge_agent.runtime.results",
    "Settings": "edge_agent.config",
    "Text": "edge_agent.inputs.sources",
    "Timing": "edge_agent.runtime.results",
    "TopClass": "edge_agent.runtime.results",
    "connect": "edge_agent.blocking",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
