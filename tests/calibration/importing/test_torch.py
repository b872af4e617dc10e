"""Torch modules and exported programs become the ONNX models that they are."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.importing import importer
from splitedge import errors
from tests.raising import raises

pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODULE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )

def wrong():
    return 3

def talking():
    print("Loaded pretrained weights")
    return make()

def broken():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def torch() -> Any:
    """Imported when a test runs: where these are left out, nothing loads it."""
    return pytest.importorskip("torch")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's that makes networks."""
    name = f"user_model_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    made = importer.session(model)
    return made.run(None, {made.get_inputs()[0].name: x})[0]


def test_torch_module_by_name(torch: Any, module: str) -> None:
    model = importer.load(f"{module}:make", [1, 3, 8, 8])
    wanted = sys.modules[module].make().eval()
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(model, x.numpy()), wanted(x).detach().numpy(), rtol=1e-3, atol=1e-4)
    assert {n.op_type for n in model.graph.node} <= {"Conv", "Relu", "Flatten", "Reshape", "Gemm"}


def test_exported_program(torch: Any, module: str, tmp_path: Path) -> None:
    __import__(module)
    path = tmp_path / "model.pt2"
    net = sys.modules[module].make().eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), path)
    x = torch.randn(1, 3, 8, 8)
    np.testing.assert_allclose(run(importer.load(str(path)), x.numpy()), net(x).detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("attribute", "reason"), [("wrong", "not-a-module"), ("broken", "call-failed"), ("absent", "call-failed")]
)
def test_a_callable_that_yields_no_module_is_refused(module: str, attribute: str, reason: str) -> None:
    with raises(errors.ModelError, reason=reason):
        importer.load(f"{module}:{attribute}", [1, 3, 8, 8])


def test_a_corrupt_exported_program_does_not_point_at_a_log(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/something", b"x")
    with raises(errors.ModelError, reason="not-an-exported-program") as caught:
        importer.load(str(path))
    assert "warnings above" not in caught.value.message


def test_what_a_callable_prints_is_not_on_standard_output(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    importer.load(f"{module}:talking", [1, 3, 8, 8])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Loaded pretrained weights" in printed.err
