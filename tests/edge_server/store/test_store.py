"""The store: what is kept, what is forgotten, and what is said when disk or database fail."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_server.store.store import Store, default_folder
from splitedge import errors, limits
from splitedge.protocol.messages import Cut, Demand, Parts, Plan, Prediction, Preprocess, SegmentRef


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def a_plan(plan_id: str, expires: float) -> Plan:
    parts = Parts(0.006, 0.0, 0.0, 0.0)
    prediction = Prediction(1, 2, 0, 3, 6, 0, "unknown", 0.1, 0.0, 0.2, 250, 0.1, 100, 400, 1000, 0.006, parts)
    return Plan(
        id=plan_id,
        model="net",
        bundle="b" * 64,
        mode="split",
        cut=Cut(1, "conv", "t", [4, 4, 2], "inside"),
        layers=[],
        codec_share=1.0,
        head_share=0.0,
        ladder=[],
        rungs=[],
        codec=0,
        segment=SegmentRef("a" * 64, 10),
        preprocess=Preprocess("tensor", [8, 8, 3]),
        prediction=prediction,
        runners_up=[],
        considered=1,
        expires_unix=expires,
        demand=Demand(),
    )


# --- tokens


def test_a_token_is_accepted_until_it_is_revoked(store: Store) -> None:
    token = store.add_token("board-1")
    assert store.holder(token)
    assert not store.holder(token[:-1])
    assert not store.holder("")
    store.revoke_token("board-1")
    assert not store.holder(token)


def test_only_the_hash_of_a_token_reaches_the_disk(store: Store) -> None:
    token = store.add_token("board-1")
    assert [t.name for t in store.tokens()] == ["board-1"]
    written = b"".join(p.read_bytes() for p in store.folder.iterdir() if p.is_file())
    assert token.encode() not in written
    assert hashlib.sha256(token.encode()).digest() in written


def test_a_taken_name_and_an_unknown_one_are_refused(store: Store) -> None:
    store.add_token("a")
    with pytest.raises(errors.UsageError, match="exists"):
        store.add_token("a")
    with pytest.raises(errors.UsageError, match="no token named"):
        store.revoke_token("b")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "a b", "é"])
def test_names_that_are_no_file_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(errors.UsageError, match="cannot be the name"):
        store.add_token(name)
    with pytest.raises(errors.UsageError, match="cannot be the name"), store.new_bundle(name):
        pass


def test_two_stores_on_one_folder_see_each_other(store: Store) -> None:
    with Store(store.folder) as other:
        token = other.add_token("a")
        assert store.holder(token)


# --- plans


def test_a_plan_comes_back_and_expires_after_its_grace(tmp_path: Path) -> None:
    now = [1000.0]
    with Store(tmp_path, clock=lambda: now[0]) as store:
        plan = a_plan("p1", 2000.0)
        store.put_plan(plan)
        assert store.plan("p1") == plan
        now[0] = 2000.0 + limits.PLAN_GRACE - 1
        assert store.plan("p1") == plan
        now[0] += 2
        with pytest.raises(errors.UnknownPlanError):
            store.plan("p1")


def test_expired_plans_are_purged_and_their_number_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PLANS", 3)
    now = [0.0]
    with Store(tmp_path, clock=lambda: now[0]) as store:
        store.put_plan(a_plan("old", 10.0))
        now[0] = 10_000.0
        for i in range(5):
            store.put_plan(a_plan(f"p{i}", now[0] + 100 + i))
        rows = sqlite3.connect(tmp_path / "store.sqlite")
        ids = [r[0] for r in rows.execute("SELECT id FROM plans ORDER BY id")]
        rows.close()
        assert ids == ["p2", "p3", "p4"]


# --- segments and bundles


def test_a_segment_lies_under_its_hash(store: Store) -> None:
    ref = store.put_segment(b"weights", "bundle", 3, (8, 3))
    path = store.segment_path(ref.sha256)
    assert path is not None
    assert path.read_bytes() == b"weights"
    assert store.segment("bundle", 3, (8, 3)) == ref
    assert store.segment("bundle", 3, (8, 4)) is None
    assert store.segment("other", 3, (8, 3)) is None
    assert store.segments_named("bundle", ["00" * 32, ref.sha256, "'"]) == {ref.sha256: (0, 3, (8, 3))}
    assert store.segments_named("other", [ref.sha256]) == {}
    path.unlink()
    assert store.segment("bundle", 3, (8, 3)) is None


@pytest.mark.parametrize("sha", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_what_is_no_hash_is_no_path(store: Store, sha: str) -> None:
    assert store.segment_path(sha) is None


def test_a_bundle_replaces_its_predecessor_whole(store: Store) -> None:
    for text in ("one", "two"):
        with store.new_bundle("net") as path:
            path.mkdir()
            (path / "x").write_text(text)
    assert (store.bundle_path("net") / "x").read_text() == "two"
    assert store.bundle_names() == ["net"]
    assert [p.name for p in store.bundles.iterdir()] == ["net"]


def test_a_failed_import_leaves_the_old_bundle(store: Store) -> None:
    with store.new_bundle("net") as path:
        path.mkdir()
    with pytest.raises(FileNotFoundError), store.new_bundle("net") as path:
        (path / "no such folder" / "half").touch()
    assert list(store.bundle_path("net").iterdir()) == []
    assert [p.name for p in store.bundles.iterdir()] == ["net"]


def test_a_bundle_that_cannot_take_its_place_leaves_the_old_one(store: Store) -> None:
    with store.new_bundle("net") as path:
        path.mkdir()
        (path / "x").write_text("one")
    with pytest.raises(errors.StoreError), store.new_bundle("net"):
        pass  # nothing was built, so there is nothing to rename
    assert (store.bundle_path("net") / "x").read_text() == "one"
    assert [p.name for p in store.bundles.iterdir()] == ["net"]


def test_folders_that_a_crash_left_behind_go_at_once_and_files_after_a_day(store: Store) -> None:
    with store.new_bundle("net") as path:
        path.mkdir()
    for name, age in (("old", 2 * 86400), ("new", 3600)):
        for left in (store.bundles / f".new-{name}", store.bundles / f".gone-{name}"):
            (left / "net").mkdir(parents=True)
        (store.segments / f".new-{name}").touch()
        os.utime(store.segments / f".new-{name}", (0, time.time() - age))
    with store.new_bundle("other") as path, Store(store.folder):
        path.mkdir()
        assert sorted(p.name[:5] for p in store.bundles.iterdir()) == [".new-", "net"]  # that of the block
        assert [p.name for p in store.segments.iterdir()] == [".new-new"]


def test_a_bundle_taken_away_by_a_process_that_was_killed_comes_back(store: Store) -> None:
    (store.bundles / ".old-x" / "net").mkdir(parents=True)
    with Store(store.folder):
        assert [p.name for p in store.bundles.iterdir()] == ["net"]


def test_removing_a_bundle_takes_only_its_own_segments(store: Store) -> None:
    with store.new_bundle("net") as path:
        path.mkdir()
    shared, own = store.put_segment(b"s", "sha-net", 0, (8, 3)), store.put_segment(b"o", "sha-net", 1, (8, 3))
    store.put_segment(b"s", "sha-other", 0, (8, 3))
    store.remove_bundle("net")
    store.forget("sha-net")
    assert store.bundle_names() == []
    assert store.segment_path(shared.sha256) is not None
    assert store.segment_path(own.sha256) is None


def test_an_upgrade_goes_with_either_of_its_segments(store: Store) -> None:
    few, many = store.put_segment(b"few", "net", 0, (4,)).sha256, store.put_segment(b"many", "net", 0, (8,)).sha256
    other = store.put_segment(b"other", "other", 0, (8,)).sha256
    assert store.upgrade_path(many, few) is None
    for wanted, held in ((many, few), (other, many), (few, other)):
        made = store.put_upgrade(b"way", wanted, held)
        assert store.upgrade_path(wanted, held) == made
        assert made.read_bytes() == b"way"
    store.put_upgrade(b"way", other, other)
    store.forget("net")
    assert sorted(p.name for p in store.segments.iterdir()) == [f"{other}-{other}.upgrade", f"{other}.segment"]


def test_patterns_are_kept_for_the_last_bundles_until_these_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEPT_PATTERNS", 2)
    times = iter(range(10))
    with Store(tmp_path, clock=lambda: float(next(times))) as store:
        for bundle, body in (("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4")):
            store.put_patterns(bundle, body)
        assert [store.patterns(bundle) for bundle in ("a", "b", "c")] == [b"3", None, b"4"]
        store.forget("a")
        assert [store.patterns(bundle) for bundle in ("a", "c")] == [None, b"4"]


def test_patterns_over_their_bound_are_neither_kept_nor_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_patterns("net", bytes(8))
    monkeypatch.setattr(limits, "MAX_PATTERN_BYTES", 7)
    assert store.patterns("net") is None
    store.put_patterns("other", bytes(8))
    monkeypatch.setattr(limits, "MAX_PATTERN_BYTES", 8)
    assert (store.patterns("net"), store.patterns("other")) == (bytes(8), None)


def test_segments_of_the_format_before_are_dropped(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        token = store.add_token("kept")
        old = store.put_segment(b"old format", "net", 0, (8,))
        store._open().execute("PRAGMA user_version = 2")
    with Store(tmp_path) as store:
        assert store.segment_path(old.sha256) is None
        assert store.segment("net", 0, (8,)) is None
        assert store.holder(token)
        new = store.put_segment(b"new format", "net", 0, (8,))
    with Store(tmp_path) as store:
        assert store.segment("net", 0, (8,)) == new


def test_an_unknown_bundle_is_named_beside_the_known(store: Store) -> None:
    with store.new_bundle("lite0") as path:
        path.mkdir()
    with pytest.raises(errors.UnknownModelError, match="no model named 'resnet': the server has lite0"):
        store.bundle_path("resnet")


# --- when disk or database fail


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(errors.StoreError, match="is not a folder"):
        Store(tmp_path / "store")


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(errors.StoreError, match="is damaged"):
        Store(tmp_path)


def test_a_newer_store_is_not_touched(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "store.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(errors.StoreError, match="newer splitedge"):
        Store(tmp_path)


def test_a_database_held_by_another_process_is_one_sentence(tmp_path: Path) -> None:
    with Store(tmp_path, busy_timeout_s=0.05) as store:
        holder = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.StoreError, match="held by another process"):
            store.add_token("a")
        holder.execute("ROLLBACK")
        holder.close()
        assert store.holder(store.add_token("a"))


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(errors.StoreError, match="is closed"):
        store.tokens()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", point], check=False).returncode
    ):
        pytest.skip("this needs the right to mount a small file system")
    yield point
    subprocess.run(["umount", point], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_segment(small_disk: Path) -> None:
    with Store(small_disk) as store:
        with pytest.raises(errors.StoreError, match="is full: free some space"):
            store.put_segment(bytes(1 << 20), "b", 0, (8, 3))
        assert list(store.segments.iterdir()) == []


def test_a_full_disk_under_the_database_is_one_sentence(small_disk: Path) -> None:
    with Store(small_disk) as store:
        with contextlib.suppress(OSError):
            (small_disk / "ballast").write_bytes(bytes(1 << 20))
        with pytest.raises(errors.StoreError, match="is full: free some space"):
            [store.add_token(f"t{i}") for i in range(1000)]


def test_a_read_only_folder_is_one_sentence(small_disk: Path) -> None:
    with Store(small_disk):
        pass
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(errors.StoreError, match="cannot be written"), Store(small_disk) as store:
        store.add_token("a")


def test_the_default_folder_may_begin_with_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPLITEDGE_STORE", "~/models")
    assert default_folder() == tmp_path / "models"
    monkeypatch.setenv("SPLITEDGE_STORE", "~nobody-of-this-name/models")
    with pytest.raises(errors.StoreError, match="--store"):
        default_folder()
