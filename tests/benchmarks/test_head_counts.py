"""Counts of whole heads: the plugin's cache is that of a plain twin, and its output becomes a row."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections import OrderedDict

import numpy as np
import pytest

from benchmarks import head_counts
from benchmarks.published import networks

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


class Twin:
    """A cache as one ordered dictionary for each set."""

    def __init__(self, kib: int, ways: int) -> None:
        self.ways = ways
        self.sets: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(kib * 1024 // head_counts.LINE // ways)]

    def find(self, line: int) -> bool:
        lines = self.sets[line % len(self.sets)]
        there = line in lines
        lines[line] = None
        lines.move_to_end(line)
        if len(lines) > self.ways:
            lines.popitem(last=False)
        return there


@needs_compiler
def test_the_caches_of_the_plugin_miss_what_a_plain_twin_misses(tmp_path):
    plugin = ctypes.CDLL(str(head_counts.build(tmp_path)), mode=os.RTLD_LAZY)
    twins = [Twin(4, 2), Twin(16, 8)]
    assert all(plugin.add_level(kib, ways) & 1 for kib, ways in ((4, 2), (16, 8)))
    random = np.random.default_rng(3)
    addresses = np.concatenate([random.integers(0, 1 << 15, 20_000), np.tile(np.arange(0, 12_288, 8), 5)])
    for address in addresses.tolist():
        missed = next((level for level, one in enumerate(twins) if one.find(address // head_counts.LINE)), len(twins))
        assert plugin.look_up(ctypes.c_uint64(address)) == missed


@needs_compiler
@pytest.mark.parametrize(("kib", "ways"), [(0, 2), (32, 0), (1, 3), (-1, 1)])
def test_a_cache_without_whole_sets_is_refused(tmp_path, kib, ways):
    plugin = ctypes.CDLL(str(head_counts.build(tmp_path)), mode=os.RTLD_LAZY)
    assert not plugin.add_level(ctypes.c_long(kib), ctypes.c_long(ways)) & 1


def test_the_last_count_becomes_a_row():
    core = head_counts.CORES[1]
    output = "warning\ncounted 1 2 3 4 5 6\ncounted 100000000 2000000 1000000 15625 1000 500\n"
    row = head_counts.row(core, output, 25.0)  # at 2400 MHz: 60 M cycles
    assert (row["core counted"], row["instructions, M"], row["loads, M"]) == ("cortex-a76", 100.0, 2.0)
    assert row["a cycle, predicted"] == pytest.approx(100 / 60)
    assert row["products each"] == networks.products("efficientnet_lite0") / 1e8
    assert (row["beyond L1, MB"], row["from memory, MB"]) == (1.0, 0.032)


@pytest.mark.slow
@pytest.mark.skipif(bool(head_counts.unmet()), reason=head_counts.unmet() or "all is here")
def test_a_head_takes_less_than_one_instruction_for_each_product():
    for row in head_counts.counted():
        assert row["products each"] > 2
        assert 0 < row["a cycle, predicted"] < row["a cycle, at most"]
        assert row["from memory, MB"] > row["weights, MB"]
        assert row["beyond L1, MB"] > row["from memory, MB"]
