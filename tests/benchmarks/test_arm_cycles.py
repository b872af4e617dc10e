"""The ARM micro-kernels, compiled here: each uses its instruction, and no main loop spills a register."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import arm_cycles


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "step"), [("i8mm", "usmmla"), ("dotprod", "sdot"), ("neon", "sadalp")])
def test_every_tile_keeps_to_its_registers(isa: str, step: str, root: Path) -> None:
    child = [sys.executable, "-c", arm_cycles.CHILD, isa]
    tiles = json.loads(subprocess.run(child, capture_output=True, text=True, check=True, cwd=root).stdout)
    assert len(tiles) > 9
    for name, (assembly, macs) in tiles.items():
        loop = arm_cycles.busiest_loop(assembly)
        assert not [line for line in loop if "[sp" in line], name
        steps = sum(line.startswith(step) for line in loop)
        assert steps * (32 if isa == "i8mm" else 16) >= macs, name


def test_a_loop_is_cut_out_of_assembly() -> None:
    assembly = "tile:\n  cbz x8, .LBB0_2\n.LBB0_1:\n  ldr q0, [x0] // 16 bytes\n  sdot v1.4s, v0.16b, v2.16b\n  b.lo .LBB0_1\n.LBB0_2:\n  ret\n"
    assert arm_cycles.busiest_loop(assembly) == ["ldr q0, [x0]", "sdot v1.4s, v0.16b, v2.16b", "b.lo .LBB0_1"]
