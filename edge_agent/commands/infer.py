"""`edge-agent infer FILE...`: run the model on images, texts and arrays, in order and pipelined, and show where the
time goes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import msgspec

from edge_agent.api.client import Gone, RunningAgent
from edge_agent.commands.first import Frames
from edge_agent.config import Settings
from edge_agent.inputs.sources import Source
from edge_agent.runtime.ordered import IN_PROGRESS, in_order
from edge_agent.runtime.results import Box, Result, Timing, to_json
from splitedge import errors, files, terminal
from splitedge.platform_check import printable
from splitedge.report import headline
from splitedge.terminal import plain, size, wrap

if TYPE_CHECKING:  # a running agent answers before this process would have loaded its kernels
    from edge_agent.runtime.agent import Agent
    from splitedge.head.answers import Whole

_STEM = 100  # characters of a file's name
_INDENT = " " * 4
_SHOWN = 3  # boxes or regions in one line
_ONE_LINE = 1 << 20  # a line per answer for other programs


class Outcome(NamedTuple):
    """What became of a frame, and who answered: the agent that runs on this machine, or this command's own."""

    ended: Result | errors.SplitEdgeError
    agent: Literal["running", "own"] = "own"


async def infer(
    settings: Settings,
    frames: Frames,
    running: RunningAgent | None,
    *,
    json: bool,
    out: Path | None = None,
    save: Path | None = None,
) -> int:
    """Print the result of each of ``frames``, unreadable ones first, and a summary. Returns 0, or the exit status of
    the first failure.

    ``running``: the agent to ask; None: start one. ``out``: an existing folder for the complete outputs as .npy files;
    ``settings`` then ask for them. ``save``: an existing folder for the images with boxes or maps drawn over them.
    """
    sources, outputs = frames.good, OutputFiles(out) if out is not None else None
    pictures = OutputFiles(save) if save is not None else None
    results: list[Result] = []
    status = frames.bad[0].error.exit_status if frames.bad else 0
    for source, error in frames.bad:
        _show(source, Outcome(error), json=json)
    async with _Agents(settings, running, quiet=json) as agents:
        async for source, outcome in in_order(sources, agents.answer, IN_PROGRESS):
            written: list[Path] = []
            if isinstance(outcome.ended, Result):
                results.append(outcome.ended)
                written += outputs.write(source.name, outcome.ended) if outputs else []
                written += await _draw(pictures, source, outcome.ended) if pictures else []
            else:
                status = status or outcome.ended.exit_status
            _show(source, outcome, json=json, files=[str(one) for one in written])
    text = _summary(results, len(sources) + len(frames.bad)) + (_joules(agents.own) if agents.own else "")
    print("\n".join(wrap(text, terminal.width(piped=_ONE_LINE), _INDENT)), file=sys.stderr if json else sys.stdout)
    return status


class _Agents:
    """Answers frames: the ``running`` agent as long as it does, then an agent of this command.

    ``quiet``: print no line about the agent on standard output.
    """

    def __init__(self, settings: Settings, running: RunningAgent | None, *, quiet: bool) -> None:
        self.own: Agent | None = None
        self._settings, self._running, self._quiet = settings, running, quiet
        self._asked = running  # kept until the end: other frames may still be with it
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        if self._running is None:
            await self._start()
        else:
            await self._running.__aenter__()
            self._say(_introduction(self._running))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked is not None:
            await self._asked.__aexit__(kind, error, trace)
        if self.own is not None:
            await self.own.close()

    async def answer(self, source: Source) -> Outcome:
        """What becomes of the frame of ``source``. Raises the errors of an own agent's start."""
        try:
            data = await asyncio.to_thread(source.read)
            if self._running is not None:
                return Outcome(await self._running.infer(data), "running")
        except errors.SplitEdgeError as error:
            return Outcome(error, "own" if self._running is None else "running")
        except Gone:
            pass
        agent = await self._start()
        from edge_agent.runtime.engine import frame_bytes, frame_of

        try:
            frame = frame_of(data, source.name, agent.plan)
            await agent.queue.wait_for_room(frame_bytes(frame))
            return Outcome(await agent.infer(frame))
        except errors.SplitEdgeError as error:
            return Outcome(error)

    async def _start(self) -> Agent:
        """This command's own agent, started once."""
        async with self._starting:
            if self.own is None:
                if self._running is not None:
                    self._running = None
                    print("edge-agent: the running agent stopped; starting another for this command", file=sys.stderr)
                with terminal.Progress("edge-agent") as progress:
                    progress("starting")
                    from edge_agent.runtime.agent import Agent

                    self.own = await Agent(self._settings, progress).__aenter__()
                if self.own.plan is not None:
                    self._say(headline(self.own.plan))
            return self.own

    def _say(self, text: str) -> None:
        if not self._quiet:
            print("\n".join(wrap(text, terminal.width(piped=_ONE_LINE))) + "\n")


def _introduction(running: RunningAgent) -> str:
    """Who answers, and by which plan."""
    where = {"server": "all on the server", "device": "all on this board"}
    mode = running.plan.get("mode", "")
    cut = where.get(mode, f"{mode}, cut after {running.plan.get('cut', '')}")
    return plain(f"{running.plan.get('model', '')}: answered by the agent that runs on {running.url} ({cut})")


class OutputFiles:
    """An existing folder for files named after their frames: complete outputs, or drawn images."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken = folder, set[str]()

    def write(self, name: str, result: Result) -> list[Path]:
        """Write the complete output of the frame ``name`` to a .npy file, or each of several outputs to its own.

        Raises `errors.StoreError`.
        """
        from splitedge.head import answers

        if result.output is not None:
            return [self.put(Path(name).stem, ".npy", answers.npy(result.output))]
        named = [(f"{Path(name).stem}.{part}", values) for part, values in result.outputs.items()]
        return [self.put(stem, ".npy", answers.npy(values)) for stem, values in named]

    def put(self, stem: str, suffix: str, data: bytes) -> Path:
        """Write ``data`` to the file ``stem`` + ``suffix``; a number distinguishes files of the same name.

        Raises `errors.StoreError`.
        """
        stem = "".join(c if c.isalnum() or c in "._- " else "_" for c in stem)[:_STEM].strip(". ") or "frame"
        number, file = 1, f"{stem}{suffix}"
        while file in self._taken:
            number += 1
            file = f"{stem}-{number}{suffix}"
        self._taken.add(file)
        files.write(self._folder / file, data)
        return self._folder / file


async def _draw(folder: OutputFiles, source: Source, result: Result) -> list[Path]:
    """Draw the answer over the image of ``source``. A frame that is not an image is not drawn.

    Raises `errors.UsageError` for a model that answers with neither boxes nor maps.
    """
    from edge_agent.commands import drawing

    def drawn() -> bytes:
        return drawing.draw(source.read(), result)

    try:
        return [folder.put(Path(source.name).stem, ".drawn.jpg", await asyncio.to_thread(drawn))]
    except errors.InputError as error:
        print(f"edge-agent: {printable(f'{source.name} is not drawn: {error.message}')}", file=sys.stderr)
        return []


def _show(source: Source, outcome: Outcome, *, json: bool, files: Sequence[str] = ()) -> None:
    ended = outcome.ended
    if isinstance(ended, Result):
        print(
            _as_json(source.name, outcome.agent, ended, files)
            if json
            else text(source.name, ended, files, terminal.width(piped=_ONE_LINE))
        )
    elif json:
        print(msgspec.json.encode({"image": source.name, "error": ended.to_wire()}).decode())
    if not isinstance(ended, Result):
        named = ended.message if source.name in ended.message else f"{source.name}: {ended.message}"
        print(f"edge-agent: {printable(named)}", file=sys.stderr)
    sys.stdout.flush()


def _as_json(name: str, agent: str, result: Result, files: Sequence[str]) -> str:
    """One line; the names of the ``files``, if there are any, replace the outputs.

    ``output_file`` is the first of them.
    """
    if not files:
        return to_json(result, image=name, agent=agent).decode()
    found = msgspec.structs.replace(result, output=None, outputs={})
    return to_json(found, image=name, agent=agent, output_file=files[0], files=files).decode()


def text(name: str, result: Result, files: Sequence[str], width: int) -> str:
    """The answer, then time and bytes, in lines of at most ``width`` characters; ``files``: those with the outputs and
    the drawn image.
    """
    sent = f"{size(result.payload_bytes)} sent" if result.payload_bytes else "nothing sent"
    if result.cached:
        sent += ", answer of an earlier frame reused"
    where = f"; written to {', '.join(map(plain, files))}" if files else ""
    answer = wrap(f"{plain(name)}: {plain(_answer(result))}", width, _INDENT)
    return "\n".join([*answer, *wrap(f"{_INDENT}{_times(result.timing)}; {sent}{where}", width, _INDENT)])


def _answer(result: Result) -> str:
    if result.task == "detection":
        return _boxes(result.boxes)
    if result.task == "segmentation":
        return ", ".join(f"{region.label} {100 * region.share:.1f} %" for region in result.regions[:_SHOWN])
    if result.outputs:
        return "; ".join(f"{name}: {_tensor(values)}" for name, values in result.outputs.items())
    if not result.top:
        return _tensor(result.output)
    if result.kind == "scores":
        return ", ".join(f"{c.label} {c.probability:.3f}" for c in result.top)
    best, others = result.top[0], ", ".join(f"{c.label} {100 * c.probability:.0f} %" for c in result.top[1:3])
    return f"{best.label} {100 * best.probability:.1f} %" + (f" ({others})" if others else "")


def _boxes(boxes: Sequence[Box]) -> str:
    """The number of boxes, and the best ones with their corners in pixels."""
    if not boxes:
        return "no boxes"
    shown = [
        f"{box.label} {100 * box.score:.0f} % at {box.left:.0f},{box.top:.0f} to {box.right:.0f},{box.bottom:.0f}"
        for box in boxes[:_SHOWN]
    ]
    more = f", and {len(boxes) - _SHOWN} more" if len(boxes) > _SHOWN else ""
    return ", ".join(shown) + more


def _tensor(output: Whole | None) -> str:
    """Shape and range of an output without classes."""
    if output is None:
        return "no answer"
    shape = " x ".join(map(str, output.shape))
    return f"tensor {shape}, values {output.min():.4g} to {output.max():.4g}, mean {output.mean():.4g}"


def _times(t: Timing) -> str:
    """The time of a frame and its parts, without its wait in the agent's queue, which is given apart."""
    stages = {
        "prepare": t.preprocess_ms,
        "head": t.head_ms,
        "encode": t.encode_ms,
        "link": t.link_ms,
        "server": t.queue_ms + t.tail_ms,
    }
    text = f"{sum(stages.values()):.1f} ms = " + " + ".join(f"{name} {value:.1f}" for name, value in stages.items())
    return text + (f" (after {t.wait_ms:.1f} ms in the queue)" if t.wait_ms >= 0.05 else "")


def _summary(results: list[Result], total: int) -> str:
    """The number of answered frames and, for several, their mean time and bytes."""
    text = f"frames answered {len(results)}/{total}"
    if reused := sum(r.cached for r in results):
        text += (
            f", {reused} with the answer of an earlier frame, which saved {size(sum(r.saved_bytes for r in results))}"
        )
    if len(results) < 2:
        return text
    fields = Timing.__struct_fields__
    mean = Timing(**{name: sum(getattr(r.timing, name) for r in results) / len(results) for name in fields})
    sent = sum(r.payload_bytes for r in results) / len(results)
    return f"{text}; mean {_times(mean)}; {size(sent)} sent per frame"


def _joules(agent: Agent) -> str:
    """The measured energy per frame, if there is a sensor and it has seen frames."""
    energy = agent.status()["energy"]
    if energy is None or not energy["joules_per_frame"]:
        return ""
    return f"; {energy['joules_per_frame']:.3g} J per frame, measured ({plain(energy['sensor'])})"
