"""A real server and real agents as processes, a small real network between them, and a cable that a test can cut or bury."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import device_profiles
from edge_server.commands.add import Request, add
from tests.edge_server.small_network import save_network
from tests.round_profile import round_profile

IMAGES = 24


@dataclass
class World:
    """What every test here starts from. Nothing of this user's own settings or caches is used."""

    folder: Path
    store: Path
    images: list[Path]
    token: str
    profile: Path

    def environment(self, server: str, cache: Path, **changes: str) -> dict[str, str]:
        """An agent's environment. Its cache folder is set in a file: SPLITEDGE_CACHE_DIR would move the compiled kernels too."""
        (cache.parent / f"{cache.name}.toml").write_text(f"cache_dir = '{cache}'\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
        ours = {
            "SPLITEDGE_SERVER": server, "SPLITEDGE_TOKEN": self.token, "SPLITEDGE_MODEL": "tiny", "SPLITEDGE_PROFILE": str(self.profile),
            "SPLITEDGE_DEMAND_KEEP": "input", "SPLITEDGE_DEMAND_MAX_DROP_POINTS": "100", "SPLITEDGE_CONFIG": str(cache.parent / f"{cache.name}.toml"), "COLUMNS": "160",
        }  # fmt: skip
        return kept | ours | changes


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The network has an operator that no head runs, and its input must stay: so it is split, whatever this machine can do."""
    folder = tmp_path_factory.mktemp("end-to-end")
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(images / f"{i:02}.jpg", quality=95)
    save_network(folder / "tiny.onnx", last="LpNormalization")
    fields = dict.fromkeys(one.name for one in dataclasses.fields(Request) if one.default is one.default_factory)
    options = {"mean": [127.0], "std": [128.0]}
    add(
        folder / "store",
        Request(
            **fields | {"source": str(folder / "tiny.onnx"), "images": images, "options": options, "metric": "auto"}
        ),
    )
    token = subprocess.run(
        [sys.executable, "-m", "edge_server", "token", "board", "--store", str(folder / "store")],
        capture_output=True, text=True, check=True,
    ).stdout.split()[-1]  # fmt: skip
    device_profiles.save(round_profile(), folder / "profile.json")
    return World(folder, folder / "store", sorted(images.iterdir()), token, folder / "profile.json")


@pytest.fixture
def serving(world: World) -> Callable[..., object]:
    """``async with serving(*options) as url``: a real `edge-server serve`."""

    @asynccontextmanager
    async def start(*options: str) -> AsyncIterator[str]:
        command = [sys.executable, "-m", "edge_server", "serve", "--port", "0", "--store", str(world.store), *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            assert line.startswith("edge-server ready on http"), line
            yield line.split()[-1]
        finally:
            await end(process)

    return start


async def end(process: Process) -> None:
    """Kill ``process`` if it still runs, and collect it."""
    if process.returncode is None:
        process.kill()
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]  # else the loop warns of an open pipe, of standard error too


class Cable:
    """A TCP relay to ``url``. `cut` breaks every connection at once; while `buried`, bytes are swallowed in silence and nothing closes."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rsplit(":", 1)[1])
        self.buried = False
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Cable:
        self._listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self.buried:
                    target.write(data)
                    await target.drain()
            target.close()
        except ConnectionError:
            target.transport.abort()
        finally:
            self._writers.discard(target)
