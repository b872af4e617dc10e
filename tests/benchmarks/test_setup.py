"""The benchmark of a fresh clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import setup
from splitedge import errors
from tests.raising import raises


def test_a_new_user_has_an_empty_home_and_the_same_package_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITEDGE_TOKEN", "secret")
    monkeypatch.setenv("PIP_TIMEOUT", "77")
    found = setup.fresh(tmp_path / "home")
    assert Path(found["HOME"]).is_dir()
    assert not list(Path(found["HOME"]).iterdir())
    assert found["PIP_TIMEOUT"] == "77"
    assert "SPLITEDGE_TOKEN" not in found


def test_a_clone_is_of_the_commit_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, author = tmp_path / "tree", ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    for text in ("one", "two"):
        (tree / "file").write_text(text)
        subprocess.run(["git", "add", "file"], cwd=tree, check=True)
        subprocess.run(["git", *author, "commit", "-qm", text], cwd=tree, check=True)
    monkeypatch.setattr(setup, "ROOT", tree)
    assert (setup.cloned(tmp_path / "last") / "file").read_text() == "two"
    assert (setup.cloned(tmp_path / "former", "HEAD~1") / "file").read_text() == "one"


def test_goals_have_a_direction() -> None:
    assert setup._goal("demo.repeat_s") == "at most 15"
    assert setup._goal("add.speedup") == "at least 4"
    assert setup._goal("demo.compile_s") == "-"


def test_unknown_parts_are_refused() -> None:
    with raises(errors.UsageError, reason="unknown-part"):
        setup.main(["--parts", "demo,tests"])


def test_the_part_effort_needs_photographs() -> None:
    with raises(errors.UsageError, reason="no-images"):
        setup.main(["--parts", "effort"])
