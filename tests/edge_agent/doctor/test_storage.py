"""Checks of the storage, on cards in good and in bad order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import Settings
from edge_agent.doctor import storage
from splitedge import limits
from tests.edge_agent.doctor.conftest import LayOut

CARD = "sys/block/mmcblk0/device/"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SPLITEDGE_CACHE_DIR", str(tmp_path / "kernels"))
    return Settings(cache_dir=str(tmp_path / "a cache"))


def test_each_folder_has_its_free_space(settings: Settings, lay_out: LayOut, tmp_path: Path) -> None:
    root = lay_out({"var/lib/splitedge/state": ""})
    found = storage.space(settings, root)
    assert found.verdict == "ok"
    for folder in (tmp_path / "kernels", tmp_path / "a cache", root / "var/lib/splitedge"):
        assert f"{folder}: " in found.found


def test_a_full_card_is_noted(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOW_DISK", 1 << 60)
    assert storage.space(settings, tmp_path).verdict == "warn"


def test_a_file_system_that_is_read_only_fails(settings: Settings, lay_out: LayOut, tmp_path: Path) -> None:
    (tmp_path / "a cache").mkdir()
    place = str(tmp_path / "a cache").replace(" ", "\\040")
    good, bad = "/dev/root / ext4 rw,noatime 0 0\n", f"/dev/sda1 {place} ext4 ro,relatime 0 0\n"
    assert storage.space(settings, lay_out({"proc/self/mounts": good})).verdict == "ok"
    found = storage.space(settings, lay_out({"proc/self/mounts": good + bad}))
    assert found.verdict == "fail"
    assert "remount" in found.advice


def test_a_cache_below_a_file_fails(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a cache").write_text("not a folder")
    assert storage.space(settings, tmp_path).verdict == "fail"


@given(st.text(st.characters(exclude_characters="\n\0\\", codec="utf-8"), min_size=1, max_size=20), st.booleans())
def test_a_mount_may_have_any_name(name: str, read_only: bool) -> None:
    shown = "".join(f"\\{ord(c):03o}" if c in " \t\\" else c for c in name)
    (found,) = storage.mounts(f"/dev/x /{shown} ext4 {'ro' if read_only else 'rw'},errors=remount-ro 0 0\n")
    assert (found.place, found.read_only) == (Path(f"/{name}"), read_only)


@given(st.text(max_size=80))
def test_any_text_holds_mounts_or_none(text: str) -> None:
    storage.mounts(text)


def test_a_later_mount_covers_an_earlier(lay_out: LayOut, tmp_path: Path) -> None:
    root = lay_out({"proc/self/mounts": "/dev/a / ext4 ro 0 0\noverlay / overlay rw 0 0\n"})
    found = storage.mount(tmp_path, root)
    assert found is not None
    assert (found.kind, found.read_only) == ("overlay", False)


@pytest.mark.parametrize(
    ("files", "verdict", "words"),
    [
        ({"type": "SD\n", "name": "SC32G\n"}, "ok", "mmcblk0 (SD SC32G) reports no wear"),
        ({"type": "MMC\n", "life_time": "0x01 0x02\n", "pre_eol_info": "0x01\n"}, "ok", "10 to 20 %"),
        ({"type": "MMC\n", "life_time": "0x01 0x09\n", "pre_eol_info": "0x01\n"}, "warn", "80 to 90 %"),
        ({"type": "MMC\n", "life_time": "0x0b 0x01\n"}, "warn", "beyond"),
        ({"type": "MMC\n", "life_time": "0x01 0x01\n", "pre_eol_info": "0x03\n"}, "warn", "spare"),
        ({"life_time": "rubbish\n", "pre_eol_info": "0x\n"}, "ok", "no wear"),
    ],
)
def test_the_wear_of_a_card_is_reported(lay_out: LayOut, files: dict[str, str], verdict: str, words: str) -> None:
    found = storage.wear(lay_out({CARD + name: text for name, text in files.items()}))
    assert found is not None
    assert found.verdict == verdict
    assert words in found.found


@pytest.mark.parametrize(("count", "verdict"), [("3\n", "warn"), ("0\n", None)])
def test_errors_of_a_file_system_are_noted(lay_out: LayOut, count: str, verdict: str | None) -> None:
    found = storage.wear(lay_out({"sys/fs/ext4/mmcblk0p2/errors_count": count}))
    assert (found.verdict if found else None) == verdict


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o640, "ok"), (0o644, "warn"), (0o620, "warn")])
def test_a_token_that_others_may_use_is_noted(tmp_path: Path, mode: int, verdict: str) -> None:
    path = tmp_path / "token"
    path.write_text("se_x")
    path.chmod(mode)
    found = storage.token_file(Settings(token_file=str(path)))
    assert found is not None
    assert found.verdict == verdict


def test_a_token_file_that_is_not_there_fails(tmp_path: Path) -> None:
    found = storage.token_file(Settings(token_file=str(tmp_path / "absent")))
    assert found is not None
    assert found.verdict == "fail"
    assert storage.token_file(Settings()) is None
