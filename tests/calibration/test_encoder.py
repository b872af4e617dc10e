"""ONNX encoders of several exporters' habits become segments that answer as the float model does; anything else is refused by name."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration.encoder import lower_encoder
from calibration.importer import session
from edge_agent.errors import ModelError
from edge_agent.head import load
from edge_agent.head import segment as seg
from tests import reference_head as twin
from tests.small_models import Net

TOKENS, WIDTH, HEADS = 11, 24, 3


class Encoder(Net):
    """A small BERT, operator by operator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__([1, TOKENS], seed, opset=20)
        self.input = helper.make_tensor_value_info("x", TensorProto.INT64, [1, TOKENS])
        table = self.add("Gather", self.random_weight(50, WIDTH, scale=1.0), "x")
        places = self.add("Add", table, self.random_weight(1, TOKENS, WIDTH, scale=1.0))
        self.norm(self.add("Add", places, self.random_weight(WIDTH, scale=0.1)))

    def norm(self, x: str = "") -> str:
        gamma = self.constant(self.random.uniform(0.5, 1.5, WIDTH))
        return self.add("LayerNormalization", x or self.last, gamma, self.random_weight(WIDTH, scale=0.2), epsilon=1e-6)

    def linear(self, x: str, outs: int, ins: int) -> str:
        product = self.add("MatMul", x, self.random_weight(ins, outs, scale=1 / math.sqrt(ins)))
        return self.add("Add", self.random_weight(outs, scale=0.2), product)

    def mask(self) -> str:
        """-1e9 where the id is 0, as [1, 1, 1, T]."""
        padding = self.add("Equal", "x", self.constant(0, np.int64))
        wide = self.add("Unsqueeze", padding, self.constant([1, 2], np.int64))
        return self.add("Where", wide, self.constant(-1e9), self.constant(0.0))

    def attention(self, x: str, mask: str = "", late_factor: bool = False) -> str:
        split, factor = self.constant([1, TOKENS, HEADS, WIDTH // HEADS], np.int64), math.sqrt(WIDTH / HEADS)
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            heads = self.add("Reshape", self.linear(x, WIDTH, WIDTH), split)
            parts.append(self.add("Transpose", heads, perm=perm))
        query, key, value = parts
        if not late_factor:
            query = self.add("Mul", query, self.constant(1 / factor))
        scores = self.add("MatMul", query, key)
        if late_factor:
            scores = self.add("Div", scores, self.constant(factor))
        if mask:
            scores = self.add("Add", scores, mask)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.add("Reshape", joined, self.constant([1, TOKENS, WIDTH], np.int64))

    def erf_gelu(self, x: str) -> str:
        erf = self.add("Erf", self.add("Div", x, self.constant(math.sqrt(2))))
        grown = self.add("Mul", x, self.add("Add", erf, self.constant(1.0)))
        return self.add("Mul", grown, self.constant(0.5))

    def block(self, mask: str = "", gelu: str = "Gelu", late_factor: bool = False) -> None:
        x = self.last
        out = self.linear(self.attention(x, mask, late_factor), WIDTH, WIDTH)
        x = self.norm(self.add("Add", x, out))
        hidden = self.linear(x, 40, WIDTH)
        hidden = self.add("Gelu", hidden) if gelu == "Gelu" else self.erf_gelu(hidden)
        self.norm(self.add("Add", self.linear(hidden, WIDTH, 40), x))


def check(model: onnx.ModelProto, bits: int = 8) -> seg.Segment:
    data = lower_encoder(model, bits)
    assert data == lower_encoder(model, bits)
    head, segment = load(data), seg.parse(data)
    ids = np.array([7, 3, 49, 1, 2, 0, 12, 0, 0, 0, 0], np.int32)
    found = head.run(ids)
    np.testing.assert_array_equal(found, twin.run(segment, ids)[segment.header.output])
    wanted = session(model).run(None, {"x": ids[None].astype(np.int64)})[0][0]
    assert (found * wanted).sum() / math.sqrt((found**2).sum() * (wanted**2).sum()) > 0.999
    return segment


@pytest.mark.parametrize("late_factor", [False, True])
@pytest.mark.parametrize("gelu", ["Gelu", "Erf"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_encoder_answers_as_the_float_model(masked: bool, gelu: str, late_factor: bool) -> None:
    net = Encoder(seed=1)
    stream = net.last
    mask = net.mask() if masked else ""
    net.last = stream
    net.block(mask, gelu, late_factor)
    net.block(mask, gelu, late_factor)
    kinds = [type(op).__name__ for op in check(net.model()).header.ops]
    assert kinds == ["Embed", "Norm", *["Linear", "Attention", "Linear", "Norm", "Linear", "Linear", "Norm"] * 2]


def test_activations_share_the_arena() -> None:
    net = Encoder()
    for _ in range(6):
        net.block()
    header = check(net.model()).header
    assert header.arena_bytes < sum(t.nbytes for t in header.tensors) / 3


def test_a_graph_that_is_no_encoder_is_refused_by_the_name_of_its_operator() -> None:
    net = Encoder()
    net.add("Tanh", name="odd")
    with pytest.raises(ModelError, match="Tanh"):
        lower_encoder(net.model())


def test_an_approximate_gelu_is_not_taken_for_the_exact_one() -> None:
    net = Encoder()
    net.add("Gelu", net.linear(net.last, WIDTH, WIDTH), approximate="tanh", name="odd")
    with pytest.raises(ModelError, match="odd"):
        lower_encoder(net.model())


def test_softmax_over_another_axis_is_refused() -> None:
    net = Encoder()
    net.block()
    model = net.model()
    next(n for n in model.graph.node if n.op_type == "Softmax").attribute[0].i = 1
    with pytest.raises(ModelError, match="softmax"):
        lower_encoder(model)


def test_a_match_that_computes_something_else_is_found_out() -> None:
    """Heads that are joined in another order have the shapes of an encoder, and other values."""
    net = Encoder(seed=2)
    net.block()
    model = net.model()
    joined = [n for n in model.graph.node if n.op_type == "Transpose"][-1]
    joined.attribute[0].ints[:] = [0, 3, 2, 1]
    with pytest.raises(ModelError, match="differs from the float model"):
        lower_encoder(onnx.shape_inference.infer_shapes(model))
