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

from edge_server.store.store import Store
from splitedge import errors, limits
from splitedge.protocol.messages import Cut, Demand, Parts, Plan, Prediction, Preprocess, SegmentRef
from tests.raising import raises


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def a_plan(plan_id: str, expires: float) -> Plan:
    parts = Parts(time=0.006, fetch=0.0, energy=0.0, cost=0.0)
    prediction = Prediction(
        device_ms=1,
        transfer_ms=2,
        queue_ms=0,
        server_ms=3,
        total_ms=6,
        energy_j=0,
        energy_source="unknown",
        drop_points=0.1,
        drop_low=0.0,
        drop_high=0.2,
        samples=250,
        noise=0.1,
        payload_bytes=100,
        float_bytes=400,
        segment_bytes=1000,
        objective=0.006,
        parts=parts,
    )
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
    token = store.tokens.add("board-1")
    assert store.tokens.holder(token)
    assert not store.tokens.holder(token[:-1])
    assert not store.tokens.holder("")
    store.tokens.revoke("board-1")
    assert not store.tokens.holder(token)


def test_only_the_hash_of_a_token_reaches_the_disk(store: Store) -> None:
    token = store.tokens.add("board-1")
    assert [t.name for t in store.tokens.all()] == ["board-1"]
    written = b"".join(p.read_bytes() for p in store.folder.iterdir() if p.is_file())
    assert token.encode() not in written
    assert hashlib.sha256(token.encode()).digest() in written


def test_a_taken_name_and_an_unknown_one_are_refused(store: Store) -> None:
    store.tokens.add("a")
    with raises(errors.UsageError, reason="token-exists"):
        store.tokens.add("a")
    with raises(errors.UsageError, reason="unknown-token"):
        store.tokens.revoke("b")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101, "a b", "é"])
def test_names_that_are_no_file_names_are_refused(store: Store, name: str) -> None:
    with raises(errors.UsageError, reason="name"):
        store.tokens.add(name)
    with raises(errors.UsageError, reason="name"), store.bundles.create(name):
        pass


def test_two_stores_on_one_folder_see_each_other(store: Store) -> None:
    with Store(store.folder) as other:
        token = other.tokens.add("a")
        assert store.tokens.holder(token)


# --- plans


def test_a_plan_comes_back_and_expires_after_its_grace(tmp_path: Path) -> None:
    now = [1000.0]
    with Store(tmp_path, clock=lambda: now[0]) as store:
        plan = a_plan("p1", 2000.0)
        store.plans.put(plan)
        assert store.plans.get("p1") == plan
        now[0] = 2000.0 + limits.PLAN_GRACE - 1
        assert store.plans.get("p1") == plan
        now[0] += 2
        with pytest.raises(errors.UnknownPlanError):
            store.plans.get("p1")


def test_expired_plans_are_purged_and_their_number_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PLANS", 3)
    now = [0.0]
    with Store(tmp_path, clock=lambda: now[0]) as store:
        store.plans.put(a_plan("old", 10.0))
        now[0] = 10_000.0
        for i in range(5):
            store.plans.put(a_plan(f"p{i}", now[0] + 100 + i))
        rows = sqlite3.connect(tmp_path / "store.sqlite")
        ids = [r[0] for r in rows.execute("SELECT id FROM plans ORDER BY id")]
        rows.close()
        assert ids == ["p2", "p3", "p4"]


# --- segments and bundles


def test_a_segment_lies_under_its_hash(store: Store) -> None:
    ref = store.segments.put(b"weights", "bundle", 3, (8, 3))
    path = store.segments.path(ref.sha256)
    assert path is not None
    assert path.read_bytes() == b"weights"
    assert store.segments.find("bundle", 3, (8, 3)) == ref
    assert store.segments.find("bundle", 3, (8, 4)) is None
    assert store.segments.find("other", 3, (8, 3)) is None
    assert store.segments.known("bundle", ["00" * 32, ref.sha256, "'"]) == {ref.sha256: (0, 3, (8, 3))}
    assert store.segments.known("other", [ref.sha256]) == {}
    path.unlink()
    assert store.segments.find("bundle", 3, (8, 3)) is None


@pytest.mark.parametrize("sha", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_what_is_no_hash_is_no_path(store: Store, sha: str) -> None:
    assert store.segments.path(sha) is None


def test_a_bundle_replaces_its_predecessor_whole(store: Store) -> None:
    for text in ("one", "two"):
        with store.bundles.create("net") as path:
            path.mkdir()
            (path / "x").write_text(text)
    assert (store.bundles.path("net") / "x").read_text() == "two"
    assert store.bundles.names() == ["net"]
    assert [p.name for p in store.bundles.folder.iterdir()] == ["net"]


def test_a_failed_import_leaves_the_old_bundle(store: Store) -> None:
    with store.bundles.create("net") as path:
        path.mkdir()
    with pytest.raises(FileNotFoundError), store.bundles.create("net") as path:
        (path / "no such folder" / "half").touch()
    assert list(store.bundles.path("net").iterdir()) == []
    assert [p.name for p in store.bundles.folder.iterdir()] == ["net"]


def test_a_bundle_that_cannot_take_its_place_leaves_the_old_one(store: Store) -> None:
    with store.bundles.create("net") as path:
        path.mkdir()
        (path / "x").write_text("one")
    with pytest.raises(errors.StoreError), store.bundles.create("net"):
        pass  # nothing was built, so there is nothing to rename
    assert (store.bundles.path("net") / "x").read_text() == "one"
    assert [p.name for p in store.bundles.folder.iterdir()] == ["net"]


def test_folders_that_a_crash_left_behind_go_at_once_and_files_after_a_day(store: Store) -> None:
    with store.bundles.create("net") as path:
        path.mkdir()
    for name, age in (("old", 2 * 86400), ("new", 3600)):
        for left in (store.bundles.folder / f".new-{name}", store.bundles.folder / f".gone-{name}"):
            (left / "net").mkdir(parents=True)
        (store.segments.folder / f".new-{name}").touch()
        os.utime(store.segments.folder / f".new-{name}", (0, time.time() - age))
    with store.bundles.create("other") as path, Store(store.folder):
        path.mkdir()
        assert sorted(p.name[:5] for p in store.bundles.folder.iterdir()) == [".new-", "net"]  # that of the block
        assert [p.name for p in store.segments.folder.iterdir()] == [".new-new"]


def test_a_bundle_taken_away_by_a_process_that_was_killed_comes_back(store: Store) -> None:
    (store.bundles.folder / ".old-x" / "net").mkdir(parents=True)
    with Store(store.folder):
        assert [p.name for p in store.bundles.folder.iterdir()] == ["net"]


def test_removing_a_bundle_takes_only_its_own_segments(store: Store) -> None:
    with store.bundles.create("net") as path:
        path.mkdir()
    shared, own = store.segments.put(b"s", "sha-net", 0, (8, 3)), store.segments.put(b"o", "sha-net", 1, (8, 3))
    store.segments.put(b"s", "sha-other", 0, (8, 3))
    store.bundles.remove("net")
    store.forget("sha-net")
    assert store.bundles.names() == []
    assert store.segments.path(shared.sha256) is not None
    assert store.segments.path(own.sha256) is None


def test_an_upgrade_goes_with_either_of_its_segments(store: Store) -> None:
    few, many = store.segments.put(b"few", "net", 0, (4,)).sha256, store.segments.put(b"many", "net", 0, (8,)).sha256
    other = store.segments.put(b"other", "other", 0, (8,)).sha256
    assert store.segments.upgrade_path(many, few) is None
    for wanted, held in ((many, few), (other, many), (few, other)):
        made = store.segments.put_upgrade(b"way", wanted, held)
        assert store.segments.upgrade_path(wanted, held) == made
        assert made.read_bytes() == b"way"
    store.segments.put_upgrade(b"way", other, other)
    store.forget("net")
    assert sorted(p.name for p in store.segments.folder.iterdir()) == [f"{other}-{other}.upgrade", f"{other}.segment"]


def test_patterns_are_kept_for_the_last_bundles_until_these_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEPT_PATTERNS", 2)
    times = iter(range(10))
    with Store(tmp_path, clock=lambda: float(next(times))) as store:
        for bundle, body in (("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4")):
            store.patterns.put(bundle, body)
        assert [store.patterns.get(bundle) for bundle in ("a", "b", "c")] == [b"3", None, b"4"]
        store.forget("a")
        assert [store.patterns.get(bundle) for bundle in ("a", "c")] == [None, b"4"]


def test_patterns_over_their_bound_are_neither_kept_nor_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.patterns.put("net", bytes(8))
    monkeypatch.setattr(limits, "MAX_PATTERN_BYTES", 7)
    assert store.patterns.get("net") is None
    store.patterns.put("other", bytes(8))
    monkeypatch.setattr(limits, "MAX_PATTERN_BYTES", 8)
    assert (store.patterns.get("net"), store.patterns.get("other")) == (bytes(8), None)


def test_segments_of_the_format_before_are_dropped(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        token = store.tokens.add("kept")
        old = store.segments.put(b"old format", "net", 0, (8,))
        store._database._open().execute("PRAGMA user_version = 2")
    with Store(tmp_path) as store:
        assert store.segments.path(old.sha256) is None
        assert store.segments.find("net", 0, (8,)) is None
        assert store.tokens.holder(token)
        new = store.segments.put(b"new format", "net", 0, (8,))
    with Store(tmp_path) as store:
        assert store.segments.find("net", 0, (8,)) == new


def test_an_unknown_bundle_is_named_beside_the_known(store: Store) -> None:
    with store.bundles.create("lite0") as path:
        path.mkdir()
    with raises(errors.UnknownModelError, reason="unknown-model", known=["lite0"]):
        store.bundles.path("resnet")


# --- when disk or database fail


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with raises(errors.StoreError, reason="not-a-folder"):
        Store(tmp_path / "store")


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 1000)
    with raises(errors.StoreError, reason="damaged"):
        Store(tmp_path)


def test_a_newer_store_is_not_touched(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "store.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with raises(errors.StoreError, reason="newer-store"):
        Store(tmp_path)


def test_a_database_held_by_another_process_is_one_sentence(tmp_path: Path) -> None:
    with Store(tmp_path, busy_timeout_s=0.05) as store:
        holder = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with raises(errors.StoreError, reason="locked"):
            store.tokens.add("a")
        holder.execute("ROLLBACK")
        holder.close()
        assert store.tokens.holder(store.tokens.add("a"))


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with raises(errors.StoreError, reason="closed"):
        store.tokens.all()


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
        with raises(errors.StoreError, reason="full"):
            store.segments.put(bytes(1 << 20), "b", 0, (8, 3))
        assert list(store.segments.folder.iterdir()) == []


def test_a_full_disk_under_the_database_is_one_sentence(small_disk: Path) -> None:
    with Store(small_disk) as store:
        with contextlib.suppress(OSError):
            (small_disk / "ballast").write_bytes(bytes(1 << 20))
        with raises(errors.StoreError, reason="full"):
            [store.tokens.add(f"t{i}") for i in range(1000)]


def test_a_read_only_folder_is_one_sentence(small_disk: Path) -> None:
    with Store(small_disk):
        pass
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with raises(errors.StoreError, reason="unwritable"), Store(small_disk) as store:
        store.tokens.add("a")
