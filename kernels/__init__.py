"""Integer kernels over plain arrays, compiled by Numba, each with a slow, obvious twin in `kernels.reference`."""

from kernels import isa  # first: it may set what numba reads when it is imported

__all__ = ["isa"]
