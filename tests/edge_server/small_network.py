"""A small real network, and how to ask for its import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_server.commands.add import Request

Shape = tuple[int, ...]


def _weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    fan = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1.0
    return numpy_helper.from_array((rng.normal(size=shape) / fan).astype(np.float32), name)


def save_network(path: Path, last: str = "Relu") -> None:
    """stem (convolution) - body (convolution, ``last``) - pool - fc: 16 x 16 x 3 to 10 logits."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="stem_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="body", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node(last, ["c2"], ["r2"], name="body_last"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    sizes: dict[str, Shape] = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (4, 8, 3, 3),
        "b2": (4,),
        "w3": (10, 4),
        "b3": (10,),
    }
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    weights = [_weight(rng, name, *shape) for name, shape in sizes.items()]
    graph = helper.make_graph(nodes, "tiny", [entry], [leave], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def request_of(source: Path, **changes: Any) -> Request:
    """What `edge-server add SOURCE --arrays x.npy` asks for."""
    given: dict[str, Any] = dict.fromkeys(
        one.name for one in dataclasses.fields(Request) if one.default is one.default_factory
    )
    return Request(
        **(
            given
            | {
                "source": str(source),
                "options": {},
                "rounding": "gptq",
                "effort": "normal",
                "metric": "auto",
                "padding": 0,
                "arrays": source.parent / "x.npy",
            }
            | changes
        )
    )
