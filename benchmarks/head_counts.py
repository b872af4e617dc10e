"""A whole head on emulated Arm cores: instructions, accesses and cache misses of one frame.

    python -m benchmarks.head_counts [--json OUT]

llvm-mca counts the cycles of inner loops and knows no caches. QEMU's user mode runs a whole head of EfficientNet-Lite0
(6-bit weights, one thread) with a plugin, `head_counts.c`, that counts every instruction and simulates the core's data
caches. The counts are exact and say nothing about time. They check two assumptions of the predictions: that the loops
are nearly all of the work, and the bytes that come from memory.

Needs Debian's qemu-user (the static build has no plugins), a C compiler, and the Arm system that scripts/test-arm
makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.published import networks
from benchmarks.report import parser, report
from device_profiles import known, predict
from splitedge.head import segment as seg

PLUGIN: Final = Path(__file__).with_suffix(".c")
NETWORK: Final = "efficientnet_lite0"
LINE: Final = 64


class Emulated(NamedTuple):
    """A core of QEMU, the known board whose caches count, and KiB and ways of each level (technical reference manuals).

    ``decoded``: instructions a cycle that the core decodes at most (software optimization guides).
    """

    cpu: str
    board: str
    decoded: int
    levels: tuple[tuple[int, int], ...]


CORES: Final = (
    Emulated("cortex-a72", "pi4", 3, ((32, 2), (1024, 16))),
    Emulated("cortex-a76", "pi5", 4, ((64, 4), (512, 8), (2048, 16))),
)

# Runs on the emulated core. The first frame fills the caches; getppid starts and ends the count of the second.
GUEST: Final = """
import os, sys
from pathlib import Path
from kernels import isa
from splitedge.head import Head
from splitedge.head import segment as seg
segment = seg.parse(Path(sys.argv[1]).read_bytes())
head = Head(segment, check_golden=True, threads=1)
frame = seg.golden_frame(segment.header)
for _ in range(2):
    os.getppid()
    head.run(frame)
    os.getppid()
print(isa.ISA)
"""


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    if missing := unmet():
        sys.exit(missing)
    rows = counted()
    figures = {f"{row['core counted']}.instructions_m": row["instructions, M"] for row in rows}
    report("A whole head of EfficientNet-Lite0 on emulated cores", rows, figures, arguments.json, NOTES)


NOTES: Final = (
    "counted by emulation, not timed: one frame of EfficientNet-Lite0 with 6-bit weights on one thread; the caches have "
    "no prefetcher; instructions a cycle, predicted: over the middle of the predicted time on one thread, and at most "
    "what the core decodes",
)


def unmet() -> str:
    """What is missing to count here, and how to get it; empty if nothing is."""
    if not (qemu := shutil.which("qemu-aarch64")):
        return "qemu-aarch64 not found: install qemu-user (Debian) and run again"
    if "-plugin" not in subprocess.run([qemu, "--help"], capture_output=True, text=True).stdout:
        return "this qemu-aarch64 has no plugins: install Debian's qemu-user, not qemu-user-static, and run again"
    if not shutil.which("cc"):
        return "no C compiler found: install gcc and run again"
    if not segment().exists():
        return f"{arm_root()} holds no Arm system: run scripts/test-arm and try again"
    return ""


def arm_root() -> Path:
    """The Arm system of scripts/test-arm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SPLITEDGE_ARM_ROOT") or cache / "splitedge/arm-root")


def segment() -> Path:
    return arm_root() / "opt/heads/integers.segment"


def counted() -> list[dict[str, Any]]:
    """Return a row for each of `CORES`."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = build(Path(folder))
        return [row(core, run(core, plugin, Path(folder)), predicted_ms(core)) for core in CORES]


def predicted_ms(core: Emulated) -> float:
    """The middle of the predicted time of the head on one thread of the known board."""
    header, profile = seg.parse(segment().read_bytes()).header, known.load(core.board)
    return sum(predict.op_ms(op, header, profile) for op in header.ops)


def build(folder: Path) -> Path:
    """Compile the plugin into ``folder``."""
    plugin = folder / "head_counts.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(plugin), str(PLUGIN)], check=True)
    return plugin


def run(core: Emulated, plugin: Path, folder: Path) -> str:
    """Run the head on ``core``; return the lines of the plugin."""
    root, script = arm_root(), folder / "guest.py"
    script.write_text(GUEST)
    levels = "".join(f",l{i}={kib}x{ways}" for i, (kib, ways) in enumerate(core.levels, 1))
    guest = {
        "PYTHONPATH": f"{root}/opt/site:{root}/opt/splitedge",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SPLITEDGE_KERNELS": "library",
        "SPLITEDGE_CACHE_DIR": str(folder / "cache"),
        "LD_LIBRARY_PATH": "",
    }
    command = ["qemu-aarch64", "-L", str(root), "-cpu", core.cpu, "-plugin", f"{plugin}{levels}"]
    command += [part for name, value in guest.items() for part in ("-E", f"{name}={value}")]
    command += [str(root / "usr/bin/python3"), str(script), str(segment())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def row(core: Emulated, output: str, predicted: float) -> dict[str, Any]:
    """Return a row of the last count in the plugin's ``output``; ``predicted``: ms of the head on one thread."""
    instructions, loads, stores, *misses = map(int, output.split("counted ")[-1].split())
    cycles = predicted * 1e3 * (known.load(core.board).condition.mhz_max or 0.0)
    return {
        "core counted": core.cpu,
        "caches of": core.board,
        "instructions, M": instructions / 1e6,
        "products each": networks.products(NETWORK) / instructions,
        "a cycle, predicted": instructions / cycles,
        "a cycle, at most": core.decoded,
        "loads, M": loads / 1e6,
        "stores, M": stores / 1e6,
        "beyond L1, MB": misses[0] * LINE / 1e6,
        "from memory, MB": misses[-1] * LINE / 1e6,
        "weights, MB": networks.weights(NETWORK) / 1e6,
    }


if __name__ == "__main__":
    main()
