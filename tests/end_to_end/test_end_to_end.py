"""The main job with real processes: `edge-server serve`, `edge-agent run` and `edge-agent infer`, and a link that fails in every way."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from splitedge import limits
from tests.end_to_end.conftest import Cable, World, end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def run(environment: dict[str, str], *arguments: str | Path) -> tuple[int, str, str]:
    """`edge-agent` with ``arguments``: exit status, standard output, standard error."""
    command = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdin=None, stdout=PIPE, stderr=PIPE, env=environment)
    try:
        out, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        await end(process)
    assert "Traceback" not in err.decode()
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def agent(environment: dict[str, str]) -> AsyncIterator[tuple[aiohttp.ClientSession, Any]]:
    """A real `edge-agent run` that is ready, and a client of its local API."""
    command = [sys.executable, "-m", "edge_agent", "run", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        while not lines or "ready on" not in lines[-1]:
            lines.append((await asyncio.wait_for(process.stderr.readline(), 60)).decode())
            assert lines[-1], lines
        url = re.search(r"http://\S+?(?=:? |$)", lines[0].strip())
        assert url is not None
        async with aiohttp.ClientSession(url[0]) as http:
            yield http, process
    finally:
        await end(process)


async def post(http: aiohttp.ClientSession, image: bytes) -> tuple[str, Any]:
    """What became of one frame: ("answered", the best class) or (error code, message)."""
    async with http.post("/v1/infer", data=image) as response:
        value = await response.json()
    if response.status == 200:
        return "answered", value["top"][0]
    return value["error"]["code"], value["error"]["message"]


async def metrics(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as response:
        found = re.findall(r"^splitedge_(\S+) (\S+)$", await response.text(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def frames(counts: dict[str, float]) -> Counter[str]:
    """Frames by how they ended, as the agent counted them."""
    pairs = re.findall(
        r'frames_total\{outcome="(\w+)",reason="(\w*)"\} (\d+)', "\n".join(f"{k} {v:.0f}" for k, v in counts.items())
    )
    return Counter({reason or outcome: int(n) for outcome, reason, n in pairs if int(n)})


@pytest.mark.thorough
async def test_every_frame_is_accounted_for_when_the_link_breaks_and_when_it_falls_silent(
    world: World, serving, tmp_path
) -> None:
    """Three phases under load: whole, cut, buried. Each frame posted is answered, as in the whole phase, or fails with an error."""
    images = [path.read_bytes() for path in world.images]
    async with serving() as server, Cable(server) as cable:
        environment = world.environment(
            cable.url, tmp_path / "cache", SPLITEDGE_DEMAND_MAX_AWAY_S="2", SPLITEDGE_LINK_CONTROLLER="fixed"
        )  # so that a picture has one answer
        async with agent(environment) as (http, process):
            ended: Counter[str] = Counter()
            known: dict[int, Any] = {}

            async def client(first: int, count: int) -> None:
                for i in range(first, first + count):
                    outcome, answer = await post(http, images[i % len(images)])
                    ended[outcome] += 1
                    if outcome == "answered":
                        assert known.setdefault(i % len(images), answer) == answer

            async def clients(count: int) -> None:
                await asyncio.gather(*(client(6 * n, count) for n in range(4)))

            # Whole: all are answered.
            await clients(25)
            assert ended == {"answered": 100}

            # Cut in the middle, twice: the stream is dialled again, frames in flight are sent again, none is lost.
            load = asyncio.create_task(clients(100))
            for _ in range(2):
                await asyncio.sleep(0.15)
                cable.cut()
            await load
            assert ended == {"answered": 500}
            counts = await metrics(http)
            assert counts["reconnects_total"] >= 1
            assert frames(counts) == ended

            # Buried: nothing answers and nothing closes. Within a bounded time every frame has failed with a sentence.
            cable.buried = True
            async with asyncio.timeout(limits.SILENCE + limits.FRAME_AGE + 10):
                lost = await asyncio.gather(*(post(http, images[i]) for i in range(12)))
            assert {outcome for outcome, _ in lost} == {"link_lost"}
            assert all("\n" not in message for _, message in lost)
            ended.update(outcome for outcome, _ in lost)

            # Dug out: it serves again by itself.
            cable.buried = False
            async with asyncio.timeout(60):
                while (outcome := await post(http, images[0]))[0] != "answered":
                    ended[outcome[0]] += 1
                    await asyncio.sleep(0.1)
            ended["answered"] += 1
            assert outcome[1] == known[0]
            await clients(10)

            # The books agree: what the clients saw is what the agent counted.
            counts = await metrics(http)
            assert frames(counts) == ended
            assert sum(ended.values()) >= 100 + 400 + 12 + 1 + 40
            assert counts["queue_frames"] == 0
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.thorough
async def test_a_server_that_restarts_is_found_again_with_the_same_plan(world: World, serving, tmp_path) -> None:
    images = [path.read_bytes() for path in world.images]
    async with serving() as server:
        port = server.rsplit(":", 1)[1]
        cable = Cable(server)
        async with cable:
            environment = world.environment(cable.url, tmp_path / "cache")
            async with agent(environment) as (http, _):
                assert (await post(http, images[0]))[0] == "answered"
                async with serving() as second:
                    assert second.rsplit(":", 1)[1] != port
                    cable._port = int(second.rsplit(":", 1)[1])
                    cable.cut()
                    outcomes = await asyncio.gather(*(post(http, image) for image in images))
                    assert {outcome for outcome, _ in outcomes} == {"answered"}
                    assert (await metrics(http))["plans_total"] == 1


async def test_a_folder_is_classified_and_the_plan_explained(world: World, serving, tmp_path) -> None:
    async with serving() as server:
        environment = world.environment(server, tmp_path / "cache")
        status, out, err = await run(environment, "infer", world.images[0].parent)
        assert status == 0, err
        assert f"frames answered {len(world.images)}/{len(world.images)}" in out
        status, plan, _ = await run(environment, "plan")
        assert status == 0
        assert "tiny" in plan.splitlines()[0]
        assert "why it lost" in plan
        status, plan, err = await run(environment, "plan", "--plot", tmp_path / "trade.svg")
        assert status == 0, err
        assert "why it lost" in plan
        assert str(tmp_path / "trade.svg") in plan
        assert b"<svg" in (tmp_path / "trade.svg").read_bytes()[:1000]
        status, _, err = await run(environment, "plan", "--plot", tmp_path / "trade.pdf")
        assert status != 0
        assert "trade.pdf" in err
        segments = list((tmp_path / "cache").glob("*.segment"))
        assert segments
        for segment in segments:  # truncated in the cache: fetched again
            segment.write_bytes(segment.read_bytes()[:100])
        status, lines, _ = await run(environment, "infer", "--json", world.images[0])
        assert status == 0
        assert json.loads(lines)["mode"] == "split"
        # the same head or, where the machine's speed has changed the plan, another
        assert any(segment.stat().st_size > 100 for segment in (tmp_path / "cache").glob("*.segment"))


async def test_tls_is_spoken_and_a_certificate_that_nobody_vouched_for_is_refused(
    world: World, serving, tmp_path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    pem = str(tmp_path / "server.pem")
    async with serving("--cert", pem, "--key", pem) as server:
        assert server.startswith("https://")
        environment = world.environment(server, tmp_path / "cache")
        good, bad = await asyncio.gather(
            run(environment, "infer", "--ca", tmp_path / "ca.pem", world.images[0]),
            run(environment, "infer", "--ca", tmp_path / "stranger.pem", world.images[0]),
        )
    assert good[0] == 0, good[2]
    assert "frames answered 1/1" in good[1]
    assert bad[0] == 9
    assert bad[2].count("\n") == 1
    assert "certificate" in bad[2]


async def test_bad_input_on_either_side_is_one_sentence_and_a_status(world: World, serving, tmp_path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    (tmp_path / "file").write_text("where a folder should be")
    (tmp_path / "wrong.toml").write_text("[demand]\nmax_drop = 1\n")
    cases: list[tuple[dict[str, str], list[str | Path], int, str]] = [
        ({"SPLITEDGE_TOKEN": "wrong"}, ["plan"], 10, "token"),
        ({}, ["plan", "--model", "absent"], 11, "absent"),
        ({}, ["plan", "--keep", "absent"], 2, "absent"),
        ({}, ["plan", "--max-latency", "0.000001"], 11, "latency"),
        ({"SPLITEDGE_CACHE_DIR": str(tmp_path / "file")}, ["infer", world.images[0]], 12, "cache"),
        ({"SPLITEDGE_CONFIG": str(tmp_path / "wrong.toml")}, ["run"], 2, "`demand.max_drop`"),
        ({}, ["infer", tmp_path / "bad.jpg"], 3, "bad.jpg"),
    ]
    async with serving() as server:
        for changes, arguments, status, word in cases:
            environment = world.environment(server, tmp_path / "cache", **changes)
            found, _, err = await run(environment, *arguments)
            assert (found, "Traceback" in err) == (status, False), (arguments, err)
            assert word in err.splitlines()[-1]  # a slow machine also says what it is doing


async def test_a_full_disk_is_one_sentence_and_a_status(world: World, serving, tmp_path) -> None:
    """No file may grow by a byte, as on a full disk."""
    async with serving() as server:
        environment = world.environment(server, tmp_path / "cache")
        for name in [name for name in environment if name.startswith("COV")]:  # coverage would want to write, too
            del environment[name]
        command = [
            "/bin/sh",
            "-c",
            'ulimit -f 0; exec "$0" -m edge_agent infer "$1"',
            sys.executable,
            str(world.images[0]),
        ]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
        _, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 12
    assert err.decode().count("\n") == 1
    assert b"free space" in err
