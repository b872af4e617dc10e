"""Integer kernels over plain arrays, compiled by Numba; each equals a slow, obvious twin in `kernels.reference` bit for
bit.

    reference           the definition of every operation, in numpy
    program, team       the interpreter that runs a head in one call, and its threads
    operators/          the operators of a head
    codec/              the tensor at the cut: clip, quantize, pack, and back
    rans/               entropy coding: of the tensor at the cut (static), of the constants of a segment file (adaptive)
    isa, emit           the choice of the instruction set, and LLVM IR for it
    native, build       libraries of compiled kernels in the package, and how they are built
    jit, warm           compilation and its cache, and the list of all kernels that a service needs
    define              the decorators of kernels, from a library or from the compiler
    peak                the peak of the machine, for profiles and benchmarks

Where do I add ...

- an operator: define it in `reference`; write the fast one in `operators/`; add a `Kind` and its call to `program`.
  `splitedge.head` then needs its struct in the segment file, its rule in the verifier and its row in the executor;
  `calibration.lowering` produces it. Add it to tests/kernels/golden.py.
- an instruction set: `isa` says how to detect it, `emit` describes it. All golden hashes must stay the same.
- a step of the codec: define it in `reference`, write the fast one in `codec/`, and call it in `splitedge.codec`.
- a kernel that Python calls directly: decorate it with `define.kernel` and add it to `warm`.
"""

from kernels import isa  # first: it may set variables that numba reads at import

__all__ = ["isa"]
