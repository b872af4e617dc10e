"""Every kernel computes the committed hashes, on every instruction set that this machine has; scripts/test-arm asks for the same of emulated ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import isa
from tests.kernels import golden

ROOT = Path(__file__).parents[2]
# The other sets compile every kernel anew, which takes a minute each; scripts/test-arm tests all of them, too.
HERE = [
    pytest.param(name, marks=[] if name == isa.ISA else [pytest.mark.thorough])
    for name in isa.usable(isa.host_features())
]


@pytest.mark.parametrize("group", golden.GROUPS)
def test_the_committed_hash_is_that_of_the_twins(group: str) -> None:
    assert golden.digest(group, twin=True) == golden.expected()[group]


@pytest.mark.slow
@pytest.mark.timeout(600)  # it compiles every kernel
@pytest.mark.parametrize("name", HERE)
def test_an_instruction_set_computes_the_committed_hashes(name: str) -> None:
    environment = os.environ | {"SPLITEDGE_ISA": name, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.kernels.golden"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT, timeout=580)
    assert json.loads(child.stdout) == golden.expected()


def test_each_size_follows_each_in_a_walk() -> None:
    order = [golden.SIZES[0], *golden.walk()]
    assert set(itertools.pairwise(order)) == {(a, b) for a in golden.SIZES for b in golden.SIZES}
    assert len(order) == len(golden.SIZES) ** 2 + 1
