"""The stored models are those that `tests.models.make` makes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import models

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def parts(model: onnx.ModelProto) -> tuple[bytes, dict[str, np.ndarray]]:
    """The graph without its weights, and the weights by name."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    return graph.SerializeToString(deterministic=True), {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }


def test_the_script_makes_the_stored_models() -> None:
    from tests.models.make import exported

    for name, model in exported():
        graph, weights = parts(model)
        stored_graph, stored_weights = parts(onnx.load(models.path(name)))
        assert stored_graph == graph, name
        assert list(stored_weights) == list(weights), name
        for key, weight in weights.items():
            np.testing.assert_allclose(stored_weights[key], weight, rtol=1e-6, err_msg=f"{name}: {key}")
