"""Forty networks of many years' operators: what is imported, every cut and every mode answer as the file does unoptimized, but for the promised noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from calibration.accuracy.evaluation import CutNoise
from calibration.bundle import creation
from calibration.bundle.bundle import Bundle
from calibration.importing import importer, quantized
from calibration.importing.graph import Graph
from calibration.samples.samples import Samples
from edge_server.tails.pool import LoadedTail
from splitedge import codec
from splitedge.head import executor
from splitedge.head.preprocess import quantize_tensor
from splitedge.protocol.messages import Codec, Preprocess
from tests.cases import many
from tests.cases.build import unoptimized

F32 = NDArray[np.float32]

SAMPLES = 12
#: Promised at 8 bits, as a share of the answers' mean square: an operator that computes something else is off by more.
PROMISED = 0.01
#: What is measured may exceed what is promised by so much, which is less than any fault would do: the server's tail sums in another order.
SLACK = 1.05

MODELS = [*range(28), *((make, opset) for make in many.OTHERS for opset in (9, 13, 18))]


def made(which: object) -> tuple[onnx.ModelProto, list[int]]:
    return many.model(which) if isinstance(which, int) else which[0](which[1])  # type: ignore[index]


def name_of(which: object) -> str:
    return str(which) if isinstance(which, int) else f"{which[0].__name__}-{which[1]}"  # type: ignore[index]


def given(file: onnx.ModelProto, sample: F32) -> NDArray[np.generic]:
    """A sample (channels last) as the file takes it."""
    kind = file.graph.input[0].type.tensor_type
    if kind.elem_type == TensorProto.INT64:
        return sample[None].astype(np.int64)
    last = sample.ndim == 3 and kind.shape.dim[3].dim_value == sample.shape[2]
    return sample[None] if last or sample.ndim < 3 else np.ascontiguousarray(sample.transpose(2, 0, 1)[None])


@pytest.mark.slow
@pytest.mark.parametrize("which", MODELS, ids=name_of)
def test_import_cuts_and_modes_answer_as_the_file(tmp_path: Path, which: object) -> None:
    file, shape = made(which)
    random = np.random.default_rng(7)
    samples = Samples(Preprocess("tensor", shape), [many.sample(shape, random) for _ in range(SAMPLES)])
    wanted = np.stack([unoptimized(file, given(file, x)).reshape(-1) for x in samples])
    onnx.save(file, tmp_path / "file.onnx")

    model = importer.load(str(tmp_path / "file.onnx"))

    assert Graph.of(model).stored_shape("x") == shape
    run = importer.session(model)
    entry = onnx.ModelProto()
    entry.graph.input.append(Graph.input_of(model))
    found = np.stack([run.run(None, {"x": given(entry, x)})[0].reshape(-1) for x in samples])
    rounds = quantized.is_quantized(file)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=(0.02 if rounds else 1e-4) * np.abs(wanted).max())
    wanted = found if rounds else wanted  # what the float form of a quantized file answers

    opened = creation.create(tmp_path / "bundle", "many", model, samples, rounding="plain", metric="cosine")

    assert opened.cuts[-1].kind == "output"
    energy = float((wanted.astype(np.float64) ** 2).mean())
    for index in opened.offered:
        check_cut(opened, index, samples, wanted, energy)


def check_cut(opened: Bundle, index: int, samples: Samples, wanted: F32, energy: float) -> None:
    """Mode "server" at the input, "device" at the output, "split" between: with the tensor as it is, and coded in 8 bits."""
    promised: CutNoise = opened.cut_noises[index]
    pairs: list[tuple[Codec | None, float]] = [(None, promised.head)]
    if opened.cuts[index].kind != "output":
        coded = next(one for one in promised.codecs if one.bits == 8)
        pairs = [(opened.exact_codec(index), promised.head), (opened.codec(index, coded.rule, 8), coded.noise)]
    for made_by, noise in pairs:
        found = answers(opened, index, samples, made_by).reshape(wanted.shape)
        measured = float(((found.astype(np.float64) - wanted) ** 2).mean())
        assert noise <= PROMISED * energy, (opened.cuts[index], made_by)
        assert measured <= SLACK * noise + 1e-9 * energy, (opened.cuts[index], made_by)


def answers(opened: Bundle, index: int, samples: Samples, made_by: Codec | None) -> F32:
    """What agent and server answer together [n, ...], in ONNX order."""
    cut, head = opened.cuts[index], executor.load(opened.segment(index, 8))
    tail = None if made_by is None else LoadedTail(opened.tail(index) or b"", cut.shape, cut.padding)
    found = []
    for x in samples:
        values = head.run(x.astype(np.int32) if head.input.dtype == "i32" else encoded(x, head))
        if tail is None or made_by is None:
            y = real(values, head)
            y = y.transpose(2, 0, 1) if y.ndim == 3 else y
        elif head.output.dtype == "u8":
            payload = codec.encode_codes(values, head.output.scale, head.output.zero_point, made_by)
            y = tail.run(codec.decode(payload, made_by, values.shape))
        else:
            y = tail.run(codec.decode(codec.encode(values, made_by), made_by, values.shape))
        found.append(y)
    return np.stack(found)


def encoded(x: F32, head: executor.Head) -> NDArray[np.generic]:
    return quantize_tensor(x, head.input) if head.input.dtype == "u8" else x


def real(values: NDArray[np.generic], head: executor.Head) -> F32:
    if head.output.dtype != "u8":
        return values.astype(np.float32)
    return ((values.astype(np.float32) - head.output.zero_point) * head.output.scale).astype(np.float32)
