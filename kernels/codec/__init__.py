"""The codec at the cut: float32 values to packed codes and back.

`fused` does everything in one pass (inner loops in `fused_ir`); `ranges` and `bits` are its stages one by one, for
ranges per row and for entropy coding. `hadamard` and `projection` change the basis before quantization.
"""

from kernels.codec.bits import BLOCK, pack, unpack
from kernels.codec.fused import decode, encode, encode_codes, rotate
from kernels.codec.ranges import dequantize, measure, quantize

__all__ = ["BLOCK", "decode", "dequantize", "encode", "encode_codes", "measure", "pack", "quantize", "rotate", "unpack"]
