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
from edge_server.tails.times import TailKey, TailTimes
from splitedge import codec, errors, limits
from splitedge.codec import padding_mask
from splitedge.head import answers
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import Codec, Output

THREADS: Final = 2  # tails that run at once; each uses all cores for its products

WARM_RUNS: Final = 4  # runs of a new tail; the first one is slower and is not timed


class LoadedTail:
    """A tail in an ONNX Runtime session.

    ``shape``: of the cut's tensor, channels last, no batch axis. ``tokens``: the number of tokens whose padding mask
    the tail needs, 0 if it needs none.
    """

    def __init__(self, model: bytes, shape: list[int], padding: int | None = None) -> None:
        """``padding``: the cut's padding id. Raises `errors.ModelError` if ONNX Runtime refuses ``model``."""
        try:
            self._session = session(model)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise errors.ModelError(
                f"ONNX Runtime does not load the tail of this model ({str(error)[:200]}): add the model again",
                reason="tail-broken",
            ) from error
        self._input, *ids = self._session.get_inputs()
        self._ids = ids[0].name if ids else ""
        self.tokens = int(ids[0].shape[1]) if ids else 0
        #: The id of padding, and an id that stands for all other tokens: the tail reads nothing else from ids.
        self._stand_ins = (padding or 0, 0 if padding else 1)
        self.shape = shape

    def run(self, x: NDArray[np.float32], kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The output as float32, in ONNX order, no batch axis.

        ``x``: float32 of ``shape``. ``kept``: bool [tokens], False for padding.
        """
        inputs: dict[str, NDArray[Any]] = {self._input.name: to_onnx(x[None])}
        if kept is not None:
            inputs[self._ids] = np.array(self._stand_ins)[kept.astype(np.int64)][None]
        y = self._session.run(None, inputs)[0]
        out: NDArray[np.float32] = np.asarray(y, np.float32)[0]
        return out


class TailPool:
    """Tails in memory, at most `limits.MAX_TAILS`, and the threads that run them."""

    def __init__(self) -> None:
        self._runners = ThreadPoolExecutor(THREADS, thread_name_prefix="tail")
        self._loaders = ThreadPoolExecutor(THREADS, thread_name_prefix="load")
        self._lock = threading.Lock()
        self._loaded: OrderedDict[TailKey, Future[LoadedTail]] = OrderedDict()
        self._waiting = 0
        self.times = TailTimes()

    def close(self) -> None:
        """Cancel what waits, and end the threads after their current work."""
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._runners.shutdown(wait=True, cancel_futures=True)

    def get(self, key: TailKey, load: Callable[[], LoadedTail]) -> LoadedTail:
        """The tail ``key``; ``load`` makes it if it is not in memory. The least recently used tail makes room.

        Blocks until the tail is loaded, but not while another tail loads.
        """
        with self._lock:
            held = self._loaded.pop(key, None)
            tail: Future[LoadedTail] = Future() if held is None else held
            self._loaded[key] = tail
            while len(self._loaded) > limits.MAX_TAILS:
                self._loaded.popitem(last=False)
        if held is None:
            self._load(key, tail, load)
        return tail.result()

    def _load(self, key: TailKey, tail: Future[LoadedTail], load: Callable[[], LoadedTail]) -> None:
        try:
            tail.set_result(load())
        except BaseException as error:
            with self._lock:
                if self._loaded.get(key) is tail:
                    del self._loaded[key]
            tail.set_exception(error)

    async def prepare(self, work: Callable[[], None]) -> None:
        """Run ``work``, which loads a tail, on a thread that runs no frames."""
        await asyncio.get_running_loop().run_in_executor(self._loaders, work)

    async def submit(self, work: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
        """Run ``work`` on a tail thread. Raises `errors.BusyError` if `limits.TAIL_QUEUE` frames wait already."""
        if self._waiting >= limits.TAIL_QUEUE:
            raise errors.BusyError(
                f"{self._waiting} frames already wait for the server: send fewer, or add a server", reason="queue"
            )
        self._waiting += 1
        submitted = time.perf_counter()

        def timed() -> tuple[bytes, int]:
            self.times.add_wait(1e3 * (time.perf_counter() - submitted))
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._runners, timed)
        finally:
            self._waiting -= 1


@dataclass(frozen=True, slots=True)
class TailHandler:
    """Answers the frames of one stream: ``ladder`` decodes them, ``load`` loads the tail ``key`` on demand."""

    tails: TailPool
    key: TailKey
    load: Callable[[], LoadedTail]
    ladder: list[Codec]
    output: Output
    topk: int  # as in `Open`

    async def ready(self) -> None:
        """Load the tail, and run it and the decoder, so that the first frame waits for neither."""
        await self.tails.prepare(self.warm)

    def warm(self) -> None:
        """As `ready`, blocking. Afterwards `TailPool.times` has the time of a frame."""
        tail = self.tails.get(self.key, self.load)
        zeros, kept = np.zeros(tail.shape, np.float32), padding_mask.pack(np.ones(tail.tokens, np.int32), 0)
        frames = [Frame(0, index, 0, codec.encode(zeros, one) + kept) for index, one in enumerate(self.ladder)]
        for run in range(WARM_RUNS):
            self._run(tail, frames[0], timed=run > 0, zeros=True)
        for frame in frames[1:]:
            decode_frame(frame, self.ladder, tail)

    async def answer(self, frame: Frame) -> tuple[bytes, int]:
        """The answer's payload and the microseconds of work.

        Raises `errors.CodecError` for a frame that does not fit the plan, `errors.BusyError` for a full queue.
        """
        return await self.tails.submit(lambda: self._work(frame))

    def _work(self, frame: Frame) -> tuple[bytes, int]:
        return self._run(self.tails.get(self.key, self.load), frame)

    def _run(self, tail: LoadedTail, frame: Frame, *, timed: bool = True, zeros: bool = False) -> tuple[bytes, int]:
        """``zeros``: the frame is a warm-up of zeros, for which a norm may yield NaN."""
        start = time.perf_counter()
        y = tail.run(*decode_frame(frame, self.ladder, tail))
        y = np.nan_to_num(y) if zeros else y
        payload = answers.pack(y, self.output, self.topk)
        seconds = time.perf_counter() - start
        if timed:
            self.tails.times.add_run(self.key, 1e3 * seconds)
        return payload, round(seconds * 1e6)


def warm() -> None:
    """Compile or load the decoder, so that the first stream does not wait for it: seconds with an empty cache."""
    codec.decode(bytes(1), Codec("minmax", 8, (0.0,), (1.0,)), [1])


def decode_frame(
    frame: Frame, ladder: list[Codec], tail: LoadedTail
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """The inputs of ``tail`` from ``frame``: the cut's tensor, and the padding mask as for `LoadedTail.run`.

    Raises `errors.CodecError` for a codec that is not on the ladder and for a payload of the wrong size.
    """
    if frame.codec >= len(ladder):
        raise errors.CodecError(
            f"the frame has codec {frame.codec}, but the ladder has {len(ladder)} codecs: request a new plan",
            reason="codec-not-on-ladder",
        )
    codes, kept = padding_mask.split(frame.payload, tail.tokens) if tail.tokens else (frame.payload, None)
    return codec.decode(codes, ladder[frame.codec], tail.shape), kept
