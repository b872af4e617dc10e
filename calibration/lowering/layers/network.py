"""The layers of a network, still in real numbers, their inputs and outputs, and the unsupported operators.

Every layer writes one stored tensor (channels last), identified by the name of its ONNX tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.importing.graph import Graph, Node

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Clamp = tuple[float, float]
UnaryFunction = Callable[[F64], F64]

OPEN: Clamp = (-math.inf, math.inf)


@dataclass(eq=False)
class Layer:
    """``out`` and ``inputs`` are ONNX tensor names (or derived from one with an ``@``)."""

    name: str
    out: str
    inputs: list[str]


@dataclass(eq=False)
class Weighted(Layer):
    """A layer with a scale for each row of its weights [OC, ...], and a bias [OC] (`Embed` has none: [0])."""

    weight: F32
    bias: F32


@dataclass(eq=False)
class Conv(Weighted):
    """weight [OC, KH, KW, C / groups], bias [OC]. ``view``: shape [rows, 1, K] of the input, or None for its own."""

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    view: list[int] | None = None
    clamp: Clamp = OPEN


@dataclass(eq=False)
class Binary(Layer):
    """Sum, product or difference of two tensors; the second has the same shape or one value for each channel."""

    kind: Literal["add", "mul", "sub"]
    clamp: Clamp = OPEN


@dataclass(eq=False)
class Unary(Layer):
    """``function`` of every element."""

    function: UnaryFunction


@dataclass(eq=False)
class Pool(Layer):
    """Maximum or average of each window. ``count_pad``: an average counts the padding.

    ``factor``: of the average. ``shape``: stored shape of the output, or None for its own.
    """

    kind: Literal["max", "avg"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int]
    count_pad: bool = False
    clamp: Clamp = OPEN
    factor: float = 1.0
    shape: list[int] | None = None


@dataclass(eq=False)
class Concat(Layer):
    """Concatenation along the last stored axis. ``shape``: stored shape of the output, or None for its own."""

    shape: list[int] | None = None


@dataclass(eq=False)
class Transpose(Layer):
    """Permutation ``perm`` of the stored axes."""

    perm: list[int]


@dataclass(eq=False)
class View(Layer):
    """Elements of the stored input at ``start`` + i . ``steps`` for each index i below ``sizes``, as ``shape``."""

    start: int
    sizes: list[int]
    steps: list[int]
    shape: list[int]


@dataclass(eq=False)
class Reshape(Layer):
    """The same bytes under ``shape``."""

    shape: list[int]


@dataclass(eq=False)
class Pad(Layer):
    """Zeros around [H, W, C]: top, left, bottom, right."""

    pad: tuple[int, int, int, int]


@dataclass(eq=False)
class Softmax(Layer):
    """Softmax over the last stored axis."""


@dataclass(eq=False)
class Normalize(Layer):
    """Blocks of ``rows`` rows and ``groups`` groups of channels with mean 0 and variance 1, times gamma [C] plus beta [C]."""

    gamma: F32
    beta: F32
    epsilon: float
    rows: int = 1
    groups: int = 1
    clamp: Clamp = OPEN


@dataclass(eq=False)
class Resample(Layer):
    """[H, W, C] resized. ``rows`` and ``columns``: the first that each reads, and the share of the next (float32)."""

    rows: tuple[I64, F32]
    columns: tuple[I64, F32]


# Layers of transformers. They read and yield float32 tensors [tokens, channels], the stream.


@dataclass(eq=False)
class Embed(Weighted):
    """weight[id] + position [T, C] for each token id. ``rows``: the model's tensor of the rows without positions."""

    position: F32
    rows: str


@dataclass(eq=False)
class Linear(Weighted):
    """GELU(x weight' + bias) + residual, for weight [N, K] and bias [N]; GELU and residual are optional.

    The first input is x [..., K]; the second, if present, is the residual. ``products``: the model's tensors that hold
    product and bias, with the index among N of each of their channels.
    """

    products: dict[str, I64]
    activation: Literal["none", "gelu"] = "none"

    @property
    def open(self) -> bool:
        """Whether the layer is only a product and a bias."""
        return self.activation == "none" and len(self.inputs) == 1


@dataclass(eq=False)
class Norm(Layer):
    """Layer norm over the channels; ``gamma`` and ``beta`` are [C]."""

    gamma: F32
    beta: F32
    epsilon: float


@dataclass(eq=False)
class Attention(Layer):
    """Attention of queries, keys and values in one tensor [T, 3 C].

    The second input, if present, holds token ids; tokens with the id ``pad`` are not keys.
    """

    heads: int
    factor: float
    pad: int = 0


@dataclass(eq=False)
class Patches(Layer):
    """Squares of ``size`` x ``size`` pixels of [H, W, C], one per row."""

    size: int


@dataclass(eq=False)
class Position(Layer):
    """``table`` [R, C] + the input [T, C], aligned to the last T rows of the table."""

    table: F32


@dataclass(eq=False)
class Mean(Layer):
    """Mean of ``count`` rows, starting at ``first``."""

    first: int
    count: int


FunctionKind = Literal["relu", "gelu", "silu", "quick_gelu", "sigmoid", "tanh", "hard_swish"]


@dataclass(eq=False)
class Function(Layer):
    """A function of each element (`kernels.reference.function`)."""

    kind: FunctionKind


@dataclass(eq=False)
class Gate(Layer):
    """A function of the first half of the channels, times the second half."""

    kind: FunctionKind


@dataclass(eq=False)
class RmsNorm(Layer):
    """Norm over the channels without a mean; ``gamma`` is [C]."""

    gamma: F32
    epsilon: float


@dataclass(eq=False)
class Sum(Layer):
    """Sum of two tensors of one shape."""


@dataclass(eq=False)
class Rotary(Layer):
    """Turns the first ``heads`` groups of channels by ``table`` [T, 2, D] (`kernels.reference.rotary`)."""

    heads: int
    table: F32


@dataclass(eq=False)
class WindowAttention(Attention):
    """`Attention` within ``windows`` groups of consecutive rows.

    ``bias`` [heads, T, T] and ``mask`` [windows, T, T] are added to the scores.
    """

    windows: int = 1
    bias: F32 | None = None
    mask: F32 | None = None


@dataclass(eq=False)
class Gather(Layer):
    """The rows of the input by their numbers ``rows``; -1 is a row of zeros."""

    rows: I64


@dataclass(eq=False)
class Quantize(Layer):
    """Codes of values, as ``shape``."""

    shape: list[int]


@dataclass(eq=False)
class Dequantize(Layer):
    """Values of codes, as ``shape`` [N, C]."""

    shape: list[int]


DType = Literal["u8", "f32", "i32"]
_OF_VALUES = (
    *(Embed, Linear, Norm, Attention, Patches, Position, Mean),
    *(Function, Gate, RmsNorm, Sum, Rotary, Gather, Dequantize),
)


@dataclass
class Network:
    """All layers in order, and the unsupported operators with their reasons.

    ``source``: data type of the head's input.
    """

    graph: Graph
    layers: list[Layer]
    unsupported: list[tuple[Node, str]]
    made: dict[str, Layer]
    source: DType = "u8"

    def dtype(self, tensor: str) -> DType:
        """Data type of ``tensor`` in a head: 8-bit codes, or float32 in the stream of a transformer.

        Only its input holds token ids.
        """
        if tensor == self.graph.input:
            return self.source
        layer = self.made.get(tensor)
        while isinstance(layer, Reshape | View):
            layer = self.made.get(layer.inputs[0])
        return "f32" if self.source != "u8" or isinstance(layer, _OF_VALUES) else "u8"

    @property
    def padding(self) -> int | None:
        """The id of the tokens that its attentions mask; None without a mask."""
        pads = {la.pad for la in self.layers if isinstance(la, Attention) and len(la.inputs) > 1}
        return pads.pop() if len(pads) == 1 else None

    def marks(self) -> set[str]:
        """The tensors that depend only on which tokens are padding."""
        graph, padding = self.graph, self.padding
        found: set[str] = set()
        for node in graph.nodes if padding is not None else ():
            moving = {t for t in node.inputs if t and t not in graph.constants}
            numbers = [graph.constants[t] for t in node.inputs if t in graph.constants]
            compares = node.op == "Equal" and moving == {graph.input} and all((c == padding).all() for c in numbers)
            if compares or (moving and moving <= found):
                found |= set(node.outputs)
        return found

    def needed(self, tensor: str, start: str | None = None) -> list[Layer]:
        """The layers that compute the reachable ``tensor`` from ``start`` (None: the input), in order.

        Empty if ``tensor`` is ``start``.
        """
        return self._backwards({tensor}, start)

    def weighted(self, tensor: str, start: str | None = None) -> list[Weighted]:
        """The layers with weights in `needed`, in order."""
        return [layer for layer in self.needed(tensor, start) if isinstance(layer, Weighted)]

    def whole(self, reason: str) -> Network:
        """The network without layers: no operator is in a head, because of ``reason``."""
        return Network(self.graph, [], [(node, reason) for node in self.graph.nodes], {}, self.source)

    def macs(self, layers: Iterable[Layer]) -> int:
        """Multiply-accumulates of the convolutions and products among ``layers``.

        Tensors of unknown shape count as 0. Embeddings, and the products of two activations in an attention, are not
        included.
        """
        found = 0
        for layer in layers:
            if isinstance(layer, Conv | Linear):
                made = layer.products if isinstance(layer, Linear) else [layer.out]
                values = sum(math.prod(self.graph.shapes[t]) for t in made if t in self.graph.shapes)
                found += values * math.prod(layer.weight.shape[1:])
        return found

    def alive(self) -> list[Layer]:
        """The layers that the output or an unsupported operator depends on."""
        stopping = {node for node, _ in self.unsupported}
        roots: set[str] = {self.graph.output}
        left = [t for node in stopping for t in node.inputs]
        while left:  # operators that only move elements may have no layer of their own
            tensor = left.pop()
            maker = None if tensor in self.made else self.graph.producer.get(tensor)
            if maker is None:
                roots.add(tensor)
            elif maker not in stopping:
                left += maker.inputs
        return self._backwards(roots)

    def _backwards(self, wanted: set[str], start: str | None = None) -> list[Layer]:
        found = []
        for layer in reversed(self.layers):
            if layer.out in wanted and layer.out != start:
                wanted |= set(layer.inputs)
                found.append(layer)
        return found[::-1]

    def reachable(self) -> set[str]:
        """The tensors that a head can yield, without token ids."""
        known = {self.graph.input}
        for layer in self.layers:
            if known >= set(layer.inputs):
                known.add(layer.out)
        return known & set(self.made) | ({self.graph.input} if self.source != "i32" else set())


class Unsupported(Exception):  # noqa: N818  an outcome, not an error: it ends in the listing
    """Why the integer head cannot run an operator."""


# --- constants and attributes -----------------------------------------------------------------------------------------


def argument(graph: Graph, node: Node, index: int, attribute: str, default: Any = None) -> Any:
    """A constant that newer operator sets pass as an input, and older ones as an attribute."""
    if len(node.inputs) > index and node.inputs[index]:
        if node.inputs[index] not in graph.constants:
            raise Unsupported(f"{attribute} is not a constant")
        return graph.constants[node.inputs[index]]
    return node.attrs.get(attribute, default)


def scalar(value: Any) -> float:
    """The only element of ``value``. Raises `Unsupported`."""
    if np.size(value) != 1:
        raise Unsupported("a constant of more than one value")
    return float(np.asarray(value).reshape(()))


def weights(graph: Graph, name: str) -> F32:
    """The finite constant ``name``, as float32. Raises `Unsupported`."""
    if name not in graph.constants:
        raise Unsupported("its weights are not constant")
    values: F32 = graph.constants[name].astype(np.float32)
    if not np.isfinite(values).all():
        raise Unsupported("its weights are not finite")
    return values


def gemm_weights(graph: Graph, node: Node) -> tuple[F32, F32]:
    """weight [N, K] and bias [N] of a Gemm."""
    attrs = node.attrs
    weight = weights(graph, node.inputs[1]) * np.float32(attrs.get("alpha", 1.0))
    weight = weight if attrs.get("transB", 0) else weight.T
    bias = np.zeros(len(weight), np.float32)
    if len(node.inputs) > 2 and node.inputs[2]:
        added = weights(graph, node.inputs[2]) * np.float32(attrs.get("beta", 1.0))
        if added.size not in (1, len(weight)):
            raise Unsupported("a bias that is not one value for each output")
        bias = np.broadcast_to(added.reshape(-1), bias.shape).copy()
    if attrs.get("transA", 0):
        raise Unsupported("its first input is transposed")
    return weight, bias


def layer_name(graph: Graph, node: Node) -> str:
    """The layer's name in the training framework if the weight's name gives it, else the operator's name."""
    weight = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1] in graph.constants else ""
    owners = graph.consumers.get(weight, [])
    return weight.removesuffix(".weight") if weight.endswith(".weight") and len(owners) == 1 else node.name


def rename(network: Network, layer: Layer, out: str) -> list[Layer]:
    """Let ``layer`` yield ``out`` instead of its old output. The operators between them become part of it."""
    del network.made[layer.out]
    layer.out = out
    network.made[out] = layer
    return []
