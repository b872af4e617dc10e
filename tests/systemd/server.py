"""The server of the lab: a store with a small real network, a certificate, a token, and `edge-server serve`."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

import device_profiles
from tests.edge_server.small_network import save_network
from tests.round_profile import round_profile
from tests.systemd.machine import LabError, Network, run_in

ROOT: Final = Path(__file__).resolve().parent.parent.parent
MODEL: Final = "tiny"
PORT: Final = 8470
IMAGES: Final = 24
START_S: Final = 60.0


def sources_hash(*patterns: str) -> str:
    """A hash of the names and contents of the working tree's files that match one of ``patterns``."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        found.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def keep_newest(folder: Path, keep: Path) -> None:
    """Remove what a cache has beside ``keep`` and was last used more than a week ago."""
    keep.touch()
    for old in folder.iterdir():
        if old != keep and time.time() - old.stat().st_mtime > 7 * 86_400:
            shutil.rmtree(old, ignore_errors=True)


class Server:
    """`edge-server` of the working tree, in the server's namespace of ``network``. ``cache``: where the store stays."""

    def __init__(self, network: Network, cache: Path, folder: Path) -> None:
        self.url = f"https://{network.server_address}:{PORT}"
        self._network, self._cache, self.folder = network, cache, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.token = ""

    @property
    def frame(self) -> bytes:
        """A JPEG for the model."""
        return (self.folder / "images/00.jpg").read_bytes()

    @property
    def certificate(self) -> bytes:
        """The authority that boards must know."""
        return (self.folder / "server.pem").read_bytes()

    @property
    def profile(self) -> bytes:
        """A device profile, since a measurement takes most of a minute and may differ from run to run."""
        return (self.folder / "profile.json").read_bytes()

    def prepare(self) -> None:
        """Make store, certificate and token; the store is kept by a hash of the sources. Raises `LabError`."""
        key = sources_hash("edge_server/**/*.py", "calibration/**/*.py", "splitedge/**/*.py", "kernels/**/*.py", "tests/edge_server/small_network.py")  # fmt: skip
        kept = self._cache / key
        if not (kept / "store").is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            new = self._cache / f"{key}.new"
            shutil.rmtree(new, ignore_errors=True)
            _world(new)
            self._edge_server("add", str(new / "tiny.onnx"), "--images", str(new / "images"), "--mean", "127", "--std", "128", "--store", str(new / "store"))  # fmt: skip
            new.rename(kept)
        keep_newest(self._cache, kept)
        shutil.copytree(kept, self.folder, dirs_exist_ok=True)
        names = ("--name", self._network.server_address, "--folder", str(self.folder))
        screen = self._edge_server("init", *names, "--store", str(self.folder / "store"))
        token = re.search(r"echo (\S+) > token", screen)
        if token is None:
            raise LabError(f"`edge-server init` shows no token: {screen[-300:]}")
        self.token = token[1]

    def start(self) -> None:
        """Serve; returns when the port is open. Raises `LabError`."""
        command = ["-m", "edge_server", "serve", "--host", self._network.server_address, "--port", str(PORT)]
        files = ["--store", str(self.folder / "store"), "--cert", str(self.folder / "server.pem")]
        inside = run_in(self._network.server, [sys.executable, *command, *files, "--key", str(self.folder / "server.key")])  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *inside], stdout=subprocess.PIPE, stderr=log, cwd=ROOT)  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line.startswith("edge-server ready"):
            raise LabError(f"edge-server did not start: {line or (self.folder / 'server.log').read_text()[-600:]}")

    def stop(self) -> None:
        """End it at once, as a crash does; nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def _edge_server(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "edge_server", *arguments], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"`edge-server {arguments[0]}` failed: {done.stderr.strip()[-600:]}")
        return done.stdout


def _world(folder: Path) -> None:
    """Write the network, images and a device profile to the new ``folder``."""
    images = folder / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8))
        coarse.resize((40, 32), Image.Resampling.BICUBIC).save(images / f"{i:02}.jpg", quality=95)
    save_network(folder / "tiny.onnx", last="LpNormalization")  # no head runs this operator, so the network is split
    device_profiles.save(round_profile(), folder / "profile.json")
