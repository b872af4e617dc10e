"""The layers of published networks: kinds, shapes, products and bytes, for predictions of what others measured.

Each network is a few lines in the words of its paper. `layers` returns its layers, and a test compares the products
with published totals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

#: ``conv3``: 3x3 with stride 1, which float kernels compute by Winograd's method. ``conv``: all other windows.
#: ``matmul``: a product of matrices of tokens, for which programs have other kernels than for 1x1 windows. ``rest``: no weights: additions, pools, activations that are not fused, softmax.
LayerKind = Literal["pointwise", "conv3", "conv", "depthwise", "dense", "matmul", "rest"]
KINDS: Final[tuple[LayerKind, ...]] = ("pointwise", "conv3", "conv", "depthwise", "dense", "matmul", "rest")
#: Steps for one value of an activation with an exponential, as a multiple of an addition's.
EXPONENTIAL: Final = 5
#: Output channels and stride of each block of MobileNet: arXiv 1704.04861, table 1.
MOBILENET_V1: Final = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
#: Expansion, output channels, count and stride of the blocks of MobileNetV2: arXiv 1801.04381, table 2.
MOBILENET_V2: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True)
class Layer:
    """One layer: multiply-accumulates ``macs``, and values read, written and held as weights.

    ``steps``: the work of a layer without products, in additions.
    """

    kind: LayerKind
    macs: int
    read: int
    written: int
    weights: int
    steps: int = 0


@dataclass
class Builder:
    """Appends layers to a network whose current tensor is ``h`` x ``w`` x ``c``."""

    h: int
    w: int
    c: int
    layers: list[Layer] = field(default_factory=list)

    def conv(self, out: int, k: int = 1, stride: int = 1, pad: int | None = None) -> Builder:
        """A convolution to ``out`` channels; ``pad``: on each side (None: as much as keeps the size)."""
        read, (h, w) = self.size, self._window(k, stride, pad)
        depth = k * k * self.c
        kind: LayerKind = (
            ("dense" if h * w == 1 else "pointwise")
            if k == 1
            else ("conv3" if k == 3 and stride == 1 and self.c >= 16 else "conv")
        )
        self.h, self.w, self.c = h, w, out
        self.layers.append(Layer(kind, self.size * depth, read, self.size, depth * out))
        return self

    def depthwise(self, k: int, stride: int = 1) -> Builder:
        read = self.size
        self.h, self.w = self._window(k, stride, None)
        self.layers.append(Layer("depthwise", self.size * k * k, read, self.size, k * k * self.c))
        return self

    def dense(self, out: int) -> Builder:
        depth, self.h, self.w, self.c = self.size, 1, 1, out
        self.layers.append(Layer("dense", depth * out, depth, out, depth * out))
        return self

    def pool(self, k: int, stride: int, pad: int = 0) -> Builder:
        """A maximum or mean whose last window may hang over the edge, as Caffe has it."""
        read = self.size
        self.h, self.w = (-(-(side + 2 * pad - k) // stride) + 1 for side in (self.h, self.w))
        return self._rest(read, self.size * k * k)

    def matmul(self, out: int) -> Builder:
        """Each token's ``c`` values to ``out`` values."""
        read, depth, self.c = self.size, self.c, out
        self.layers.append(Layer("matmul", self.size * depth, read, self.size, depth * out))
        return self

    def mean(self) -> Builder:
        read, self.h, self.w = self.size, 1, 1
        return self._rest(read, read)

    def add(self) -> Builder:
        return self._rest(2 * self.size, self.size)

    def activation(self) -> Builder:
        """A layer of its own for swish or GELU; a clamp belongs to the convolution before it."""
        return self._rest(self.size, EXPONENTIAL * self.size)

    def squeeze(self, inner: int, act: bool) -> Builder:
        """Squeeze and excitation: a mean, two dense layers and a product with each channel."""
        h, w, c = self.h, self.w, self.c
        self.mean().dense(inner)
        if act:
            self.activation()
        self.dense(c).activation()
        self.h, self.w = h, w
        return self._rest(self.size, self.size)

    def at(self, h: int, w: int, c: int) -> Builder:
        """A branch that begins at another tensor."""
        self.h, self.w, self.c = h, w, c
        return self

    @property
    def size(self) -> int:
        return self.h * self.w * self.c

    def _rest(self, read: int, steps: int) -> Builder:
        self.layers.append(Layer("rest", 0, read, self.size, 0, steps))
        return self

    def _window(self, k: int, stride: int, pad: int | None) -> tuple[int, int]:
        if pad is None:
            return -(-self.h // stride), -(-self.w // stride)
        return (self.h + 2 * pad - k) // stride + 1, (self.w + 2 * pad - k) // stride + 1


def _mobilenet_v1() -> Builder:
    net = Builder(224, 224, 3).conv(32, 3, 2)
    for out, stride in MOBILENET_V1:
        net.depthwise(3, stride).conv(out)
    return net.mean().dense(1000)


def _inverted(net: Builder, wide: int, out: int, k: int, stride: int, act: bool = False, squeezed: int = 0) -> None:
    """An inverted residual block: expand to ``wide``, depthwise, optional squeeze, project to ``out``."""
    before = net.c
    if wide != before:
        net.conv(wide)
        if act:
            net.activation()
    net.depthwise(k, stride)
    if act:
        net.activation()
    if squeezed:
        net.squeeze(squeezed, act)
    net.conv(out)
    if stride == 1 and before == out:
        net.add()


def _mobilenet_v2() -> Builder:
    net = Builder(224, 224, 3).conv(32, 3, 2)
    for t, c, n, s in MOBILENET_V2:
        for i in range(n):
            _inverted(net, t * net.c, c, 3, s if i == 0 else 1)
    return net.conv(1280).mean().dense(1000)


def _mobilenet_v3(last: int, blocks: Sequence[tuple[int, int, int, bool, bool, int]]) -> Builder:
    """arXiv 1905.02244: ``blocks`` as kernel, expansion, output, squeeze, hard swish, stride."""
    net = Builder(224, 224, 3).conv(16, 3, 2).activation()
    for k, wide, out, squeezed, act, stride in blocks:
        _inverted(net, wide, out, k, stride, act, wide // 4 if squeezed else 0)
    net.conv(blocks[-1][1]).activation().mean()
    return net.dense(last).activation().dense(1000)


def _mobilenet_v3_large() -> Builder:
    """Table 1."""
    return _mobilenet_v3(1280, [
        (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
    ])  # fmt: skip


def _mobilenet_v3_small() -> Builder:
    """Table 2."""
    return _mobilenet_v3(1024, [
        (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
    ])  # fmt: skip


def _efficientnet(lite: bool) -> Builder:
    """arXiv 1905.11946, table 1 (B0). Lite0 has neither squeeze nor swish."""
    net = Builder(224, 224, 3).conv(32, 3, 2)
    if not lite:
        net.activation()
    for t, k, s, c, n in [
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ]:
        for i in range(n):
            _inverted(net, t * net.c, c, k, s if i == 0 else 1, not lite, 0 if lite else max(1, net.c // 4))
    net.conv(1280)
    if not lite:
        net.activation()
    return net.mean().dense(1000)


def _resnet(bottleneck: bool, counts: tuple[int, ...]) -> Builder:
    """arXiv 1512.03385, table 1: the first layer of a stage has its stride."""
    net = Builder(224, 224, 3).conv(64, 7, 2).pool(3, 2)
    for stage, count in enumerate(counts):
        width = 64 << stage
        out = 4 * width if bottleneck else width
        for i in range(count):
            start, stride = (net.h, net.w, net.c), 2 if stage and not i else 1
            if net.c != out or stride > 1:
                net.conv(out, 1, stride).at(*start)
            if bottleneck:
                net.conv(width, 1, stride).conv(width, 3).conv(out)
            else:
                net.conv(width, 3, stride).conv(width, 3)
            net.add()
    return net.mean().dense(1000)


def _squeezenet() -> Builder:
    """SqueezeNet 1.1 for 227 x 227 pixels, as its authors published it."""
    net = Builder(227, 227, 3).conv(64, 3, 2, pad=0).pool(3, 2)
    for i, inner in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if i in (2, 4):
            net.pool(3, 2)
        h, w, _ = net.conv(inner).h, net.w, net.c
        net.conv(4 * inner).at(h, w, inner).conv(4 * inner, 3).at(h, w, 8 * inner)
    return net.conv(1000).mean()


def _googlenet() -> Builder:
    """arXiv 1409.4842, table 1, without the auxiliary classifiers."""
    net = Builder(224, 224, 3).conv(64, 7, 2).pool(3, 2).conv(64).conv(192, 3).pool(3, 2)
    for name, one, three, five, projected in [
        ("3a", 64, (96, 128), (16, 32), 32), ("3b", 128, (128, 192), (32, 96), 64),
        ("4a", 192, (96, 208), (16, 48), 64), ("4b", 160, (112, 224), (24, 64), 64),
        ("4c", 128, (128, 256), (24, 64), 64), ("4d", 112, (144, 288), (32, 64), 64),
        ("4e", 256, (160, 320), (32, 128), 128), ("5a", 256, (160, 320), (32, 128), 128),
        ("5b", 384, (192, 384), (48, 128), 128),
    ]:  # fmt: skip
        if name in ("4a", "5a"):
            net.pool(3, 2)
        start = (net.h, net.w, net.c)
        net.conv(one).at(*start).conv(three[0]).conv(three[1], 3)
        net.at(*start).conv(five[0]).conv(five[1], 5).at(*start).pool(3, 1, 1).conv(projected)
        net.at(start[0], start[1], one + three[1] + five[1] + projected)
    return net.mean().dense(1000)


def _vgg16() -> Builder:
    """arXiv 1409.1556, configuration D."""
    net = Builder(224, 224, 3)
    for out, count in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(count):
            net.conv(out, 3)
        net.pool(2, 2)
    return net.dense(4096).dense(4096).dense(1000)


def _vit_b32() -> Builder:
    """arXiv 2010.11929: ViT-B/32 for 384 x 384 pixels: 145 tokens of 768 values, 12 blocks, 12 heads."""
    tokens, width, heads = 145, 768, 12
    net = Builder(384, 384, 3).conv(width, 32, 32).at(tokens, 1, width)
    for _ in range(12):
        net.activation()  # a norm
        for _ in range(3):
            net.matmul(width)
        products = tokens * tokens * width
        for _ in range(2):  # scores, and the mixture of values
            net.layers.append(Layer("matmul", products, tokens * (width + tokens), tokens * width, 0))
        net.at(tokens, tokens, heads).activation().at(tokens, 1, width).matmul(width).add().activation()
        net.matmul(4 * width).activation().matmul(width).add()
    return net.at(1, 1, width).dense(1000)


_MAKERS: Final[dict[str, Callable[[], Builder]]] = {
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_large": _mobilenet_v3_large,
    "mobilenet_v3_small": _mobilenet_v3_small,
    "efficientnet_b0": lambda: _efficientnet(lite=False),
    "efficientnet_lite0": lambda: _efficientnet(lite=True),
    "resnet18": lambda: _resnet(False, (2, 2, 2, 2)),
    "resnet50": lambda: _resnet(True, (3, 4, 6, 3)),
    "squeezenet": _squeezenet,
    "googlenet": _googlenet,
    "vgg16": _vgg16,
    "vit_b32_384": _vit_b32,
}
NAMES: Final = tuple(_MAKERS)


@functools.cache
def layers(name: str) -> tuple[Layer, ...]:
    """The layers of the network ``name``, one of `NAMES`."""
    return tuple(_MAKERS[name]().layers)


def products(name: str) -> int:
    """The multiply-accumulates of the network ``name``."""
    return sum(layer.macs for layer in layers(name))


def weights(name: str) -> int:
    """The weights of the network ``name``, without biases."""
    return sum(layer.weights for layer in layers(name))


def largest_tensor(name: str) -> int:
    """The most values that one layer reads and writes."""
    return max(layer.read + layer.written for layer in layers(name))
