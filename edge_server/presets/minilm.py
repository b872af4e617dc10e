"""all-MiniLM-L6-v2, an encoder of sentences, as an ONNX model with weights from its safetensors file.

BERT without its pooler; the token ids are the only input, and the id 0 is padding. The answer is the mean of the
tokens' last hidden states without padding, divided by its length, as in the package's own modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
import safetensors.numpy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

TOKENS: Final = 128
LAYERS, WIDTH, HEADS = 6, 384, 12
EPSILON: Final = 1e-12
_OPSET: Final = 17
_IR: Final = 9


def model(weights: bytes) -> bytes:
    """The ONNX file of the network with the weights in ``weights``, a safetensors file."""
    made: bytes = network(safetensors.numpy.load(weights), TOKENS).SerializeToString()
    return made


def network(weights: Mapping[str, Array], tokens: int) -> onnx.ModelProto:
    """The encoder with ``weights``: int64 "ids" [1, tokens] to float32 "embedding" [1, WIDTH] of length 1."""
    net = _Net(weights)
    mask = net.node("Equal", "ids", net.constant("padding", np.array(0, np.int64)), name="mask.padding")
    hidden = net.constant("hidden", np.array(-1e9, np.float32))
    adding = net.node("Where", mask, hidden, net.constant("zero", np.array(0, np.float32)), name="mask.adding")
    adding = net.node("Unsqueeze", adding, net.constant("axes", np.array([1, 2])), name="mask")
    word = net.node("Gather", net.weight("embeddings.word_embeddings.weight"), "ids", name="embeddings.words")
    places = weights["embeddings.position_embeddings.weight"][:tokens]
    places = places + weights["embeddings.token_type_embeddings.weight"][0]
    x = net.node("Add", word, net.constant("embeddings.places", places[None]), name="embeddings")
    x = net.norm(x, "embeddings.LayerNorm")
    for number in range(LAYERS):
        x = net.block(x, f"encoder.layer.{number}", adding)
    kept = net.node("Cast", net.node("Not", mask, name="kept"), name="kept.numbers", to=TensorProto.FLOAT)
    kept = net.node("Unsqueeze", kept, net.constant("last", np.array([2])), name="kept.tokens")
    count = net.node("ReduceSum", kept, net.constant("tokens", np.array([1])), name="count", keepdims=0)
    total = net.node("ReduceSum", net.node("Mul", x, kept, name="pooled"), "tokens", name="total", keepdims=0)
    mean = net.node("Div", total, count, name="mean")
    length = net.node("ReduceL2", mean, name="length", axes=[1])
    net.nodes.append(helper.make_node("Div", [mean, length], ["embedding"], "embedding"))
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [1, tokens]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, WIDTH]),
    ]
    graph = helper.make_graph(net.nodes, "minilm", ends[:1], ends[1:], net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


class _Net:
    """Nodes and constants of the network, in order. Each method returns the name of the tensor that it adds."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def node(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def linear(self, x: str, name: str) -> str:
        product = self.node(
            "MatMul", x, self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T), name=f"{name}.product"
        )
        return self.node("Add", product, self.weight(f"{name}.bias"), name=name)

    def norm(self, x: str, name: str) -> str:
        parts = [self.weight(f"{name}.{part}") for part in ("weight", "bias")]
        return self.node("LayerNormalization", x, *parts, name=name, axis=-1, epsilon=EPSILON)

    def block(self, x: str, name: str, mask: str) -> str:
        """Attention and a hidden layer, each followed by its residual and norm."""
        attended = self.linear(self.attention(x, f"{name}.attention.self", mask), f"{name}.attention.output.dense")
        x = self.norm(self.node("Add", attended, x, name=f"{name}.attention"), f"{name}.attention.output.LayerNorm")
        hidden = self.gelu(self.linear(x, f"{name}.intermediate.dense"), f"{name}.gelu")
        hidden = self.linear(hidden, f"{name}.output.dense")
        return self.norm(self.node("Add", hidden, x, name=f"{name}.output"), f"{name}.output.LayerNorm")

    def attention(self, x: str, name: str, mask: str) -> str:
        shape = self.constant(f"{name}.heads", np.array([0, 0, HEADS, WIDTH // HEADS]))
        turns = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        query, key, value = (
            self.node(
                "Transpose",
                self.node("Reshape", self.linear(x, f"{name}.{part}"), shape, name=f"{name}.{part}.heads"),
                name=f"{name}.{part}.turned",
                perm=turn,
            )
            for part, turn in turns.items()
        )
        scale = self.constant(f"{name}.scale", np.array(math.sqrt(WIDTH // HEADS), np.float32))
        scores = self.node("MatMul", query, key, name=f"{name}.scores")
        scores = self.node("Add", self.node("Div", scores, scale, name=f"{name}.scaled"), mask, name=f"{name}.masked")
        shares = self.node("Softmax", scores, name=f"{name}.softmax", axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", shares, value, name=f"{name}.mixed"), name=f"{name}.back", perm=[0, 2, 1, 3])  # fmt: skip
        return self.node("Reshape", mixed, self.constant(f"{name}.width", np.array([0, 0, WIDTH])), name=name)

    def gelu(self, x: str, name: str) -> str:
        """x/2 (1 + erf(x / sqrt 2))."""
        root, one, half = (
            self.constant(f"{name}.{value}", np.array(value, np.float32)) for value in (math.sqrt(2), 1.0, 0.5)
        )
        erf = self.node("Erf", self.node("Div", x, root, name=f"{name}.divided"), name=f"{name}.erf")
        product = self.node("Mul", x, self.node("Add", erf, one, name=f"{name}.plus"), name=f"{name}.product")
        return self.node("Mul", product, half, name=name)
