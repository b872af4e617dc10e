"""The range of the output's codes: fine where answers are decided, and whole where every value counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.accuracy import evaluation
from calibration.bundle import creation
from calibration.importing.graph import Graph
from calibration.importing.importer import batched, session, simplify
from calibration.lowering import layers
from calibration.lowering.lower import Calibration, lower
from calibration.samples.samples import Samples
from splitedge.protocol.messages import Preprocess
from tests import small_models as small

CLASSES, FAR = 10, -300.0
NAMES = [f"class {i}" for i in range(CLASSES)]


def model(ending: str = "") -> onnx.ModelProto:
    """Logits about 0, but one that is always far below the others; ``ending``: an operator that moves them."""
    net = small.Net([1, 32])
    weight, bias = net.random_weight(CLASSES, 32, scale=0.5), np.zeros(CLASSES)
    bias[-1] = FAR
    net.add("Gemm", "x", weight, net.constant(bias), transB=1)
    if ending == "Reshape":
        net.add("Reshape", net.last, net.constant([1, 1, CLASSES], np.int64))
    return batched(simplify(net.model()))


def samples(count: int = 200, classes: bool = True) -> Samples:
    x = np.random.default_rng(3).normal(size=(count, 32)).astype(np.float32)
    known = session(model()).run(None, {"x": x})[0].argmax(axis=1) if classes else None
    return Samples(Preprocess("tensor", [32]), list(x), known)


def calibrated(
    made: onnx.ModelProto, inputs: Samples, ranked: bool | None = None
) -> tuple[layers.Network, Calibration]:
    network = layers.build(Graph.of(made))
    return network, creation.calibrate(made, network, inputs, ranked=ranked)


def floats(inputs: Samples) -> np.ndarray:
    found: np.ndarray = session(model()).run(None, {"x": np.stack(list(inputs))})[0]
    return found


@pytest.mark.parametrize("ending", ["", "Reshape"])
def test_a_class_far_below_the_answer_does_not_coarsen_the_others(ending: str) -> None:
    inputs, made = samples(), model(ending)
    network, calibration = calibrated(made, inputs)
    head = lower(network, calibration, network.graph.output, 8).head()
    found = evaluation.split_outputs(head, None, None, inputs).reshape(len(inputs), CLASSES)
    assert (found.argmax(axis=1) == inputs.classes).mean() >= 0.97
    assert np.abs(found - floats(inputs))[:, :-1].max() < 0.25


def test_values_below_the_range_have_no_share_in_the_answer() -> None:
    inputs = samples()
    network, calibration = calibrated(model(), inputs)
    lowest, *_, highest = calibration.quantizations[network.graph.output].values()
    outputs = floats(inputs).astype(np.float64)
    assert lowest > FAR
    missing = np.where(outputs < lowest, np.exp(outputs - outputs.max(axis=1, keepdims=True)), 0.0)
    assert (missing.sum(axis=1) <= creation.UNREACHABLE).all()
    clipped = np.exp(lowest - outputs.max(axis=1)) * (outputs < lowest).sum(axis=1)
    assert (clipped <= creation.UNREACHABLE).all()
    assert highest >= 1.15 * outputs.max()


def test_an_output_without_classes_keeps_its_whole_range() -> None:
    inputs = samples(classes=False)
    for ranked in (None, False):
        network, calibration = calibrated(model(), inputs, ranked)
        assert calibration.quantizations[network.graph.output].values()[0] < 1.15 * FAR
    network, calibration = calibrated(model(), inputs, ranked=True)
    assert calibration.quantizations[network.graph.output].values()[0] > 0.1 * FAR


def test_a_tensor_that_another_layer_reads_keeps_its_own_range() -> None:
    net = small.Net([1, 3, 16, 16])
    start = net.conv(4, 3)
    end = net.conv(4, 4)
    net.add("Add", start, end)
    net.add("Reshape", net.last, net.constant([1, 4 * 256], np.int64))
    made = batched(simplify(net.model()))
    network = layers.build(Graph.of(made))
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    inputs = Samples(Preprocess("tensor", [16, 16, 3]), list(x), np.zeros(8, np.int64))
    quantizations = creation.calibrate(made, network, inputs).quantizations
    assert quantizations[start] != quantizations[network.graph.output]


@pytest.mark.parametrize("named", [True, False])
def test_values_below_the_range_are_no_noise(tmp_path: Path, named: bool) -> None:
    inputs = samples(classes=not named)
    made = creation.create(tmp_path / "b", "net", model(), inputs, labels=NAMES if named else ())
    output = made.offered[-1]
    step = made.header(output).tensors[made.header(output).output].scale
    assert step < 0.2
    assert made.cut_noises[output].head < step**2
    assert max(trial.measured for trial in made.manifest.trials) < FAR**2 / CLASSES / 4
