"""Depthwise convolution, u8 x s8 -> int32 -> u8, with any window, stride, dilation and padding.

Channels run along the vector, `BLOCKS`[i] of them in a block. The last block of a row overlaps the block before it and
writes the same bytes again. The bytes (or words) of `GROUP` taps are interleaved, so that one dot step adds them all. A
tap outside the plane reads zero points.

The windows of almost all networks (`slides`) slide along a row: each column of the window is loaded and interleaved
once, then added to all pixels that contain it, whose accumulators stay in registers. Any other window is a table of
offsets that is read for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from kernels import emit, reference
from kernels.define import inline, ir, macro
from kernels.emit import FLOAT, I8, I32, I64, TARGET, Address, address, read_float32, read_int8, read_int32, write_int8
from kernels.reference import F32, S8, U8
from kernels.team import share

GROUP: Final = TARGET.group
#: Bytes of a packed weight.
WEIGHT_BYTES: Final = 1 if GROUP == 4 else 2
#: Vector widths in bits, widest first. Narrow ones serve layers with few channels.
_WIDTHS: Final = [bits for bits in (512, 256, 128) if bits <= TARGET.bits]
#: Channels in a block at each width: GROUP vectors of int32 accumulators.
BLOCKS: Final = [bits // 32 * GROUP for bits in _WIDTHS]
SMALLEST: Final = BLOCKS[-1]


def blocks(channels: int) -> list[tuple[int, int]]:
    """(first channel, index into `BLOCKS`) of each block; empty if the channels do not fill the smallest block."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < channels and channels >= SMALLEST:
        left = channels - start
        fitting = [i for i, size in enumerate(BLOCKS) if size <= left]
        # One wider block that overlaps the block before costs less than several narrow ones.
        covering = [i for i, size in enumerate(BLOCKS) if left <= size <= channels]
        index = covering[-1] if covering else fitting[0]
        size = BLOCKS[index]
        start = min(start, channels - size)
        found.append((start, index))
        start += size
    return found


def _channel_order(index: int) -> Any:
    """[GROUP, lanes]: the channel, within its block, of each lane of each accumulator. Interleaving stays within
    128-bit quarters.
    """
    quarters = _WIDTHS[index] // 128
    q, j, e = np.meshgrid(np.arange(quarters), np.arange(GROUP), np.arange(4), indexing="ij")
    return (q * 4 * GROUP + j * 4 + e).transpose(1, 0, 2).reshape(GROUP, quarters * 4)


def slides(channels: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the sliding kernel takes this window. `pack_weights` and `depthwise` must agree."""
    same = kernel[0] == kernel[1] and stride[0] == stride[1]
    return channels >= SMALLEST and same and kernel[0] in (3, 5) and stride[0] in (1, 2) and dilation == (1, 1)


_slides = inline(slides)


class TapGroup(NamedTuple):
    """The taps that one dot step adds."""

    taps: list[tuple[int, int] | None]  # (row, column); None for no tap
    column: int  # the last column that it needs
    along: bool  # whether it runs along a row


def tap_groups(kernel: int) -> list[TapGroup]:
    """All taps of a square window in the order of the packed weights.

    Groups run down a column, also if two or three rows are left over. A single row left over is grouped along the row:
    5 x 5 taps make 7 groups of 4, not 10.
    """
    along = kernel % GROUP == 1
    groups = []
    for column in range(kernel):
        for row in range(0, kernel - 1 if along else kernel, GROUP):
            taps = [(r, column) if r < kernel else None for r in range(row, row + GROUP)]
            groups.append(TapGroup(taps, column, False))
    for first in range(0, kernel if along else 0, GROUP):
        last = min(first + GROUP, kernel) - 1
        taps = [(kernel - 1, c) if c >= first else None for c in range(last - GROUP + 1, last + 1)]
        groups.append(TapGroup(taps, last, True))
    return groups


def pack_weights(w: S8, stride: tuple[int, int], dilation: tuple[int, int]) -> U8:
    """w [C, KH, KW] int8 to bytes: for each block, each group of taps and each accumulator [lanes, group]; zeros for
    missing taps.

    Groups of taps are those of `tap_groups` if the window `slides`, else consecutive taps. With fewer channels than
    `SMALLEST` the result is [taps, C].
    """
    channels, kernel_h, kernel_w = w.shape
    if channels < SMALLEST:
        return np.ascontiguousarray(w.reshape(channels, -1).T).reshape(-1).view(np.uint8)
    if slides(channels, (kernel_h, kernel_w), stride, dilation):
        taps = [tap for group in tap_groups(kernel_h) for tap in group.taps]
        order = np.array([-1 if tap is None else tap[0] * kernel_w + tap[1] for tap in taps])
    else:
        order = np.arange(-(-kernel_h * kernel_w // GROUP) * GROUP)
        order[kernel_h * kernel_w :] = -1
    padded = np.where(order >= 0, w.reshape(channels, -1)[:, order], 0).astype(np.int8 if GROUP == 4 else np.int16)
    parts = []
    for start, index in blocks(channels):
        ordered = padded[start + _channel_order(index)]  # [GROUP, lanes, taps]
        grouped = ordered.reshape(*ordered.shape[:2], -1, GROUP).transpose(2, 0, 1, 3)
        parts.append(emit.pair_order(np.ascontiguousarray(grouped)).reshape(-1))
    return np.concatenate(parts).view(np.uint8)


def pack_channels(values: F32 | reference.I32) -> Any:
    """A per-channel vector in the order of the blocks' accumulators."""
    if len(values) < SMALLEST:
        return values
    return np.concatenate([values[start + _channel_order(index)].reshape(-1) for start, index in blocks(len(values))])


def _unpack_order(lanes: int, high: int, width: int) -> list[int]:
    """The mask that interleaves two vectors within 128-bit quarters of ``width`` elements, as x86's unpack low and high
    do.
    """
    total = lanes
    half = width // 2
    return [
        i
        for q in range(0, total, width)
        for e in range(half)
        for i in (q + high * half + e, total + q + high * half + e)
    ]


def _interleave(b: ir.IRBuilder, taps: list[ir.Value], size: int) -> list[Any]:
    """Up to GROUP vectors of ``size`` channels (bytes) to GROUP operands whose lanes hold the GROUP taps of one
    channel.

    Missing taps have any value: their weights are zero.
    """
    if len(taps) == 1 and GROUP == 4 and not TARGET.pairs:
        (tap,) = taps
        tap = emit.as_operand(b, tap)
        return [
            emit.shuffle(b, tap, tap, [q + j * 4 + e for q in range(0, size, 16) for e in range(4) for _ in range(4)])
            for j in range(4)
        ]
    taps = [*taps, *[taps[0]] * (GROUP - len(taps))]
    if GROUP == 2:
        words = [b.zext(tap, emit.vector(TARGET.element, size)) for tap in taps]
        return [emit.shuffle(b, words[0], words[1], _unpack_order(size, high, 8)) for high in (0, 1)]
    taps = [emit.as_operand(b, tap) for tap in taps]
    pairs = [[emit.shuffle(b, taps[i], taps[i + 1], _unpack_order(size, high, 16)) for high in (0, 1)] for i in (0, 2)]
    if TARGET.pairs:  # of 4 channels each: taps 0 and 1, then 2 and 3
        return [
            [emit.shuffle(b, v, v, range(half, half + 8)) for v in (first, second)]
            for first, second in zip(*pairs, strict=True)
            for half in (0, 8)
        ]
    halves = [[b.bitcast(v, emit.vector(ir.IntType(16), size // 2)) for v in pair] for pair in pairs]
    quads = [
        emit.shuffle(b, halves[0][i], halves[1][i], _unpack_order(size // 2, high, 8))
        for i in (0, 1)
        for high in (0, 1)
    ]
    return [b.bitcast(quad, emit.vector(I8, size)) for quad in quads]


class Run(NamedTuple):
    """Arguments of the kernel for any window: a run of output pixels of one block. Steps are in bytes."""

    x: Address  # what the taps are relative to
    taps: Address  # int64 offsets of the first pixel's taps, whole groups
    groups: int
    weights: Address
    bias: Address
    multiplier: Address
    y: Address
    pixels: int
    x_step: int
    y_step: int
    lo: np.float32
    hi: np.float32
    zero: np.int32


def _run_body(size: int) -> Callable[[ir.IRBuilder, Run], None]:
    """A generator of the IR of a `Run` for blocks of ``size`` channels."""

    def body(b: ir.IRBuilder, r: Any) -> None:
        block = _Block(b, size, r)
        with emit.loop(b, r.pixels) as (pixel, _, _):
            origin = emit.at(b, r.x, b.mul(pixel, r.x_step))
            with emit.loop(b, r.groups, *block.start()) as (index, before, acc):
                first = b.mul(index, I64(GROUP * 8))
                places = [emit.load(b, I64, r.taps, b.add(first, I64(t * 8))) for t in range(GROUP)]
                cells = _interleave(b, [emit.load(b, emit.vector(I8, size), origin, place) for place in places], size)
                acc += block.step(before, cells, block.weights(index))
            block.finish(acc, emit.at(b, r.y, b.mul(pixel, r.y_step)))

    return body


class _Block:
    """Values that all pixels of one block of channels share, loaded once. ``arguments`` is a `Run` or a `Slide`."""

    def __init__(self, b: ir.IRBuilder, size: int, arguments: Any) -> None:
        self.b, self.panels = b, arguments.weights
        self.bias, self.multiplier = arguments.bias, arguments.multiplier
        self.lanes = size // GROUP
        self.operand = emit.vector(TARGET.element, self.lanes * GROUP)
        self.width = self.lanes * 4
        self.bounds = emit.code_bounds(b, arguments.lo, arguments.hi, arguments.zero)

    def start(self) -> list[ir.Value]:
        """The accumulators of a new pixel, loaded each time: weights and accumulators need all registers."""
        return [emit.load(self.b, emit.vector(I32, self.lanes), self.bias, j * self.width) for j in range(GROUP)]

    def weights(self, group: ir.Value) -> list[ir.Value]:
        """The operands of one group of taps, one for each accumulator."""
        panel = emit.at(self.b, self.panels, self.b.mul(group, I64(GROUP * self.width)))
        return [emit.load(self.b, self.operand, panel, j * self.width) for j in range(GROUP)]

    def step(self, acc: list[ir.Value], cells: list[Any], weights: list[ir.Value]) -> list[ir.Value]:
        """``acc`` plus the products of one group of taps."""
        return [emit.dot(self.b, *operands) for operands in zip(acc, cells, weights, strict=True)]

    def finish(self, acc: list[ir.Value], y: ir.Value) -> None:
        """Store the codes of one pixel at ``y``."""
        kind = emit.vector(FLOAT, self.lanes)
        factors = [emit.load(self.b, kind, self.multiplier, j * self.width) for j in range(GROUP)]
        (codes,) = emit.requantize(self.b, [acc], factors, self.bounds, interleaved=True, branch=False)
        emit.store(self.b, codes, y)


class Slide(NamedTuple):
    """Arguments of the sliding kernel: some output rows of one block."""

    x: Address
    zeros: Address  # a row of zero points
    weights: Address
    bias: Address
    multiplier: Address
    y: Address  # of the first row
    height: int
    width: int
    channels: int
    out_width: int
    first: int  # number of the first row
    rows: int
    top: int
    left: int
    lo: np.float32
    hi: np.float32
    zero: np.int32


#: Windows of the sliding kernel: (size, stride).
WINDOWS: Final = ((3, 1), (3, 2), (5, 1), (5, 2))


class _Walk(NamedTuple):
    """State from column to column: accumulators of the pixels in progress, and the last row's taps of the columns
    before.
    """

    pixels: list[list[ir.Value]]
    recent: list[ir.Value]

    def values(self) -> list[ir.Value]:
        return [v for acc in self.pixels for v in acc] + self.recent


class _Slider:
    """Generates the IR of a `Slide` for one block size and one window.

    Before pixel p the accumulators hold all columns of the window but the last ``stride``, for p and the pixels after
    it.
    """

    def __init__(self, b: ir.IRBuilder, arguments: Slide, size: int, kernel: int, stride: int) -> None:
        self.b, self.a, self.size, self.kernel, self.stride = b, arguments, size, kernel, stride
        self.groups = tap_groups(kernel)
        self.along = any(group.along for group in self.groups)
        self.block = _Block(b, size, arguments)
        # The weights of a window of 3 x 3 fit into registers.
        self.kept = [self.block.weights(I64(g)) for g in range(len(self.groups))] if kernel == 3 else []

    def rows(self) -> None:
        """All output rows."""
        b, a, kernel, stride = self.b, self.a, self.kernel, self.stride
        waiting = (kernel - 1) // stride  # pixels in progress
        with emit.loop(b, a.rows) as (index, _, _):
            row = b.add(a.first, index)
            places = [self._row(row, r) for r in range(kernel)]
            origin = b.sub(I64(0), a.left)
            state = _Walk([], [])
            for offset in range(kernel - stride):
                state = self._add(state, self._load(places, b.add(origin, I64(offset))), offset)
            target = emit.at(b, a.y, b.mul(index, b.mul(a.out_width, a.channels)))
            with emit.loop(b, a.out_width, *state.values()) as (pixel, before, following):
                state = _Walk([before[i * GROUP : (i + 1) * GROUP] for i in range(waiting)], before[waiting * GROUP :])
                ix = b.add(origin, b.mul(pixel, I64(stride)))
                for offset in range(kernel - stride, kernel):
                    state = self._add(state, self._load(places, b.add(ix, I64(offset))), offset)
                self.block.finish(state.pixels[0], emit.at(b, target, b.mul(pixel, a.channels)))
                following += _Walk(state.pixels[1:], state.recent).values()

    def _row(self, row: ir.Value, r: int) -> tuple[ir.Value, ir.Value]:
        """Tap row r of an output row: the address of column 0 and the step to the next column, or the zeros and no
        step.
        """
        b, a = self.b, self.a
        iy = b.add(b.sub(b.mul(row, I64(self.stride)), a.top), I64(r))
        inside = b.icmp_unsigned("<", iy, a.height)
        place = emit.at(b, a.x, b.mul(iy, b.mul(a.width, a.channels)))
        return b.select(inside, place, a.zeros), b.select(inside, a.channels, I64(0))

    def _load(self, places: list[tuple[ir.Value, ir.Value]], ix: ir.Value) -> list[ir.Value]:
        """The taps of column ``ix``."""
        b = self.b
        inside = b.icmp_unsigned("<", ix, self.a.width)
        at = [b.select(inside, emit.at(b, place, b.mul(ix, step)), self.a.zeros) for place, step in places]
        return [emit.load(b, emit.vector(I8, self.size), place) for place in at]

    def _add(self, state: _Walk, taps: list[ir.Value], offset: int) -> _Walk:
        """Add a column, ``offset`` to the right of the first pixel's window, to all pixels whose window holds it."""
        b, size, kernel, stride, groups = self.b, self.size, self.kernel, self.stride, self.groups
        pixels = [*state.pixels, self.block.start()] if offset == len(state.pixels) * stride else state.pixels
        recent = [*state.recent, taps[-1]][-GROUP:] if self.along else []
        down = [_interleave(b, taps[r : r + GROUP], size) for r in range(0, kernel - len(recent[:1]), GROUP)]
        complete = [(n, i) for i in range(len(pixels)) for n, g in enumerate(groups) if g.column == offset - i * stride]
        reach = max((GROUP - groups[n].taps.count(None) for n, _ in complete if groups[n].along), default=0)
        row = _interleave(b, recent[-1:] if reach == 1 else recent, size) if reach else []
        for number, i in complete:
            cells = row if groups[number].along else down[number % len(down)]
            weights = self.kept[number] if self.kept else self.block.weights(I64(number))
            pixels = [*pixels[:i], self.block.step(pixels[i], cells, weights), *pixels[i + 1 :]]
        return _Walk(pixels, recent[-(GROUP - 1) :])


def slide_body(size: int, kernel: int, stride: int) -> Callable[[ir.IRBuilder, Slide], None]:
    """A generator of the IR of a `Slide`."""
    return lambda b, arguments: _Slider(b, arguments, size, kernel, stride).rows()


_run = emit.dispatcher(Run, {i: (f"splitedge_depthwise_{size}", _run_body(size)) for i, size in enumerate(BLOCKS)})
_slide = emit.dispatcher(
    Slide,
    {
        i * len(WINDOWS) + j: (f"splitedge_slide_{size}_{kernel}_{stride}", slide_body(size, kernel, stride))
        for i, size in enumerate(BLOCKS)
        for j, (kernel, stride) in enumerate(WINDOWS)
    },
)

# --- the walk over blocks and rows ------------------------------------------------------------------------------------

_OFFSET = np.int32(TARGET.offset)
_BLOCK_SIZES = np.array(BLOCKS, np.int64)


@inline
def _block(channels, start):
    """The index into `BLOCKS` of the block at ``start``; the last block may begin earlier. Agrees with `blocks`."""
    block = 0
    while block + 1 < len(_BLOCK_SIZES) and (
        _BLOCK_SIZES[block] > channels or _BLOCK_SIZES[block + 1] >= channels - start
    ):
        block += 1
    return block


@macro
def _few_channels(x, taps, count, constants, y, pixels, step, channels, output):
    """A run of output pixels with fewer channels than the smallest block. ``x`` and ``y`` are addresses."""
    for p in range(pixels):
        for c in range(channels):
            acc = read_int32(constants.bias + 4 * c)
            for t in range(count):
                code = np.int32(np.uint8(read_int8(x + taps[t] + p * step + c)))
                weight = np.int32(read_int8(constants.weights + t * channels + c))
                acc += (code - _OFFSET) * weight
            real = np.float32(acc) * read_float32(constants.multiplier + 4 * c)
            clamped = min(max(real, output.lo), output.hi)
            write_int8(y + p * channels + c, np.uint8(np.int32(np.rint(clamped)) + output.zero))


@inline
def _run_row(x, taps, count, constants, y, pixels, step, channels, output):
    """A run of output pixels, all channels. ``taps``: offsets from the address ``x`` for the first pixel, padded to
    whole groups.
    """
    if channels < SMALLEST:
        _few_channels(x, taps, count, constants, y, pixels, step, channels, output)
        return
    groups = (count + GROUP - 1) // GROUP
    start = panel = done = 0
    while start < channels:
        block = _block(channels, start)
        size = _BLOCK_SIZES[block]
        start = min(start, channels - size)
        run = Run(
            x=x + start,
            taps=address(taps),
            groups=groups,
            weights=constants.weights + panel,
            bias=constants.bias + 4 * done,
            multiplier=constants.multiplier + 4 * done,
            y=y + start,
            pixels=pixels,
            x_step=step,
            y_step=channels,
            lo=output.lo,
            hi=output.hi,
            zero=output.zero,
        )
        _run(run, block)
        panel += groups * size * GROUP * WEIGHT_BYTES
        done += size
        start += size


_GROUPS = np.array([len(tap_groups(kernel)) for kernel in range(6)])
#: Output pixels of one block before the next block, few enough for their input to stay in the first-level cache.
_PIXELS_AT_ONCE: Final = 64


@inline
def _slide_rows(x, window, constants, y, begin, end, output, zeros):
    """Output rows ``begin`` to ``end`` by the sliding kernel. ``x``, ``y`` and ``zeros`` are addresses."""
    channels, out_width = window.channels, window.out_width
    choice = (window.kernel_h - 3) + window.stride_h - 1  # index into `WINDOWS`
    groups, at_once = _GROUPS[window.kernel_h], max(1, _PIXELS_AT_ONCE // out_width)
    for first in range(begin, end, at_once):
        rows = min(at_once, end - first)
        start = done = panel = 0
        while start < channels:
            block = _block(channels, start)
            size = _BLOCK_SIZES[block]
            start = min(start, channels - size)
            slide = Slide(
                x=x + start,
                zeros=zeros + start,
                weights=constants.weights + panel,
                bias=constants.bias + 4 * done,
                multiplier=constants.multiplier + 4 * done,
                y=y + first * out_width * channels + start,
                height=window.height,
                width=window.width,
                channels=channels,
                out_width=out_width,
                first=first,
                rows=rows,
                top=window.top,
                left=window.left,
                lo=output.lo,
                hi=output.hi,
                zero=output.zero,
            )
            _slide(slide, block * len(WINDOWS) + choice)
            panel += groups * size * GROUP * WEIGHT_BYTES
            done += size
            start += size


@macro
def _reaches_beyond(window):
    """Whether some window reaches beyond the plane."""
    last_y = (window.out_height - 1) * window.stride_h + (window.kernel_h - 1) * window.dilation_h
    last_x = (window.out_width - 1) * window.stride_w + (window.kernel_w - 1) * window.dilation_w
    return window.top > 0 or window.left > 0 or last_y >= window.height or last_x >= window.width


@macro
def _inner_columns(window):
    """The output columns whose windows lie inside the rows of the plane: first, and behind the last."""
    reach = (window.kernel_w - 1) * window.dilation_w
    first = min(window.out_width, (window.left + window.stride_w - 1) // window.stride_w)
    last = 0
    if window.width + window.left > reach:
        last = (window.width - 1 - reach + window.left) // window.stride_w + 1
    return first, max(first, min(window.out_width, last))


@macro
def _fill_taps(taps, x, zeros, window, oy, ox, inside):
    """The offsets of all taps of output pixel (oy, ox). ``inside``: the offsets serve several pixels, none beyond the
    row's ends.
    """
    for ky in range(window.kernel_h):
        iy = oy * window.stride_h - window.top + ky * window.dilation_h
        for kx in range(window.kernel_w):
            ix = ox * window.stride_w - window.left + kx * window.dilation_w
            tap = x + (iy * window.width + ix) * window.channels
            if iy < 0 or iy >= window.height:
                tap = zeros + (ix * window.channels if inside else 0)
            elif ix < 0 or ix >= window.width:
                tap = zeros
            taps[ky * window.kernel_w + kx] = tap
    count = window.kernel_h * window.kernel_w
    for t in range(count, count + GROUP):
        taps[t] = taps[0]


@inline
def depthwise(arena, x, window, zero_x, constants, y, output, zeros, taps, part):
    """Compute one part of y [OH, OW, C] from x [H, W, C]; ``x``, ``y`` and ``zeros`` are offsets into the arena.

    ``zeros``: scratch for a row of width x channels bytes and slack. ``taps``: int64 scratch of at least the window's
    size + `GROUP`.
    """
    base, channels = address(arena), window.channels
    if _reaches_beyond(window):
        arena[zeros : zeros + window.width * channels] = zero_x
    begin, end = share(window.out_height, part)
    kernel, stride = (window.kernel_h, window.kernel_w), (window.stride_h, window.stride_w)
    if _slides(channels, kernel, stride, (window.dilation_h, window.dilation_w)):
        _slide_rows(base + x, window, constants, base + y, begin, end, output, base + zeros)
        return
    count = window.kernel_h * window.kernel_w
    first, last = _inner_columns(window)
    for oy in range(begin, end):
        ox = 0
        while ox < window.out_width:
            inside = first <= ox < last
            pixels = last - ox if inside else 1
            _fill_taps(taps, x, zeros, window, oy, ox, inside)
            target = base + y + (oy * window.out_width + ox) * channels
            _run_row(base, taps, count, constants, target, pixels, window.stride_w * channels, channels, output)
            ox += pixels
