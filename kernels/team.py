"""Threads inside one call: a team works on the same operator table; each operator is cut into as many pieces as there are members.

A member takes the next piece of the operator that is being worked on when it has nothing else to do, so one that another program has put
to sleep holds nobody up unless it sleeps over a piece of its own. Pieces are disjoint: a team computes the bits of one thread. Members are
ordinary Python threads that sleep in compiled code (a futex) until a frame comes; within a frame they spin, for a head has about 65 operators and
a sleep costs more than most of them.

``sync`` is an int64 array of `SYNC` entries, one cache line each for what different threads write. `NEXT` and `DONE` count pieces and only grow.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.emit import I32, I64, PTR
from kernels.isa import ARM, X86
from kernels.jit import inline

NEXT, DONE, EPOCH, SLEEPERS, QUIT, FIRST, BASE, TARGET = 0, 8, 16, 24, 32, 33, 34, 35
SYNC = 40
_SPINS = 2_000  # some 20 to 50 us of waiting before a member sleeps
_FUTEX = 202 if X86 else 98  # the system call's number on x86-64 and aarch64
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private to the process


def _pointer(context, b, kind, array, index):
    return b.gep(context.make_array(kind)(context, b, array).data, [index])


@intrinsic
def load(typingctx, sync, index):
    """sync[index], and everything that was written before it was stored."""

    def codegen(context, b, sig, a):
        return b.load_atomic(_pointer(context, b, sig.args[0], a[0], a[1]), "seq_cst", 8)

    return types.int64(sync, types.int64), codegen


@intrinsic
def store(typingctx, sync, index, value):
    """sync[index] = value, after everything written before."""

    def codegen(context, b, sig, a):
        b.store_atomic(a[2], _pointer(context, b, sig.args[0], a[0], a[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(sync, types.int64, types.int64), codegen


@intrinsic
def _add(typingctx, sync, index, value):
    """sync[index] += value at once; returns the former value."""

    def codegen(context, b, sig, a):
        return b.atomic_rmw("add", _pointer(context, b, sig.args[0], a[0], a[1]), a[2], "seq_cst")

    return types.int64(sync, types.int64, types.int64), codegen


@intrinsic
def _swap(typingctx, sync, index, old, new):
    """sync[index] = ``new`` if it is ``old``; whether it was."""

    def codegen(context, b, sig, a):
        pair = b.cmpxchg(_pointer(context, b, sig.args[0], a[0], a[1]), a[2], a[3], "seq_cst", "seq_cst")
        return b.extract_value(pair, 1)

    return types.boolean(sync, types.int64, types.int64, types.int64), codegen


@intrinsic
def _relax(typingctx):
    """Tell the processor that this is a spin loop."""

    def codegen(context, b, sig, a):
        nothing = ir.FunctionType(ir.VoidType(), [])
        if X86:
            b.call(cgutils.get_or_insert_function(b.module, nothing, "llvm.x86.sse2.pause"), [])
        elif ARM:  # the hint "yield"; inline assembly would abort, for numba brings no assembler
            hint = ir.FunctionType(ir.VoidType(), [I32])
            b.call(cgutils.get_or_insert_function(b.module, hint, "llvm.aarch64.hint"), [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _futex(typingctx, sync, index, operation, value):
    """Sleep while the low half of sync[index] is ``value``, or wake ``value`` sleepers."""

    def codegen(context, b, sig, a):
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        call = cgutils.get_or_insert_function(b.module, kind, "syscall")
        place = b.bitcast(_pointer(context, b, sig.args[0], a[0], a[1]), PTR)
        b.call(call, [I64(_FUTEX), place, a[2], a[3], ir.Constant(PTR, None), ir.Constant(PTR, None), I64(0)])
        return context.get_dummy_value()

    return types.void(sync, types.int64, types.int64, types.int64), codegen


@inline
def launch(sync, first, pieces):
    """Start an epoch of ``pieces`` pieces from operator ``first`` on: wake every member. Returns the count of pieces before it."""
    base = load(sync, DONE)
    store(sync, FIRST, first)
    store(sync, BASE, base)
    store(sync, TARGET, base + pieces)
    _add(sync, EPOCH, 1)
    _futex(sync, EPOCH, _WAKE, 1 << 30)
    return base


@inline
def dismiss(sync):
    """Let every member return from its `wait` with False."""
    store(sync, QUIT, 1)
    _add(sync, EPOCH, 1)
    _futex(sync, EPOCH, _WAKE, 1 << 30)


@inline
def wait(sync, epoch):
    """Wait until the epoch is not ``epoch``; returns False if the team shall end."""
    spins = 0
    while load(sync, EPOCH) == epoch:
        spins += 1
        if spins < _SPINS:
            _relax()
        else:
            _futex(sync, EPOCH, _WAIT, epoch & 0xFFFFFFFF)
    return load(sync, QUIT) == 0


@inline
def take(sync, base, target, parts):
    """The next piece of the operator that is being worked on, counted from ``base``; -1 once all are done, up to ``target``.

    Waits where that operator's pieces are all taken but not all done.
    """
    spins = 0
    while True:
        done = load(sync, DONE)
        if done >= target:
            return -1
        end = done + parts - (done - base) % parts
        piece = load(sync, NEXT)
        if piece < end:
            if _swap(sync, NEXT, piece, piece + 1):
                return piece - base
        elif spins < _SPINS:
            spins += 1
            _relax()
        else:  # a member has lost its core to another program
            _add(sync, SLEEPERS, 1)
            _futex(sync, DONE, _WAIT, done & 0xFFFFFFFF)
            _add(sync, SLEEPERS, -1)


@inline
def finish(sync):
    """Count a piece as done. Every operation here is sequentially consistent: who is no sleeper yet sees the new count and does not sleep."""
    _add(sync, DONE, 1)
    if load(sync, SLEEPERS) > 0:
        _futex(sync, DONE, _WAKE, 1 << 30)


@inline
def share(count, part, parts):
    """The part's range of ``count`` equal pieces of work."""
    return count * part // parts, count * (part + 1) // parts
