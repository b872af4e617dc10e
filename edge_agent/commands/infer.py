"""`edge-agent infer FILE...`: classify images, texts and arrays, in order, pipelined, and say where the time went."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator

import msgspec
from rich.console import Console

from edge_agent import errors
from edge_agent.agent import Agent
from edge_agent.config import Settings
from edge_agent.engine import Frame, frame_bytes
from edge_agent.explain import headline, plain, size
from edge_agent.head.text import decode
from edge_agent.inputs.sources import Source, expand, is_array, load_array, spoken
from edge_agent.platform_check import printable
from edge_agent.protocol.messages import Plan
from edge_agent.results import Result, Timing, to_json

Outcome = Result | errors.SplitEdgeError


async def infer(settings: Settings, patterns: list[str], texts: list[str], *, json: bool) -> int:
    """Print a line for each of ``texts`` and each frame that ``patterns`` name, and a summary; returns 0, or the exit status of the first frame that failed."""
    sources = [*map(spoken, texts), *expand(patterns, sys.stdin.buffer)]
    if not sources:
        raise errors.UsageError("there is nothing to classify; name a file or a folder, or give a text with --text")
    console = Console(stderr=True)
    results: list[Result] = []
    status = 0
    with console.status("starting") as spinner:
        agent = await Agent(settings, lambda text: spinner.update(plain(text))).__aenter__()
    try:
        if not json and agent.plan is not None:
            print(f"{headline(agent.plan)}\n")
        async for source, outcome in _outcomes(agent, sources):
            if isinstance(outcome, Result):
                results.append(outcome)
            else:
                status = status or outcome.exit_status
            _show(source, outcome, json=json)
    finally:
        await agent.close()
    print(_summary(results, len(sources)) + _joules(agent), file=sys.stderr if json else sys.stdout)
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
        frame = _frame(await asyncio.to_thread(source.read), source, agent.plan)
        await agent.admission.room(frame_bytes(frame))
        return await agent.infer(frame)
    except errors.SplitEdgeError as error:
        return error


def _frame(data: bytes | str, source: Source, plan: Plan | None) -> Frame:
    """What the source holds: an array, else a text where the plan takes those, else an image."""
    if isinstance(data, bytes) and is_array(data):
        return load_array(data, source.name)
    if isinstance(data, bytes) and plan is not None and plan.tokenizer is not None:
        return decode(data)
    return data


def _show(source: Source, outcome: Outcome, *, json: bool) -> None:
    if isinstance(outcome, Result):
        sys.stdout.write(
            to_json(outcome, image=source.name).decode() + "\n" if json else _line(source.name, outcome) + "\n"
        )
    elif json:
        sys.stdout.write(msgspec.json.encode({"image": source.name, "error": outcome.to_wire()}).decode() + "\n")
    if not isinstance(outcome, Result):
        named = outcome.message if source.name in outcome.message else f"{source.name}: {outcome.message}"
        print(f"edge-agent: {printable(named)}", file=sys.stderr)
    sys.stdout.flush()


def _line(name: str, result: Result) -> str:
    sent = f"{size(result.payload_bytes)} sent" if result.payload_bytes else "nothing sent"
    if result.cached:
        sent += ", the answer of an earlier frame"
    return f"{plain(name)}: {plain(_answer(result))}\n    {_times(result.timing)}; {sent}"


def _answer(result: Result) -> str:
    if not result.top:
        return "no class"
    best, others = result.top[0], ", ".join(f"{c.label} {100 * c.probability:.0f} %" for c in result.top[1:3])
    return f"{best.label} {100 * best.probability:.1f} %" + (f"  ({others})" if others else "")


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
    return text + (f" (queued {t.wait_ms:.1f} ms)" if t.wait_ms >= 0.05 else "")


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
