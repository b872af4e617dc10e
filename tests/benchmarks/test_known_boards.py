"""The profiles of known boards are what the script makes of published figures and counted cycles."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from benchmarks import known_boards
from device_profiles import known, schema
from device_profiles.schema import Kernel, Shape


def test_every_board_has_its_file():
    assert sorted(board.name for board in known_boards.BOARDS) == known.names()


COST = known_boards.Cost(
    lanes=4, group=4, widest=4, macs={f"{rows}x{v}": 32.0 for rows in ("tall", "one") for v in (1, 2, 3, 4)}, epilogue=1.0,
    depthwise={"3": 32.0, "5": 48.0}, block=16, add=2.0, lut=1.0, pool=0.25,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "shape", "cycles"),
    [
        ("pointwise", Shape(14, 14, 480, 112), 196 * 112 * (480 / 32 + 1)),
        ("pointwise", Shape(14, 14, 480, 110), 196 * 112 * (480 / 32 + 1)),  # the last vector is computed whole
        (
            "conv",
            Shape(224, 224, 3, 32, k=3, stride=2),
            112 * 112 * 32 * (36 / 32 + 1),
        ),  # rows of 9 bytes take groups of 12
        ("depthwise", Shape(28, 28, 144, 144, k=5), 28 * 28 * 9 * 48),
        ("add", Shape(14, 14, 112, 112), 14 * 14 * 112 * 2),
    ],
)
def test_cycles_are_those_of_the_loops(kind, shape, cycles):
    assert known_boards.cycles(COST, kind, shape) == pytest.approx(cycles)


@pytest.mark.parametrize("name", ["pi4", "pi5", "jetson-nano", "orin-nano"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_kernel_on_arm_takes_as_long_as_other_programs_need_and_no_less_than_its_own_loops(name, threads):
    board = next(one for one in known_boards.BOARDS if one.name == name)
    alone = dataclasses.replace(board, cpu="a core that nobody published")
    for kind, shape in known_boards.SHAPES:
        found, counted = (known_boards.kernel(one, COST, kind, shape, threads).time_us for one in (board, alone))
        reached = known_boards._reached_us(board, kind, shape, threads)
        assert found == pytest.approx(max(counted, reached or 0.0), abs=0.01)
        assert (reached is None) == (kind in ("add", "lut", "pool"))
    assert known_boards._reached_us(board, "conv", Shape(56, 56, 64, 64, k=3), threads) > 0


def test_a_board_whose_core_nobody_published_has_the_wider_band():
    bands = {board.name: known_boards.band(board) for board in known_boards.BOARDS}
    assert all(one.fast < 1 < one.slow for one in bands.values())
    assert all(one.fast * one.slow == pytest.approx(1, abs=0.01) for one in bands.values())
    assert bands["x86-avx2"] == bands["x86-vnni"]
    assert bands["x86-avx2"].slow > max(bands[name].slow for name in ("pi4", "pi5", "jetson-nano", "orin-nano"))


def test_memory_bounds_what_computes_little_and_threads_share_what_computes_much():
    board = dataclasses.replace(known_boards.BOARDS[0], cpu="a core that nobody published")

    def kernel(kind: schema.KernelKind, shape: Shape, threads: int) -> Kernel:
        return known_boards.kernel(board, COST, kind, shape, threads)

    dense = kernel("dense", Shape(1, 1, 1280, 1000), 1)
    assert dense.gbps == pytest.approx(board.copy_gbps, rel=1e-3)
    one, four = (kernel("conv", Shape(56, 56, 64, 64, k=3), threads).time_us for threads in (1, 4))
    assert four == pytest.approx(one / 4 + known_boards.TEAM_US, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("llvm-mca-19"), reason="llvm-mca-19 is not here")
@pytest.mark.parametrize("board", known_boards.BOARDS, ids=lambda board: board.name)
def test_the_files_are_what_the_script_makes(board):
    """Within 3 %: a change of a kernel may move a cycle. Else run `python -m benchmarks.known_boards`."""
    made, kept = known_boards.profile(board, known_boards.cost(board)), known.load(board.name)
    assert [k.name for k in made.kernels] == [k.name for k in kept.kernels]
    assert [k.time_us for k in made.kernels] == pytest.approx([k.time_us for k in kept.kernels], rel=0.03)
    made.kernels, made.origins = (
        kept.kernels,
        made.origins | {k: v for k, v in kept.origins.items() if k.startswith("kernels")},
    )
    made.chosen = kept.chosen
    assert made == kept


def test_the_epilogue_is_what_a_usual_tile_runs():
    assembly = """
tile:
.LBB0_1:
    sdot v1.4s, v2.16b, v3.16b
    b.lt .LBB0_1
    scvtf v1.4s, v1.4s
    fcvtns v1.4s, v1.4s
    sqxtn v1.4h, v1.4s
    cbz w2, .LBB0_3
    sqadd v1.8h, v1.8h, v0.8h
.LBB0_3:
    sqxtun v1.8b, v1.8h
    b.lt .LBB0_9
    str q1, [x1]
"""
    kept = known_boards.epilogue(assembly)
    assert [line.split()[0] for line in kept] == ["scvtf", "fcvtns", "sqxtn", "sqxtun"]
