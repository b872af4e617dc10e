"""The reference network in the package is the one that its script makes."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.export import reference, whole
from calibration.importing.importer import batched, simplify
from edge_agent import backends as runtimes
from edge_agent.bench import feed
from edge_agent.profiling import backends
from splitedge.errors import SplitEdgeError
from splitedge.head import segment as seg
from splitedge.head.verify import verify

FILES = {one.suffix: one for one in backends.FILES.iterdir()}


@pytest.fixture(scope="module")
def made():
    return reference.files()


def test_it_has_a_few_million_products_and_a_form_for_every_backend():
    kept = seg.parse(FILES[".segment"].read_bytes())
    weights = verify(kept)
    products = sum(
        np.prod(kept.header.tensors[kept.header.ops[i].out].shape[:-1]) * one.size for i, one in weights.items()
    )
    assert 5e6 < products < 2e7
    assert {path.name for path in FILES.values()} == set(reference.FILES)


def test_the_segment_is_made_again(made):
    """Scales come from ONNX Runtime's floats, whose last bits differ between processors; weights and shapes do not."""
    kept, again = (seg.parse(data) for data in (FILES[".segment"].read_bytes(), made[whole.SEGMENT]))
    assert [(type(op), op.name) for op in kept.header.ops] == [(type(op), op.name) for op in again.header.ops]
    assert [one.shape for one in kept.header.tensors] == [one.shape for one in again.header.tensors]
    assert [one.scale for one in kept.header.tensors] == pytest.approx(
        [one.scale for one in again.header.tensors], rel=1e-3
    )
    for one, other in zip(verify(kept).values(), verify(again).values(), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["native", "onnxruntime", "litert"])
def test_the_kept_files_answer_as_the_float_network(name, tmp_path):
    backend = runtimes.find(name)
    if reason := backend.missing():
        pytest.skip(reason)
    float_file = whole.make(batched(simplify(reference.model())))[whole.FLOAT_ONNX]
    assert not isinstance(float_file, SplitEdgeError)
    (tmp_path / "float.onnx").write_bytes(float_file)
    frame = np.random.default_rng(5).normal(size=(96, 96, 3)).astype(np.float32)
    answers = []
    for one, path in (("onnxruntime", tmp_path / "float.onnx"), (name, FILES[backend.suffixes[0]])):
        loaded = runtimes.find(one).load(path, 1)
        loaded.put(feed.frame(feed.resolved(loaded.ports, None), frame))
        loaded.run()
        answers.append(loaded.output())
    exact, near = answers
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_the_script_writes_the_files(made, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "files", lambda: made)
    monkeypatch.setattr("sys.argv", ["reference", str(tmp_path / "new")])
    reference.main()
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == made
