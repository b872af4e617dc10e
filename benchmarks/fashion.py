"""Fashion-MNIST, and three networks trained on it: an MLP, a CNN and a small vision transformer.

    python -m benchmarks.fashion [--fashion FOLDER] [--json OUT] [--quick]

The script prints each network's size and its accuracy on the 10,000 test images. The last 10,000 of the 60,000 training
images calibrate and are never used for training. The test images are for evaluation only. The first run trains the
networks, which takes a few minutes, and keeps them in the user's cache folder. FOLDER holds the four files of the data
set, as Debian's package dataset-fashion-mnist installs them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import inspect
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import cache
from benchmarks.report import parser, report
from calibration.importing import importer
from calibration.samples.samples import Samples
from splitedge import errors
from splitedge.protocol.messages import Preprocess

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
#: Training images reserved for calibration.
HELD_OUT: Final = 10_000
SIDE, CLASSES = 28, 10
PREPROCESS: Final = Preprocess("tensor", [SIDE, SIDE, 1])
BATCH: Final = 128
THREADS: Final = 2
#: Parameters of the vision transformer.
PATCH, WIDTH, DEPTH, HEADS = 7, 96, 4, 4


@dataclass(frozen=True)
class Images:
    """``pixels`` [n, 28, 28] and ``classes`` [n]."""

    pixels: U8
    classes: I64

    def samples(self, count: int | None = None) -> Samples:
        """Return the first ``count`` images as network inputs, float32 [28, 28, 1] in 0..1, with their classes."""
        return Samples(PREPROCESS, list(self.values()[:count]), self.classes[:count])

    def values(self) -> F32:
        """Return float32 [n, 28, 28, 1] in 0..1."""
        return (self.pixels.astype(np.float32) / np.float32(255))[..., None]

    def batches(self) -> F32:
        """Return float32 [n, 1, 28, 28] in 0..1, the input of the ONNX models."""
        return self.values().transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Data:
    """Disjoint sets: 50,000 images for training, 10,000 for calibration and 10,000 for evaluation."""

    train: Images
    calibration: Images
    test: Images


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser((__doc__ or "").splitlines()[0])
    add_option(options)
    chosen = options.parse_args(arguments)
    data = load(chosen.fashion)
    rows, summary = [], {}
    for name in ("mlp",) if chosen.quick else NETWORKS:
        model = network(name, data)
        top1 = accuracy(model, data.test)
        weights = sum(math.prod(t.dims) for t in model.graph.initializer if len(t.dims) > 1)
        rows.append({"network": name, "weights": weights, "top-1 %": top1})
        summary[f"{name}.float_top1"] = top1
    notes = [f"top-1 of {len(data.test.classes)} test images"]
    report("Float networks on Fashion-MNIST", rows, summary, chosen.json, notes)


def add_option(options: argparse.ArgumentParser) -> None:
    """Add ``--fashion FOLDER`` to ``options``."""
    options.add_argument("--fashion", metavar="FOLDER", type=Path, default=FOLDER, help="folder of the data set")


def load(folder: Path = FOLDER) -> Data:
    """Load the data set in ``folder``. Raises `errors.UsageError` if it is missing, `errors.InputError` if damaged."""
    train = _images(folder, "train")
    first = len(train.classes) - HELD_OUT
    return Data(
        Images(train.pixels[:first], train.classes[:first]),
        Images(train.pixels[first:], train.classes[first:]),
        _images(folder, "t10k"),
    )


def network(name: str, data: Data) -> onnx.ModelProto:
    """Return the trained network ``name``, a key of `NETWORKS`: [batch, 1, 28, 28] to 10 logits.

    The network comes from the cache, or is trained with fixed seeds on ``data.train``. Raises `errors.ModelError` if
    training needs PyTorch and it is missing.
    """
    recipe, digest = NETWORKS[name], hashlib.sha256(data.train.pixels.tobytes() + data.train.classes.tobytes())
    digest.update(repr((recipe.epochs, recipe.rate)).encode())
    for function in (recipe.make, _train, _fit, _onnx):
        digest.update(inspect.getsource(function).encode())
    made = cache.kept(
        f"fashion-{name}", lambda: {"model.onnx": _train(name, data.train).SerializeToString()}, digest.hexdigest()[:16]
    )
    return onnx.load_from_string(made["model.onnx"])


def accuracy(model: onnx.ModelProto, images: Images) -> float:
    """Return the percentage of ``images`` that the float ``model`` classifies correctly."""
    return 100.0 * float((logits(model, images).argmax(axis=1) == images.classes).mean())


def logits(model: onnx.ModelProto, images: Images) -> F32:
    """Return the logits [n, 10] of the float ``model``."""
    run, x = importer.session(model), images.batches()
    name = run.get_inputs()[0].name
    return np.concatenate([run.run(None, {name: x[i : i + 500]})[0] for i in range(0, len(x), 500)])


# --- the files --------------------------------------------------------------------------------------------------------


def _images(folder: Path, part: str) -> Images:
    pixels = _read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, SIDE, SIDE)
    classes = _read(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64)
    if len(pixels) != len(classes) or len(pixels) < HELD_OUT or classes.max(initial=0) >= CLASSES:
        raise errors.InputError(
            f"the files {part}-* in {folder} do not match; install dataset-fashion-mnist again",
            reason="files-differ",
        )
    return Images(pixels, classes)


def _read(path: Path, heading: int) -> U8:
    """Return the data of a gzipped IDX file, without the first ``heading`` bytes."""
    try:
        with gzip.open(path) as file:
            data = np.frombuffer(file.read(), np.uint8)
    except FileNotFoundError as error:
        raise errors.UsageError(
            f"no {path.name} in {path.parent}; install Debian's dataset-fashion-mnist or pass --fashion FOLDER",
            reason="no-data",
        ) from error
    except (OSError, EOFError) as error:
        raise errors.InputError(f"{path} is damaged; install dataset-fashion-mnist again", reason="damaged") from error
    if len(data) < heading or (len(data) - heading) % (SIDE * SIDE if heading == 16 else 1):
        raise errors.InputError(f"{path} is damaged; install dataset-fashion-mnist again", reason="damaged")
    return data[heading:]


# --- the networks -----------------------------------------------------------------------------------------------------


def mlp() -> Any:
    """784-512-256-128-10 with ReLU."""
    from torch import nn

    sizes = (SIDE * SIDE, 512, 256, 128)
    layers: list[Any] = [nn.Flatten()]
    for ins, outs in itertools.pairwise(sizes):
        layers += [nn.Linear(ins, outs), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))


def cnn() -> Any:
    """Five 3 x 3 convolutions, each with batch norm and ReLU, pooled after the first, the third and the last, and two products."""
    from torch import nn

    layers: list[Any] = []
    for ins, outs, pool in ((1, 24, 2), (24, 32, 0), (32, 32, 2), (32, 64, 0), (64, 64, 2)):
        layers += [nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
        layers += [nn.MaxPool2d(pool)] if pool else []
    flat = [nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers, *flat)


def vit() -> Any:
    """A plain vision transformer: 16 patches of 7 x 7, width 96, 4 blocks with the norm before each part, a mean over the tokens."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.query, self.key, self.value, self.joined = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            y = self.norm1(x)
            parts = (part(y) for part in (self.query, self.key, self.value))
            heads = [p.view(*p.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts]
            mixed = nn.functional.scaled_dot_product_attention(*heads)
            x = x + self.joined(mixed.transpose(1, 2).reshape(x.shape))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Vit(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
            self.position = nn.Parameter(0.02 * torch.randn(1, (SIDE // PATCH) ** 2, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
            self.norm, self.classes = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Any) -> Any:
            tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
            return self.classes(self.norm(self.blocks(tokens)).mean(dim=1))

    return Vit()


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained: AdamW, one cycle of the learning rate, images flipped at random."""

    make: Callable[[], Any]
    epochs: int
    rate: float


NETWORKS: Final = {"mlp": Recipe(mlp, 12, 2e-3), "cnn": Recipe(cnn, 8, 4e-3), "vit": Recipe(vit, 12, 2e-3)}


def _train(name: str, images: Images) -> onnx.ModelProto:
    try:
        import torch
    except ImportError as error:
        raise errors.ModelError("the networks are trained with PyTorch; install splitedge[torch]") from error
    recipe, threads = NETWORKS[name], torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = recipe.make()
            _fit(torch, module, recipe, torch.from_numpy(images.batches()), torch.from_numpy(images.classes))
            return _onnx(torch, module)
    finally:
        torch.set_num_threads(threads)


def _fit(torch: Any, module: Any, recipe: Recipe, x: Any, y: Any) -> None:
    steps = recipe.epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), recipe.rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    module.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for chosen in order.split(BATCH):
            some = x[chosen]
            some = torch.where(torch.rand(len(some), 1, 1, 1) < 0.5, some.flip(3), some)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(some), y[chosen]).backward()
            optimizer.step()
            schedule.step()


def _onnx(torch: Any, module: Any) -> onnx.ModelProto:
    program = torch.export.export(module.eval(), (torch.zeros(1, 1, SIDE, SIDE),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path)
        return importer.load(str(path))


if __name__ == "__main__":
    main()
