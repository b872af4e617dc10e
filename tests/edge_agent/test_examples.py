"""Each program in examples/ runs as its docstring says, against a real small server."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from edge_agent.api import app
from edge_agent.runtime.agent import Agent
from tests.edge_agent.runtime.test_agent import png
from tests.small_server import TOKEN, SmallServer


@pytest.fixture
def environment(root: Path, tmp_path: Path, profile_file: Path) -> dict[str, str]:
    """The environment of an example, with a configuration file of its own; and photos in ``tmp_path``."""
    (tmp_path / "agent.toml").write_text(f"cache_dir = '{tmp_path / 'cache'}'\nprofile = '{profile_file}'\n")
    for seed in range(5):
        (tmp_path / f"{seed}.jpg").write_bytes(png(seed))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
    return kept | {
        "SPLITEDGE_CONFIG": str(tmp_path / "agent.toml"), "SPLITEDGE_TOKEN": TOKEN, "PYTHONPATH": str(root),
    }  # fmt: skip


async def run(environment: dict[str, str], name: str, *arguments: object) -> tuple[int, str, str]:
    """Exit status and output of an example."""
    command = [sys.executable, "-W", "error", "-m", f"examples.{name}", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_classify_photo(environment: dict[str, str], tmp_path: Path) -> None:
    async with SmallServer() as server:
        status, out, err = await run(environment, "classify_photo", server.url, "small", tmp_path / "0.jpg")
        assert status == 0, err
        assert re.match(r"label \d+: 75\.0 %\nlabel 1: 25\.0 %\n296 bytes sent in \d+ ms\n$", out)
        assert server.frames == 1


async def test_classify_folder(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    async with SmallServer() as server:
        status, out, err = await run(environment, "classify_folder", server.url, "small", tmp_path)
        assert status == 0, err
        *photos, classes = out.splitlines()
        assert [line.partition(":")[0] for line in photos] == [f"{seed}.jpg" for seed in range(5)]
        assert sum(int(count) for count in re.findall(r"(\d+) x label", classes)) == server.frames == 5
        assert err.startswith("broken.jpg: ")


async def test_http_client(environment: dict[str, str], settings, tmp_path: Path) -> None:
    async with SmallServer() as server, Agent(settings(server)) as agent:
        runner, url = await app.serve(app.Front(agent), "127.0.0.1", 0)
        try:
            status, out, err = await run(environment, "http_client", url, tmp_path / "0.jpg")
            assert (status, out.endswith("%, 296 bytes sent\n")) == (0, True), err
            (tmp_path / "0.jpg").write_bytes(b"not an image")
            status, out, err = await run(environment, "http_client", url, tmp_path / "0.jpg")
            assert (status, out) == (1, "")
            assert "Traceback" not in err
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("name", ["classify_photo", "classify_folder", "http_client"])
async def test_without_arguments_an_example_prints_its_usage(environment: dict[str, str], name: str) -> None:
    status, _, err = await run(environment, name)
    assert status == 1
    assert "Traceback" not in err
    assert name in err
