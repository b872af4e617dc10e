"""`install-agent` with archives of a small package: what it refuses, and what it leaves behind.

tests/systemd installs the real package with it.
"""

from __future__ import annotations

import ensurepip
import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_agent.service import versions
from edge_agent.service.upgrade import INSTALLER

PIP = [
    found
    for folder in (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))  # Debian's place
    for found in sorted(folder.glob("pip-*.whl"))
]
pytestmark = [
    pytest.mark.skipif(not PIP, reason="this Python bundles no wheel of pip"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "aarch64"), reason="there are no releases for this machine"
    ),
]


def wheel(version: str, code: str) -> bytes:
    """A wheel named splitedge with an `edge-agent` that runs ``code``."""
    info = f"splitedge-{version}.dist-info"
    files = {
        "splitedge_stub.py": f"def main():\n    {code}\n",
        "edge_agent/doctor/probe.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: splitedge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedge-agent = splitedge_stub:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return data.getvalue()


class Release:
    """A folder of archives, and a board to install them on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder / "release", folder / "opt/splitedge"
        self.folder.mkdir()
        self.secret, self.public = folder / "key.pem", folder / "public.pem"
        self.openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", self.secret)
        self.openssl("pkey", "-in", self.secret, "-pubout", "-out", self.public)

    @staticmethod
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def archive(self, version: str, code: str = "print('{}')") -> Path:
        path = self.folder / f"splitedge-agent-{version}-{platform.machine()}.tar"
        with tarfile.open(path, "w") as made:
            for name, data in (
                (f"splitedge-{version}-py3-none-any.whl", wheel(version, code)),
                (PIP[0].name, PIP[0].read_bytes()),
            ):
                entry = tarfile.TarInfo(f"splitedge-agent-{version}/{name}")
                entry.size = len(data)
                made.addfile(entry, io.BytesIO(data))
        self.openssl("dgst", "-sha256", "-sign", self.secret, "-out", f"{path}.sig", path)
        return path

    def run(self, *options, key=None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", INSTALLER, "--key", key or self.public, "--python", sys.executable, "--files-only", *options],
            env={"PATH": os.environ["PATH"], "SPLITEDGE_PREFIX": str(self.prefix)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def offline(self, *options, **more):
        return self.run("--offline", self.folder, *options, **more)

    def installed(self):
        return versions.Versions(self.prefix).installed()


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path)


def refused(done):
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("install-agent: ")
    return last


@pytest.mark.thorough
def test_the_newest_archive_is_installed_and_starts(release):
    for version in ("0.9.0", "0.10.0"):
        release.archive(version, f"print('{version}')")
    done = release.offline()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "version=0.10.0"
    assert release.installed() == ["0.10.0"]
    program = release.prefix / "0.10.0/bin/edge-agent"
    assert subprocess.run([program], capture_output=True, text=True).stdout == "0.10.0\n"
    assert release.offline("--version", "0.9.0").stdout.splitlines()[-1] == "version=0.9.0"
    assert release.installed() == ["0.9.0", "0.10.0"]


def test_a_second_run_installs_nothing(release):
    release.archive("1.0")
    release.offline()
    mark = release.prefix / "1.0" / versions.COMPLETE
    before = mark.stat().st_mtime_ns
    assert release.offline().returncode == 0
    assert mark.stat().st_mtime_ns == before


@pytest.mark.thorough
@pytest.mark.parametrize("damage", ["interrupted", "broken"])
def test_a_second_run_repairs(release, damage):
    release.archive("1.0")
    release.offline()
    if damage == "interrupted":
        (release.prefix / "1.0" / versions.COMPLETE).unlink()
    else:
        (release.prefix / "1.0/bin/edge-agent").write_text("#!/bin/sh\nexit 1\n")
    assert release.offline().returncode == 0
    assert release.installed() == ["1.0"]
    assert subprocess.run([release.prefix / "1.0/bin/edge-agent"]).returncode == 0


@pytest.mark.thorough
def test_an_interrupted_repair_is_undone(release):
    archive = release.archive("1.0")
    release.offline()
    (release.prefix / "1.0").rename(release.prefix / ".old-1.0")
    (release.prefix / "1.0").mkdir()
    archive.with_name(f"{archive.name}.sig").unlink()  # what is there needs no archive
    assert release.offline().returncode == 0
    assert release.installed() == ["1.0"]


@pytest.mark.parametrize("wrong", ["changed", "no signature", "other key", "no key"])
def test_nothing_runs_without_a_good_signature(release, tmp_path, wrong):
    ran = tmp_path / "ran"
    path = release.archive("1.0", f"open({str(ran)!r}, 'w')")
    key = release.public
    if wrong == "changed":
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
    elif wrong == "no signature":
        Path(f"{path}.sig").unlink()
    elif wrong == "other key":
        other = tmp_path / "other"
        other.mkdir()
        key = Release(other).public
    else:
        key = release.secret
    refused(release.offline(key=key))
    assert not ran.exists()
    assert not release.prefix.exists() or [path.name for path in release.prefix.iterdir()] == [".lock"]


@pytest.mark.thorough
def test_a_version_that_does_not_start_leaves_nothing(release):
    release.archive("1.0")
    release.offline()
    release.archive("2.0", "raise SystemExit('no such instruction')")
    done = release.offline()
    refused(done)
    assert "no such instruction" in done.stderr
    assert {path.name for path in release.prefix.iterdir()} == {"1.0", ".lock"}


@pytest.mark.thorough
def test_only_newer_versions_if_asked(release):
    release.archive("0.9.0")
    done = release.offline("--newer-than", "0.10.0")
    assert done.stdout.splitlines()[-1] == "version=0.10.0"
    assert release.installed() == []
    assert release.offline("--newer-than", "0.8.0").stdout.splitlines()[-1] == "version=0.9.0"
    assert release.installed() == ["0.9.0"]


def test_an_archive_that_is_not_there(release):
    refused(release.offline())
    release.archive("1.0")
    assert "1.1" in refused(release.offline("--version", "1.1"))
    refused(release.run("--offline", release.folder / "none"))


@pytest.mark.parametrize(
    "options", [["--wrong"], ["--version"], ["--version", "../../x"], ["--offline", "/tmp", "--from", "http://x"]]
)
def test_wrong_options_are_refused(release, options):
    refused(release.run(*options))


def test_another_python_is_refused(release, tmp_path):
    release.archive("1.0")
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    refused(release.offline("--python", tmp_path / "python"))


def test_a_dry_run_changes_nothing(release):
    release.archive("1.0")
    done = release.offline("--dry-run")
    assert done.returncode == 0, done.stderr
    assert not release.prefix.exists()


def test_help_fits_the_terminal():
    done = subprocess.run(["sh", INSTALLER, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_checkout_has_a_link():
    assert (Path(__file__).parents[3] / "install-agent").resolve() == INSTALLER.resolve()


@pytest.mark.skipif(not (shutil.which("curl") or shutil.which("wget")), reason="neither curl nor wget is installed")
def test_a_web_server_has_the_archives(release):
    path = release.archive("1.0")
    (release.folder / "latest").write_text("1.0\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(release.folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        done = release.run("--from", url)
        assert done.returncode == 0, done.stderr
        assert release.installed() == ["1.0"]
        path.unlink()
        refused(release.run("--from", url, "--version", "1.1"))
        (release.folder / "latest").write_text("../x\n")
        refused(release.run("--from", url))
    finally:
        server.shutdown()
        server.server_close()


def test_the_manifest_of_versions_is_readable_by_the_agent(release):
    release.archive("1.0", "import json, sys; print(json.dumps(sys.argv))")
    release.offline()
    found = versions.Versions(release.prefix)
    done = subprocess.run([found.program("1.0"), "version", "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)[1:] == ["version", "--json"]


def test_two_installations_at_once_are_refused(release):
    release.archive("1.0")
    release.prefix.mkdir(parents=True)
    with (release.prefix / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(release.offline())
    assert release.offline().returncode == 0
