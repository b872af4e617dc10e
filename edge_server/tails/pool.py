"""Tails: the rest of the network in ONNX Runtime, on threads of their own, off the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.importing.importer import session
from calibration.statistics.activations import to_onnx
from edge_server.planning.times import Key, TailTimes
from splitedge import codec, errors, limits
from splitedge.codec import padding_mask
from splitedge.head import answers
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Codec, Output

THREADS: Final = 2  # tails that run at once; each uses all cores for its products

WARM_RUNS: Final = 4  # of a new tail; the first, slower one does not count as its time


class Tail:
    """One loaded tail. ``shape`` is the cut tensor's, channels last without the batch axis. ``tokens``: of so many it needs to know which are padding; 0: of none."""

    def __init__(self, model: bytes, shape: list[int], padding: int | None = None) -> None:
        """``padding``: the cut's. Raises `errors.ModelError` if ONNX Runtime refuses ``model``."""
        try:
            self._session = session(model)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise errors.ModelError(
                "the tail of this model does not load: add the model to the server again"
            ) from error
        self._input, *ids = self._session.get_inputs()
        self._ids = ids[0].name if ids else ""
        self.tokens = int(ids[0].shape[1]) if ids else 0
        #: An id that stands for padding, and one that stands for every other token.
        self._stand_ins = (padding or 0, 0 if padding else 1)
        self.shape = shape

    def run(self, x: NDArray[np.float32], kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """x float32 of ``shape`` -> the output as float32, in ONNX order without the batch axis. ``kept`` [tokens]: which are no padding."""
        fed: dict[str, NDArray[Any]] = {self._input.name: to_onnx(x[None])}
        if kept is not None:
            fed[self._ids] = np.array(self._stand_ins)[kept.astype(np.int64)][None]
        y = self._session.run(None, fed)[0]
        out: NDArray[np.float32] = np.asarray(y, np.float32)[0]
        return out


class Tails:
    """The tails in memory, at most `limits.MAX_TAILS`, and the threads that run them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tail")
        self._loaders = ThreadPoolExecutor(THREADS, thread_name_prefix="load")
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Key, Future[Tail]] = OrderedDict()
        self._waiting = 0
        self.times = TailTimes()

    def close(self) -> None:
        """Ends the threads once what they run is done; what waits is cancelled."""
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, key: Key, load: Callable[[], Tail]) -> Tail:
        """The tail ``key``, loaded if need be; the least recently used one goes. Blocks, but not for another key's loading."""
        with self._lock:
            held = self._loaded.pop(key, None)
            tail: Future[Tail] = Future() if held is None else held
            self._loaded[key] = tail
            while len(self._loaded) > limits.MAX_TAILS:
                self._loaded.popitem(last=False)
        if held is None:
            self._load(key, tail, load)
        return tail.result()

    def _load(self, key: Key, tail: Future[Tail], load: Callable[[], Tail]) -> None:
        try:
            tail.set_result(load())
        except BaseException as error:
            with self._lock:
                if self._loaded.get(key) is tail:
                    del self._loaded[key]
            tail.set_exception(error)

    async def prepare(self, work: Callable[[], None]) -> None:
        """Runs ``work``, which loads a tail, on a thread where neither frames nor other requests wait behind it."""
        await asyncio.get_running_loop().run_in_executor(self._loaders, work)

    async def submit(self, work: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
        """Runs ``work`` on a tail's thread. Raises `errors.BusyError` where too many frames wait already."""
        if self._waiting >= limits.TAIL_QUEUE:
            raise errors.BusyError(f"{self._waiting} frames wait for the server already: send fewer, or add a server")
        self._waiting += 1
        asked = time.perf_counter()

        def timed() -> tuple[bytes, int]:
            self.times.waited(1e3 * (time.perf_counter() - asked))
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, timed)
        finally:
            self._waiting -= 1


@dataclass(frozen=True, slots=True)
class Handler:
    """Answers the frames of one stream: ``ladder`` decodes them, ``load`` makes the tail ``key`` where it is not in memory."""

    tails: Tails
    key: Key
    load: Callable[[], Tail]
    ladder: list[Codec]
    output: Output
    topk: int  # as in `Open`

    async def ready(self) -> None:
        """Loads the tail and runs it with the decoder, so that the first frame does not wait for either."""
        await self.tails.prepare(self.warm)

    def warm(self) -> None:
        """The same, blocking: afterwards `Tails.times` knows how long a frame takes."""
        tail = self.tails.get(self.key, self.load)
        zeros, kept = np.zeros(tail.shape, np.float32), padding_mask.pack(np.ones(tail.tokens, np.int32), 0)
        frames = [Frame(0, index, 0, codec.encode(zeros, one) + kept) for index, one in enumerate(self.ladder)]
        for run in range(WARM_RUNS):
            self._run(tail, frames[0], counts=run > 0, zeros=True)
        for frame in frames[1:]:
            decode_frame(frame, self.ladder, tail)

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        """The answer's payload and the microseconds of work. Raises `errors.CodecError` for a frame that does not fit the plan."""
        return await self.tails.submit(lambda: self._work(frame))

    def _work(self, frame: Frame) -> tuple[bytes, int]:
        return self._run(self.tails.get(self.key, self.load), frame)

    def _run(self, tail: Tail, frame: Frame, *, counts: bool = True, zeros: bool = False) -> tuple[bytes, int]:
        """``zeros``: nobody sent the frame, so it is no matter that a norm has no answer to it."""
        start = time.perf_counter()
        y = tail.run(*decode_frame(frame, self.ladder, tail))
        y = np.nan_to_num(y) if zeros else y
        payload = answers.pack(y, self.output, self.topk)
        seconds = time.perf_counter() - start
        if counts:
            self.tails.times.add(self.key, 1e3 * seconds)
        return payload, round(seconds * 1e6)


def warm() -> None:
    """Compile or load the decoder, so that the first stream does not wait for it: seconds where nothing is cached."""
    codec.decode(bytes(1), Codec("minmax", 8, (0.0,), (1.0,)), [1])


def decode_frame(frame: Frame, ladder: list[Codec], tail: Tail) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """What ``tail`` takes of ``frame``: the tensor, and which tokens are no padding.

    Raises `errors.CodecError` for a codec that is not on the ladder or a payload of the wrong size.
    """
    if frame.codec >= len(ladder):
        raise errors.CodecError(f"the frame names codec {frame.codec} of a ladder of {len(ladder)}: ask for a new plan")
    codes, kept = padding_mask.split(frame.payload, tail.tokens) if tail.tokens else (frame.payload, None)
    return codec.decode(codes, ladder[frame.codec], tail.shape), kept
