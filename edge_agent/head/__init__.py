"""The quantized head: segment file, verifier, executor."""

from edge_agent.head.executor import Head, OpTiming, load

__all__ = ["Head", "OpTiming", "load"]
