"""Write the profiles of known boards, from published specifications and llvm-mca's cycle counts of our kernel loops.

python -m benchmarks.known_boards [--out DIR]

The profiles are estimates: splitedge has not run on these boards. The time of a kernel has three lower limits. The
first is the cycles of its loops over the clock. llvm-mca 19 (Debian: llvm-19) counts them on the assembly of the JIT's
generators, as `benchmarks.arm_cycles` does, with the epilogue of GEMM and whole depthwise loops. Cycles of operators
without products are instruction counts. The second is the bytes beyond the last cache over the rate of a memory copy.
The third, on Arm, is what other programs need: the roofline of `benchmarks.published` over the share of it that
published runs reach on this board, core and kind of layer. The profile states the middle of what that model predicts,
and its band. On x86, of which the model knows nothing, the band has the width for a core that nobody published.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import arm_cycles
from benchmarks.published import data, networks, roofline, shares
from benchmarks.published.networks import Layer, LayerKind
from device_profiles import known, predict, schema
from device_profiles.measurement import SHAPES, describe, one_operator
from device_profiles.schema import KINDS, Kernel, KernelKind, Origin, Shape
from splitedge.head.segment import AnyOp, Header
from splitedge.head.verify import inputs

#: Weights and activations of EfficientNet-Lite0: the bytes that a frame touches between two runs of an operator.
NETWORK_BYTES: Final = 6 << 20
CREATED: Final = "2026-11-22T00:00:00+00:00"  # date of the sources
#: Microseconds to split an operator among threads.
TEAM_US: Final = 5.0
TEAM_SOURCE: Final = (
    "on several threads: the loops shared evenly, and 5 us an operator: (1.07 ms on two threads - 1.44 ms / 2) / 65 "
    "operators, "
    "EfficientNet-Lite0 in README.md"
)
#: Fields of `Overhead`, measured on an AMD EPYC: a call of a head, each operator, each sent value.
CALL_US, OP_US, VALUE_NS = 2.5, 0.03, 0.1
#: Nanoseconds per value or product, by stage of a codec other than packing.
STAGE_NS: Final = {"rotation": 0.6, "basis": 0.25, "range": 2.0, "entropy": 4.0, "jpeg": 1.3, "webp": 13.0}
BAND_SOURCE: Final = (
    "80 % of predictions of a model of {runs} published runs on Arm boards, for a program and a network that nobody "
    "published: python -m benchmarks.boards"
)
BAND_SOURCE_X86: Final = (
    "as wide as for an Arm core that nobody published: python -m benchmarks.boards; x86 is not in it"
)
MCA: Final = "llvm-mca 19, model"
#: Products per accumulating instruction (on neon: of the two multiplications before it).
PRODUCTS: Final = {"vpdpbusd": 64, "vpmaddwd": 16, "sdot": 16, "sadalp": 16, "usmmla": 32}


@dataclass(frozen=True)
class Board:
    """Published data of a board. ``slower``: time of plain Python relative to the EPYC that measured the overhead."""

    name: str
    title: str
    cpu: str
    isa: str
    model: str  # of llvm-mca
    instruction_sets: tuple[str, ...]
    cores: int
    mhz: float
    memory: int
    last_cache: int
    copy_gbps: float
    idle_watts: float | None
    load_watts: float
    slower: float
    origins: dict[str, Origin] = field(default_factory=dict)
    threads: int = 0  # of the processor, if a core has more than one
    at_most: float = math.inf  # products per cycle of the core, if the model of its family can do more
    l2_kib: int = 0  # of one core, or of all where they share it

    @property
    def architecture(self) -> str:
        return "x86_64" if self.isa.startswith("avx") else "aarch64"


@dataclass(frozen=True)
class Cost:
    """Cycles of the kernels' loops on one core."""

    lanes: int
    group: int
    widest: int
    macs: dict[str, float]  # "ROWSxVECTORS": products a cycle
    epilogue: float  # cycles for one output of GEMM
    depthwise: dict[str, float]  # by window: cycles for one pixel of a block
    block: int  # channels in a block
    add: float  # cycles for one element
    lut: float
    pool: float


def specified(source: str) -> Origin:
    return Origin("specified", source)


def estimated(source: str) -> Origin:
    return Origin("estimated", source)


_PI_DOCS: Final = "https://www.raspberrypi.com/documentation/computers/"
_SBC_BENCH: Final = "https://github.com/ThomasKaiser/sbc-bench Results.md"
_L4T_NANO: Final = "NVIDIA Jetson Linux Developer Guide 32.4.3, Power Management for Jetson Nano: mode MaxN"
_ORIN: Final = "NVIDIA Jetson Orin Nano Series Modules Data Sheet"
_ARK: Final = "Intel product specifications (ark.intel.com)"
_FREE: Final = estimated("85 % of the memory: a system without a desktop leaves about as much")
_COPY_X86: Final = "57 % of the memory's rate, as a copy on an Intel N100 reaches: 2 x 10.92 of 38.4 GB/s (sbc-bench)"

BOARDS: Final = (
    Board(
        "pi4",
        "Raspberry Pi 4 Model B, 4 GB",
        "Cortex-A72",
        "neon",
        "cortex-a72",
        ("neon",),
        4,
        1500.0,
        4 << 30,
        1 << 20,
        4.66,
        3.06,
        6.12,
        4.0,
        {
            "machine": specified(f"{_PI_DOCS}processors.html BCM2711: quad-core Cortex-A72, 1 MB L2 cache"),
            "condition.mhz_max": specified(f"{_PI_DOCS}processors.html BCM2711: 1.5 GHz (later boards run at 1.8 GHz)"),
            "copy_gbps": estimated(
                f"{_SBC_BENCH}: Raspberry Pi 4 B, Bullseye arm64, memcpy 2330 MB/s; read + written is twice that"
            ),
            "power.idle_watts": specified(
                f"{_PI_DOCS}raspberry-pi.html typical power requirements: idle 0.6 A at 5.1 V"
            ),
            "power.load_watts": specified(
                f"{_PI_DOCS}raspberry-pi.html typical power requirements: stress 1.2 A on average at 5.1 V"
            ),
        },
        l2_kib=1024,
    ),
    Board(
        "pi5",
        "Raspberry Pi 5, 8 GB",
        "Cortex-A76",
        "dotprod",
        "neoverse-n1",
        ("neon", "fp16", "dotprod"),
        4,
        2400.0,
        8 << 30,
        2 << 20,
        12.05,
        4.08,
        9.0,
        2.0,
        {
            "machine": specified(
                f"{_PI_DOCS}processors.html BCM2712: quad-core Cortex-A76, 512 KB L2 per core, 2 MB shared L3"
            ),
            "condition.mhz_max": specified(f"{_PI_DOCS}processors.html BCM2712: 2.4 GHz"),
            "copy_gbps": estimated(
                f"{_SBC_BENCH}: Raspberry Pi 5 B at 2400 MHz, kernel 6.6, memcpy 6025 MB/s; read + written is twice "
                "that"
            ),
            "power.idle_watts": specified(
                f"{_PI_DOCS}raspberry-pi.html typical bare-board active current 800 mA at 5.1 V"
            ),
            "power.load_watts": estimated(
                "https://github.com/geerlingguy/sbc-reviews/issues/60: stress-ng --matrix on a Raspberry Pi 500, "
                "which has the same BCM2712, 9 W at the wall"
            ),
        },
        l2_kib=512,
    ),
    Board(
        "jetson-nano",
        "NVIDIA Jetson Nano, 4 GB",
        "Cortex-A57",
        "neon",
        "cortex-a57",
        ("neon",),
        4,
        1479.0,
        4 << 30,
        2 << 20,
        7.46,
        None,
        10.0,
        4.0,
        {
            "machine": specified(
                "NVIDIA Jetson Nano System-on-Module Data Sheet: quad-core Cortex-A57, 2 MB L2, 4 GB LPDDR4; the GPU "
                "is not used"
            ),
            "condition.mhz_max": specified(f"{_L4T_NANO}: 4 cores, 1479 MHz"),
            "copy_gbps": estimated(
                f"{_SBC_BENCH}: Jetson Nano at 1480 MHz, memcpy 3730 MB/s; read + written is twice that"
            ),
            "power.load_watts": specified(
                f"{_L4T_NANO}: budget of 10 W for the whole module, GPU included, so a bound from above"
            ),
        },
        l2_kib=2048,
    ),
    Board(
        "orin-nano",
        "NVIDIA Jetson Orin Nano, 8 GB",
        "Cortex-A78AE",
        "dotprod",
        "neoverse-n1",
        ("neon", "fp16", "dotprod"),
        6,
        1510.0,
        8 << 30,
        4 << 20,
        13.46,
        None,
        15.0,
        3.0,
        {
            "machine": specified(
                f"{_ORIN}: six-core Cortex-A78AE, 256 KB L2 per core, 2 MB L3 per cluster, 4 MB system cache; the "
                "GPU is not used"
            ),
            "condition.mhz_max": specified(f"{_ORIN}: 1.5 GHz (1510 MHz in the mode of 15 W)"),
            "copy_gbps": estimated(
                f"{_SBC_BENCH}: Jetson Orin Nano at 1510 MHz, memcpy 6730 MB/s; read + written is twice that"
            ),
            "power.load_watts": specified(
                f"{_ORIN}: mode of 15 W, the budget of the whole module, GPU included, so a bound from above"
            ),
        },
        l2_kib=256,
    ),
    Board(
        "x86-avx2",
        "PC with an Intel Core i5-7200U",
        "Intel Core i5-7200U",
        "avx2",
        "skylake",
        ("sse4.2", "avx", "avx2", "fma"),
        2,
        2500.0,
        8 << 30,
        3 << 20,
        19.4,
        None,
        15.0,
        1.5,
        {
            "machine": specified(f"{_ARK}: i5-7200U, 2 cores, 4 threads, 3 MB cache, AVX2"),
            "machine.memory_total_bytes": estimated("8 GB assumed: a usual size"),
            "condition.mhz_max": specified(f"{_ARK}: base frequency 2.5 GHz; turbo is left out"),
            "copy_gbps": estimated(f"{_COPY_X86}, of 34.1 GB/s ({_ARK})"),
            "power.load_watts": specified(f"{_ARK}: TDP 15 W, of the processor alone"),
        },
        4,
    ),
    Board(
        "x86-vnni",
        "PC with an Intel Core i3-1115G4",
        "Intel Core i3-1115G4",
        "avx512vnni",
        "tigerlake",
        ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
        2,
        3000.0,
        8 << 30,
        6 << 20,
        29.2,
        None,
        28.0,
        1.2,
        {
            "machine": specified(f"{_ARK}: i3-1115G4, 2 cores, 4 threads, 6 MB cache, AVX-512 on one port of 512 bits"),
            "machine.memory_total_bytes": estimated("8 GB assumed: a usual size"),
            "condition.mhz_max": specified(
                f"{_ARK}: base frequency 3.0 GHz at a configurable TDP of 28 W; turbo is left out"
            ),
            "copy_gbps": estimated(f"{_COPY_X86}, of 51.2 GB/s: two channels of DDR4-3200 ({_ARK})"),
            "power.load_watts": specified(f"{_ARK}: configurable TDP up, 28 W, of the processor alone"),
        },
        4,
        64.0,
    ),
)

# Runs in a separate process, because the generators select the instruction set at import.
CHILD: Final = """
import json, sys
from kernels import isa
isa.ISA = sys.argv[1]
isa.X86, isa.ARM = isa.ISA.startswith("avx"), not isa.ISA.startswith("avx")
from benchmarks import known_boards
print(json.dumps(known_boards.assemble(sys.argv[2])))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=known.FOLDER, help="folder for the profiles")
    arguments = options.parse_args()
    if not shutil.which("llvm-mca-19"):
        sys.exit("llvm-mca-19 not found; install it (Debian: apt-get install llvm-19) and run again")
    for board in BOARDS:
        schema.save(profile(board, cost(board)), arguments.out / f"{board.name}.json")
        print(arguments.out / f"{board.name}.json")


def profile(board: Board, counted: Cost) -> schema.DeviceProfile:
    """Return the profile of ``board`` whose kernels take the cycles of ``counted``."""
    counts = (1, board.cores)
    kernels = [kernel(board, counted, kind, shape, threads) for threads in counts for kind, shape in SHAPES]
    machine = schema.Machine(
        board.title,
        board.cpu,
        board.architecture,
        list(board.instruction_sets),
        board.isa,
        board.cores,
        board.threads or board.cores,
        board.cores,
        None,
        board.memory,
        board.memory * 85 // 100,
        board.last_cache,
        "not known",
    )
    return schema.DeviceProfile(
        schema_version=schema.SCHEMA_VERSION,
        created=CREATED,
        quick=False,
        machine=machine,
        kernels=kernels,
        overhead=schema.Overhead(
            CALL_US * board.slower,
            OP_US * board.slower,
            VALUE_NS * board.slower,
            {stage: ns * board.slower for stage, ns in STAGE_NS.items()},
        ),
        copy_gbps=board.copy_gbps,
        warmup=None,
        condition=schema.Condition(None, board.mhz, None, None),
        power=schema.Power("declared", "", board.idle_watts, board.load_watts),
        unmeasured={"everything": "nobody measured this board: the origins say where each value comes from"},
        chosen={"threads": predict.explain_threads(kernels, machine)},
        origins=_origins(board, counted),
        band=band(board),
    )


def kernel(board: Board, counted: Cost, kind: KernelKind, shape: Shape, threads: int) -> Kernel:
    """Return a kernel on ``threads`` cores of ``board``: the greater of compute time and memory time."""
    header = one_operator(kind, shape).header
    op = header.ops[0]
    size = predict.op_bytes(op, header)
    computing = cycles(counted, kind, shape) / board.mhz / threads
    moving = uncached(board, op, header) / board.copy_gbps / 1000
    microseconds = max(computing, moving) + (TEAM_US if threads > 1 else 0.0)
    if (reached := _reached_us(board, kind, shape, threads)) is not None:
        microseconds = max(microseconds, reached)
    return Kernel(
        kind, describe(kind, shape), shape, threads, predict.op_macs(op, header), size, round(microseconds, 2), 0.0, 1
    )


# --- what other programs reach ----------------------------------------------------------------------------------------

#: The network whose band stands for all. Neither it nor its program counts as published, so its band has the spread of
#: networks and of programs.
REFERENCE: Final = "efficientnet_lite0"
#: The middle of the years of the published runs: their programs became faster since, ours starts there.
YEAR: Final = 2023
_LAYER_KINDS: Final[dict[KernelKind, LayerKind]] = {
    "pointwise": "pointwise",
    "depthwise": "depthwise",
    "dense": "dense",
}


def _reached_us(board: Board, kind: KernelKind, shape: Shape, threads: int) -> float | None:
    """The middle of the microseconds that other programs would need for a kernel; None where nothing is published.

    The elementwise kinds are None too: programs fuse them, so the published times tell little of them.
    """
    if (known_core := _published(board)) is None or kind in ("add", "lut", "pool"):
        return None
    made, row = _layer(kind, shape), _row(board, threads)
    found = roofline.limits_of([made], row, known_core, streamed=board.last_cache < NETWORK_BYTES)
    return 1e6 * math.exp(shares.moments(shares.of_all(), shares.run(row, known_core, found))[0])


def _layer(kind: KernelKind, shape: Shape) -> Layer:
    """The kernel as a layer of a network."""
    positions = -(-shape.h // shape.stride) * -(-shape.w // shape.stride)
    depth = shape.k**2 * (1 if kind == "depthwise" else shape.c)
    window: LayerKind = "conv3" if (shape.k, shape.stride) == (3, 1) else "conv"
    read, written = shape.h * shape.w * shape.c, positions * shape.oc
    return Layer(_LAYER_KINDS.get(kind, window), written * depth, read, written, shape.oc * depth)


def _row(board: Board, threads: int) -> data.Measurement:
    """A run of our kernels, for the model: no published network, no published program."""
    return data.Measurement(board.name, threads, "any", "int8", "splitedge", 1.0, "measured", YEAR, "splitedge")


def _published(board: Board) -> data.Board | None:
    """The board in the words of the published measurements; None on x86."""
    core = next((core for core in roofline.CORES if core == board.cpu.lower()), None)
    if core is None:
        return None
    l3 = board.last_cache >> 10 if board.last_cache >> 10 > board.l2_kib else 0
    return data.Board(board.title, board.name, core, board.cores, board.mhz, board.l2_kib, l3, board.copy_gbps, "known")


def band(board: Board) -> schema.Band:
    """The spread of times of heads on ``board``; of x86, the spread on a core that nobody published."""
    known_core = _published(board)
    published = data.load().boards["azure-d64ps-v6"] if known_core is None else known_core
    row = _row(board, board.cores)
    one = shares.run(row, published, roofline.limits_of(networks.layers(REFERENCE), row, published, streamed=True))
    if known_core is None:
        one = shares.elsewhere(one)
    spread = shares.Z90 * shares.moments(shares.of_all(), one)[1]
    return schema.Band(round(math.exp(-spread), 3), round(math.exp(spread), 3))


def uncached(board: Board, op: AnyOp, header: Header) -> int:
    """Return the bytes of one operator that move to or from memory.

    The weights count if a whole network does not fit into the last cache. All inputs and outputs count too if the
    operator alone does not fit.
    """
    size = predict.op_bytes(op, header)
    activations = sum(math.prod(header.tensors[tensor].shape) for tensor in (*inputs(op), op.out))
    weights = size - activations if board.last_cache < NETWORK_BYTES else 0
    return size if size > board.last_cache else weights


def cycles(counted: Cost, kind: KernelKind, shape: Shape) -> float:
    """Return the cycles of one kernel's loops on one core."""
    pixels = -(-shape.h // shape.stride) * -(-shape.w // shape.stride)
    if kind == "depthwise":
        return pixels * -(-shape.oc // counted.block) * counted.depthwise[str(shape.k)]
    if kind in ("add", "lut", "pool"):
        return shape.h * shape.w * shape.c * float(getattr(counted, kind))
    depth = shape.k * -(-shape.k * shape.c // counted.group) * counted.group  # each row of a window begins a new group
    total, left = 0.0, -(-shape.oc // counted.lanes)
    while left:
        vectors = min(left, counted.widest)
        outputs = pixels * vectors * counted.lanes
        rate = counted.macs[f"{'one' if pixels == 1 else 'tall'}x{vectors}"]
        total, left = total + outputs * (depth / rate + counted.epilogue), left - vectors
    return total


def _origins(board: Board, counted: Cost) -> dict[str, Origin]:
    """Return the origins of all values in the profile."""
    best = max(counted.macs.values())
    core = f"{MCA} {board.model}"
    reached = ", or what published programs reach" if _published(board) else ""
    product = (
        f"roofline: {board.mhz:g} MHz, products in {best:.1f} MAC a cycle and {counted.epilogue:.2f} cycles an "
        f"output ({core}, on our tiles), "
        f"or uncached bytes / copy rate"
    )
    windows = ", ".join(
        f"{value:.1f} cycles a pixel of {counted.block} channels at {k}x{k}" for k, value in counted.depthwise.items()
    )
    each = {
        kind: f"{getattr(counted, kind):g} cycles an element, counted by instructions"
        for kind in ("add", "lut", "pool")
    }
    told = (
        dict.fromkeys(KINDS, product)
        | {"depthwise": f"{windows} ({core}) at {board.mhz:g} MHz, or uncached bytes / copy rate{reached}"}
        | each
    )
    kernels = {f"kernels.{kind}": estimated(text) for kind, text in told.items()}
    rest = {
        "kernels": estimated(TEAM_SOURCE),
        "overhead": estimated(
            f"{CALL_US} us a call, {OP_US} us an operator, {VALUE_NS} ns a value that is sent and more for stages of "
            "codecs as measured on an AMD EPYC, "
            f"x {board.slower:g} for the core"
        ),
        "machine.memory_available_bytes": _FREE,
        "band": estimated(BAND_SOURCE.format(runs=len(data.load().compared)) if _published(board) else BAND_SOURCE_X86),
        "condition": specified("the clock that is published; temperature and throttling are not known"),
    }
    return board.origins | kernels | rest


# --- counting ---------------------------------------------------------------------------------------------------------


def cost(board: Board) -> Cost:
    """Count the cycles of the kernels' loops on the core of ``board``."""
    child = [sys.executable, "-c", CHILD, board.isa, board.model]
    made = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)

    def count(lines: list[str]) -> float:
        return arm_cycles.model_cycles(board.model, lines, board.architecture)

    def speed(text: str) -> float:
        loop = arm_cycles.busiest_loop(text)
        return sum(products for line in loop for step, products in PRODUCTS.items() if line.startswith(step)) / count(
            loop
        )

    macs = {name: min(board.at_most, speed(text)) for name, text in made["gemm"].items()}
    last, outputs = made["epilogue"]
    windows = {k: count(arm_cycles.busiest_loop(text)) for k, text in made["depthwise"].items()}
    return Cost(
        made["lanes"],
        made["group"],
        made["widest"],
        macs,
        count(epilogue(last)) / outputs,
        windows,
        made["block"],
        **elementwise(made["lanes"], board.model),
    )


def elementwise(lanes: int, model: str) -> dict[str, float]:
    """Return the cycles per element of operators without products.

    An addition takes about 16 vector instructions, two per cycle. A table lookup takes two loads and a byte store. A
    mean takes half a vector instruction per byte. The A57 and A72 load once per cycle.
    """
    loads = 1 if model in ("cortex-a57", "cortex-a72") else 2
    return {"add": 8 / lanes, "lut": 2 / loads, "pool": 1 / lanes}


def assemble(model: str) -> dict[str, Any]:
    """Return the assembly for this process's instruction set.

    It holds GEMM's tiles, the tile of its epilogue with the number of its outputs, and whole depthwise loops.
    """
    from kernels import emit, isa
    from kernels.operators import depthwise, gemm

    target = emit.TARGET
    architecture, cpu, features = ("x86_64", model, "") if isa.X86 else ("aarch64", *isa.ARM_MODEL[isa.ISA])

    def compiled(fields: Any, body: Any) -> str:
        return arm_cycles.compile_body(fields, body, architecture, cpu, features)

    def tile(rows: int, vectors: int) -> str:
        return compiled(gemm.Tile, gemm.tile_body(rows, vectors))

    tall = {f"tallx{vectors}": tile(heights[0], vectors) for vectors, heights in target.tiles.items()}
    widest = max(target.tiles)
    return {
        "gemm": tall | {f"onex{vectors}": tile(1, vectors) for vectors in target.tiles},
        "epilogue": (tall[f"tallx{widest}"], target.tiles[widest][0] * widest * gemm.LANES),
        "depthwise": {k: compiled(depthwise.Slide, depthwise.slide_body(depthwise.BLOCKS[0], k, 1)) for k in (3, 5)},
        "block": depthwise.BLOCKS[0],
        "lanes": gemm.LANES,
        "group": gemm.GROUP,
        "widest": widest,
    }


def epilogue(assembly: str) -> list[str]:
    """Return the instructions of a tile from its sums to its stores, without branches and the code that they skip.

    They reach from the first conversion to float to the last narrowing.
    """
    lines = [line.strip() for line in assembly.splitlines()]
    first = next(i for i, line in enumerate(lines) if re.match(r"v?s?cvt(f|dq2ps)", line))
    last = max(i for i, line in enumerate(lines) if re.match(r"sqxtun2?\s|vpackuswb\s", line))
    kept: list[str] = []
    skipped_to = ""
    for line in lines[first : last + 1]:
        if skipped_to:
            skipped_to = "" if line == f"{skipped_to}:" else skipped_to
        elif line.startswith(("cbz", "je")):
            skipped_to = line.split()[-1]
        elif line and not line.endswith(":") and not line.startswith((".", *arm_cycles.BRANCHES)):
            kept.append(line)
    return kept


if __name__ == "__main__":
    main()
