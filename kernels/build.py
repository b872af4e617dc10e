"""Compile all kernels into shared libraries, one for each instruction set (`kernels.native`).

    python -m kernels.build [--machine NAME] [--isa NAME ...] [--jobs N] [FOLDER]

FOLDER is by default the one in the package where `kernels.native` looks. Nothing runs, so every set of either machine
(`isa.SETS`) is compiled on any machine. A linker is needed: ``LD``, by default ld, and for another machine than this one
``MACHINE-linux-gnu-ld`` (Debian: binutils-aarch64-linux-gnu, binutils-x86-64-linux-gnu).

Numba compiles each kernel for the arguments in `warm.steps`. A small function around it turns the slots of a call into
the arguments, and LLVM makes position-independent code of both. The sections of a library start at multiples of 64 KiB,
so it loads on systems with pages of 4, 16 and 64 KiB.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from kernels import isa, native
from kernels.native import Argument, Array, Signatures

PAGE: Final = 64 << 10
#: Offsets of fields in NumPy's array object behind the object's header, and the flags of an array that fits.
DATA, SHAPE, STRIDES, FLAGS = 0, 16, 24, 48
C_ORDER, ALIGNED, WRITABLE = 0x1, 0x100, 0x400
#: Numba's runtime for arrays that a kernel allocates. Its record of an array: count of references, destructor and its
#: data, the array's data, size, allocator.
RUNTIME: Final = """
declare ptr @malloc(i64)
declare void @free(ptr)

define hidden ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %wide = zext i32 %align to i64
  %front = add i64 %wide, 48
  %all = add i64 %front, %size
  %record = call ptr @malloc(i64 %all)
  %none = icmp eq ptr %record, null
  br i1 %none, label %end, label %fill
fill:
  call void @llvm.memset.p0.i64(ptr %record, i8 0, i64 48, i1 false)
  store i64 1, ptr %record
  %address = ptrtoint ptr %record to i64
  %last = sub i64 %wide, 1
  %after = add i64 %address, 48
  %up = add i64 %after, %last
  %mask = sub i64 0, %wide
  %aligned = and i64 %up, %mask
  %place = getelementptr i8, ptr %record, i64 24
  store i64 %aligned, ptr %place
  %place_of_size = getelementptr i8, ptr %record, i64 32
  store i64 %size, ptr %place_of_size
  br label %end
end:
  ret ptr %record
}

define hidden void @NRT_MemInfo_call_dtor(ptr %record) {
  call void @free(ptr %record)
  ret void
}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the libraries of all sets, each in a process of its own, and their manifest."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--machine", choices=isa.SETS, default=isa.MACHINE, help="compile for it [default: this one]")
    options.add_argument("--isa", action="append", help="only this set, again for others")
    options.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="sets at once [default: cores]")
    options.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the process of one set
    options.add_argument("folder", nargs="?", type=Path)
    given = options.parse_args(arguments)
    if given.one:
        sys.stdout.write(msgspec.json.encode(_library(given.folder / f"{isa.ISA}.so")).decode())
        return
    names, libraries = given.isa or isa.SETS[given.machine], {}
    if unknown := set(names) - set(isa.SETS[given.machine]):
        options.error(f"{given.machine} has no set {min(unknown)}; name some of {', '.join(isa.SETS[given.machine])}")
    folder = given.folder or native.FOLDER.with_name(given.machine)
    folder.mkdir(parents=True, exist_ok=True)

    def build(name: str) -> bytes:
        command = [sys.executable, "-m", "kernels.build", "--one", str(folder)]
        variables = {**os.environ, isa.BUILD_MACHINE: given.machine, isa.BUILD: name, native.VARIABLE: "jit"}
        return subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603

    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        made = list(pool.map(build, names))
    if len(set(made)) > 1:
        raise SystemExit("the kernels of the instruction sets differ in their arguments")
    for name in names:
        path = folder / f"{name}.so"
        path.chmod(0o644)
        libraries[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    manifest = {"sources": native.sources_hash(), "libraries": libraries, "kernels": msgspec.json.decode(made[0])}
    (folder / native.MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def _library(path: Path) -> Signatures:
    """Compile the kernels for `isa.ISA` and link them to ``path``. Returns the arguments of each."""
    import llvmlite.binding as llvm

    triple = f"{isa.MACHINE}-unknown-linux-gnu"
    llvm.get_process_triple = lambda: triple  # Numba compiles for it
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    from kernels import warm

    model, features = os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"]
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=model, features=features, opt=3, reloc="pic", codemodel="default"
    )
    found: Signatures = {}
    with tempfile.TemporaryDirectory() as folder:
        objects = [_object(machine, llvm.parse_assembly(RUNTIME), Path(folder) / "runtime.o")]
        for step in [*warm.steps(), *warm.more()]:
            function = step.kernel.py_func
            overloads = found.setdefault(native.name_of(function), [])
            name = native.symbol(native.name_of(function), len(overloads))
            module, kinds = _module(step, name, machine)
            overloads.append(kinds)
            objects.append(_object(machine, module, Path(folder) / f"{name}.o"))
        flags = ["relro", "now", "noexecstack", f"max-page-size={PAGE}"]
        options = ["-shared", "-s", *(part for flag in flags for part in ("-z", flag))]
        linker = [os.environ.get("LD") or _linker(), *options, "-o", str(path), *map(str, objects)]
        subprocess.run(linker, check=True)  # noqa: S603
    return found


def _linker() -> str:
    return "ld" if platform.machine() == isa.MACHINE else f"{isa.MACHINE}-linux-gnu-ld"


def _object(machine: Any, module: Any, path: Path) -> Path:
    path.write_bytes(machine.emit_object(module))
    return path


def _module(step: Any, name: str, machine: Any) -> tuple[Any, list[Argument]]:
    """The LLVM module of one kernel with the function ``name`` around it, and the kernel's arguments."""
    import llvmlite.binding as llvm
    import numba

    from kernels import jit

    bare = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **jit.OPTIONS)(step.kernel.py_func)
    signature = jit.signature(step.kernel, step.arguments)
    bare.compile(signature)
    made = bare.overloads[signature]
    module = llvm.parse_assembly(made.library.get_llvm_str())
    inner = module.get_function(made.fndesc.llvm_func_name)
    kinds = [_kind(one) for one in signature]
    result = _kind(made.signature.return_type)
    text = _wrapper(name, inner.name, kinds, result, [str(one.type) for one in inner.arguments])
    module.link_in(llvm.parse_assembly(text))
    for one in (*module.functions, *module.global_variables):
        if one.name != name and not one.is_declaration:
            one.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    return module, kinds


def _kind(one: Any) -> Argument:
    """The argument of a Numba type."""
    from numba import types

    if isinstance(one, types.BaseTuple):
        return [_array(field) for field in one]
    if isinstance(one, types.Array):
        return _array(one)
    kinds: dict[Any, Argument] = {
        types.int64: "int64",
        types.float32: "float32",
        types.boolean: "bool",
        types.none: "none",
        types.int32: "int32",
    }
    return kinds[one]


def _array(one: Any) -> Array:
    from numba.np import numpy_support

    assert one.layout == "C"
    return Array.of(np.dtype(numpy_support.as_dtype(one.dtype)), one.ndim, writable=one.mutable)


def _wrapper(name: str, inner: str, kinds: Sequence[Argument], result: Argument, types: Sequence[str]) -> str:
    """LLVM's text of the function ``name``, which calls ``inner`` with arguments of LLVM's ``types``."""
    lines: list[str] = []
    values = ["%result", "%problem"]
    for slot, kind in enumerate(native.flatten(kinds)):
        values += _load(slot, kind, lines)
    assert len(values) == len(types), (name, len(values), types)
    given = ", ".join(f"{kind} {value}" for kind, value in zip(types, values, strict=True))
    returned = {"none": "i64", "int64": "i64", "bool": "i8", "int32": "i32"}[str(result)]
    return "\n".join(
        [
            f'declare i32 @"{inner}"({", ".join(types)})',
            f"define i64 @{name}(ptr %slots) {{",
            "  %result = alloca i64",
            "  %problem = alloca ptr",
            "  store i64 0, ptr %result",
            *lines,
            f'  %status = call i32 @"{inner}"({given})',
            "  %fine = icmp eq i32 %status, 0",
            "  %nothing = icmp eq i32 %status, -2",  # Numba's status of None
            "  %good = or i1 %fine, %nothing",
            "  br i1 %good, label %done, label %failed",
            "done:",
            f"  %found = load {returned}, ptr %result",
            "  ret i64 %found" if returned == "i64" else f"  %wide = zext {returned} %found to i64\n  ret i64 %wide",
            "failed:",
            f"  ret i64 {native.FAILED}",
            "}",
        ]
    )


def _load(slot: int, kind: str | Array, lines: list[str]) -> Iterator[str]:
    """Append to ``lines`` what loads the argument in a ``slot``; yields its values."""
    lines.append(f"  %place{slot} = getelementptr i64, ptr %slots, i64 {slot}")
    if not isinstance(kind, Array):
        llvm_type = {"int64": "i64", "float32": "float", "bool": "i8", "none": "ptr"}[kind]
        lines.append(f"  %value{slot} = load {llvm_type}, ptr %place{slot}")
        yield f"%value{slot}"
        return
    header = object.__basicsize__
    lines.append(f"  %array{slot} = load ptr, ptr %place{slot}")
    for field, offset, llvm_type in (
        ("data", DATA, "ptr"),
        ("shape", SHAPE, "ptr"),
        ("strides", STRIDES, "ptr"),
        ("flags", FLAGS, "i32"),
    ):
        lines.append(f"  %{field}at{slot} = getelementptr i8, ptr %array{slot}, i64 {header + offset}")
        lines.append(f"  %{field}{slot} = load {llvm_type}, ptr %{field}at{slot}")
    wanted = C_ORDER | ALIGNED | (WRITABLE if kind.writable else 0)
    lines += [
        f"  %has{slot} = and i32 %flags{slot}, {wanted}",
        f"  %fits{slot} = icmp eq i32 %has{slot}, {wanted}",
        f"  br i1 %fits{slot}, label %next{slot}, label %unfit{slot}",
        f"unfit{slot}:",
        f"  ret i64 {native.UNFIT - slot}",
        f"next{slot}:",
        f"  %count{slot}x0 = add i64 1, 0",
    ]
    shape: list[str] = []
    strides: list[str] = []
    for axis in range(kind.ndim):
        for field, found in (("shape", shape), ("strides", strides)):
            lines.append(f"  %{field}{slot}at{axis} = getelementptr i64, ptr %{field}{slot}, i64 {axis}")
            lines.append(f"  %{field}{slot}x{axis} = load i64, ptr %{field}{slot}at{axis}")
            found.append(f"%{field}{slot}x{axis}")
        lines.append(f"  %count{slot}x{axis + 1} = mul i64 %count{slot}x{axis}, %shape{slot}x{axis}")
    yield from ("null", "null", f"%count{slot}x{kind.ndim}", str(kind.numpy().itemsize), f"%data{slot}")
    yield from (*shape, *strides)


if __name__ == "__main__":
    main()
