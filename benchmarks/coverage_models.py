"""Export the networks of `benchmarks.coverage` to ONNX, with random weights.

    python benchmarks/coverage_models.py [DIR] [--only NAME ...] [--dynamo]      (needs torch, torchvision, timm, onnxscript)

Each file holds one network in inference mode. Weights are random. Every norm gets random factors and offsets, batch
norms get the statistics of a few random pictures, and layers that training starts at zero get small values, so that
every part of a network matters to its answer. Inputs are as small as the network allows. The file needs nothing of
splitedge, so an environment of its own will do.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

FOLDER: Final = Path.home() / ".cache/splitedge/coverage"
#: Pictures that batch norms see.
PICTURES: Final = 8
CLASSES: Final = 100
OPSET: Final = 18


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    options.add_argument("--only", nargs="+", metavar="NAME", help="export only these networks")
    options.add_argument("--dynamo", action="store_true", help="use torch's newer exporter, whose files differ")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, (make, shape) in NETWORKS.items():
        if given.only and name not in given.only:
            continue
        try:
            export(make, shape, given.folder / f"{name}.onnx", dynamo=given.dynamo)
            print(f"{name}: exported", flush=True)
        except Exception as error:  # torch's exporter raises many types; the other networks still matter
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)


def export(make: Callable[[], nn.Module], shape: tuple[int, ...], path: Path, *, dynamo: bool) -> None:
    """Write the network of ``make`` with random weights to ``path``; ``shape``: of its input."""
    torch.manual_seed(0)
    module = make()
    randomize(module)
    settle(module, pictures(PICTURES, shape[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = pictures(1, shape[1:])
        more = {"external_data": False} if dynamo else {}
        torch.onnx.export(module, (x,), str(path), opset_version=OPSET, dynamo=dynamo, **more)


def randomize(module: nn.Module) -> None:
    """Give norms random factors and offsets, and small values to parameters that are all alike, such as layer scales."""
    generator = torch.Generator().manual_seed(1)
    norms = {
        id(p): n for m in module.modules() if "Norm" in type(m).__name__ for n, p in m.named_parameters(recurse=False)
    }
    for parameter in module.parameters():
        norm = norms.get(id(parameter))
        if norm == "weight":  # training starts those at the ends of residual branches at zero
            low, high = (0.5, 1.5) if parameter.any() else (0.1, 0.4)
            parameter.data.uniform_(low, high, generator=generator)
        elif norm == "bias":
            parameter.data.normal_(0.0, 0.2, generator=generator)
        elif parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()):
            alike = float(parameter.detach().reshape(-1)[0])
            parameter.data.normal_(0.0, 0.05, generator=generator)
            parameter.data += alike if alike > 0.1 else 0.2 if alike else 0.0


def settle(module: nn.Module, x: torch.Tensor) -> None:
    """Let batch norms take the statistics of ``x``, then set ``module`` to inference."""
    for one in module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            one.reset_running_stats()
            one.momentum = None
    module.train()
    for one in module.modules():
        if isinstance(one, nn.Dropout):
            one.eval()
    with torch.no_grad():
        module(x)
    module.eval()


def pictures(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Smooth random inputs: noise of three scales, most of it coarse, as in photographs."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(count, *shape)
    mode = "linear" if len(shape) == 2 else "bilinear"
    for scale in (1, 4, 16):
        size = [max(2, n // scale) for n in shape[1:]]
        noise = torch.randn(count, shape[0], *size, generator=generator)
        total += nn.functional.interpolate(noise, shape[1:], mode=mode, align_corners=False)
    return total * 0.6


# --- networks of torchvision and timm ---------------------------------------------------------------------------------


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        with_classes = {"num_classes": CLASSES} | options
        made: nn.Module = timm.create_model(name, pretrained=False, exportable=True, **with_classes)
        return made

    return make


def vision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        made: nn.Module = torchvision.models.get_model(name, weights=None, **({"num_classes": CLASSES} | options))
        return made

    return make


class Answer(nn.Module):  # type: ignore[misc]
    """One output of a network that has several: the entry ``key`` of its dictionary."""

    def __init__(self, inner: nn.Module, key: str) -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)[self.key]
        return found


def segmenter(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
        return Answer(whole, "out")

    return make


def vgg() -> nn.Module:
    """VGG-11 with small fully connected layers: the original ones have 120 million weights."""
    import torchvision

    made: nn.Module = torchvision.models.vgg11_bn(weights=None, num_classes=CLASSES)
    made.avgpool = nn.Identity()
    made.classifier = nn.Sequential(nn.Linear(512 * 9, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    return made


def ssdlite() -> nn.Module:
    """The backbone of SSDlite: the finest of its planes."""
    import torchvision

    whole = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return Detector(whole.backbone, whole.head)


class Detector(nn.Module):  # type: ignore[misc]
    """Backbone and heads of SSD without anchors: scores of all classes at all places, [N, places, classes]."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(list(self.backbone(x).values()))["cls_logits"]
        return found


def tiny_vit() -> nn.Module:
    """Torchvision's ViT with four layers."""
    import torchvision

    made: nn.Module = torchvision.models.VisionTransformer(
        image_size=96, patch_size=16, num_layers=4, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=CLASSES
    )
    return made


# --- networks that have no package ------------------------------------------------------------------------------------


class Unit(nn.Module):  # type: ignore[misc]
    """Convolution, batch norm and SiLU."""

    def __init__(self, ins: int, outs: int, kernel: int = 1, stride: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
        self.norm, self.act = nn.BatchNorm2d(outs), act or nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.act(self.norm(self.conv(x)))
        return found


class C2f(nn.Module):  # type: ignore[misc]
    """The block of YOLOv8: a split of channels, bottlenecks in a row, all of them joined."""

    def __init__(self, ins: int, outs: int, count: int, shortcut: bool) -> None:
        super().__init__()
        half = outs // 2
        self.enter, self.leave = Unit(ins, outs), Unit((2 + count) * half, outs)
        self.blocks = nn.ModuleList(nn.Sequential(Unit(half, half, 3), Unit(half, half, 3)) for _ in range(count))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            made = block(parts[-1])
            parts.append(parts[-1] + made if self.shortcut else made)
        found: torch.Tensor = self.leave(torch.cat(parts, 1))
        return found


class Pyramid(nn.Module):  # type: ignore[misc]
    """Pooling at growing sizes, joined (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = Unit(channels, channels // 2), Unit(channels * 2, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        found: torch.Tensor = self.leave(torch.cat(parts, 1))
        return found


class Yolo(nn.Module):  # type: ignore[misc]
    """A detector as YOLOv8n: C2f blocks, a neck down and up (PAN), boxes and scores at three sizes: [N, 4 + 20, places].

    Boxes are decoded from a distribution over 16 distances, as in the original.
    """

    def __init__(self, classes: int = 20, width: int = 16) -> None:
        super().__init__()
        c = [width * 2**i for i in range(5)]
        self.stem = nn.Sequential(Unit(3, c[0], 3, 2), Unit(c[0], c[1], 3, 2), C2f(c[1], c[1], 1, True))
        self.third = nn.Sequential(Unit(c[1], c[2], 3, 2), C2f(c[2], c[2], 2, True))
        self.fourth = nn.Sequential(Unit(c[2], c[3], 3, 2), C2f(c[3], c[3], 2, True))
        self.fifth = nn.Sequential(Unit(c[3], c[4], 3, 2), C2f(c[4], c[4], 1, True), Pyramid(c[4]))
        self.up = nn.Upsample(scale_factor=2.0)
        self.down4, self.down3 = C2f(c[4] + c[3], c[3], 1, False), C2f(c[3] + c[2], c[2], 1, False)
        self.step3, self.up4 = Unit(c[2], c[2], 3, 2), C2f(c[3] + c[2], c[3], 1, False)
        self.step4, self.up5 = Unit(c[3], c[3], 3, 2), C2f(c[4] + c[3], c[4], 1, False)
        self.classes = classes
        sizes = (c[2], c[3], c[4])
        self.boxes = nn.ModuleList(nn.Sequential(Unit(n, 64, 3), Unit(64, 64, 3), nn.Conv2d(64, 64, 1)) for n in sizes)
        self.scores = nn.ModuleList(
            nn.Sequential(Unit(n, c[2], 3), Unit(c[2], c[2], 3), nn.Conv2d(c[2], classes, 1)) for n in sizes
        )
        self.register_buffer("distances", torch.arange(16.0).reshape(1, 16, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.third(self.stem(x))
        four = self.fourth(three)
        five = self.fifth(four)
        middle = self.down4(torch.cat([self.up(five), four], 1))
        first = self.down3(torch.cat([self.up(middle), three], 1))
        second = self.up4(torch.cat([self.step3(first), middle], 1))
        third = self.up5(torch.cat([self.step4(second), five], 1))
        planes = (first, second, third)
        joined = [
            torch.cat([b(p), s(p)], 1).flatten(2) for b, s, p in zip(self.boxes, self.scores, planes, strict=True)
        ]
        boxes, scores = torch.cat(joined, 2).split((64, self.classes), 1)
        spread = boxes.reshape(boxes.shape[0], 4, 16, -1).transpose(2, 1).softmax(1)
        return torch.cat([(spread * self.distances).sum(1), scores.sigmoid()], 1)


class UNet(nn.Module):  # type: ignore[misc]
    """Down by pooling, up by transposed convolutions, with skip connections: a mask [N, 2, H, W]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        c = [width * 2**i for i in range(4)]
        self.downs = nn.ModuleList(self.pair(a, b) for a, b in zip([3, *c[:-1]], c, strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(c))
        self.joins = nn.ModuleList(self.pair(2 * a, a) for a in c[:-1])
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(width, 2, 1)

    @staticmethod
    def pair(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(Unit(ins, outs, 3, act=nn.ReLU()), Unit(outs, outs, 3, act=nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for down in self.downs[:-1]:
            x = down(x)
            kept.append(x)
            x = self.pool(x)
        x = self.downs[-1](x)
        for up, join in zip(reversed(self.ups), reversed(self.joins), strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        found: torch.Tensor = self.last(x)
        return found


class Decoder(nn.Module):  # type: ignore[misc]
    """An autoencoder of pictures as segmenters and depth networks have it: strides down, then transposed convolutions of
    4 x 4 and bilinear resizing up."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down = nn.Sequential(*(Unit(a, b, 3, 2, nn.LeakyReLU(0.1)) for a, b in ((3, width), (width, 2 * width))))
        self.deep = nn.Sequential(Unit(2 * width, 4 * width, 3, 2, nn.ELU()), Unit(4 * width, 4 * width, 3))
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(2 * width), nn.PReLU(2 * width)
        self.last = nn.Conv2d(2 * width, 1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.up(self.deep(self.down(x)))))
        wide = nn.functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        return nn.functional.interpolate(self.last(wide), size=x.shape[2:], mode="bilinear", align_corners=False)


class Crnn(nn.Module):  # type: ignore[misc]
    """Text recognition: a convolutional column for each place, its classes at each place: [N, T, classes]."""

    def __init__(self, classes: int = 40) -> None:
        super().__init__()
        self.planes = nn.Sequential(
            Unit(1, 32, 3, act=nn.ReLU()), nn.MaxPool2d(2), Unit(32, 64, 3, act=nn.ReLU()), nn.MaxPool2d(2),
            Unit(64, 128, 3, act=nn.ReLU()), nn.MaxPool2d((2, 1)), Unit(128, 128, 3, act=nn.ReLU()), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.mix = nn.Conv1d(128, 128, 3, padding=1)
        self.last = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.mix(self.planes(x).squeeze(2))).transpose(1, 2)
        found: torch.Tensor = self.last(rows)
        return found


class CrnnLstm(Crnn):
    """The same with a recurrent layer over the places."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(128, 64, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, _ = self.recurrent(self.planes(x).squeeze(2).transpose(1, 2))
        found: torch.Tensor = self.last(rows)
        return found


class Audio(nn.Module):  # type: ignore[misc]
    """Sound as it comes: 1-D convolutions with dilated residual blocks, 1-D pooling, classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, width, 80, 4, 38), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(4))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 3, padding=d, dilation=d, groups=4), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Conv1d(width, width, 1), nn.BatchNorm1d(width),
            )
            for d in (1, 2, 4, 8)
        )  # fmt: skip
        self.pool, self.last = nn.AvgPool1d(2), nn.Linear(width, 35)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = self.pool(torch.relu(x + block(x)))
        found: torch.Tensor = self.last(x.mean(2))
        return found


class AttentionGates(nn.Module):  # type: ignore[misc]
    """Convolutional block attention (CBAM): gates of channels and of places, the latter from mean and maximum of all
    channels; group norms; a difference of two branches."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = Unit(3, width, 3, 2, nn.Hardswish())
        self.squeeze = nn.Sequential(nn.Conv2d(width, width // 4, 1), nn.ReLU(), nn.Conv2d(width // 4, width, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3)
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU())
        self.other = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.InstanceNorm2d(width, affine=True), nn.Tanh()
        )
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        pooled = self.squeeze(x.mean((2, 3), keepdim=True)) + self.squeeze(x.amax((2, 3), keepdim=True))
        x = x * pooled.sigmoid()
        x = x * self.place(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        x = self.branch(x) - self.other(x)
        found: torch.Tensor = self.last(x.mean((2, 3)))
        return found


#: The networks and the shapes of their inputs.
NETWORKS: Final[dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    "mobilenetv2": (timm_model("mobilenetv2_100"), (1, 3, 96, 96)),
    "mobilenetv3_large": (timm_model("mobilenetv3_large_100"), (1, 3, 96, 96)),
    "mobilenetv3_small": (vision_model("mobilenet_v3_small"), (1, 3, 96, 96)),
    "mobilenetv4_small": (timm_model("mobilenetv4_conv_small"), (1, 3, 96, 96)),
    "efficientnet_lite0": (timm_model("efficientnet_lite0"), (1, 3, 96, 96)),
    "efficientnet_b0": (timm_model("efficientnet_b0"), (1, 3, 96, 96)),
    "mnasnet": (vision_model("mnasnet1_0"), (1, 3, 96, 96)),
    "shufflenetv2": (vision_model("shufflenet_v2_x1_0"), (1, 3, 96, 96)),
    "ghostnet": (timm_model("ghostnet_100"), (1, 3, 96, 96)),
    "squeezenet": (vision_model("squeezenet1_1"), (1, 3, 96, 96)),
    "resnet18": (vision_model("resnet18"), (1, 3, 96, 96)),
    "resnet50": (timm_model("resnet50"), (1, 3, 96, 96)),
    "resnext50": (vision_model("resnext50_32x4d"), (1, 3, 96, 96)),
    "wide_resnet50": (vision_model("wide_resnet50_2"), (1, 3, 64, 64)),
    "densenet121": (vision_model("densenet121"), (1, 3, 96, 96)),
    "googlenet": (vision_model("googlenet", aux_logits=False, init_weights=False), (1, 3, 96, 96)),
    "inception_v3": (timm_model("inception_v3"), (1, 3, 128, 128)),
    "regnety_008": (timm_model("regnety_008"), (1, 3, 96, 96)),
    "regnetx_008": (timm_model("regnetx_008"), (1, 3, 96, 96)),
    "vgg11": (vgg, (1, 3, 96, 96)),
    "convnext_tiny": (timm_model("convnext_tiny"), (1, 3, 96, 96)),
    "convnextv2_atto": (timm_model("convnextv2_atto"), (1, 3, 96, 96)),
    "convmixer": (timm_model("convmixer_768_32"), (1, 3, 56, 56)),
    "repvgg_a0": (timm_model("repvgg_a0"), (1, 3, 96, 96)),
    "mobileone_s0": (timm_model("mobileone_s0"), (1, 3, 96, 96)),
    "hardcorenas_a": (timm_model("hardcorenas_a"), (1, 3, 96, 96)),
    "fbnetc": (timm_model("fbnetc_100"), (1, 3, 96, 96)),
    "levit_128s": (timm_model("levit_128s"), (1, 3, 224, 224)),
    "mobilevit_xs": (timm_model("mobilevit_xs"), (1, 3, 128, 128)),
    "vit_tiny": (timm_model("vit_tiny_patch16_224", img_size=96), (1, 3, 96, 96)),
    "deit_tiny": (timm_model("deit_tiny_distilled_patch16_224", img_size=96), (1, 3, 96, 96)),
    "vit_torchvision": (tiny_vit, (1, 3, 96, 96)),
    "dinov2_small": (timm_model("vit_small_patch14_dinov2", img_size=98), (1, 3, 98, 98)),
    "swin_tiny": (timm_model("swin_tiny_patch4_window7_224"), (1, 3, 224, 224)),
    "pvt_v2_b0": (timm_model("pvt_v2_b0"), (1, 3, 96, 96)),
    "poolformer_s12": (timm_model("poolformer_s12"), (1, 3, 96, 96)),
    "mixer_s32": (timm_model("mixer_s32_224"), (1, 3, 224, 224)),
    "lraspp": (segmenter("lraspp_mobilenet_v3_large"), (1, 3, 128, 128)),
    "deeplabv3": (segmenter("deeplabv3_mobilenet_v3_large"), (1, 3, 128, 128)),
    "fcn_resnet50": (segmenter("fcn_resnet50"), (1, 3, 64, 64)),
    "ssdlite": (ssdlite, (1, 3, 320, 320)),
    "yolov8_like": (Yolo, (1, 3, 160, 160)),
    "unet": (UNet, (1, 3, 96, 96)),
    "decoder": (Decoder, (1, 3, 64, 64)),
    "crnn": (Crnn, (1, 1, 32, 128)),
    "crnn_lstm": (CrnnLstm, (1, 1, 32, 128)),
    "audio_1d": (Audio, (1, 1, 4000)),
    "attention_gates": (AttentionGates, (1, 3, 64, 64)),
}


if __name__ == "__main__":
    main()
