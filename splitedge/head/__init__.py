"""The quantized head: segment file, verifier, executor."""

from splitedge.head.executor import Head, OpTiming, load

__all__ = ["Head", "OpTiming", "load"]
