"""Classes of samples and their names, as people write them down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.samples.labels import read, read_names
from splitedge import errors
from tests.raising import raises

FILES = ["a.jpg", "b c.jpg", "\u00e9.jpg"]


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "file,class\na.jpg,2\nb c.jpg,0\n\u00e9.jpg,1\nother.jpg,x\n",
        "\ufefffile;class\r\na.jpg;2\r\n\r\nb c.jpg;0\r\ne\u0301.jpg;1\r\n",
        "a.jpg\t2\nb c.jpg\t0\n./\u00e9.jpg\t1\n",
        "images/a.jpg, 2\nimages/b c.jpg, 0\nimages\\\u00e9.jpg, 1\n",
        "a.jpg 2\nb c.jpg 0\n\u00e9.jpg 1\n",
        "2\n0\n1\n",
    ],
)
def test_tables_of_indices(tmp_path: Path, text: str) -> None:
    found = read(table(tmp_path, text), FILES, outputs=3)
    assert (found.classes.tolist(), found.names) == ([2, 0, 1], [])


def test_a_third_column_names_the_classes(tmp_path: Path) -> None:
    place = table(tmp_path, "file,index,name\na.jpg,2,cow\nb c.jpg,0,ant\n\u00e9.jpg,0,ant\n")
    assert read(place, FILES, outputs=4).names == ["ant", "1", "cow", "3"]
    assert read(place, FILES, ["w", "x", "y", "z"], 4).names == ["w", "x", "y", "z"]
    place = table(tmp_path, "a.jpg,2,cow\nb c.jpg,0,ant\n\u00e9.jpg,0,bee\n")
    with pytest.warns(UserWarning, match="row 3: class 0 is 'bee'"):
        assert read(place, FILES, outputs=4).names == []


def test_labels_may_be_names(tmp_path: Path) -> None:
    place = table(tmp_path, "file,class\na.jpg,cow\nb c.jpg,ant\n\u00e9.jpg,cow\n")
    found = read(place, FILES, outputs=2)
    assert (found.classes.tolist(), found.names) == ([1, 0, 1], ["ant", "cow"])
    assert read(place, FILES, ["cow", "dog", "ant"], 3).classes.tolist() == [0, 2, 0]
    with raises(errors.UsageError, reason="class-count"):
        read(place, FILES, outputs=3)
    with raises(errors.UsageError, reason="ambiguous-name"):
        read(place, FILES, ["cow", "ant", "cow"], 3)
    assert read(r"^(\w)", ["xa", "ya", "xb"], outputs=2).classes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "error", "data"),
    [
        ("file,class\na.jpg,1\nb c.jpg,dog\n\u00e9.jpg,2\n", errors.InputError, {"reason": "not-an-index"}),
        ("a.jpg,1\na.jpg,2\nb c.jpg,0\n\u00e9.jpg,2\n", errors.InputError, {"reason": "contradiction"}),
        ("a.jpg,1\n\u00e9.jpg,2\n", errors.UsageError, {"reason": "no-label", "missing": 1}),
        ("1\n2\n", errors.UsageError, {"reason": "row-count"}),
        ("", errors.UsageError, {"reason": "no-label", "missing": 3}),
        (b"a.jpg,\xe9\n", errors.InputError, {"reason": "not-utf8"}),
        ("file,class\na.jpg,11\nb c.jpg,2\n\u00e9.jpg,1" + "," * 3 + "x" * 200_000, errors.InputError, {"reason": "not-csv"}),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(
    tmp_path: Path, text: str | bytes, error: type[errors.SplitEdgeError], data: dict[str, object]
) -> None:
    with raises(error, **data):
        read(table(tmp_path, text), FILES, outputs=12)


def test_numbers_whose_order_is_not_that_of_the_alphabet(tmp_path: Path) -> None:
    """Twelve folders 0 to 11: ImageFolder takes "10" for the third class, others for the eleventh."""
    from calibration.samples.labels import by_name

    numbers = [str(i) for i in range(12)]
    assert by_name(numbers[:10], (), 10, tmp_path)[0]["9"] == 9
    with raises(errors.UsageError, reason="numeric-names"):
        by_name(numbers, (), 12, tmp_path)
    assert by_name(numbers, numbers, 12, tmp_path)[0]["10"] == 10


def test_arrays_of_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([2.0, 0.0, -1.0]))
    assert read(str(tmp_path / "y.npy"), FILES).classes.tolist() == [2, 0, -1]
    np.save(tmp_path / "y.npy", np.array([0.5, 1, 2]))
    with raises(errors.InputError, reason="not-indices"):
        read(str(tmp_path / "y.npy"), FILES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "tench\ngoldfish\n"),
        ("a.csv", "index,name\n0,tench\n1,goldfish\n"),
        ("b.csv", "file,imagenet_index,name\nx.jpg,1,goldfish\ny.jpg,0,tench\n"),
        ("c.csv", "\ufeff0;tench\r\n1;goldfish\r\n"),
        ("d.csv", "tench\ngoldfish\n"),
        ("b.txt", "\ufefftench\r\n\r\ngoldfish"),
        ("a.json", '\ufeff["tench", "goldfish"]'),
        ("c.json", '{"goldfish": 1, "tench": 0}'),
        ("b.json", '{"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}'),
    ],
)
def test_class_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_names(tmp_path / name) == ["tench", "goldfish"]


def test_class_names_that_are_none_are_refused(tmp_path: Path) -> None:
    for text in ("{", '{"a": "b"}', "3", '{"99999999999": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(errors.UsageError):
            read_names(tmp_path / "bad.json")
    (tmp_path / "bad.csv").write_text("")
    with raises(errors.UsageError, reason="no-names"):
        read_names(tmp_path / "bad.csv")
    with raises(errors.UsageError, reason="unreadable"):
        read_names(tmp_path / "absent.txt")
