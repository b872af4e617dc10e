"""The Python API against a real small server: one frame, many frames, the blocking wrapper, and the code in the documentation."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edge_agent
from edge_agent import Agent
from edge_agent.runtime.agent import IN_PROGRESS
from edge_agent.runtime.ordered import in_order
from splitedge import errors
from tests.small_server import TOKEN, SmallServer

PAGES = ("README.md", "docs/reference/python-api.md")


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def environment(tmp_path: Path, profile_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration file with a cache folder of its own, and the token in a variable."""
    (tmp_path / "agent.toml").write_text(f"cache_dir = '{tmp_path / 'cache'}'\nprofile = '{profile_file}'\n")
    monkeypatch.setenv("SPLITEDGE_CONFIG", str(tmp_path / "agent.toml"))
    monkeypatch.setenv("SPLITEDGE_TOKEN", TOKEN)


@asynccontextmanager
async def connected(server: SmallServer, **settings: object) -> AsyncIterator[Agent]:
    async with Agent.connect(server.url, "small", **settings) as agent:
        yield agent


def test_importing_the_package_loads_nothing_else() -> None:
    script = "import sys, edge_agent; print(*sys.modules); dir(edge_agent); edge_agent.Text; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = (set(line.split()) for line in done.stdout.splitlines())
    assert not {"numpy", "numba", "aiohttp", "msgspec", "asyncio"} & first
    assert "numba" not in second


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in edge_agent._MODULES:
        assert name in dir(edge_agent)
        assert getattr(edge_agent, name).__name__ == name
    with pytest.raises(AttributeError):
        edge_agent.Absent  # noqa: B018


@pytest.mark.usefixtures("environment")
async def test_keywords_are_settings_and_beat_variables_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.toml").write_text("topk = 9\n[demand]\nkeep = 'input'\nmax_latency_ms = 5.0\n")
    monkeypatch.setenv("SPLITEDGE_THREADS", "2")
    agent = Agent.connect(
        "http://127.0.0.1:1", "small", config=tmp_path / "other.toml", cache_dir=tmp_path, demand={"keep": "nothing"}
    )
    found = agent.settings
    assert (found.server, found.model, found.cache_dir) == ("http://127.0.0.1:1", "small", str(tmp_path))
    assert (found.topk, found.threads, found.token) == (9, 2, TOKEN)
    assert (found.demand.keep, found.demand.max_latency_ms) == ("nothing", 5.0)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("keywords", "key"),
    [({"modell": "x"}, "modell"), ({"demand": {"kept": 1}}, "demand.kept"), ({"topk": "many"}, "topk"), ({}, "model")],
)
async def test_a_wrong_keyword_is_a_config_error_that_names_it(keywords: dict[str, object], key: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        Agent.connect("http://127.0.0.1:1", **keywords)
    assert caught.value.data["key"] == key


@pytest.mark.usefixtures("environment")
async def test_many_frames_are_answered_in_order_with_a_bounded_number_in_progress() -> None:
    taken = 0

    def frames() -> Iterator[bytes]:
        nonlocal taken
        for seed in range(30):
            taken += 1
            yield png(seed)

    async with SmallServer() as server, connected(server) as agent:
        server.tail_s = 0.01
        alone = [(await agent.infer(png(seed))).top[0].index for seed in range(30)]
        found = []
        async for result in agent.infer_many(frames()):
            found.append(result.top[0].index)
            assert taken - len(found) <= IN_PROGRESS + 1
        assert found == alone
        assert agent.counters.answered == 60


@pytest.mark.usefixtures("environment")
async def test_a_live_source_gets_each_answer_before_the_next_frame() -> None:
    answered = asyncio.Event()

    async def camera() -> AsyncIterator[bytes]:
        for seed in range(3):
            yield png(seed)
            await asyncio.wait_for(answered.wait(), 20)
            answered.clear()

    async with SmallServer() as server, connected(server) as agent:
        async for _ in agent.infer_many(camera()):
            answered.set()
        assert agent.counters.answered == 3


@pytest.mark.usefixtures("environment")
async def test_an_error_ends_many_frames_or_takes_its_frames_place(tmp_path: Path) -> None:
    frames = [png(0), b"not an image", tmp_path / "absent.jpg", png(1)]
    async with SmallServer() as server, connected(server) as agent:
        found = [answer async for answer in agent.infer_many(frames, return_errors=True)]
        assert [type(answer) for answer in found] == [
            edge_agent.Result,
            errors.InputError,
            errors.InputError,
            edge_agent.Result,
        ]
        assert agent.counters.failed == {"input": 2}
        with pytest.raises(errors.InputError):
            async for _ in agent.infer_many(frames):
                pass
        assert agent.queue.frames == 0


@pytest.mark.usefixtures("environment")
async def test_more_frames_than_the_queue_holds_are_not_refused() -> None:
    async with SmallServer() as server, connected(server) as agent:
        agent.queue.max_frames = 2
        assert len([answer async for answer in agent.infer_many(png(seed) for seed in range(20))]) == 20
        assert not agent.counters.dropped


@pytest.mark.usefixtures("environment")
async def test_leaving_many_frames_early_leaves_none_in_progress() -> None:
    async with SmallServer() as server, connected(server) as agent:
        stream: Any = agent.infer_many(png(seed) for seed in range(30))
        await anext(stream)
        server.tail_s = 5.0
        await stream.aclose()
        assert agent.queue.frames == 0


async def test_leaving_early_cancels_the_work_behind() -> None:
    ended: list[int] = []

    async def work(item: int) -> int:
        try:
            await asyncio.sleep(0 if item == 0 else 30)
        finally:
            ended.append(item)
        return item

    stream = in_order(range(100), work, 4)
    assert await anext(stream) == (0, 0)
    await stream.aclose()
    assert set(ended) <= set(range(6))
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.usefixtures("environment")
async def test_blocking_code_gets_the_same_answers() -> None:
    async with SmallServer() as server:
        async with connected(server) as agent:
            expected = [(await agent.infer(png(seed))).top for seed in range(12)]

        def blocking() -> None:
            states: list[str] = []
            with edge_agent.connect(server.url, "small", progress=states.append) as agent:
                assert agent.ready
                assert states[-1] == "ready"
                assert agent.plan is not None
                assert agent.infer(png(0)).top == expected[0]
                assert [found.top for found in agent.infer_many(png(seed) for seed in range(12))] == expected
                first = next(agent.infer_many([png(1), png(2), png(3)]))  # and leaves the others
                assert first.top == expected[1]
                with pytest.raises(errors.InputError):
                    agent.infer(b"not an image")
                assert agent.status()["frames"]["failed"] == {"input": 1}
            agent.close()
            with pytest.raises(errors.UsageError):
                agent.infer(png(0))

        await asyncio.to_thread(blocking)
        assert not [thread for thread in threading.enumerate() if thread.name == "edge-agent"]


@pytest.mark.usefixtures("environment")
async def test_several_threads_share_a_blocking_agent() -> None:
    async with SmallServer() as server:
        agent = await asyncio.to_thread(edge_agent.connect, server.url, "small")
        found = await asyncio.gather(*(asyncio.to_thread(agent.infer, png(seed)) for seed in range(4)))
        await asyncio.to_thread(agent.close)
        assert len(found) == server.frames == 4


@pytest.mark.usefixtures("environment")
async def test_a_start_that_fails_leaves_no_thread() -> None:
    with pytest.raises(errors.UnreachableError):
        await asyncio.to_thread(edge_agent.connect, "http://127.0.0.1:9", "small")
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-agent"]


def code_blocks(root: Path) -> list[str]:
    """Every Python block of `PAGES` that uses the agent."""
    text = "\n".join((root / page).read_text() for page in PAGES)
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "edge_agent" in block]


@pytest.mark.usefixtures("environment")
async def test_the_code_in_the_documentation_runs(root: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(png(seed))
    (tmp_path / "photo.jpg").write_bytes(png(0))
    async with SmallServer("split") as server:
        for block in code_blocks(root):
            code = (
                re.sub(r"https?://[\w.-]+:8470", server.url, block)
                .replace("efficientnet-lite0", "small")
                .replace("flowers", "small")
            )
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-c", code, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(root)},
            )  # fmt: skip
            out, err = await done.communicate()
            assert done.returncode == 0, (block, err.decode())
            assert out
    assert len(code_blocks(root)) >= 5
