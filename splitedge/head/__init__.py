"""The quantized head.

`segment` is the file and its operators, `compression` the coding of its constants, `verify` checks every file before it
runs, and `executor` runs it. `preprocess`, `image_formats` and `text` make its input; `answers` makes the answer from
the output; `upgrade` derives one segment from another.

To add an operator: a struct in `segment` (and its constants), a rule in `verify`, a lowering in `executor`, a case and
a twin in `kernels`, and a layer in `calibration.lowering`.
"""

from splitedge.head.executor import Head, OpTiming, load

__all__ = ["Head", "OpTiming", "load"]
