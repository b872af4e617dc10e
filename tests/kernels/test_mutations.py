"""The golden hashes notice a kernel that is wrong in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import golden

ROOT = Path(__file__).parents[2]
UNOPTIMIZED = """
import runpy
import kernels
from numba.core import config
config.OPT = config._OptLevel(0)
runpy.run_module("tests.kernels.golden", run_name="__main__", alter_sys=True)
"""
MUTATIONS = {
    # name: file, line, what it becomes, group of golden.py
    "rounding constant": ("emit.py", "ROUND: Final = 12582912.0", "ROUND: Final = 12582913.0", "linear"),
    "lower clamp": ("emit.py", 'icmp_unsigned(">", codes, lo), codes, lo)', 'icmp_unsigned(">", codes, lo), codes, codes)', "gemm"),
    "order of the columns in a panel": ("operators/gemm.py", "rows.transpose(1, 0, 2)", "rows[::-1].transpose(1, 0, 2)", "gemm"),
    "height of a tile": ("operators/gemm.py", "row += turns * height", "row += turns * height + height // 4", "gemm"),
    "rows of a padded copy": ("operators/conv.py", "        target += line\n", "        target += line + pitch\n", "conv"),
    "order of the channels in a block": ("operators/depthwise.py", "q * 4 * GROUP + j * 4 + e", "q * 4 * GROUP + e * GROUP + j", "depthwise"),
    "zero point of padding": ("operators/depthwise.py", "zeros + window.width * channels] = zero_x", "zeros + window.width * channels] = np.uint8(0)", "depthwise"),
    "zero point of a row": ("operators/float_gemm.py", "centred = b.sub(acc[r * vectors + v], b.mul(total, zero))", "centred = acc[r * vectors + v]", "linear"),
    "order of a sum": ("operators/float_rows.py", "for distance in (8, 4, 2, 1):", "for distance in (1, 2, 4, 8):", "norm"),
    "idle lanes of a softmax": ("operators/float_rows.py", 'kept(block.mask, float("-inf")) - top', "kept(None, 0.0) - top", "attention"),
    "spread of a group": ("operators/elementwise.py", "n * squares - total * total", "n * squares - total", "normalize"),
    "last column of a plane": ("operators/elementwise.py", "min(column + 1, window.width - 1)", "min(column + 1, window.width)", "resample"),
    "upper clamp of the codec": ("codec/fused_ir.py", 'fcmp_ordered(">", code, most), most, code)', 'fcmp_ordered(">", code, most), code, code)', "codec"),
    "lower clamp of the codec": ("codec/ranges.py", "v = v if v > np.float32(0) else np.float32(0)  # NaN", "v = v if v > np.float32(1) else np.float32(0)  # NaN", "codec"),
    "place of a code in its lane": ("codec/fused_ir.py", "shifts = [place % 8 for place in places]", "shifts = [place % 7 for place in places]", "codec"),
    "rows below each other": ("codec/fused_ir.py", "b.add(first, b.mul(row, step))", "b.add(first, b.mul(row, I64(GROUP)))", "stages"),
    "order of packed codes": ("codec/bits.py", "pairs[i] | (pairs[i] >> np.uint16(4))", "(pairs[i] << np.uint16(4)) | (pairs[i] >> np.uint16(8))", "codec"),
    "rounding of frequencies": ("rans/adaptive.py", "at += 1 + counts[c, s] * spare // total", "at += 1 + (counts[c, s] * spare + 1) // total", "entropy"),
    "place of an epoch's end": ("rans/adaptive.py", "max(FIRST, begin >> 2)", "max(FIRST, begin >> 3)", "entropy"),
}  # fmt: skip


def hashes(folder: Path, *groups: str) -> dict[str, str]:
    """Of ``groups``, by the kernels in ``folder``. Compiled without optimization, which changes no bit and takes half the time."""
    settings = {"PYTHONPATH": f"{folder}:{ROOT}", "SPLITEDGE_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-P", "-c", UNOPTIMIZED, *groups]
    child = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=True, cwd=folder, timeout=500
    )
    found: dict[str, str] = json.loads(child.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the kernels."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.thorough  # each compiles kernels
@pytest.mark.timeout(600)
def test_a_plain_copy_computes_the_committed_hashes(folder: Path) -> None:
    assert hashes(folder) == golden.expected()


@pytest.mark.slow
@pytest.mark.thorough  # each compiles kernels
@pytest.mark.timeout(600)
def test_words_one_by_one_are_the_bytes_of_a_group(folder: Path) -> None:
    """As AVX-512 without VBMI stores them, and everything else."""
    path = folder / "kernels" / "codec" / "fused_ir.py"
    text = path.read_text()
    line = 'BYTES: Final = TARGET.bits == 512 and "avx512vbmi" in isa.host_features()'
    assert text.count(line) == 1
    path.write_text(text.replace(line, "BYTES: Final = False"))
    assert hashes(folder, "codec")["codec"] == golden.expected()["codec"]


@pytest.mark.slow
@pytest.mark.thorough  # each compiles kernels
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTATIONS)
def test_one_wrong_line_is_noticed(folder: Path, name: str) -> None:
    file, line, mutated, group = MUTATIONS[name]
    path = folder / "kernels" / file
    text = path.read_text()
    assert text.count(line) == 1, "the line to change is no longer there once: name another"
    path.write_text(text.replace(line, mutated))
    assert hashes(folder, group)[group] != golden.expected()[group]
