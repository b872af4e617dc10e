"""Quantized ONNX files: the float form without codes, their scales and weights taken over, and a head with their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from calibration.bundle import creation
from calibration.importing import importer, quantized
from calibration.importing.graph import Graph, inputs
from calibration.lowering import layers
from calibration.lowering.lower import lower
from calibration.samples.samples import Samples
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Preprocess
from tests import models as model_files
from tests import small_models as small
from tests.cases import models
from tests.cases.build import File, unoptimized
from tests.small_transformers import TOKENS

F32 = NDArray[np.float32]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, samples: list[F32]) -> None:
        self.left: Iterator[F32] = iter(samples)
        self.name = name

    def get_next(self) -> dict[str, F32] | None:
        x = next(self.left, None)
        return None if x is None else {self.name: x}


def int8_file(folder: Path, make: Callable[[], Any], **options: Any) -> tuple[onnx.ModelProto, list[F32]]:
    """The file of ``make`` after ONNX Runtime's quantizer, in ``folder``/int8.onnx, and its samples in ONNX order."""
    onnx.save(importer.simplify(make()), folder / "float.onnx")
    entry = inputs(onnx.load(folder / "float.onnx").graph)[0]
    shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
    random = np.random.default_rng(0)
    samples = [random.normal(size=shape).astype(np.float32) for _ in range(8)]
    quantize_static(folder / "float.onnx", folder / "int8.onnx", Reader(entry.name, samples), **options)
    return onnx.load(folder / "int8.onnx"), samples


FORMS = {
    "qdq": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8},
    "qdq, signed": {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
    },
    "qdq, per channel": {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
    "qoperator": {
        "quant_format": QuantFormat.QOperator,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [small.resnet, small.mobilenet, small.mlp], ids=["resnet", "mobilenet", "mlp"])
def test_an_int8_file_keeps_its_integers(tmp_path: Path, make: Callable[[], Any], form: str) -> None:
    file, samples = int8_file(tmp_path, make, **FORMS[form])

    model = importer.load(str(tmp_path / "int8.onnx"))

    assert quantized.is_quantized(file)
    assert not quantized.is_quantized(model)
    graph = Graph.of(model)
    network = layers.build(graph)
    assert not network.unsupported
    shape = graph.stored_shape(graph.input)
    stored = [x[0].transpose(1, 2, 0) if x.ndim == 4 else x[0] for x in samples]
    calibration = creation.calibrate(model, network, Samples(Preprocess("tensor", shape), stored))
    codes = quantized.codes(model)
    taken = {t for t, q in calibration.quantizations.items() if codes.get(t) == (q.scale, q.zero_point)}
    assert {graph.input, graph.output} <= taken
    assert len(taken) >= 0.9 * len(calibration.quantizations)
    for layer in network.weighted(graph.output):
        assert calibration.rounded(layer, 8, calibration.quantizations[layer.inputs[0]].scale).exact
    head = lower(network, calibration, graph.output, 8).head()
    (name,) = (i.name for i in inputs(file.graph))
    apart = []
    for x, own in zip(samples, stored, strict=True):
        found = head.run(quantize_tensor(own, head.input)).astype(int).reshape(-1)
        real = unoptimized_of(file, name, x).reshape(-1)
        apart.append(np.abs(found - np.rint(real / head.output.scale) - head.output.zero_point))
        (float_answer,) = importer.session(model).run(None, {inputs(model.graph)[0].name: x})
        assert np.abs(float_answer.reshape(-1) - real).max() <= 8 * head.output.scale
    assert np.max(apart) <= 2
    assert (np.stack(apart) == 0).mean() >= 0.8


def unoptimized_of(file: onnx.ModelProto, name: str, x: F32) -> F32:
    """What ONNX Runtime answers with graph optimization off."""
    copy = onnx.ModelProto()
    copy.CopyFrom(file)
    for node in copy.graph.node:
        for place, read in enumerate(node.input):
            node.input[place] = "x" if read == name else read
    next(i for i in copy.graph.input if i.name == name).name = "x"
    return unoptimized(copy, x).astype(np.float32)


def test_dynamically_quantized_products_keep_their_weights(tmp_path: Path) -> None:
    onnx.save(importer.simplify(small.mlp()), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", per_channel=True)
    file = onnx.load(tmp_path / "int8.onnx")
    assert "MatMulInteger" in {node.op_type for node in file.graph.node}
    model = importer.load(str(tmp_path / "int8.onnx"))
    network = layers.build(Graph.of(model))
    assert not network.unsupported
    weighted = network.weighted(network.graph.output)
    assert weighted
    assert not {"Mul", "Cast"} & {node.op_type for node in model.graph.node}
    name = inputs(file.graph)[0].name
    x = np.random.default_rng(0).normal(size=(1, *network.graph.shapes[network.graph.input][1:])).astype(np.float32)
    wanted = unoptimized_of(file, name, x)
    (found,) = importer.session(model).run(None, {inputs(model.graph)[0].name: x})
    assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max()


def cut_off(zero: int, kind: type = np.uint8) -> onnx.ModelProto:
    """Codes from ``zero`` after a convolution: at 0 they replace a ReLU."""
    file = File(models.SHAPE, opset=13)
    models._conv(file)
    scale, point = file.constant(0.02), file.constant(zero, kind)
    file.add("QuantizeLinear", file.last, scale, point)
    file.add("DequantizeLinear", file.last, scale, point)
    return models._classifier(file)


@pytest.mark.parametrize(("zero", "kind"), [(0, np.uint8), (-128, np.int8), (100, np.uint8)])
def test_values_beyond_the_codes_are_cut_off(tmp_path: Path, zero: int, kind: type) -> None:
    original = cut_off(zero, kind)
    onnx.save(original, tmp_path / "model.onnx")
    model = importer.load(str(tmp_path / "model.onnx"))
    x = np.random.default_rng(0).normal(size=models.SHAPE).astype(np.float32)
    (found,) = importer.session(model).run(None, {"x": x})
    wanted = unoptimized(original, x)
    assert np.abs(found - wanted).max() <= 0.02
    assert not layers.build(Graph.of(model)).unsupported


def test_an_unknown_form_stays_as_it_is(tmp_path: Path) -> None:
    """A scale that the model computes."""
    file = File(models.SHAPE, opset=13)
    plane = models._conv(file)
    file.add("Abs")
    scale = file.add("ReduceMax", keepdims=0)
    point = file.constant(128, np.uint8)
    file.add("QuantizeLinear", plane, scale, point)
    file.add("DequantizeLinear", file.last, scale, point)
    original = models._classifier(file)
    onnx.save(original, tmp_path / "model.onnx")
    model = importer.load(str(tmp_path / "model.onnx"))
    assert quantized.is_quantized(model)
    x = np.random.default_rng(0).normal(size=models.SHAPE).astype(np.float32)
    np.testing.assert_allclose(
        importer.session(model).run(None, {"x": x})[0], unoptimized(original, x), rtol=1e-4, atol=1e-5
    )


def test_an_input_of_codes_becomes_real(tmp_path: Path) -> None:
    file = File(models.SHAPE, opset=13, element=TensorProto.UINT8)
    scale, point = file.constant(1 / 64), file.constant(128, np.uint8)
    file.add("DequantizeLinear", file.last, scale, point)
    models._conv(file)
    original = models._classifier(file)
    onnx.save(original, tmp_path / "model.onnx")
    model = importer.load(str(tmp_path / "model.onnx"))
    assert quantized.codes(model)["x"] == (1 / 64, 128)
    x = np.random.default_rng(0).integers(0, 256, models.SHAPE).astype(np.uint8)
    (found,) = importer.session(model).run(None, {"x": (x.astype(np.float32) - 128) / 64})
    np.testing.assert_allclose(found, unoptimized(original, x), rtol=1e-4, atol=1e-5)


class Texts(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seeds = iter(range(8))

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        seed = next(self.seeds, None)
        if seed is None:
            return None
        ids = np.random.default_rng(seed).integers(1, 50, (1, TOKENS))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("form", ["qdq", "qoperator", "dynamic"])
def test_a_quantized_transformer_keeps_its_whole_head(tmp_path: Path, form: str) -> None:
    """Tables of embeddings are quantized too, and no Clip comes between the operators of attention and GELU."""
    source = model_files.path("traced-bert-17-fixed")
    if form == "dynamic":
        quantize_dynamic(source, tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    else:
        options = {"quant_format": QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator}
        quantize_static(source, tmp_path / "int8.onnx", Texts(), weight_type=QuantType.QInt8, **options)
    model = importer.load(str(tmp_path / "int8.onnx"))
    assert not quantized.is_quantized(model)
    assert not layers.build(Graph.of(model)).unsupported
    ids = np.random.default_rng(9).integers(1, 50, (1, TOKENS))
    wanted, found = (importer.session(one).run(None, {"input_ids": ids})[0] for one in (importer.load(source), model))
    assert np.linalg.norm(found - wanted) <= 0.2 * np.linalg.norm(wanted)
