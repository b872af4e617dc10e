"""The operators of a head. `kernels.program` calls them, one part of an operator at a time.

On uint8 codes: `conv` (on `gemm`), `depthwise`, `elementwise`. On float32 tensors: `transformer` (on `float_gemm` and
`float_rows`).
"""
