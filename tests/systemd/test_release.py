"""The variants of a release, of which `scripts/test-systemd` makes upgrades."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.systemd import release
from tests.systemd.machine import changed

NAME = "splitedge-0.1.0-py3-none-any.whl"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("splitedge/__init__.py", '__version__ = "0.1.0"\n')
        made.writestr("edge_agent/commands/run.py", "works = 0.10\n")
        made.writestr("splitedge-0.1.0.dist-info/METADATA", "Name: splitedge\nVersion: 0.1.0\n")
        made.writestr("splitedge-0.1.0.dist-info/RECORD", "")
    path = tmp_path / "splitedge-agent-0.1.0-x86_64.tar"
    with tarfile.open(path, "w") as made_archive:
        for name, data in ((NAME, wheel.getvalue()), ("numpy-2.0.0-cp311.whl", b"numpy")):
            member = tarfile.TarInfo(f"splitedge-agent-0.1.0/{name}")
            member.size = len(data)
            made_archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    release.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(tmp_path / "key.pem"))
    return tmp_path / "key.pem"


@pytest.mark.parametrize("broken", [False, True])
def test_a_variant_is_signed_and_has_another_version_everywhere(tmp_path, archive, key, broken):
    (tmp_path / "made").mkdir()
    made = release.variant(archive, key, "0.9.1", tmp_path / "made", broken=broken)
    assert made.name == "splitedge-agent-0.9.1-x86_64.tar"
    release.openssl("pkey", "-in", str(key), "-pubout", "-out", str(tmp_path / "public.pem"))
    verify = ["openssl", "dgst", "-sha256", "-verify", str(tmp_path / "public.pem"), "-signature", f"{made}.sig", made]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    with tarfile.open(made) as found:
        assert found.getnames() == [
            "splitedge-agent-0.9.1/splitedge-0.9.1-py3-none-any.whl",
            "splitedge-agent-0.9.1/numpy-2.0.0-cp311.whl",
        ]
        stream = found.extractfile(found.getmembers()[0])
        assert stream is not None
        wheel = zipfile.ZipFile(io.BytesIO(stream.read()))
    assert wheel.read("splitedge/__init__.py") == b'__version__ = "0.9.1"\n'
    assert b"Version: 0.9.1" in wheel.read("splitedge-0.9.1.dist-info/METADATA")
    assert (b"broken on purpose" in wheel.read("edge_agent/commands/run.py")) is broken
    record = list(csv.reader(wheel.read("splitedge-0.9.1.dist-info/RECORD").decode().splitlines()))
    assert {name for name, *_ in record} == set(wheel.namelist())
    for name, digest, size in record[:-1]:
        data = wheel.read(name)
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={expected}", len(data))


def test_a_system_has_changed_where_a_path_is_new_gone_or_different():
    before = {"/a": (1,), "/b": (1,), "/c": (1,)}
    assert changed(before, {"/a": (1,), "/b": (2,), "/d": (1,)}) == ["/b", "/c", "/d"]
