"""The archive of `--bundle`: what it holds, what it must not hold, and that it replaces nothing."""

from __future__ import annotations

import io
import json
import string
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import splitedge
from edge_agent.config import ChainConfig, Settings, StageConfig
from edge_agent.doctor import bundle
from splitedge import errors
from splitedge.protocol.messages import PROTOCOL_VERSION
from tests.edge_agent.doctor.conftest import LayOut
from tests.raising import raises

SECRETS = ["first-secret-1", "next-secret-2", "stage-secret-3", "file-secret-4", "environment-secret-5"]
PARTS = {"report.json", "configuration.json", "versions.json", "journal.txt"}


def unpacked(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    found = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
    return found


@pytest.mark.parametrize("name", ["report.zip", "report.tar.gz"])
def test_no_secret_is_in_the_bundle(
    tmp_path: Path, lay_out: LayOut, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "token").write_text(SECRETS[3] + "\n")
    monkeypatch.setenv("SPLITEDGE_CHAIN_TOKEN", SECRETS[4])
    settings = Settings(
        server="https://me:password6@server:8470",
        token=SECRETS[0],
        chain=ChainConfig(token=SECRETS[1]),
        stage=StageConfig(token=SECRETS[2]),
    )
    monkeypatch.setattr(settings, "token_file", str(tmp_path / "token"))
    said = " ".join([*SECRETS[:3], "Authorization: Bearer abc-7", f"se_{'x' * 43}", "ok line"])
    root = lay_out({"usr/bin/journalctl": f"#!/bin/sh\necho '{said}'\n"})
    report = {"checks": [{"found": f"a {SECRETS[0]} b", "advice": "https://me:password6@server"}]}
    bundle.write(tmp_path / name, report, settings, root)
    parts = unpacked(tmp_path / name)
    assert parts.keys() == PARTS
    whole = b"".join(parts.values()).decode()
    shown = [secret for secret in [*SECRETS[:3], SECRETS[4], "password6", "abc-7", "xxxxxxxx"] if secret in whole]
    assert shown == []
    assert "ok line" in parts["journal.txt"].decode()
    versions = json.loads(parts["versions.json"])
    assert (versions["version"], versions["protocol"]) == (splitedge.__version__, PROTOCOL_VERSION)
    assert versions["libraries"]["msgspec"] == msgspec.__version__
    configuration = json.loads(parts["configuration.json"])
    assert configuration["settings"]["token"] == bundle.HIDDEN
    assert configuration["settings"]["token_file"] == str(tmp_path / "token")
    assert configuration["settings"]["topk"] == 5
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_token_from_a_file_is_known(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRETS[3] + "\n")
    found = bundle.secrets(Settings(token_file=str(tmp_path / "token")), {"SPLITEDGE_TOKEN": SECRETS[4]})
    assert found == {SECRETS[3], SECRETS[4]}


def test_a_configuration_that_is_not_valid_gives_a_bundle_too(tmp_path: Path) -> None:
    bundle.write(tmp_path / "x.zip", {}, None, tmp_path)
    assert json.loads(unpacked(tmp_path / "x.zip")["configuration.json"])["settings"] is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("mine")
    (tmp_path / "y.zip").symlink_to(tmp_path / "absent")
    for name in ("x.zip", "y.zip"):
        with raises(errors.UsageError, reason="exists"):
            bundle.write(tmp_path / name, {}, None, tmp_path)
    assert (tmp_path / "x.zip").read_text() == "mine"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(("name", "reason"), [("x.txt", "bundle-form"), ("absent/x.zip", "no-folder")])
def test_a_place_that_cannot_hold_a_bundle_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with raises(errors.UsageError, reason=reason):
        bundle.check(tmp_path / name)


_TOKEN = st.text(string.ascii_letters + string.digits + '!#$%&+-./_~"\\', min_size=6, max_size=40)
_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(_TOKEN, _JSON, st.text(max_size=10))
def test_a_known_secret_is_removed_at_every_depth(secret: str, value: Any, around: str) -> None:
    found = bundle.clean({"kept": value, "told": [{"found": around + secret + around}]}, {secret})
    assert secret not in found["told"][0]["found"].replace(bundle.HIDDEN, "")


@given(_JSON)
def test_a_report_without_secrets_keeps_its_form(value: Any) -> None:
    def form(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: form(part) for key, part in one.items()}
        return [form(part) for part in one] if isinstance(one, list) else type(one)

    assert form(bundle.clean(value, set())) == form(value)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}\.txt", fullmatch=True), st.binary(max_size=200), max_size=4))
def test_archives_hold_what_was_put_in(parts: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.zipped(parts))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == parts
    with tarfile.open(fileobj=io.BytesIO(bundle.tarred(parts))) as tar:
        assert {entry.name: tar.extractfile(entry).read() for entry in tar} == parts  # type: ignore[union-attr]


def test_the_settings_of_the_bundle_are_those_in_effect() -> None:
    found = bundle.configuration(Settings(model="m"), {"SPLITEDGE_TOKEN": "x", "SPLITEDGE_ISA": "neon", "HOME": "/h"})
    assert found["settings"] == msgspec.to_builtins(Settings(model="m"))
    assert found["variables"] == {"SPLITEDGE_TOKEN": bundle.HIDDEN, "SPLITEDGE_ISA": "neon"}
