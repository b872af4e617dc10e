"""The benchmark of start-up, on a head that is loaded in a moment."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks import startup
from device_profiles.measurement import one_operator
from device_profiles.schema import Shape
from kernels.cache import cache_base
from splitedge.head import Head
from splitedge.head import segment as seg


def run(**changes: float) -> dict[str, float]:
    return {"import": 1.0, "head": 0.5, "frame": 0.002, "rss": 180.0} | changes


def test_the_summary_is_the_median_of_each() -> None:
    cold, warm = [run(head=20.0), run(head=30.0)], [run(head=0.4), run(head=0.5), run(head=9.0)]
    rows, summary = startup.figures(cold, warm, {"edge-agent --help": [0.3, 0.2, 0.4]})
    assert summary["startup.cold_head_s"] == 25.0
    assert summary["startup.warm_head_s"] == 0.5
    assert (summary["startup.import_s"], summary["startup.rss_mib"]) == (1.0, 180.0)
    assert {tuple(row) for row in rows} == {("what", "processes", "median s", "least s", "most s")}
    assert [row["median s"] for row in rows if row["what"] == "edge-agent --help"] == [0.3]


@pytest.mark.slow
def test_a_process_tells_its_times_and_its_memory(tmp_path: Path) -> None:
    segment = one_operator("lut", Shape(1, 1, 64, 64))
    answer = Head(segment, check_golden=False).run(seg.golden_frame(segment.header))
    path = tmp_path / "small.segment"
    segment.header.golden.sha256 = hashlib.sha256(answer.tobytes()).hexdigest()
    path.write_bytes(seg.build(segment.header, segment.blob.tobytes()))
    found = startup.start(path, cache_base())
    assert all(value > 0 for value in found.values())
    assert 30 < found["rss"] < 2000


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No module named"):
        startup.seconds(("-m", "edge_agent_that_is_not_there"), tmp_path)
