"""Measure this machine the way heads run: segments of one operator, run by the head's executor."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from statistics import fmean, median, stdev
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

import splitedge
from device_profiles import machine, power, roofs, rounds
from device_profiles.predict import explain_threads, op_bytes, op_macs
from device_profiles.schema import (
    SCHEMA_VERSION,
    DeviceProfile,
    Interval,
    Kernel,
    KernelKind,
    Load,
    Machine,
    Origin,
    Overhead,
    Peak,
    Power,
    Shape,
    Warmup,
    measured_origins,
)
from kernels import isa, native, warm
from splitedge import codec, limits
from splitedge.codec import image_file
from splitedge.errors import PlatformError
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol.messages import Basis, Codec, ImageFormat, Preprocess

Progress = Callable[[int, int, str], None]  # steps done, total steps, the next step

# Shapes from EfficientNet-Lite0 and a ResNet: early, middle and late layers of each kind.
SHAPES: tuple[tuple[KernelKind, Shape], ...] = (
    ("pointwise", Shape(56, 56, 24, 144)),
    ("pointwise", Shape(56, 56, 144, 24)),  # fewer outputs than vector lanes: 3 times slower than its neighbours
    ("pointwise", Shape(14, 14, 480, 112)),
    ("pointwise", Shape(7, 7, 192, 1152)),
    ("depthwise", Shape(112, 112, 32, 32, k=3)),
    ("depthwise", Shape(28, 28, 144, 144, k=5)),
    ("depthwise", Shape(7, 7, 1152, 1152, k=3)),
    ("conv", Shape(224, 224, 3, 32, k=3, stride=2)),
    ("conv", Shape(56, 56, 64, 64, k=3)),
    ("dense", Shape(1, 1, 1280, 1000)),
    ("add", Shape(14, 14, 112, 112)),
    ("lut", Shape(56, 56, 144, 144)),
    ("pool", Shape(7, 7, 1280, 1280, k=7)),
)
#: Seconds for all kernels, after which rows are left as they are.
KERNELS_S: Final = 7.0
_QUICK_KERNELS_S: Final = 1.5
_ROUND_RUNS: Final = 3  # of a kernel in a round, at least
#: The board's load: a convolution that computes more than it reads.
_LOAD: Final[tuple[KernelKind, Shape]] = ("conv", Shape(56, 56, 64, 64, k=3))
_IDLE_S, _QUICK_IDLE_S = 1.0, 0.2
_SUSTAINED_S: Final = 2.0
_MINUTE: Final = 60.0  # of load, from which on the end is that of several seconds
_END_S: Final = 10.0
# Read between two runs: as much as a whole head touches (Lite0: 4.8 MB of constants, 1.7 MB of arena), so that weights
# come from the same cache or memory as in a real frame. Dense 1280 -> 1000 took 14 us from a cache, 70 us from memory.
_SWEEP: Final = np.ones(6 * limits.MiB // 8, np.int64)
_SENT = (56, 56, 48)  # a tensor at a cut, so large that each run includes its share of interruptions
_PICTURE = (224, 224, 3)
_ROWS = (784, 128)  # a tensor for codecs with further stages
_PAUSES, _PAUSE_S = 40, 0.005
_SLICE_S = 1e-3  # time slice of a shared processor
_CHAIN = 33  # operators in the head that measures the cost of one more


#: Heads that `check_kernels` runs, and SHA-256 of their answers, which `tests.reference_head` gives too.
CHECKED: Final[tuple[tuple[KernelKind, Shape], ...]] = (
    ("conv", Shape(9, 9, 8, 12, k=3)),
    ("pointwise", Shape(7, 7, 24, 20)),
    ("depthwise", Shape(9, 9, 24, 24, k=3)),
    ("depthwise", Shape(9, 9, 24, 24, k=5, stride=2)),
    ("dense", Shape(1, 1, 70, 10)),
    ("add", Shape(7, 7, 20, 20)),
    ("lut", Shape(7, 7, 20, 20)),
    ("pool", Shape(7, 7, 20, 20, k=7)),
)
ANSWERS: Final = (
    "e30f058f0635c9efbaf002db2f1eb7e2faaa2db6167907a44ab552020868236c",
    "7c258c58a55536efab5adf905a8271d65bca86661fdc2bb00f9f0beca883cc6c",
    "cdc036e8b05f52aa171fc8acaeaeede82130b8a48db95f7f851fe87bd88ef438",
    "19f4a98c0f7e669fa7b87c59cbbc5190e5fd537f2365d6ad061567e84304ddcc",
    "f070eefae288c0093098727727840bddbbbadcb16d686b6d3cbd2837e35cf4f9",
    "35bccff2b34adb719457783e8f710be18002a814b89bed8b79a33b425da03909",
    "a1cb8af7088ec2e4aae1172eca60f3351c291ea1a4e6d1ffbd2c2b0bf09b5cff",
    "c3c53e31e24b57fece689049fbc1e511a1b7a7a6ec41cf9d311ae8f53987111c",
)


def measure(
    *,
    quick: bool = False,
    progress: Progress | None = None,
    declared_watts: float | None = None,
    sustained_s: float = _SUSTAINED_S,
) -> DeviceProfile:
    """Measure this machine, on one thread up to all that it may use: about 20 seconds, and what ``sustained_s`` adds.

    ``quick``: about 5 seconds, on one thread and on all, without warm-up in new processes, load, and peaks. The first
    run also compiles kernels. ``declared_watts``: the board's power under load, given by its owner. ``sustained_s``:
    seconds of load at the end. Unknown values are None (`DeviceProfile.unmeasured`). Raises `PlatformError` if the
    kernels do not run here.
    """
    counts = thread_counts(machine.usable_threads(), quick=quick)
    steps = _ProgressCounter(progress, rounds.LEAST + (4 if quick else 7))
    warmup, unmeasured = (None, {"kernel warm-up": "not measured in a quick profile"}) if quick else _warmup(steps)
    steps("idle" if quick else "idle and burst")
    found, gaps = machine.machine(isa.ISA)
    unmeasured |= gaps
    meter = power.find()
    idle = _idle_watts(meter, _QUICK_IDLE_S if quick else _IDLE_S)
    load = None if quick else _Load(counts[-1])
    steps("overhead of a call")
    overhead = _overhead()
    if meter is not None:
        meter.start()
    kernels = _kernels(counts, overhead, _QUICK_KERNELS_S if quick else KERNELS_S, meter, steps)
    if load is not None:
        steps("load")
        load.finish(sustained_s, meter)
    condition, gaps = machine.condition()
    unmeasured |= gaps
    board_power = _power(meter, idle, declared_watts)
    if board_power.source == "unknown":
        unmeasured["power"] = f"{power.why_none()}; declare the watts with --watts"
    steps("memory")
    bandwidths = roofs.bandwidths(found, counts[:1] if quick else counts)
    if not bandwidths:
        unmeasured["memory copy"] = "too little free memory for a copy larger than the last cache"
    peaks: list[Peak] = []
    if not quick:
        steps("peak of products")
        peaks = roofs.peaks(counts)
    steps.finish()
    return _made(
        found,
        kernels,
        overhead,
        quick=quick,
        copy_gbps=next((one.gbps for one in bandwidths if one.kind == "copy"), None),
        warmup=warmup,
        condition=condition,
        power=board_power,
        unmeasured=unmeasured,
        bandwidths=[] if quick else bandwidths,
        peaks=peaks,
        load=None if load is None else load.found,
    )


def measure_kernels(counts: Sequence[int], progress: Progress | None = None) -> DeviceProfile:
    """The kernels and the peaks alone, on each number of threads.

    The profile lacks the rest. Only one whose ``counts`` contain 1 can be read again (`schema.from_dict`).
    """
    steps = _ProgressCounter(progress, rounds.LEAST + 3)
    steps("overhead of a call")
    overhead = _overhead()
    kernels = _kernels(counts, overhead, KERNELS_S, None, steps)
    steps("peak of products")
    peaks = roofs.peaks(counts)
    found, gaps = machine.machine(isa.ISA)
    condition, more = machine.condition()
    steps.finish()
    return _made(
        found,
        kernels,
        overhead,
        quick=True,
        copy_gbps=None,
        warmup=None,
        condition=condition,
        power=Power("unknown"),
        unmeasured=gaps | more,
        peaks=peaks,
    )


def _made(found: Machine, kernels: list[Kernel], overhead: Overhead, **rest: Any) -> DeviceProfile:
    """The profile of these measurements; ``rest``: its other fields."""
    origins = measured_origins(
        "machine", "kernels", "overhead", "copy_gbps", "warmup", "condition", "power", "bandwidths", "peaks", "load"
    )
    if rest["power"].source == "declared":
        origins["power"] = Origin("estimated", "declared by the board's owner with --watts")
    return DeviceProfile(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=found,
        kernels=kernels,
        overhead=overhead,
        chosen={"instruction set": isa.explain()[:300], "threads": explain_threads(kernels, found)},
        origins=origins,
        splitedge=splitedge.__version__,
        **rest,
    )


def thread_counts(most: int, *, quick: bool = False) -> list[int]:
    """Numbers of threads to measure: 1 to 4, doubled from there, and ``most``; ``quick``: the ends."""
    if quick:
        return sorted({1, most})
    return sorted({min(n, most) for n in (1, 2, 3, 4, 8, 16, 32, 64, most)})


def describe(kind: KernelKind, shape: Shape) -> str:
    """A shape for people: "56x56x24 -> 144", "28x28x144 k5"."""
    plane = f"{shape.h}x{shape.w}x{shape.c}"
    if kind in ("add", "lut", "pool"):
        return f"{kind} {plane}" + (" global" if kind == "pool" else "")
    if kind == "dense":
        return f"dense {shape.c} -> {shape.oc}"
    window = (f" k{shape.k}" if shape.k > 1 else "") + (f" s{shape.stride}" if shape.stride > 1 else "")
    return f"{kind} {plane}" + (f" -> {shape.oc}" if kind != "depthwise" else "") + window


def one_operator(kind: KernelKind, shape: Shape, *, chain: int = 1) -> seg.Segment:
    """A segment of ``chain`` operators of this kind and shape with random weights.

    ``chain`` above 1 requires equal input and output shapes.
    """
    out = (
        [1] * 2 + [shape.c] if kind == "pool" else [-(-shape.h // shape.stride), -(-shape.w // shape.stride), shape.oc]
    )
    shapes = [[shape.h, shape.w, shape.c]] + [out] * chain
    tensors, offset = [], 0
    for each in shapes:
        tensors.append(seg.Tensor(each, 0.0625, 128, offset))
        offset += -(-int(np.prod(each)) // seg.ALIGN) * seg.ALIGN
    blob = np.tile(_blob(kind, shape), chain)
    ops = [_operator(kind, shape, i) for i in range(chain)]
    preprocess = Preprocess("tensor", shapes[0])
    golden = seg.Golden("", "")
    header = seg.Header(
        model="profile",
        cut=describe(kind, shape)[: limits.MAX_NAME],
        weight_bits=8,
        preprocess=preprocess,
        tensors=tensors,
        input=0,
        output=chain,
        ops=ops,
        arena_bytes=offset,
        blob_bytes=blob.size,
        golden=golden,
    )
    return seg.Segment(header, blob)


def check_kernels() -> None:
    """Run a small head of each kind of operator and compare its answer with the known one.

    Compiles what is not compiled yet. Raises `SegmentError` for a wrong answer.
    """
    for (kind, shape), answer in zip(CHECKED, ANSWERS, strict=True):
        Head(checked_segment(kind, shape, answer))


def checked_segment(kind: KernelKind, shape: Shape, answer: str) -> seg.Segment:
    """`one_operator` with the hash of its ``answer``, for `check_kernels`."""
    segment = one_operator(kind, shape)
    header = msgspec.structs.replace(segment.header, golden=seg.Golden("kernels", answer))
    return seg.Segment(header, segment.blob)


def warmup_here(started: float) -> None:
    """Runs in a new process: print the seconds for imports and until all first runs are done.

    ``started``: `time.perf_counter` before the imports.
    """
    imported = time.perf_counter()
    for kind, shape in _one_of_each_kind():
        _first_run(one_operator(kind, shape))
    sys.stdout.write(json.dumps({"import_s": imported - started, "total_s": time.perf_counter() - started}) + "\n")


class _ProgressCounter:
    """Reports steps to the caller's progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self.total, self._progress = -1, total, progress

    def __call__(self, what: str) -> None:
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, self.total, what)

    def finish(self) -> None:
        """Report that all steps are done."""
        self.done = self.total - 1
        self("done")


# --- kernels --------------------------------------------------------------------------------------------------------


def _kernels(
    counts: Sequence[int],
    overhead: Overhead,
    seconds: float,
    meter: power.PowerMeter | None,
    steps: _ProgressCounter,
) -> list[Kernel]:
    """All `SHAPES` on each number of threads, for about ``seconds``; ``meter`` counts the power meanwhile.

    They take turns in rounds, so that a clock that drifts slows all alike. After `rounds.LEAST`, only rows whose
    interval is not tight go on.
    """
    dispatch = {threads: dispatch_us(threads, overhead) for threads in counts}
    rows = [_KernelTimes(kind, shape, threads, dispatch[threads]) for threads in counts for kind, shape in SHAPES]
    turn_s = seconds / len(rows) / (2 * rounds.LEAST)
    end = time.perf_counter() + seconds
    for number in range(rounds.MOST):
        left = rows if number < rounds.LEAST else [row for row in rows if not row.interval().tight]
        if number <= rounds.LEAST:
            steps(f"kernels, round {number + 1} of {rounds.LEAST}" if number < rounds.LEAST else "kernels, more rounds")
        for row in left:
            if number >= rounds.LEAST and time.perf_counter() > end:
                return [each.kernel() for each in rows]
            row.round(turn_s)
        if meter is not None:
            meter.sample()
    return [row.kernel() for row in rows]


class _KernelTimes:
    """One row: a kernel on a number of threads. ``dispatch_us``: what a run takes beside the operator."""

    def __init__(self, kind: KernelKind, shape: Shape, threads: int, dispatch_us: float) -> None:
        self.kind, self.shape, self.threads = kind, shape, threads
        self._segment, self._dispatch_us = one_operator(kind, shape), dispatch_us
        self._codes = _codes(self._segment)
        self._times: list[float] = []
        self._medians: list[float] = []

    def round(self, seconds: float) -> None:
        """Run it for ``seconds``, in a new head, which has other memory."""
        times = list(_times(_first_run(self._segment, self.threads), self._codes, seconds, _ROUND_RUNS))
        self._times += times
        self._medians.append(own_us(median(times), self._dispatch_us))

    def interval(self) -> Interval:
        """The interval of the time."""
        return rounds.interval(self._medians)

    def kernel(self) -> Kernel:
        """The row of the profile."""
        op, header = self._segment.header.ops[0], self._segment.header
        return Kernel(
            kind=self.kind,
            name=describe(self.kind, self.shape),
            shape=self.shape,
            threads=self.threads,
            macs=op_macs(op, header),
            bytes=op_bytes(op, header),
            time_us=median(self._medians),
            sd_us=stdev(self._times),
            runs=len(self._times),
            interval=self.interval(),
        )


def _times(head: Head, codes: NDArray[np.uint8], seconds: float, least: int) -> Iterator[float]:
    """Microseconds of each run of the head's only operator, with its weights as cold as in a real frame.

    On several threads without the sweep: the team would fall asleep meanwhile, and within a frame it is awake.
    """
    end = time.perf_counter() + seconds
    count = 0
    while count < least or time.perf_counter() < end:
        if head.threads == 1:
            _SWEEP.max()
        yield head.profile(codes, 1)[0].us
        count += 1


class _Load:
    """The board's load: its speed at once in ``burst``, and at the end of the measurement in `finish`."""

    def __init__(self, threads: int) -> None:
        self._segment = one_operator(*_LOAD)
        self._head, self._codes = _first_run(self._segment, threads), _codes(self._segment)
        time.sleep(_IDLE_S)
        self._began = time.perf_counter()
        self._burst = roofs.speed(self._head, self._codes, 1.0)
        self.found: Load | None = None

    def finish(self, seconds: float, meter: power.PowerMeter | None) -> None:
        """Load the board for ``seconds``; from here on, ``meter`` counts its power."""
        if meter is not None:
            meter.start()
        end = _END_S if seconds >= _MINUTE else 1.0
        sustained = roofs.speed(self._head, self._codes, seconds, end, meter)
        gop = 2e-9 * op_macs(self._segment.header.ops[0], self._segment.header)
        passed = time.perf_counter() - self._began
        self.found = Load(self._head.threads, passed, gop * self._burst, gop * sustained)


def _overhead() -> Overhead:
    """The costs of a call and of an operator, from lookup tables over 64 values; and the codec's costs."""
    shape = Shape(1, 1, 64, 64)
    single, chain = one_operator("lut", shape), one_operator("lut", shape, chain=_CHAIN)
    one, many = (_run_us(_first_run(segment), _codes(single)) for segment in (single, chain))
    op_us = max(0.0, (many - one) / (_CHAIN - 1))
    return Overhead(max(0.0, one - op_us), op_us, _value_ns(), _stage_ns())


def _value_ns() -> float:
    """Nanoseconds to encode one value of a head's output, with a range for each channel."""
    return _coding_ns(_plain(_SENT[-1]), _SENT)


def _plain(channels: int) -> Codec:
    return Codec("minmax", 4, (0.0,) * channels, (1.0,) * channels)


def _coding_ns(made: Codec, shape: tuple[int, ...]) -> float:
    """Nanoseconds to encode one value of a head's output with the codec ``made``."""
    codes = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    codec.encode_codes(codes, 0.0625, 128, made)
    return 1e9 * _after_pauses(lambda: codec.encode_codes(codes, 0.0625, 128, made)) / codes.size


def _after_pauses(work: Callable[[], object]) -> float:
    """Mean seconds of ``work`` on a processor that was idle, as while waiting for an answer; twice those of a busy one.

    On a processor shared in time slices, short work that starts with a slice ends within it, while in a frame it starts
    anywhere. So each run starts a little later in the slice. The slowest tenth does not count.
    """
    times = []
    for turn in range(_PAUSES):
        time.sleep(_PAUSE_S)
        begin = time.thread_time() + turn / _PAUSES * _SLICE_S
        while time.thread_time() < begin:
            pass
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return fmean(sorted(times)[: -_PAUSES // 10])


def _stage_ns() -> dict[str, float]:
    """Nanoseconds of each of `codec.STAGES` for one value; of a change of basis for one product."""
    channels, components = _ROWS[1], _ROWS[1] // 2
    columns = np.random.default_rng(2).integers(-9, 10, (channels, components)).astype("<i2").tobytes()
    ends, table = ((0.0,) * components, (1.0,) * components), (4096 // 16,) * 16
    made = {
        "rotation": msgspec.structs.replace(_plain(channels), rotation=64),
        "range": msgspec.structs.replace(_plain(1), dynamic="token"),
        "entropy": msgspec.structs.replace(_plain(channels), tables=(table,), table=(0,)),
        "basis": Codec("minmax", 4, *ends, basis=Basis((0.0,) * channels, columns)),
    }
    plain = _coding_ns(_plain(channels), _ROWS)
    found = {stage: max(0.0, _coding_ns(one, _ROWS) - plain) for stage, one in made.items()}
    files: dict[str, float] = {kind: _file_ns(kind) for kind in ("jpeg", *image_file.available())}
    return found | {"basis": found["basis"] / components} | files


def _file_ns(kind: ImageFormat) -> float:
    """Nanoseconds of an image file of ``kind`` for one value of a picture that is neither flat nor noise."""
    y, x = np.mgrid[: _PICTURE[0], : _PICTURE[1]]
    planes = [128 + 60 * np.sin(y / 5 + x / (7 + k)) + 30 * np.sin(x * y / 97) for k in range(_PICTURE[2])]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    return 1e9 * _after_pauses(lambda: image_file.encode(pixels, 80, kind)) / pixels.size


def dispatch_us(threads: int, overhead: Overhead) -> float:
    """Microseconds that `Head.profile` adds to the time of each operator on so many ``threads``."""
    single = one_operator("lut", Shape(1, 1, 64, 64))
    head, codes = _first_run(single, threads), _codes(single)
    return max(0.0, median(head.profile(codes, 1)[0].us for _ in range(300)) - overhead.op_us)


def own_us(us: float, dispatch: float) -> float:
    """The time of an operator without the ``dispatch``; at least a small share of it."""
    return max(us - dispatch, us / 20)


def _run_us(head: Head, codes: NDArray[np.uint8], runs: int = 300) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        head.run(codes)
        times.append(time.perf_counter() - start)
    return median(times) * 1e6


def _first_run(segment: seg.Segment, threads: int = 1) -> Head:
    head = Head(segment, check_golden=False, threads=threads)
    head.run(_codes(segment))
    return head


def _codes(segment: seg.Segment) -> NDArray[np.uint8]:
    shape = segment.header.tensors[0].shape
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def _one_of_each_kind() -> list[tuple[KernelKind, Shape]]:
    return list({kind: (kind, shape) for kind, shape in SHAPES}.values())


def _operator(kind: KernelKind, shape: Shape, i: int) -> seg.AnyOp:
    """Operator ``i`` of a chain: reads tensor i, writes tensor i + 1; its constants are in `_blob`'s order."""
    if kind == "add":
        return seg.Add(kind, i + 1, i, i, 0.5, 0.5, 0, 255)
    if kind == "lut":
        return seg.Lut(kind, i + 1, i, 256 * i)
    window = [shape.k, shape.k]
    if kind == "pool":
        return seg.Pool(kind, i + 1, i, "avg", window, window, [0] * 4, True, 1.0, 0, 255)
    weight, bias, multiplier = _offsets(kind, shape)
    before, after = _same_padding(shape)
    return seg.Conv(
        name=kind,
        out=i + 1,
        x=i,
        bits=8,
        weight=weight,
        bias=bias,
        multiplier=multiplier,
        kernel=window,
        stride=[shape.stride] * 2,
        dilation=[1, 1],
        pad=[before, before, after, after],
        groups=shape.c if kind == "depthwise" else 1,
        lo=0,
        hi=255,
    )


def _same_padding(shape: Shape) -> tuple[int, int]:
    total = max(0, (-(-shape.h // shape.stride) - 1) * shape.stride + shape.k - shape.h)
    return total // 2, total - total // 2


def _offsets(kind: KernelKind, shape: Shape) -> tuple[int, int, int]:
    """Offsets of weights, biases and multipliers in the blob."""
    bias = seg.roundup(_weights(kind, shape))
    return 0, bias, bias + -(-4 * shape.oc // seg.ALIGN) * seg.ALIGN


def _weights(kind: KernelKind, shape: Shape) -> int:
    return shape.oc * shape.k**2 * (1 if kind == "depthwise" else shape.c)


def _blob(kind: KernelKind, shape: Shape) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    if kind in ("lut", "add", "pool"):
        return rng.permutation(256 if kind == "lut" else 0).astype(np.uint8)
    _, _, multiplier = _offsets(kind, shape)
    end = multiplier + -(-4 * shape.oc // seg.ALIGN) * seg.ALIGN
    blob = np.zeros(end, np.uint8)
    weights = _weights(kind, shape)
    blob[:weights] = rng.integers(0, 255, weights, np.uint8)  # 255 is not a code of 8-bit weights
    blob[multiplier : multiplier + 4 * shape.oc].view(np.float32)[:] = 0.001
    return blob


# --- power, warm-up -------------------------------------------------------------------------------------------------


def _idle_watts(meter: power.PowerMeter | None, seconds: float) -> float | None:
    if meter is None:
        return None
    meter.start()
    time.sleep(seconds)
    return meter.watts()


def _power(meter: power.PowerMeter | None, idle: float | None, declared: float | None) -> Power:
    """The declared power if there is one, else the sensor's."""
    if declared is not None:
        return Power("declared", load_watts=declared)
    load = meter.watts() if meter is not None else None
    return Power("unknown") if meter is None or load is None else Power("sensor", meter.name, idle, load)


def _warmup(steps: _ProgressCounter) -> tuple[Warmup, dict[str, str]]:
    """Start new processes: one with the cache as it is; if it filled the cache, another with a warm cache."""
    steps("kernel warm-up")
    before = _cached()
    import_s, total_s = _warmup_process()
    if native.LIBRARY is not None:
        return Warmup(True, None, total_s, import_s), {"cold start": "the package has the kernels"}
    if warm.problem():
        reason = f"compiled kernels cannot be stored in {warm.folder()} ({warm.problem()})"
        return Warmup(False, total_s, None, None), {"warm start": reason}
    if _cached() == before:
        reason = f"the cache already held compiled kernels: delete {warm.folder()} and measure again"
        return Warmup(True, None, total_s, import_s), {"cold start": reason}
    cold_s = total_s
    import_s, total_s = _warmup_process()
    if before:
        return Warmup(True, None, total_s, import_s), {"cold start": "the cache already held some compiled kernels"}
    return Warmup(False, cold_s, total_s, import_s), {}


def _cached() -> set[str]:
    return {path.name for path in warm.folder().rglob("*.nbc")}


def _warmup_process() -> tuple[float, float]:
    """Seconds of a new process: for the imports, and until the first runs are done."""
    code = "import time; t = time.perf_counter(); from device_profiles.measurement import warmup_here; warmup_here(t)"
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=limits.WARMUP_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(
            "a new process with the kernels did not start or finish in time: try 'edge-agent profile --quick'",
            reason="process",
        ) from error
    if done.returncode != 0 or not done.stdout:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
        raise PlatformError(f"the kernels fail in a new process ({reason}): reinstall splitedge", reason="kernels-fail")
    times = json.loads(done.stdout.splitlines()[-1])
    return float(times["import_s"]), float(times["total_s"])
