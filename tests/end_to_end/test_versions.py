"""This program beside the program as it was: servers, agents, stores and folders of both, as processes.

`docs/topics/versions.md` says what must work together.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from calibration.bundle.bundle import Bundle
from splitedge import errors
from splitedge.head import segment
from tests.conftest import ROOT
from tests.end_to_end.conftest import World, end
from tests.raising import raises

# Imports a network with each version, and compiles its kernels.
pytestmark = [pytest.mark.thorough, pytest.mark.slow, pytest.mark.timeout(900)]

#: Commits of the program before this one, and the format of their bundles.
PROTOCOL_4: Final = "99fa669c6c8168c5cdbfb6b9c80e3600396d6076"
PROTOCOL_3: Final = "5433cea4597a8106a146b04282434826379aaeb2"
BUNDLES: Final = {PROTOCOL_4: 7, PROTOCOL_3: 5}
OUTPUT: Final = "body"  # the last layer that can be a head's: only one cut keeps all before it


@dataclass(frozen=True)
class Program:
    """A version of the program: its source. ``store`` was made by it, and ``token`` is valid there."""

    tree: Path
    store: Path
    token: str
    bundle: int

    def environment(self, world: World, cache: Path, url: str = "", token: str = "", **changes: str) -> dict[str, str]:
        """The environment of its processes. Kernels stay in this user's cache, which names them by their source."""
        fixed = {
            "SPLITEDGE_DEMAND_KEEP": OUTPUT,
            "SPLITEDGE_LINK_CONTROLLER": "fixed",
            "SPLITEDGE_TOKEN": token or self.token,
        }
        return world.environment(url, cache, **fixed | {"PYTHONPATH": str(self.tree), "SPLITEDGE_TOPK": "3"} | changes)


def command(program: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", program, *map(str, arguments)]


@pytest.fixture(scope="session")
def new(world: World) -> Program:
    """This program."""
    return Program(ROOT, world.store, world.token, 7)


@pytest.fixture(scope="session", params=BUNDLES, ids=["protocol 4", "protocol 3"])
def old(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A version before this one, with a store of its own that holds the network of `world`."""
    commit, folder = request.param, tmp_path_factory.mktemp("old")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the git history here has no commit {commit[:7]}: fetch it to test against that version")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder / "tree")  # our own history; Python 3.11.2 knows no filter
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPLITEDGE_")}
    environment["PYTHONPATH"] = str(folder / "tree")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import edge_agent; print(edge_agent.__file__)").startswith(str(folder / "tree"))
    store = ["--store", folder / "store"]
    images = ["--images", world.images[0].parent, "--mean", "127", "--std", "128"]
    run("-m", "edge_server", "add", world.folder / "tiny.onnx", *images, *store)
    token = run("-m", "edge_server", "token", "board", *store).split()[-1]
    return Program(folder / "tree", folder / "store", token, BUNDLES[commit])


@asynccontextmanager
async def serving(program: Program, world: World, folder: Path, store: Path) -> AsyncIterator[str]:
    """A running `edge-server serve`, and its URL."""
    process = await asyncio.create_subprocess_exec(
        *command("edge_server", "serve", "--port", "0", "--store", store),
        stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=folder, env=program.environment(world, folder / "server"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
        assert line.startswith("edge-server ready on http"), line
        yield line.split()[-1]
    finally:
        await end(process)


async def run(environment: dict[str, str], folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """`edge-agent` with ``arguments``: exit status, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *command("edge_agent", *arguments), stdout=PIPE, stderr=PIPE, cwd=folder, env=environment
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 300)
    finally:
        await end(process)
    assert "Traceback" not in err.decode()
    return process.returncode or 0, out.decode(), err.decode()


async def answers(environment: dict[str, str], world: World, folder: Path) -> list[dict[str, Any]]:
    """What `edge-agent infer --json` answers to some images, without what depends on the machine."""
    status, out, err = await run(environment, folder, "infer", "--json", *world.images[:4])
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    return [{name: value[name] for name in ("image", "top", "mode", "bits", "payload_bytes")} for value in found]


async def test_the_server_serves_agents_of_before(old: Program, new: Program, world: World, tmp_path: Path) -> None:
    async with serving(new, world, tmp_path, new.store) as url:
        wanted = await answers(new.environment(world, tmp_path / "new", url), world, tmp_path)
        found = await answers(old.environment(world, tmp_path / "old", url, new.token), world, tmp_path)
    assert {one["mode"] for one in wanted} == {"split"}
    assert found == wanted


async def test_the_agent_works_with_the_server_of_before(
    old: Program, new: Program, world: World, tmp_path: Path
) -> None:
    async with serving(old, world, tmp_path, old.store) as url:
        wanted = await answers(old.environment(world, tmp_path / "old", url), world, tmp_path)
        found = await answers(new.environment(world, tmp_path / "new", url, old.token), world, tmp_path)
        device = await run(
            new.environment(world, tmp_path / "new", url, old.token, SPLITEDGE_TOPK="0"),
            tmp_path,
            "infer",
            "--json",
            world.images[0],
        )
    assert {one["mode"] for one in wanted} == {"split"}
    assert found == wanted
    for file in (tmp_path / "new").rglob("*.segment"):
        assert segment.parse(file.read_bytes()).header.model == "tiny"
    complete = old.bundle == 7  # protocol 3 does not describe complete outputs
    assert device[0] == (0 if complete else errors.PlanError.exit_status)


async def test_what_an_agent_keeps_serves_both(old: Program, new: Program, world: World, tmp_path: Path) -> None:
    """Upgraded and rolled back: segments are not fetched again, and nothing is in the way of the other version."""
    cache = tmp_path / "cache"
    async with serving(new, world, tmp_path, new.store) as url:
        turns = [
            await answers(program.environment(world, cache, url, new.token), world, tmp_path)
            for program in (old, new, old)
        ]
        kept = {file.name: file.stat().st_ino for file in cache.rglob("*.segment")}
        turns += [
            await answers(program.environment(world, cache, url, new.token), world, tmp_path) for program in (new, old)
        ]
    assert all(turn == turns[0] for turn in turns)
    assert kept == {file.name: file.stat().st_ino for file in cache.rglob("*.segment")}
    assert len(kept) >= 1


async def test_the_server_opens_the_store_of_before(old: Program, new: Program, world: World, tmp_path: Path) -> None:
    """Its tokens are valid. Its models serve if their format is this one; else one sentence says what to do."""
    shutil.copytree(old.store, tmp_path / "store")
    async with serving(old, world, tmp_path, old.store) as url:
        wanted = await answers(old.environment(world, tmp_path / "old", url), world, tmp_path)
    async with serving(new, world, tmp_path, tmp_path / "store") as url:
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {old.token}"}) as http:
            models = await (await http.get("/v1/models")).json()
        environment = new.environment(world, tmp_path / "new", url, old.token)
        if old.bundle == new.bundle:
            assert [model["name"] for model in models] == ["tiny"]
            assert await answers(environment, world, tmp_path) == wanted
        else:
            assert models == []
            status, _, err = await run(environment, tmp_path, "plan")
            assert (status, len(err.splitlines())) == (errors.ModelError.exit_status, 1)
    if old.bundle != new.bundle:
        with raises(errors.ModelError, reason="format"):
            Bundle.open(tmp_path / "store/bundles/tiny")


async def test_the_store_after_a_roll_back_is_opened_by_the_program_of_before(
    old: Program, new: Program, world: World, tmp_path: Path
) -> None:
    """A server that is rolled back reads what the newer one left, or says in one sentence that it cannot."""
    shutil.copytree(new.store, tmp_path / "store")
    async with serving(old, world, tmp_path, tmp_path / "store") as url:
        environment = old.environment(world, tmp_path / "old", url, new.token)
        if old.bundle == new.bundle:
            assert len(await answers(environment, world, tmp_path)) == 4
        else:
            status, _, err = await run(environment, tmp_path, "plan")
            assert status not in (0, 1)
            assert re.search(r"add the model|no model", err.splitlines()[-1])
