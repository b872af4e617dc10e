"""Descriptions of outputs from a server: those that do not fit are refused before a frame is answered."""

from __future__ import annotations

import pytest

from splitedge import tasks
from splitedge.protocol.messages import Columns, Detection, Greatest, Output, Part, Segmentation

BOXES = Detection(Columns(0, 0, 4), Columns(0, 4, 3))


@pytest.mark.parametrize(
    "output",
    [
        Output("tensor", [9, 7], task=BOXES),
        Output("tensor", [5, 8, 8], task=Segmentation(0)),
        Output("tensor", [20], parts=[Part("a", [4, 4], 2.0), Part("b", [4])]),
    ],
)
def test_what_fits_is_accepted(output: Output) -> None:
    assert tasks.fits(output)


@pytest.mark.parametrize(
    "output",
    [
        Output("logits", [9, 7], task=BOXES),
        Output("tensor", [9, 7], Greatest(0, [9, 7]), task=BOXES),
        Output("tensor", [9, 8, 7], task=BOXES),
        Output("tensor", [2, 1 << 20, 1 << 20], task=Segmentation(0)),
        Output("tensor", [2, 4096, 4096], task=Segmentation(0)),
        Output("tensor", [20], parts=[Part("a", [-4, -5])]),
        Output("tensor", [20], parts=[Part("a", [20] + [1] * 100)]),
        Output("tensor", [20], parts=[Part("a", [10]), Part("a", [10])]),
        Output("tensor", [20], parts=[Part("a" * 101, [20])]),
        Output("tensor", [20], parts=[Part("a", [19])]),
        Output("tensor", [20], parts=[Part("a", [20], 1e300)]),
        Output("tensor", [20], parts=[Part("a", [20], 0.0)]),
        Output("tensor", [20], parts=[Part("a", [20], float("nan"))]),
        Output("tensor", [20], parts=[Part("a", [20])], task=Segmentation(0)),
    ],
)
def test_what_does_not_fit_is_refused(output: Output) -> None:
    assert not tasks.fits(output)
