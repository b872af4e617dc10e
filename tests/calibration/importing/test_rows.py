"""Operators on rows of a stream work on [1, N, C], and the answers stay."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from calibration.importing import importer
from calibration.importing.graph import Graph
from calibration.importing.importer import session, simplify
from calibration.importing.rows import has_attention, streams_to_rows
from tests import models
from tests.small_models import Net
from tests.small_transformers import TOKENS, WIDTH, vit_model


def rewritten(model: onnx.ModelProto) -> Graph:
    """The graph after the rewrite, whose answers are compared with those before it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    streams_to_rows(changed)
    onnx.checker.check_model(changed)
    graph = Graph.of(changed)
    x = np.random.default_rng(0).normal(size=graph.shapes[graph.input]).astype(np.float32)
    wanted, found = (session(one).run(None, {graph.input: x})[0] for one in (model, changed))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return graph


def stored(name: str) -> onnx.ModelProto:
    """The stored model ``name`` with known shapes, before the rewrite."""
    model = onnx.load(models.path(name))
    shape = model.graph.input[0].type.tensor_type.shape
    for dim, size in zip(shape.dim, [1, *[d.dim_value or TOKENS for d in shape.dim][1:]], strict=True):
        dim.dim_value = size
    steps = list(importer._REWRITES)
    return simplify(model, set(steps[steps.index("rows") :]))


@pytest.mark.parametrize("form", ["14", "17"])
@pytest.mark.parametrize("name", ["swin-timm", "swin-torchvision", "torchvision", "stack-relu-pre", "mobilevit"])
def test_norms_and_products_work_on_rows(name: str, form: str) -> None:
    graph = rewritten(stored(f"{name}-{form}"))
    working = [node for node in graph.nodes if node.op == "LayerNormalization" or _weighs(graph, node)]
    assert working
    assert all(len(graph.shapes[n.inputs[0]]) == 3 and graph.shapes[n.inputs[0]][0] == 1 for n in working)


def _weighs(graph: Graph, node: object) -> bool:
    op, inputs = node.op, node.inputs  # type: ignore[attr-defined]
    return op == "MatMul" and inputs[1] in graph.constants and math.prod(graph.shapes[inputs[0]][:-1]) > 1


def test_moves_between_rows_are_one_gather_or_none() -> None:
    graph = rewritten(stored("swin-torchvision-17"))
    gathers = [n for n in graph.nodes if n.op == "Gather" and len(graph.shapes[n.outputs[0]]) == 3]
    # Into windows and back for the blocks of four windows, and merged patches. One window needs none.
    assert len(gathers) == 2 + 2 + 1
    assert not [n for n in rewritten(stored("torchvision-17")).nodes if n.op == "Gather" and "gathered" in n.outputs[0]]


def test_a_model_in_this_form_stays() -> None:
    model = vit_model("separate", "token", "conv")
    before = [(n.op_type, *n.input) for n in model.graph.node]
    streams_to_rows(model)
    assert [(n.op_type, *n.input) for n in model.graph.node] == before


def test_a_model_without_attention_stays() -> None:
    net = Net([1, 8, 4, 4])
    net.add("Transpose", "x", perm=[0, 2, 3, 1])
    net.add("LayerNormalization", net.last, net.constant(np.ones(8)), net.constant(np.zeros(8)), axis=-1)
    net.add("Softmax", net.last)
    model = net.model()
    assert not has_attention(model.graph)
    before = model.SerializeToString(deterministic=True)
    streams_to_rows(model)
    assert model.SerializeToString(deterministic=True) == before


def test_sums_and_scales_of_windows_work_on_rows() -> None:
    """Constants for each channel, of more axes than the stream, and one for each row."""
    net = Net([1, 4, 4, WIDTH])
    x = net.add("Reshape", "x", net.constant([4, 4, WIDTH], np.int64))
    x = net.add("MatMul", x, net.random_weight(WIDTH, WIDTH))
    x = net.add("Mul", x, net.random_weight(1, 1, WIDTH))
    x = net.add("Add", x, net.random_weight(4, 4, WIDTH))
    scores = net.add("Softmax", net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1])), axis=-1)
    y = net.add("MatMul", scores, x)
    net.add("Gemm", net.add("Reshape", y, net.constant([16, WIDTH], np.int64)), net.random_weight(WIDTH, WIDTH), net.random_weight(WIDTH), transB=1, alpha=0.5)  # fmt: skip
    net.add("Reshape", net.last, net.constant([1, 16, WIDTH], np.int64))
    graph = rewritten(net.model())
    assert all(graph.shapes[n.outputs[0]] == (1, 16, WIDTH) for n in graph.nodes if n.op in ("Mul", "Add"))
    assert not any(n.op == "Gemm" for n in graph.nodes)
