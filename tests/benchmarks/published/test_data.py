"""The published measurements: every row fits its schema, its board and its source, and a wrong row is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from benchmarks.published import data, networks


def test_the_kept_rows_fit_the_schema_and_cover_what_the_model_needs():
    found = data.load()
    assert len(found.rows) > 800
    assert {row.board for row in found.rows} <= found.boards.keys()
    assert {row.source for row in found.rows} | {"sbc-bench"} == found.sources.keys()
    assert {one.core for one in found.boards.values()} == set(data.Core.__args__)
    assert {row.mark for row in found.rows} == set(data.Mark.__args__)
    assert all(row.mark == "measured" and row.network in networks.NAMES for row in found.compared)


def test_every_source_names_its_licence_and_address_and_every_copy_rate_its_origin():
    found = data.load()
    assert all(one.licence and one.address.startswith("https://") for one in found.sources.values())
    for board in found.boards.values():
        assert board.copy_source.startswith(("estimated: ", "sbc-bench: ")), board.title


@pytest.mark.parametrize(
    ("board", "network", "precision", "ms"),
    [
        ("pi4", "efficientnet_lite0", "int8", 29.43),
        ("pi4", "mobilenet_v2", "int8", 23.04),
        ("pi5", "mobilenet_v1", "int8", 8.68),
        ("jetson-nano", "resnet50", "int8", 157.87),
        ("orin-nano", "vgg16", "int8", 97.71),
    ],
)
def test_rows_hold_the_published_figures(board, network, precision, ms):
    assert ms in {
        row.ms
        for row in data.load().rows
        if (row.board, row.network, row.precision, row.mark) == (board, network, precision, "measured")
    }


@pytest.mark.parametrize(
    "row",
    [
        "pi4,4,resnet18,int4,ncnn,1.0,measured,2024,ncnn",
        "pi4,4,resnet18,int8,ncnn,-1.0,measured,2024,ncnn",
        "pi4,5,resnet18,int8,ncnn,1.0,measured,2024,ncnn",
        "pi9,4,resnet18,int8,ncnn,1.0,measured,2024,ncnn",
        "pi4,4,resnet19,int8,ncnn,1.0,measured,2024,ncnn",
        "pi4,4,resnet18,int8,ncnn,1.0,measured,2024,nobody",
        "pi4,4,resnet18,int8,ncnn,1.0,guessed,2024,ncnn",
        "pi4,4,resnet18,int8,ncnn,2.0,measured,2024,ncnn",  # a second figure for the same run
    ],
)
def test_a_row_that_contradicts_the_schema_or_another_file_is_refused(tmp_path: Path, row):
    shutil.copy(data.FOLDER / "boards.json", tmp_path)
    head = (
        "board,threads,network,precision,runtime,ms,mark,year,source\npi4,4,resnet18,int8,ncnn,1.0,measured,2024,ncnn\n"
    )
    (tmp_path / "measurements.csv").write_text(head + row + "\n")
    with pytest.raises((ValueError, msgspec.ValidationError)):
        data.load(tmp_path)
