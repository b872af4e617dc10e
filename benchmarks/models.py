"""The networks that the benchmarks and the demo measure."""

from __future__ import annotations

from typing import Any, Final

import onnx

from benchmarks import lite0
from benchmarks.published.networks import MOBILENET_V1, MOBILENET_V2
from calibration.importing import importer
from splitedge.protocol.messages import Preprocess

#: EfficientNet-Lite0 as it was trained: 224 x 224 RGB, (pixel - 127) / 128.
LITE0_PREPROCESS: Final = Preprocess(
    "image", [224, 224, 3], resize=256, fit="crop", interpolation="bicubic", mean=[127.0], std=[128.0]
)


def load(name: str) -> onnx.ModelProto:
    """Load the network ``name`` with `calibration.importing.importer.load`.

    ``name``: "lite0", or a function of this module that makes a torch module.
    """
    if name == "lite0":
        return importer.load(lite0.file())
    return importer.load(f"benchmarks.models:{name}", lite0.SHAPE)


def mobilenet_v2() -> Any:
    """Return the layers of MobileNetV2 (Sandler et al., 2018), 1,000 classes, with random weights, to measure speed."""
    from torch import nn

    def block(ins: int, outs: int, stride: int, expand: int) -> Any:
        hidden = ins * expand
        layers = [nn.Conv2d(ins, hidden, 1), nn.ReLU6()] if expand != 1 else []
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden), nn.ReLU6(), nn.Conv2d(hidden, outs, 1)]
        body = nn.Sequential(*layers)
        return _residual()(body) if stride == 1 and ins == outs else body

    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    ins = 32
    for expand, outs, count, stride in MOBILENET_V2:
        for i in range(count):
            layers.append(block(ins, outs, stride if i == 0 else 1, expand))
            ins = outs
    layers += [nn.Conv2d(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers)


def resnet18() -> Any:
    """Return the layers of ResNet-18 (He et al., 2015) after folding, 1,000 classes, with random weights."""
    from torch import nn

    def block(ins: int, outs: int, stride: int) -> Any:
        body = nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1), nn.ReLU(), nn.Conv2d(outs, outs, 3, 1, 1))
        beside = nn.Conv2d(ins, outs, 1, stride) if ins != outs else None
        return nn.Sequential(_residual()(body, beside), nn.ReLU())

    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for outs in (64, 128, 256, 512):
        layers += [block(ins, outs, 1 if outs == 64 else 2), block(outs, outs, 1)]
        ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def mobilenet_v1() -> Any:
    """Return the layers of MobileNet (Howard et al., 2017), 1,000 classes, with random weights."""
    from torch import nn

    layers, ins = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()], 32
    for outs, stride in MOBILENET_V1:
        layers += [nn.Conv2d(ins, ins, 3, stride, 1, groups=ins), nn.ReLU6(), nn.Conv2d(ins, outs, 1), nn.ReLU6()]
        ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


def resnet50() -> Any:
    """Return the layers of ResNet-50 (He et al., 2015) after folding, 1,000 classes, with random weights."""
    from torch import nn

    def block(ins: int, outs: int, stride: int) -> Any:
        inner = outs // 4
        body = nn.Sequential(
            nn.Conv2d(ins, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1),
            nn.ReLU(),
            nn.Conv2d(inner, outs, 1),
        )
        return _residual()(body, None if stride == 1 and ins == outs else nn.Conv2d(ins, outs, 1, stride))

    layers, ins = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for outs, stride, count in ((256, 1, 3), (512, 2, 4), (1024, 2, 6), (2048, 2, 3)):
        for i in range(count):
            layers += [block(ins, outs, stride if i == 0 else 1), nn.ReLU()]
            ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def squeezenet() -> Any:
    """Return the layers of SqueezeNet 1.1 (Iandola et al., 2016), 1,000 classes, with random weights."""
    import torch
    from torch import nn

    class Fire(nn.Module):  # type: ignore[misc]
        def __init__(self, ins: int, inner: int, outs: int) -> None:
            super().__init__()
            self.squeeze = nn.Sequential(nn.Conv2d(ins, inner, 1), nn.ReLU())
            self.one = nn.Sequential(nn.Conv2d(inner, outs, 1), nn.ReLU())
            self.three = nn.Sequential(nn.Conv2d(inner, outs, 3, 1, 1), nn.ReLU())

        def forward(self, x: Any) -> Any:
            x = self.squeeze(x)
            return torch.cat([self.one(x), self.three(x)], 1)

    def pool() -> Any:
        return nn.MaxPool2d(3, 2, 0)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128),
        Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def vgg11() -> Any:
    """Return the convolutions of VGG-11 (Simonyan and Zisserman, 2014) and one product, with random weights."""
    from torch import nn

    layers, ins = [], 3
    for outs in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        layers += [nn.Conv2d(ins, outs, 3, 1, 1), nn.ReLU()] if outs else [nn.MaxPool2d(2)]
        ins = outs or ins
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vit() -> Any:
    """Return a ViT of the size of DeiT-tiny (Touvron et al., 2020) that averages its tokens, with random weights."""
    import torch
    from torch import nn

    width, heads, patch = 192, 3, 16

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value, self.joined = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            y = self.norm1(x)
            parts = [
                part(y).view(*x.shape[:2], heads, width // heads).transpose(1, 2)
                for part in (self.query, self.key, self.value)
            ]
            mixed = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(x.shape)
            x = x + self.joined(mixed)
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Vit(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, width, patch, patch)
            self.position = nn.Parameter(0.02 * torch.randn(1, (224 // patch) ** 2, width))
            self.blocks = nn.ModuleList(Block() for _ in range(12))
            self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, 1000)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.position
            for block in self.blocks:
                x = block(x)
            return self.classes(self.norm(x).mean(dim=1))

    return Vit()


def _residual() -> Any:
    """Return the class of x -> body(x) + beside(x). A function, so that importing this module does not import torch."""
    from torch import nn

    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self, body: Any, beside: Any = None) -> None:
            super().__init__()
            self.body, self.beside = body, beside

        def forward(self, x: Any) -> Any:
            return self.body(x) + (x if self.beside is None else self.beside(x))

    return Residual
