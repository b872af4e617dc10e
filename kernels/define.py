"""What kernels are written with: the decorators `kernel`, `inline`, `macro` and `intrinsic`, and the compiler's names.

If the package has a library for this processor (`kernels.native`), nothing is compiled: `kernel` yields the function of
the library, the other decorators yield their function unchanged, and Numba and llvmlite are not imported. That saves
most of the time of a start and half of its memory. Otherwise Numba compiles (`kernels.jit`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kernels import isa, native
from splitedge.errors import PlatformError

F = TypeVar("F", bound=Callable[..., Any])

if native.LIBRARY is None:
    try:
        from llvmlite import ir as ir
        from numba import types as types
        from numba.core import cgutils as cgutils
        from numba.extending import intrinsic as intrinsic
    except ImportError as error:
        raise PlatformError(
            f"the package has no kernels for this processor ({native.REASON or isa.ISA}), and {error.name}, which compiles "
            "them, cannot be imported; run `pip install 'splitedge[jit]'`",
            reason="no-kernels",
        ) from error

    from kernels.jit import inline as inline
    from kernels.jit import kernel as kernel
    from kernels.jit import macro as macro
else:
    _library = native.LIBRARY

    class _Absent:
        """Stands for a part of the compiler where modules use it to define constants, and does nothing."""

        def __getattr__(self, name: str) -> _Absent:
            return self

        def __call__(self, *_: Any) -> _Absent:
            return self

    ir = types = cgutils = _Absent()

    def kernel(function: F) -> F:
        """The kernel of this name in the library."""
        found: Any = _library.kernel(native.name_of(function))
        kept: F = found
        return kept

    def inline(function: F) -> F:
        """A helper that only kernels call: the library has it inside of them."""
        return function

    macro = intrinsic = inline
