"""`edge-agent infer FILE...`: classify images, texts and arrays, in order, pipelined, and say where the time went."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from rich.console import Console

from edge_agent.commands.first import Frames
from edge_agent.config import Settings
from edge_agent.inputs.sources import Source
from edge_agent.runtime.agent import Agent
from edge_agent.runtime.engine import frame_bytes, frame_of
from edge_agent.runtime.results import Result, Timing, to_json
from splitedge import errors, files
from splitedge.head import answers
from splitedge.head.answers import Whole
from splitedge.platform_check import printable
from splitedge.report import headline, plain, size

Outcome = Result | errors.SplitEdgeError
_STEM = 100  # characters of a file's name


async def infer(settings: Settings, frames: Frames, *, json: bool, out: Path | None = None) -> int:
    """Print a line for each of ``frames``, those that cannot be read first, and a summary; returns 0, or the exit status of the first that failed.

    ``out``: a folder for the whole outputs, one .npy a frame.
    """
    sources, outputs = frames.good, None
    if out is not None:
        outputs, settings = OutputFiles(out), msgspec.structs.replace(settings, topk=0)
    console = Console(stderr=True)
    results: list[Result] = []
    status = frames.bad[0].error.exit_status if frames.bad else 0
    for source, error in frames.bad:
        _show(source, error, json=json)
    with console.status("starting") as spinner:
        agent = await Agent(settings, lambda text: spinner.update(plain(text))).__aenter__()
    try:
        if not json and agent.plan is not None:
            print(f"{headline(agent.plan)}\n")
        async for source, outcome in _outcomes(agent, sources):
            file = ""
            if isinstance(outcome, Result):
                results.append(outcome)
                file = str(outputs.write(source.name, outcome)) if outputs else ""
            else:
                status = status or outcome.exit_status
            _show(source, outcome, json=json, file=file)
    finally:
        await agent.close()
    print(_summary(results, len(sources) + len(frames.bad)) + _joules(agent), file=sys.stderr if json else sys.stdout)
    return status


async def _outcomes(agent: Agent, sources: list[Source]) -> AsyncIterator[tuple[Source, Outcome]]:
    """What became of each source, in their order, with so many under way as fill head and link."""
    under_way: deque[tuple[Source, asyncio.Task[Outcome]]] = deque()
    for source in sources:
        under_way.append((source, asyncio.create_task(_one(agent, source))))
        if len(under_way) >= agent.window:
            first, task = under_way.popleft()
            yield first, await task
    for first, task in under_way:
        yield first, await task


async def _one(agent: Agent, source: Source) -> Outcome:
    try:
        frame = frame_of(await asyncio.to_thread(source.read), source.name, agent.plan)
        await agent.admission.room(frame_bytes(frame))
        return await agent.infer(frame)
    except errors.SplitEdgeError as error:
        return error


class OutputFiles:
    """The folder ``--out``: the whole output of each frame in a .npy file, named after the frame."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder. Raises `errors.StoreError`."""
        self._folder, self._taken = folder, set[str]()
        files.make_folder(folder)

    def write(self, name: str, result: Result) -> Path:
        """Write the output of the frame ``name``; a number tells frames of one name apart. Raises `errors.StoreError`."""
        stem = "".join(c if c.isalnum() or c in "._- " else "_" for c in Path(name).stem)[:_STEM].strip(". ") or "frame"
        number, file = 1, f"{stem}.npy"
        while file in self._taken:
            number += 1
            file = f"{stem}-{number}.npy"
        self._taken.add(file)
        assert result.output is not None  # the agent was asked for whole outputs
        files.write(self._folder / file, answers.npy(result.output))
        return self._folder / file


def _show(source: Source, outcome: Outcome, *, json: bool, file: str = "") -> None:
    if isinstance(outcome, Result):
        sys.stdout.write(_as_json(source.name, outcome, file) if json else _line(source.name, outcome, file) + "\n")
    elif json:
        sys.stdout.write(msgspec.json.encode({"image": source.name, "error": outcome.to_wire()}).decode() + "\n")
    if not isinstance(outcome, Result):
        named = outcome.message if source.name in outcome.message else f"{source.name}: {outcome.message}"
        print(f"edge-agent: {printable(named)}", file=sys.stderr)
    sys.stdout.flush()


def _as_json(name: str, result: Result, file: str) -> str:
    """A line; where the output is in a ``file``, the file's name is in its place."""
    if not file:
        return to_json(result, image=name).decode() + "\n"
    return to_json(msgspec.structs.replace(result, output=None), image=name, output_file=file).decode() + "\n"


def _line(name: str, result: Result, file: str = "") -> str:
    sent = f"{size(result.payload_bytes)} sent" if result.payload_bytes else "nothing sent"
    if result.cached:
        sent += ", the answer of an earlier frame"
    where = f"; output in {plain(file)}" if file else ""
    return f"{plain(name)}: {plain(_answer(result))}\n    {_times(result.timing)}; {sent}{where}"


def _answer(result: Result) -> str:
    if not result.top:
        return _tensor(result.output)
    if result.kind == "scores":
        return ", ".join(f"{c.label} {c.probability:.3f}" for c in result.top)
    best, others = result.top[0], ", ".join(f"{c.label} {100 * c.probability:.0f} %" for c in result.top[1:3])
    return f"{best.label} {100 * best.probability:.1f} %" + (f"  ({others})" if others else "")


def _tensor(output: Whole | None) -> str:
    """Shape and range of an output without classes."""
    if output is None:
        return "no answer"
    shape = " x ".join(map(str, output.shape))
    return f"tensor {shape}, values {output.min():.4g} to {output.max():.4g}, mean {output.mean():.4g}"


def _times(t: Timing) -> str:
    """What a frame took; its wait in the queue that keeps head and link busy at once is named apart."""
    stages = {
        "prepare": t.preprocess_ms,
        "head": t.head_ms,
        "encode": t.encode_ms,
        "link": t.link_ms,
    }
    stages |= {"server": t.queue_ms + t.tail_ms}
    text = f"{sum(stages.values()):.1f} ms = " + " + ".join(f"{name} {value:.1f}" for name, value in stages.items())
    return text + (f" (and {t.wait_ms:.1f} ms in the queue before)" if t.wait_ms >= 0.05 else "")


def _summary(results: list[Result], total: int) -> str:
    text = f"frames answered {len(results)}/{total}"
    if not results:
        return text
    mean = Timing(**{
        name: sum(getattr(r.timing, name) for r in results) / len(results) for name in Timing.__struct_fields__
    })  # fmt: skip
    sent = sum(r.payload_bytes for r in results) / len(results)
    if reused := sum(r.cached for r in results):
        text += f", {reused} of them with an earlier frame's answer, which saved {size(sum(r.saved_bytes for r in results))}"
    return f"{text}; on average {_times(mean)}; {size(sent)} a frame sent"


def _joules(agent: Agent) -> str:
    """What a frame cost in energy, where there is a sensor and it has seen frames."""
    energy = agent.energy()
    if energy is None or not energy["joules_per_frame"]:
        return ""
    return f"; {energy['joules_per_frame']:.3g} J a frame, measured ({plain(energy['sensor'])})"
