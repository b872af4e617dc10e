"""Threads inside one compiled call: a team divides each operator of a table into as many pieces as it has members.

An idle member takes the next piece of the current operator. A member that loses its processor core delays the team only
if it holds a piece. Pieces are disjoint, so a team computes the same bits as one thread. Members are ordinary Python
threads that sleep in compiled code (a futex) until a frame comes. Within a frame they spin: a head has about 65
operators, and a sleep takes longer than most of them.

``sync`` is an int64 array of `SYNC` entries, with a cache line of its own for each counter that several threads write.
`NEXT` and `DONE` count pieces and never decrease. An epoch is one call of `launch`: a range of operators and all their
pieces.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kernels.define import cgutils, inline, intrinsic, ir, types
from kernels.emit import I32, I64, PTR
from kernels.isa import ARM, X86

NEXT, DONE, EPOCH, SLEEPERS, QUIT, FIRST, BASE, TARGET = 0, 8, 16, 24, 32, 33, 34, 35
SYNC: Final = 40
_SPINS: Final = 2_000  # 20 to 50 us of spinning before a member sleeps
_FUTEX: Final = 202 if X86 else 98  # number of the system call on x86-64 and aarch64
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private to the process
_ALL: Final = 1 << 30  # sleepers to wake: more than there can be


def _pointer(context, b, kind, array, index):
    return b.gep(context.make_array(kind)(context, b, array).data, [index])


@intrinsic
def load(typingctx, sync, index):
    """sync[index]; also makes visible what the storing thread wrote before it."""

    def codegen(context, b, sig, a):
        return b.load_atomic(_pointer(context, b, sig.args[0], a[0], a[1]), "seq_cst", 8)

    return types.int64(sync, types.int64), codegen


@intrinsic
def store(typingctx, sync, index, value):
    """sync[index] = value, visible after everything written before."""

    def codegen(context, b, sig, a):
        b.store_atomic(a[2], _pointer(context, b, sig.args[0], a[0], a[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(sync, types.int64, types.int64), codegen


@intrinsic
def _add(typingctx, sync, index, value):
    """sync[index] += value, atomically; returns the former value."""

    def codegen(context, b, sig, a):
        return b.atomic_rmw("add", _pointer(context, b, sig.args[0], a[0], a[1]), a[2], "seq_cst")

    return types.int64(sync, types.int64, types.int64), codegen


@intrinsic
def _swap(typingctx, sync, index, old, new):
    """sync[index] = ``new`` if it is ``old``, atomically; returns whether it was."""

    def codegen(context, b, sig, a):
        pair = b.cmpxchg(_pointer(context, b, sig.args[0], a[0], a[1]), a[2], a[3], "seq_cst", "seq_cst")
        return b.extract_value(pair, 1)

    return types.boolean(sync, types.int64, types.int64, types.int64), codegen


@intrinsic
def _relax(typingctx):
    """Hint to the processor that this is a spin loop."""

    def codegen(context, b, sig, a):
        nothing = ir.FunctionType(ir.VoidType(), [])
        if X86:
            b.call(cgutils.get_or_insert_function(b.module, nothing, "llvm.x86.sse2.pause"), [])
        elif ARM:  # the hint "yield"; inline assembly would abort, because numba has no assembler
            hint = ir.FunctionType(ir.VoidType(), [I32])
            b.call(cgutils.get_or_insert_function(b.module, hint, "llvm.aarch64.hint"), [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _futex(typingctx, sync, index, operation, value):
    """Sleep while the low half of sync[index] is ``value``, or wake up to ``value`` sleepers."""

    def codegen(context, b, sig, a):
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        call = cgutils.get_or_insert_function(b.module, kind, "syscall")
        place = b.bitcast(_pointer(context, b, sig.args[0], a[0], a[1]), PTR)
        b.call(call, [I64(_FUTEX), place, a[2], a[3], ir.Constant(PTR, None), ir.Constant(PTR, None), I64(0)])
        return context.get_dummy_value()

    return types.void(sync, types.int64, types.int64, types.int64), codegen


class Epoch(NamedTuple):
    """The operators from ``first`` on; ``base`` and ``target``: the count of pieces before and after them."""

    first: int
    base: int
    target: int


@inline
def launch(sync, first, pieces):
    """Start an epoch of ``pieces`` pieces from operator ``first`` on and wake every member. Returns the `Epoch`."""
    base = load(sync, DONE)
    store(sync, FIRST, first)
    store(sync, BASE, base)
    store(sync, TARGET, base + pieces)
    _add(sync, EPOCH, 1)
    _futex(sync, EPOCH, _WAKE, _ALL)
    return Epoch(first, base, base + pieces)


@inline
def current(sync):
    """The current `Epoch`. The caller checks that the number of the epoch is the same before and after."""
    return Epoch(load(sync, FIRST), load(sync, BASE), load(sync, TARGET))


@inline
def dismiss(sync):
    """End the team: `wait` returns False in every member."""
    store(sync, QUIT, 1)
    _add(sync, EPOCH, 1)
    _futex(sync, EPOCH, _WAKE, _ALL)


@inline
def wait(sync, epoch):
    """Wait until the number of the epoch is not ``epoch``; returns False if the team ends."""
    spins = 0
    while load(sync, EPOCH) == epoch:
        spins += 1
        if spins < _SPINS:
            _relax()
        else:
            _futex(sync, EPOCH, _WAIT, epoch & 0xFFFFFFFF)
    return load(sync, QUIT) == 0


@inline
def take(sync, epoch, parts):
    """The number of the next piece of the current operator in the epoch, or -1 if all pieces are done.

    Waits if all pieces of that operator are taken but not all are done.
    """
    spins = 0
    while True:
        done = load(sync, DONE)
        if done >= epoch.target:
            return -1
        end = done + parts - (done - epoch.base) % parts
        piece = load(sync, NEXT)
        if piece < end:
            if _swap(sync, NEXT, piece, piece + 1):
                return piece - epoch.base
        elif spins < _SPINS:
            spins += 1
            _relax()
        else:  # a member has lost its core to another program
            _add(sync, SLEEPERS, 1)
            _futex(sync, DONE, _WAIT, done & 0xFFFFFFFF)
            _add(sync, SLEEPERS, -1)


@inline
def finish(sync):
    """Count a piece as done.

    All operations are sequentially consistent: a member that is not yet counted as a sleeper sees the new count and
    does not sleep.
    """
    _add(sync, DONE, 1)
    if load(sync, SLEEPERS) > 0:
        _futex(sync, DONE, _WAKE, _ALL)


class Part(NamedTuple):
    """Part ``number`` of an operator that is divided into ``total`` parts."""

    number: int
    total: int


@inline
def share(units, part):
    """The range of ``units`` equal units of work that belongs to ``part``."""
    return units * part.number // part.total, units * (part.number + 1) // part.total
