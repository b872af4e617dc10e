"""Small files after situations in public bug reports of ONNX Runtime, converters and boards' users; each once gave a wrong answer or a crash.

What is right is what the file itself answers with every graph optimization off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.cases.build import File

SHAPE: Final = [1, 3, 16, 16]
OUTPUTS: Final = 7


def _conv(file: File, outs: int = 6, spread: float = 1 / 3) -> str:
    return file.add("Conv", file.last, file.weight(outs, 3, 3, 3, spread=spread), pads=[1, 1, 1, 1])


def _classifier(file: File) -> onnx.ModelProto:
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add(
        "Gemm",
        file.last,
        file.weight(OUTPUTS, 6, spread=1 / 3),
        *([file.constant(np.zeros(OUTPUTS))] if file.opset < 11 else []),
        transB=1,
    )
    return file.model([1, OUTPUTS])


def plain(**options: object) -> onnx.ModelProto:
    """A convolution and a classifier, in the kind of file that ``options`` of `File` say."""
    file = File(SHAPE, **options)  # type: ignore[arg-type]
    _conv(file)
    return _classifier(file)


def pad_max() -> onnx.ModelProto:
    """Zeros around a plane of negative numbers, then a MaxPool, whose own padding would be minus infinity."""
    file = File(SHAPE, opset=13)
    _conv(file)
    file.add("Sub", file.last, file.constant([3.0]))
    file.add("Pad", file.last, file.ints(0, 0, 1, 1, 0, 0, 1, 1))
    file.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2])
    return _classifier(file)


def softmax_flatten() -> onnx.ModelProto:
    """Probabilities for each of four places, in one row."""
    file = File(SHAPE, opset=13)
    _conv(file, 3, 2.0)
    file.add("AveragePool", kernel_shape=[8, 8], strides=[8, 8])
    file.add("Softmax", axis=1)
    file.add("Flatten")
    return file.model([1, 12])


def sigmoid_tags() -> onnx.ModelProto:
    """Four tags, each with a probability of its own."""
    file = File(SHAPE, opset=13)
    _conv(file)
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add("Gemm", file.last, file.weight(4, 6, spread=1 / 3), file.constant([2, 1.5, -3, -4]), transB=1)
    file.add("Sigmoid")
    return file.model([1, 4])


def normed(outputs: int = 1, opset: int = 15, **attributes: int) -> onnx.ModelProto:
    """With a BatchNormalization of so many ``outputs``."""
    file = File(SHAPE, opset=opset)
    _conv(file)
    ones, zeros = file.constant(np.ones(6)), file.constant(np.zeros(6))
    x = file.last
    file.add("BatchNormalization", x, ones, file.weight(6), zeros, ones, outputs=outputs, **attributes)
    return _classifier(file)


def dropped(opset: int = 13, training: bool | None = None, **attributes: int) -> onnx.ModelProto:
    """With a Dropout, which ``training`` turns on or off where its operator set has that input."""
    file = File(SHAPE, opset=opset)
    _conv(file)
    told = [] if training is None else [file.constant(0.5), file.constant(training, np.bool_)]
    file.add("Dropout", file.last, *told, **attributes)
    return _classifier(file)


def listed(ir: int = 3, listed: bool = True) -> onnx.ModelProto:
    """With a batch norm and a MatMul; its constants are inputs as well, as in files of IR 3."""
    file = File(SHAPE, opset=8, ir=ir, listed=listed)
    _conv(file)
    ones = file.constant(np.ones(6))
    x = file.last
    file.add("BatchNormalization", x, ones, file.weight(6), file.weight(6), ones)
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add("MatMul", file.last, file.weight(6, OUTPUTS))
    return file.model([1, OUTPUTS])


def channels_last(shape: tuple[int | str, ...] = (1, 16, 20, 3)) -> onnx.ModelProto:
    file = File(shape, opset=13)  # type: ignore[arg-type]
    file.add("Transpose", perm=[0, 3, 1, 2])
    _conv(file)
    return _classifier(file)


def channels_first() -> onnx.ModelProto:
    """The same network as `channels_last`, for [1, 3, 16, 20]."""
    file = File([1, 3, 16, 20], opset=13)
    _conv(file)
    return _classifier(file)


def squeezed_output() -> onnx.ModelProto:
    file = File(SHAPE, opset=13)
    _conv(file)
    file.add("GlobalAveragePool")
    file.add("Squeeze")
    return file.model([6])


def batch_of_8(rows: int = 8, batch: int | str = 8) -> onnx.ModelProto:
    """With a Reshape to eight rows."""
    file = File([batch, *SHAPE[1:]], opset=13)  # type: ignore[list-item]
    _conv(file)
    file.add("GlobalAveragePool")
    file.add("Reshape", file.last, file.ints(rows, -1))
    file.add("Gemm", file.last, file.weight(OUTPUTS, 6, spread=1 / 3), transB=1)
    return file.model(None)


def argmax_map() -> onnx.ModelProto:
    """The class of each place."""
    file = File(SHAPE, opset=13)
    _conv(file)
    file.add("ArgMax", axis=1, keepdims=0)
    return file.model([1, 16, 16], TensorProto.INT64)


def whole_numbers() -> onnx.ModelProto:
    """Values cut to integers."""
    file = File(SHAPE, opset=13)
    _conv(file)
    file.add("Cast", to=TensorProto.INT64)
    return file.model([1, 6, 16, 16], TensorProto.INT64)


def shuffled(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with its operators from the last to the first, which ONNX Runtime accepts."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    return model


def with_constant(value: float, kind: str, weight: str = "float32", through: str = "") -> onnx.ModelProto:
    """`plain` with ``value`` in the weights of the convolution ("weight") or in a constant that a ``kind`` takes; ``through``: an operator between."""
    model = plain(opset=13, as_nodes=kind == "Constant")
    graph = model.graph
    if kind in ("Conv", "Constant"):
        holder = graph.initializer[0] if kind == "Conv" else graph.node[0].attribute[0].t
        values = numpy_helper.to_array(holder).astype(weight)
        values[0, 0, 0, 0] = value
        name = holder.name
        holder.CopyFrom(numpy_helper.from_array(values, f"{name}{through}"))
        if through:
            graph.node.insert(0, helper.make_node(through, [f"{name}{through}"], [name], "cast", to=TensorProto.FLOAT))
        return model
    out = graph.output[0].name
    graph.node[-1].output[0] = "before"
    graph.initializer.append(numpy_helper.from_array(np.full((), value, weight), "k"))
    graph.node.append(helper.make_node(kind, ["before", "k"], [out], "last"))
    return model


#: What answers as the file does. Samples are [H, W, 3] of the shape.
ANSWERED: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    "pad_max": pad_max,
    "softmax_flatten": softmax_flatten,
    "sigmoid_tags": sigmoid_tags,
    "ir3": listed,
    "constants of IR 8 listed": lambda: plain(ir=8, listed=True),
    "constants as operators": lambda: plain(as_nodes=True),
    "channels_last": channels_last,
    "squeezed_output": squeezed_output,
    "domain_ai_onnx": lambda: plain(domain="ai.onnx"),
    "batch of 8": lambda: batch_of_8(rows=0),
    "batch norm": normed,
    "batch norm of IR 3": lambda: normed(opset=7),
    "dropout": dropped,
    "dropout, off": lambda: dropped(training=False),
    "dropout of opset 7": lambda: dropped(opset=7),
    "whole numbers": whole_numbers,
    "operators out of order": lambda: shuffled(plain()),
    "constants out of order": lambda: shuffled(plain(as_nodes=True)),
    "minus infinity in a Max": lambda: with_constant(-np.inf, "Max"),
}
#: What is refused, and a word that the one sentence must have.
REFUSED: Final[dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, str]]]] = {
    "batch norm in training mode": (
        lambda: normed(outputs=3, training_mode=1),
        {"reason": "training-mode", "node": "n1"},
    ),
    "batch norm of five outputs": (lambda: normed(outputs=5, opset=9), {"reason": "training-mode", "node": "n1"}),
    "batch norm of opset 6": (lambda: normed(opset=6), {"reason": "training-mode", "node": "n1"}),
    "dropout in training mode": (lambda: dropped(training=True), {"reason": "training-mode", "node": "n1"}),
    "dropout of opset 6": (lambda: dropped(opset=6), {"reason": "training-mode", "node": "n1"}),
    "batch_of_8": (batch_of_8, {"reason": "batch"}),
    "batch of 8 inside": (lambda: batch_of_8(batch="n"), {"reason": "cannot-run"}),
    "nan_weight": (lambda: with_constant(np.nan, "Conv"), {"reason": "weights-not-finite", "node": "n0"}),
    "infinite weight": (lambda: with_constant(np.inf, "Conv"), {"reason": "weights-not-finite", "node": "n0"}),
    "NaN in a Constant": (lambda: with_constant(np.nan, "Constant"), {"reason": "weights-not-finite", "node": "n1"}),
    "infinite weight of 16 bits": (
        lambda: with_constant(np.inf, "Conv", "float16", "Cast"),
        {"reason": "weights-not-finite", "node": "n0"},
    ),
    "NaN added": (lambda: with_constant(np.nan, "Add"), {"reason": "weights-not-finite", "node": "last"}),
}
