"""Runs tails in ONNX Runtime, and times them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.accuracy.evaluation import OfferedCut, Tail, quantization_of, tail_of
from calibration.importing.graph import Graph, tail_model
from calibration.importing.sessions import session
from calibration.lowering import layers
from splitedge.head import segment as seg
from splitedge.protocol.messages import Cut

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

#: Timed runs of a tail, and untimed runs before them.
RUNS: Final = 9
WARM_UP: Final = 2


def spot(model: onnx.ModelProto, network: layers.Network, tensor: seg.Tensor, cut: Cut) -> OfferedCut:
    """The offered ``cut``, prepared for measurement.

    ``tensor``: the head's tensor there. The tail runs in one thread.
    """
    load: Callable[[], Tail] | None = None
    if cut.kind != "output":
        load = functools.partial(tail_runner, model, network.graph, cut.tensor, threads=1)
    tokens = 0 if cut.padding is None else math.prod(network.graph.shapes[network.graph.input])
    return OfferedCut(cut.index, cut.tensor, quantization_of(tensor), math.prod(cut.shape), load, tokens)


def tail_runner(model: onnx.ModelProto, graph: Graph, tensor: str, threads: int = 0) -> Tail:
    """The part of ``model`` after ``tensor``, ready to run."""
    return runner(tail_model(model, tensor, graph.shapes[tensor][1:]), threads)


def runner(model: onnx.ModelProto, threads: int = 0) -> Tail:
    """``model`` or a tail of it, ready to run."""
    made = session(model, threads)
    entry, *more = made.get_inputs()
    kind = np.int64 if entry.type == "tensor(int64)" else np.float32

    def run(x: F32, ids: I64 | None) -> F32:
        found: F32 = made.run(None, {entry.name: x.astype(kind, copy=False)} | {one.name: ids for one in more})[0]
        return found

    return tail_of(run, _batched(model))


def _batched(model: onnx.ModelProto) -> bool:
    return bool(Graph.input_of(model).type.tensor_type.shape.dim[0].HasField("dim_param"))


def tail_ms(model: onnx.ModelProto, graph: Graph, cut: Cut) -> float:
    """Median time of a tail for one frame on all cores, in milliseconds; 0 at the output."""
    if cut.kind == "output":
        return 0.0
    run, x = tail_runner(model, graph, cut.tensor), np.zeros((1, *cut.shape), np.float32)
    ids = np.zeros(graph.shapes[graph.input], np.int64) if graph.takes_ids else None
    times = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        run(x, ids)
        times.append(time.perf_counter() - start)
    return 1000.0 * median(times[WARM_UP:])
