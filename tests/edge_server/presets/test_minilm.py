"""all-MiniLM-L6-v2 as ONNX, beside the same network in torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.importing.importer import session
from edge_server.presets import minilm

TOKENS = 12


class _Names(dict[str, str]):
    """Answers each name with itself."""

    def __missing__(self, name: str) -> str:
        return name


@pytest.mark.torch
def test_its_answers_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="the other side is torch's")
    from benchmarks import minilm_model

    torch.manual_seed(1)
    module = minilm_model.Encoder().eval()
    theirs = minilm_model.renamed(_Names())  # our name -> the file's
    weights = {theirs[name]: value.numpy() for name, value in module.state_dict().items() if name in theirs}
    weights["embeddings.token_type_embeddings.weight"] = module.kind.weight.detach().numpy()
    made = minilm.network(weights, TOKENS)
    onnx.checker.check_model(made, full_check=True)
    ids = np.random.default_rng(2).integers(1, minilm_model.VOCABULARY, (3, TOKENS))
    for row, length in zip(ids, (TOKENS, 5, 1), strict=True):
        row[length:] = 0
        with torch.no_grad():
            states = module(torch.from_numpy(row[None])).numpy()[0, :length]
        mean = states.mean(0)
        (found,) = session(made).run(None, {"ids": row[None]})
        np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_every_weight_is_used_once() -> None:
    shapes = {"weight": (minilm.WIDTH, minilm.WIDTH), "bias": (minilm.WIDTH,)}
    asked: list[str] = []

    class Weights(dict[str, np.ndarray]):
        def __missing__(self, name: str) -> np.ndarray:
            asked.append(name)
            part = name.rpartition(".")[2]
            return np.zeros(shapes["bias" if "LayerNorm" in name else part], np.float32)

    made = minilm.network(Weights(), TOKENS)
    assert len(set(asked)) == len(asked) == 5 + 16 * minilm.LAYERS
    assert sum(numpy_helper.to_array(one).size > 1 for one in made.graph.initializer) > 16 * minilm.LAYERS
