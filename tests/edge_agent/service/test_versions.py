"""The layout of the versions on a board."""

from __future__ import annotations

import fcntl
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.service import versions
from edge_agent.service.versions import Outcome, Trial, Versions
from splitedge.errors import StoreError, UsageError
from tests.raising import raises


@pytest.fixture
def board(tmp_path):
    """Three complete versions and one whose installation was interrupted."""
    for version in ("0.9.0", "0.10.0", "1.0"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / versions.COMPLETE).touch()
    (tmp_path / "2.0/bin").mkdir(parents=True)
    return Versions(tmp_path)


def test_only_complete_versions_count_and_numbers_order_them(board):
    assert board.installed() == ["0.9.0", "0.10.0", "1.0"]
    assert Versions(board.prefix / "nothing").installed() == []


def test_the_link_is_relative_and_names_the_version_in_use(board):
    assert board.current() is None
    board.switch("0.9.0")
    board.switch("0.10.0")
    assert board.current() == "0.10.0"
    assert str(board.link.readlink()) == "0.10.0"
    assert (board.link / "bin").is_dir()


def test_a_link_to_something_else_is_no_version(board):
    board.link.symlink_to("/usr")
    assert board.current() is None


def test_two_versions_are_kept(board):
    board.switch("0.10.0")
    assert board.prune() == ["0.9.0", "2.0"]  # the last: an installation that was interrupted
    assert board.installed() == ["0.10.0", "1.0"]
    assert board.prune() == []


def test_a_trial_lasts_until_its_end(board):
    trial = Trial("1.0", "0.10.0", "[Unit]\n", was_ready=True)
    assert board.trial() is None
    board.begin(trial)
    assert board.trial() == trial
    board.end(Outcome("1.0", "0.10.0", "it crashed", 2.5))
    assert board.trial() is None
    assert board.outcome() == Outcome("1.0", "0.10.0", "it crashed", 2.5)


def test_a_damaged_trial_is_an_error(board):
    (board.prefix / "upgrade.json").write_text("{")
    with raises(StoreError, reason="unreadable"):
        board.trial()


def test_a_folder_that_cannot_be_written_is_an_error(board):
    with raises(StoreError, reason="cannot-write"):
        Versions(board.prefix / "nothing").switch("1.0")


def test_a_path_in_the_version_in_use_goes_through_the_link(board):
    board.switch("1.0")
    program = board.program("1.0")
    assert versions.linked(program, board.prefix) == board.link / "bin/edge-agent"
    assert versions.linked(board.program("0.9.0"), board.prefix) == board.program("0.9.0")


def test_an_installation_of_another_kind_is_not_managed(board, monkeypatch):
    with raises(UsageError, reason="not-managed"):
        versions.own(board.prefix)
    monkeypatch.setattr(sys, "prefix", str(board.prefix / "1.0"))
    assert versions.own(board.prefix) == "1.0"


def test_names_of_archives():
    assert versions.of_archive("splitedge-agent-0.2.0-aarch64.tar") == ("0.2.0", "aarch64")


@given(st.text(max_size=20))
def test_no_other_text_is_a_version(text):
    try:
        assert all(part.isascii() and part.isdigit() for part in text.split(".")) == bool(versions.order(text) != ())
    except UsageError:
        assert (
            not all(part.isascii() and part.isdigit() and len(part) < 10 for part in text.split("."))
            or text.count(".") > 5
        )


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_versions_are_ordered_as_lists_of_numbers(a, b):
    size = max(len(a), len(b))
    padded = [one + [0] * (size - len(one)) for one in (a, b)]
    names = [".".join(map(str, one)) for one in (a, b)]
    assert (versions.order(names[0]) < versions.order(names[1])) == (padded[0] < padded[1])
    assert versions.of_archive(f"splitedge-agent-{names[0]}-x86_64.tar") == (names[0], "x86_64")


@given(st.text(max_size=40))
def test_no_other_name_is_an_archive(name):
    with raises(UsageError, reason="not-an-archive"):
        versions.of_archive(name + ".zip")


def test_an_installation_that_is_under_way_is_not_removed(board):
    board.switch("0.10.0")
    with (board.prefix / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert board.prune() == ["0.9.0"]
    assert board.prune() == ["2.0"]


def test_the_version_before_is_kept_even_if_others_are_newer(board):
    board.switch("0.10.0")
    assert board.prune(previous="0.9.0") == ["1.0", "2.0"]


def test_two_upgrades_at_once_are_refused(board):
    with board.upgrading(), raises(UsageError, reason="busy"), board.upgrading():
        pass
    with board.upgrading():
        pass
