"""The board of a benchmark: agents in a separate process, driven by commands.

`Board` starts ``python -m benchmarks.board FOLDER`` with a command prefix (a namespace, a core) and exchanges lines of
JSON with it. The process runs one `edge_agent.runtime.agent.Agent` per name, as `edge-agent run` and `edge-agent infer`
do.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.processes import reap
from edge_agent import config
from edge_agent.planning import streams
from edge_agent.runtime.agent import Agent
from splitedge import errors
from splitedge.protocol.messages import Plan

PATIENCE: Final = 300.0  # seconds without a line from the board
_SIDE: Final = 256  # pixels of a photo's short side; larger photos only add decoding time

Timings = list[dict[str, float]]
Pictures = list[NDArray[Any]]


class Board:
    """A running board; a context manager.

    ``environment``: its settings as variables. ``photos``: a folder, or a .npy file of inputs. Errors of the agent are
    raised as `errors.SplitEdgeError`.
    """

    def __init__(
        self, name: str, prefix: Sequence[str], environment: Mapping[str, str], photos: Path, most: int = 8
    ) -> None:
        self.name = name
        self._command = [*prefix, sys.executable, "-m", "benchmarks.board", str(photos), str(most)]
        self._environment = environment

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parent.parent
        environment = os.environ | dict(self._environment)
        self._process = subprocess.Popen(
            self._command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        reap(self._process)
        self._reader.join()

    def plan(self, name: str, on_step: Callable[[str], object] = lambda _: None, **settings: str) -> Plan:
        """Start a new agent ``name``, in place of any previous one, and let it negotiate a plan.

        ``on_step`` is called with the agent's status messages.
        """
        answer = self._ask({"do": "plan", "name": name, "settings": settings}, on_step)
        return msgspec.convert(answer["plan"], Plan)

    def frames(self, name: str, count: int) -> Timings:
        """Run ``count`` frames, one after another, on agent ``name``; return `edge_agent.runtime.results.Timing`s."""
        found: Timings = self._ask({"do": "frames", "name": name, "count": count})["timings"]
        return found

    def stream(self, name: str, begin: float, fps: float, count: int) -> dict[str, Any]:
        """Offer ``count`` frames to agent ``name`` at ``fps`` per second from ``begin`` (of `time.monotonic`) on.

        Frames are offered even if the agent is not ready for them. Keys of the result:
        ``frames``: for each frame [offered, ended (seconds from ``begin``), bytes sent, first class, rung,
        "answered" or an error code]; ``status``: the agent's final status; ``bits``: [seconds from ``begin``, bits of
        the codec in use, uplink in Mbit/s], ten times a second.
        """
        return self._ask({"do": "stream", "name": name, "begin": begin, "fps": fps, "count": count})

    def rush(self, name: str, count: int, at_once: int) -> tuple[float, dict[str, int]]:
        """Run ``count`` frames on agent ``name``, up to ``at_once`` in flight.

        Returns the answers per second, without the first and the last quarter, and the number of frames for each
        outcome ("answered" or an error code).
        """
        answer = self._ask({"do": "rush", "name": name, "count": count, "at_once": at_once})
        return answer["fps"], answer["ends"]

    def outputs(self, name: str, count: int) -> list[str]:
        """Return the full outputs (hexadecimal) for ``count`` pictures by agent ``name``'s plan, over a new stream."""
        found: list[str] = self._ask({"do": "outputs", "name": name, "count": count})["outputs"]
        return found

    def counted(self, name: str) -> dict[str, Any]:
        """Return the agent's own frame counts from its status."""
        found: dict[str, Any] = self._ask({"do": "counted", "name": name})["frames"]
        return found

    def _ask(self, message: dict[str, Any], on_step: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        while True:
            try:
                answer: dict[str, Any] = json.loads(self._lines.get(timeout=PATIENCE) or "null") or {}
            except queue.Empty:
                answer = {}
            if "error" in answer:
                raise errors.from_wire(answer["error"])
            if not answer:
                raise errors.UnreachableError("the board's process ended or stopped responding; see its message above")
            if "step" not in answer:
                return answer
            on_step(answer["step"])

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")


# --- the process ------------------------------------------------------------------------------------------------------


async def _obey(pictures: Pictures) -> None:
    agents: dict[str, Agent] = {}
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            message = json.loads(line)
            try:
                _say(await _do(message, agents, pictures))
            except errors.SplitEdgeError as error:
                _say({"error": error.to_wire()})
    finally:
        for agent in agents.values():
            await agent.close()


async def _do(message: dict[str, Any], agents: dict[str, Agent], pictures: Pictures) -> dict[str, Any]:
    name = message["name"]
    if message["do"] == "plan":
        if name in agents:
            await agents.pop(name).close()
        settings = config.load(environ=os.environ | message["settings"])
        agents[name] = await Agent(settings, lambda text: _say({"step": text})).__aenter__()
        return {"plan": msgspec.to_builtins(agents[name].plan)}
    if message["do"] == "stream":
        return await _stream(agents[name], pictures, message["begin"], message["fps"], message["count"])
    if message["do"] == "rush":
        return await _rush(agents[name], pictures, message["count"], message["at_once"])
    if message["do"] == "outputs":
        return {"outputs": await _outputs(agents[name], pictures[: message["count"]])}
    if message["do"] == "counted":
        return {"frames": agents[name].status()["frames"]}
    timings = [(await agents[name].infer(pictures[i % len(pictures)])).timing for i in range(message["count"])]
    return {"timings": msgspec.to_builtins(timings)}


async def _rush(agent: Agent, pictures: Pictures, count: int, at_once: int) -> dict[str, Any]:
    room, ends, times = asyncio.Semaphore(at_once), Counter[str](), list[float]()

    async def one(index: int) -> None:
        try:
            await agent.infer(pictures[index % len(pictures)])
            ends["answered"] += 1
            times.append(time.perf_counter())
        except errors.SplitEdgeError as error:
            ends[error.code] += 1
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        for index in range(count):
            await room.acquire()
            group.create_task(one(index))
    inner = times[len(times) // 4 : max(len(times) // 4 + 2, 3 * len(times) // 4)]
    fps = (len(inner) - 1) / (inner[-1] - inner[0]) if len(inner) > 1 else 0.0
    return {"fps": fps, "ends": dict(ends)}


async def _outputs(agent: Agent, pictures: Pictures) -> list[str]:
    assert agent.plan is not None
    engine = agent._replanner.plan.engine  # type: ignore[union-attr]  # the plan's own head
    async with streams.frame_stream(agent.settings, agent.plan, topk=0) as stream:
        sent = [engine.process(picture).payload for picture in pictures]
        return [bytes((await stream.send(payload, engine.codec)).payload).hex() for payload in sent]


async def _stream(agent: Agent, pictures: Pictures, begin: float, fps: float, count: int) -> dict[str, Any]:
    time = asyncio.get_running_loop().time

    async def one(i: int) -> list[Any]:
        offered = begin + i / fps
        await asyncio.sleep(max(0.0, offered - time()))
        try:
            result = await agent.infer(pictures[i % len(pictures)])
        except errors.SplitEdgeError as error:
            return [i / fps, time() - begin, 0, -1, None, error.code]
        ended = time() - begin
        return [i / fps, ended, result.payload_bytes, result.top[0].index, result.rung, "answered"]

    async def watch() -> list[list[float]]:
        seen = []
        while time() < begin + count / fps:
            await asyncio.sleep(0.1)
            if (link := agent.status()["link"]) is not None:
                seen.append([time() - begin, link["bits"], link["uplink_mbps"]])
        return seen

    watching = asyncio.create_task(watch())
    frames = await asyncio.gather(*(one(i) for i in range(count)))
    return {"frames": frames, "status": agent.status(), "bits": await watching}


def load_pictures(path: Path, most: int) -> Pictures:
    """Load photographs of a folder, or the model's inputs [n, ...] from a .npy file."""
    if path.suffix == ".npy":
        return list(np.load(path)[:most])
    found = sorted(place for place in path.iterdir() if place.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [_picture(place) for place in found[:most]]


def _picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = _SIDE / min(image.size)
    return np.asarray(image.resize((round(image.width * scale), round(image.height * scale))), np.uint8)


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    asyncio.run(_obey(load_pictures(Path(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
