"""Inner loops of GEMM on ARM cores: modelled cycles of llvm-mca against the peak of the dot-product instruction.

    python -m benchmarks.arm_cycles [--asm DIR] [--json OUT]

The benchmark needs no ARM hardware. It compiles the JIT's own generators for aarch64 and extracts the busiest loop from
the assembly. llvm-mca 19 (Debian: llvm-19) counts its cycles. The peak is the same model's count for a loop that holds
only this instruction, on registers. neoverse-n1 stands in for Cortex-A76 (Raspberry Pi 5) and A78AE (Jetson Orin),
cortex-a72 is the Raspberry Pi 4, and neoverse-n2 stands for any core with i8mm. The model has no caches, so the result
is an upper limit, not a board's speed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import parser, report

TURNS: Final = 200
#: Instructions that accumulate products, one for each instruction set.
STEPS: Final = ("usmmla", "sdot", "sadalp", "vpdpbusd", "vpmaddwd")
BRANCHES: Final = ("b.", "cb", "tb", "j")


class Core(NamedTuple):
    key: str
    title: str
    isa: str
    model: str
    macs: int  # in one iteration of `peak`
    peak: tuple[str, ...]  # {d}: a separate register


CORES: Final = (
    Core("a76", "Cortex-A76, A78AE (neoverse-n1)", "dotprod", "neoverse-n1", 16, ("sdot v{d}.4s, v30.16b, v31.4b[0]",)),
    Core(
        "a72",
        "Cortex-A72",
        "neon",
        "cortex-a72",
        16,
        ("smull v{d}.8h, v30.8b, v31.8b", "smlal v{d}.8h, v30.8b, v31.8b", "sadalp v{a}.4s, v{d}.8h"),
    ),
    Core("i8mm", "neoverse-n2", "i8mm", "neoverse-n2", 32, ("usmmla v{d}.4s, v30.16b, v31.16b",)),
)

# Runs in a separate process, because the generators select the instruction set at import.
CHILD: Final = """
import json, sys
from kernels import isa
isa.X86, isa.ARM, isa.ISA = False, True, sys.argv[1]
from benchmarks import arm_cycles
print(json.dumps(arm_cycles.assemble(sys.argv[1])))
"""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--asm", type=Path, help="write the assembly of every tile to this folder")
    arguments = options.parse_args()
    if not shutil.which("llvm-mca-19"):
        sys.exit("llvm-mca-19 not found; install it (Debian: apt-get install llvm-19) and run again")
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for core in CORES:
        found = core_rows(core, arguments.asm)
        rows += found
        summary[f"{core.key}.gemm_peak_share"] = max(row["share of peak"] for row in found)
        summary[f"{core.key}.gemm_mac_per_cycle"] = max(row["MAC / cycle"] for row in found)
        summary[f"{core.key}.gemm_spills"] = sum(row["spills"] for row in found)
    notes = [
        "the summary is of the best tile; it should be the largest, which does almost all work of a layer, while the "
        "others do its remainders",
        "spills are of all tiles together",
    ]
    report("Inner loops of GEMM by llvm-mca", rows, summary, arguments.json, notes)


def core_rows(core: Core, folder: Path | None) -> list[dict[str, Any]]:
    """Return a row for each tile of ``core``'s instruction set."""
    child = [sys.executable, "-c", CHILD, core.isa]
    tiles = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    peak = core.macs * 16 / cycles(core, peak_loop(core))
    rows = []
    for name, (assembly, macs) in tiles.items():
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{core.isa}-{name}.s").write_text(assembly)
        loop = busiest_loop(assembly)
        speed = macs / cycles(core, loop)
        spills = sum("[sp" in line for line in loop)
        rows.append(
            {
                "core": core.title,
                "instructions": core.isa,
                "tile": name,
                "spills": spills,
                "MAC / cycle": speed,
                "peak": peak,
                "share of peak": speed / peak,
            }
        )
    return rows


def assemble(isa_name: str) -> dict[str, tuple[str, int]]:
    """Return the assembly of each tile (rows x columns) of this process's instruction set.

    Each comes with the number of products in one iteration of its main loop.
    """
    from kernels import emit
    from kernels.operators import gemm

    per_turn = max(emit.TARGET.spans) * gemm.GROUP * gemm.LANES
    return {
        f"{rows}x{vectors * gemm.LANES}": (_compile(isa_name, rows, vectors), rows * vectors * per_turn)
        for vectors, heights in emit.TARGET.tiles.items()
        for rows in heights
    }


def _compile(isa_name: str, rows: int, vectors: int) -> str:
    from kernels import isa
    from kernels.operators import gemm

    return compile_body(gemm.Tile, gemm.tile_body(rows, vectors), "aarch64", *isa.ARM_MODEL[isa_name])


def compile_body(fields: Any, body: Any, architecture: str, cpu: str, features: str) -> str:
    """Return the assembly of a function whose arguments are ``fields``, a NamedTuple class.

    ``body``(builder, arguments) generates its IR.
    """
    import llvmlite.binding as llvm
    from llvmlite import ir

    from kernels import emit

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = f"{architecture}-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), emit.ir_types(fields)), "kernel")
    builder = ir.IRBuilder(function.append_basic_block())
    body(builder, fields(*function.args))
    builder.ret_void()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu=cpu, features=features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))


def busiest_loop(assembly: str) -> list[str]:
    """Return the single-block loop with the most products, or the longest one.

    A loop is the list of instructions from a label to the branch back to it, with no label in between.
    """
    loops: list[list[str]] = []
    label, block = "", list[str]()
    for line in (raw.split("//")[0].strip() for raw in assembly.splitlines()):
        if line.endswith(":"):
            label, block = line[:-1], []
        elif line and not line.startswith("."):
            block.append(line)
            if line.startswith(BRANCHES) and line.split()[-1] == label:
                loops.append(list(block))
    return max(loops, key=lambda loop: (sum(line.startswith(STEPS) for line in loop), len(loop)))


def peak_loop(core: Core) -> list[str]:
    """Return 16 copies of the peak instructions, each on separate registers."""
    return [line.format(d=i if len(core.peak) == 1 else 16 + i % 14, a=i) for i in range(16) for line in core.peak]


def cycles(core: Core, loop: list[str]) -> float:
    """Return the cycles of one iteration of ``loop``."""
    return model_cycles(core.model, loop, "aarch64")


def model_cycles(model: str, lines: list[str], architecture: str) -> float:
    """Return the cycles of ``lines`` when run in a loop, by llvm-mca's ``model`` of a core."""
    command = ["llvm-mca-19", f"-mtriple={architecture}", f"-mcpu={model}", f"-iterations={TURNS}"]
    if architecture == "aarch64":
        command.append("-mattr=+dotprod,+i8mm")
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    (total,) = re.findall(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(total) / TURNS


if __name__ == "__main__":
    main()
