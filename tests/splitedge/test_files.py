"""Files that a command will write: whether they can be, and nothing else happens to them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from splitedge import errors, files


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "new.svg")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.svg").write_text("kept")
    files.require_writable(tmp_path / "old.svg")
    assert (tmp_path / "old.svg").read_text() == "kept"


@pytest.mark.parametrize("place", ["no/c.svg", "folder", "/proc/c.svg"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    for attempt in (lambda: files.require_writable(path), lambda: files.write(path, b"")):
        with pytest.raises(errors.StoreError) as caught:
            attempt()
        assert str(path) in caught.value.message


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("kept")
    (tmp_path / "link.svg").symlink_to("old.svg")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that has room for no more
    try:
        for name in ("old.svg", "new.svg"):
            with pytest.raises(errors.StoreError):
                files.write(tmp_path / name, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.svg", "old.svg"]
    assert (tmp_path / "old.svg").read_text() == "kept"
    files.write(tmp_path / "link.svg", b"new")
    assert (tmp_path / "old.svg").read_text() == "new"
    files.write(Path("/dev/null"), b"x")
    assert not Path("/dev/null").is_file()


def test_a_file_that_is_written_again_keeps_its_permissions_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("old")
    if os.geteuid() == 0:
        os.chown(path, 4711, 4712)
    path.chmod(0o646)  # more than the umask of most users allows
    before = path.stat()
    (tmp_path / "link").symlink_to(path)
    files.rewrite(tmp_path / "link", b"new")
    after = path.stat()
    assert (path.read_text(), (tmp_path / "link").is_symlink()) == ("new", True)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    with pytest.raises(errors.StoreError):
        files.rewrite(tmp_path / "absent", b"")


def test_a_new_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    files.write(tmp_path / "secret", b"", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_made_or_named(tmp_path: Path) -> None:
    for _ in range(2):
        files.make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/b"):
        with pytest.raises(errors.StoreError) as caught:
            files.make_folder(place)
        assert str(place) in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(errors.StoreError):
        files.require_writable(tmp_path / "c.svg")


def test_forms() -> None:
    assert [files.picture_form(name) for name in ("a.PNG", "b.svg")] == ["png", "svg"]
    for name in ("svg", "a.pdf", ""):
        with pytest.raises(errors.UsageError):
            files.picture_form(name)


def test_a_durable_write_flushes_the_file_before_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, rename = os.fsync, Path.replace

    def recorded(handle: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file")
        flush(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), rename(self, target)))
    files.replace(tmp_path / "a", b"new", mode=0o600)
    assert done == ["file", "rename", "folder"]
    files.replace(tmp_path / "b", b"new", durable=False)
    assert done[3:] == ["rename"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
