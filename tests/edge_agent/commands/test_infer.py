"""`edge-agent infer` beside an agent that runs: who answers, with real processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.inputs.noise import noise
from edge_agent.inputs.sources import load_array
from splitedge import errors
from tests.edge_agent.commands.test_commands import png
from tests.small_server import TENSOR, TOKEN, SmallServer

pytestmark = pytest.mark.slow

Environment = Callable[..., dict[str, str]]
# Runs the command, then tells on standard error whether it loaded Numba.
CODE = (
    "import sys\nfrom edge_agent.__main__ import main\n"
    "try:\n main()\nfinally:\n print('numba' in sys.modules, file=sys.stderr)"
)


@pytest.fixture
def environment(tmp_path: Path, profile_file: Path) -> Environment:
    """``environment(server)``: settings of both agents, with the same port, and nothing of this user's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def make(server: SmallServer, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPLITEDGE_", "NOTIFY_"))}
        ours = {
            "SPLITEDGE_SERVER": server.url, "SPLITEDGE_TOKEN": TOKEN, "SPLITEDGE_MODEL": "small", "SPLITEDGE_API_PORT": port,
            "SPLITEDGE_PROFILE": str(profile_file), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "80",
        }  # fmt: skip
        return kept | ours | changes

    return make


@asynccontextmanager
async def running(environment: dict[str, str], until: str = "ready on") -> AsyncIterator[Process]:
    """`edge-agent run`, from the line with ``until`` on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent", "run", stderr=PIPE, env=environment
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(120):
            while until not in (line := (await process.stderr.readline()).decode()):
                assert line
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def start(environment: dict[str, str], *arguments: str | Path) -> Process:
    command = [sys.executable, "-W", "error", "-c", CODE, "infer", *map(str, arguments)]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)


async def infer(environment: dict[str, str], *arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the lines of --json, and standard error without its last line, which is about Numba."""
    process = await start(environment, "--json", *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, [json.loads(line) for line in out.splitlines()], err.decode()


def agents(lines: list[dict[str, Any]]) -> list[str]:
    return [line["agent"] for line in lines]


def answers(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(line["image"], line["top"], line["output"], line["bits"], line["kind"]) for line in lines]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / f"photos/{i}.png").write_bytes(png(i))
    return tmp_path / "photos"


async def test_a_running_agent_of_the_same_settings_answers_as_an_own_one_would(
    photo: Path, environment: Environment
) -> None:
    async with SmallServer() as server:
        env = environment(server)
        async with running(env):
            status, found, err = await infer(env, photo)
            assert (status, agents(found)) == (0, ["running"] * 3)
            assert err.endswith("False\n")  # it loaded no Numba
            assert len(server.requests) == 1  # the running agent's
            own_status, own, _ = await infer(env, "--own", photo)
            assert (own_status, agents(own)) == (0, ["own"] * 3)
            assert answers(found) == answers(own)
            plan = found[0]["plan"]
            process = await start(env, photo)
            out = (await asyncio.wait_for(process.communicate(), 120))[0].decode()
        status, alone, _ = await infer(env, photo)
    url = f"http://127.0.0.1:{env['SPLITEDGE_API_PORT']}"
    assert re.sub(r"\s+", " ", out).startswith(f"small: answered by the agent that runs on {url} (split, cut after ")
    assert max(map(len, out.splitlines()[:3])) <= 80
    assert "frames answered 3/3" in out
    assert (status, agents(alone), answers(alone)) == (0, ["own"] * 3, answers(found))
    assert plan == server.plan.id


async def test_no_token_is_needed_for_the_answer_of_a_running_agent(photo: Path, environment: Environment) -> None:
    async with SmallServer() as server:
        env = environment(server)
        async with running(env):
            status, found, _ = await infer(env | {"SPLITEDGE_TOKEN": "", "SPLITEDGE_SERVER": server.url}, photo)
    assert (status, agents(found)) == (0, ["running"] * 3)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [["--keep", "input"], ["--topk", "2"]])
async def test_other_settings_need_an_own_agent(photo: Path, environment: Environment, options: list[str]) -> None:
    async with SmallServer() as server:
        env = environment(server)
        async with running(env):
            status, found, _ = await infer(env, *options, photo)
    assert (status, agents(found)) == (0, ["own"] * 3)


@pytest.mark.thorough
async def test_an_agent_that_stops_meanwhile_is_replaced_by_an_own_one(
    photo: Path, tmp_path: Path, environment: Environment
) -> None:
    os.mkfifo(tmp_path / "later.png")
    async with SmallServer() as server:
        env = environment(server)
        async with running(env) as agent:
            process = await start(env, "--json", photo / "0.png", tmp_path / "later.png", photo / "1.png")
            assert process.stdout is not None
            lines = [json.loads(await asyncio.wait_for(process.stdout.readline(), 60))]
            agent.send_signal(signal.SIGTERM)
            await asyncio.wait_for(agent.wait(), 30)
            await asyncio.to_thread((tmp_path / "later.png").write_bytes, png(7))
            out, err = await asyncio.wait_for(process.communicate(), 120)
    lines += [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0, err.decode()
    assert agents(lines)[:2] == ["running", "own"]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "later.png", "1.png"]
    assert err.decode().count("the running agent stopped") == 1


async def test_an_agent_without_its_server_is_not_asked(photo: Path, environment: Environment) -> None:
    async with SmallServer() as server:
        env = environment(server)
    async with running(env, until="waiting for the server"):
        status, found, _ = await infer(env, photo)
    assert (status, found) == (errors.UnreachableError.exit_status, [])


async def test_a_program_that_is_no_agent_or_says_nothing_is_not_asked(photo: Path, environment: Environment) -> None:
    heard: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    async with SmallServer() as server:
        env = environment(server)
        async with await asyncio.start_server(silent, "127.0.0.1", int(env["SPLITEDGE_API_PORT"])):
            status, found, _ = await infer(env, photo)
    assert (status, agents(found)) == (0, ["own"] * 3)
    assert [request.split(b"\r\n")[0] for request in heard] == [b"GET /v1/status HTTP/1.1"]


@pytest.mark.thorough
async def test_errors_of_a_frame_are_those_of_an_own_agent(photo: Path, environment: Environment) -> None:
    (photo / "1.png").write_bytes(b"not an image")
    np.save(photo / "3.npy", np.zeros((3, 3), np.float32))
    async with SmallServer() as server:
        env = environment(server)
        async with running(env):
            found = await infer(env, photo)
            own = await infer(env, "--own", photo)
            text = await infer(env, "--text", "a word")
    assert found[0] == own[0] == text[0] == errors.InputError.exit_status
    codes = [[line.get("error", {}).get("data", {}).get("reason") for line in lines] for lines in (found[1], own[1])]
    assert codes[0] == codes[1]
    assert [reason is None for reason in codes[0]] == [True, False, True, False]
    assert [line["error"]["message"] for line in found[1] if "error" in line] == [
        line["error"]["message"] for line in own[1] if "error" in line
    ]


@pytest.mark.thorough
async def test_arrays_and_complete_outputs_are_the_same(tmp_path: Path, environment: Environment) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(16, 16, 3)).astype(np.float32))
    async with SmallServer("device", TENSOR) as server:
        env = environment(server, SPLITEDGE_TOPK="0")
        async with running(env):
            status, found, _ = await infer(env, "--out", tmp_path / "a", tmp_path / "x.npy")
            own_status, own, _ = await infer(env, "--own", "--out", tmp_path / "b", tmp_path / "x.npy")
    assert (status, own_status, agents(found), agents(own)) == (0, 0, ["running"], ["own"])
    a, b = np.load(found[0]["output_file"]), np.load(own[0]["output_file"])
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
async def test_frames_wait_while_the_queue_of_the_running_agent_is_full(photo: Path, environment: Environment) -> None:
    async with SmallServer() as server:
        server.tail_s = 0.05
        env = environment(server)
        async with running(env):
            found = await asyncio.gather(*(infer(env, *[photo] * 6) for _ in range(5)))
    assert [status for status, _, _ in found] == [0] * 5
    assert {agent for _, lines, _ in found for agent in agents(lines)} == {"running"}
    assert sum(len(lines) for _, lines, _ in found) == 5 * 18


@pytest.mark.thorough
async def test_a_running_service_answers_a_test_frame(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("")
    command = [sys.executable, "-m", "edge_agent", "service", "test", "--config", str(tmp_path / "agent.toml")]

    async def tried() -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=env)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode()

    async with SmallServer() as server:
        env = environment(server)
        assert (await tried())[0] == errors.UsageError.exit_status
        async with running(env):
            status, out = await tried()
    assert status == 0
    assert out.startswith("test frame: ")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("kind", ["tensor", "ids", "text", "image"])
def test_noise_is_a_frame_of_its_kind(kind: str) -> None:
    found = noise(kind, [4, 5, 3])
    if kind == "text":
        assert isinstance(found, str)
    elif kind == "image":
        assert Image.open(io.BytesIO(found)).size == (5, 4)
    else:
        array = load_array(found)
        assert array.shape == (4, 5, 3)
        assert array.dtype == (np.float32 if kind == "tensor" else np.int64)
