"""Integer kernels over plain arrays, compiled by Numba, each with a slow, obvious twin in `kernels.reference`."""
