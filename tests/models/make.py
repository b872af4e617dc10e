"""Make `models.zip`: the small networks of `tests.models.networks` as torch exports them. Needs torch.

    python -m tests.models.make

A model's name tells the network, and for a traced one the operators' version, how attention is written and whether axes are open:
``vit-fused-mean-conv``, ``traced-distilbert-14-eager-dynamic``.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.external_data_helper import set_external_data
from torch import nn

from calibration.importing.reading import export
from tests.models import ARCHIVE, WEIGHTS, encoders, traced_form
from tests.models.networks import Bert, Classifier, DistilBert, ViT
from tests.small_transformers import SIZE, TOKENS, WIDTH

#: Tensors of at least as many bytes are stored once for all models.
SHARED_BYTES = 64
VITS = list(itertools.product(("fused", "chunk", "separate"), ("mean", "token", "two"), ("conv", "linear")))
TRACED_VITS = [
    ("separate", "token", "conv"),
    ("separate", "two", "conv"),
    ("fused", "mean", "conv"),
    ("chunk", "token", "linear"),
]
#: The operators' version, and whether attention is in single operators.
TRACED_FORMS = [(11, True), (14, True), (14, False), (17, True), (17, False)]
BERT_OPSETS = [11, 13, 14, 17]


def models() -> dict[str, Callable[[], onnx.ModelProto]]:
    """Name to what exports the model."""
    made: dict[str, Callable[[], onnx.ModelProto]] = {}
    for parts in VITS:
        made[f"vit-{'-'.join(parts)}"] = lambda parts=parts: export(drawn(ViT(*parts)), [1, 3, SIZE, SIZE])
    for (opset, eager), dynamic in itertools.product(TRACED_FORMS, (False, True)):
        form = traced_form(opset, eager, dynamic)
        for parts in TRACED_VITS:
            module = lambda parts=parts, eager=eager: ViT(*parts, eager)  # noqa: E731
            made[f"traced-vit-{'-'.join(parts)}-{form}"] = traced(module, pictures(), opset, dynamic)
        module = lambda eager=eager: DistilBert(eager)  # noqa: E731
        made[f"traced-distilbert-{form}"] = traced(module, texts("input_ids", "attention_mask"), opset, dynamic)
    inputs = texts("input_ids", "attention_mask", "token_type_ids")
    for opset, dynamic in itertools.product(BERT_OPSETS, (False, True)):
        made[f"traced-bert-{opset}-{'dynamic' if dynamic else 'fixed'}"] = traced(Bert, inputs, opset, dynamic)
    made["topics"] = traced(Classifier, inputs, 14, True)
    return made | encoder_models()


def encoder_models() -> dict[str, Callable[[], onnx.ModelProto]]:
    """The networks of `tests.models.encoders`: by tracing at two operator sets, and by torch's newer exporter."""
    both = texts("input_ids", "attention_mask")
    tokens = {"x": torch.ones((1, TOKENS, WIDTH))}
    networks: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor]]] = {
        **{
            f"stack-{kind}-{'pre' if first else 'post'}": (lambda kind=kind, first=first: encoders.Stack(kind, first), tokens)
            for kind, first in itertools.product(("relu", "gelu"), (False, True))
        },
        "torchvision": (encoders.Torchvision, pictures()),
        "dino": (lambda: encoders.Dino(False, 0), pictures()),
        "dino-gated": (lambda: encoders.Dino(True, 2), pictures()),
        **{form: (lambda form=form: encoders.Rotary(form), both) for form in ("nomic", "modern", "llama")},
        "relative": (lambda: encoders.Relative(False), both),
        "relative-gated": (lambda: encoders.Relative(True), both),
        **{f"swin-{form}": (lambda form=form: encoders.Swin(form), pictures()) for form in ("timm", "torchvision")},
        "mobilevit": (encoders.MobileVit, pictures()),
        "recognizer": (encoders.Recognizer, pictures()),
    }  # fmt: skip
    made: dict[str, Callable[[], onnx.ModelProto]] = {}
    for name, (make, inputs) in networks.items():
        made[f"{name}-14"] = traced(make, inputs, 14, False)
        if name != "recognizer":  # the exporter does not pool over an open axis
            made[f"{name}-17"] = traced(make, inputs, 17, True)
        if not name.startswith(("stack-relu", "swin-timm")):  # the exporter fails on a mask of windows
            made[f"{name}-new"] = exported_anew(make, inputs)
    return made


def exported_anew(make: Callable[[], nn.Module], inputs: dict[str, torch.Tensor]) -> Callable[[], onnx.ModelProto]:
    """What torch's newer exporter makes of the module."""

    def program() -> onnx.ModelProto:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                drawn(make()), tuple(inputs.values()), dynamo=True, input_names=list(inputs), verbose=False
            )
        found: onnx.ModelProto = made.model_proto
        return found

    return program


def pictures() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.ones((1, 3, SIZE, SIZE))}


def texts(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((1, TOKENS), int(name != "token_type_ids"), dtype=torch.int64) for name in names}


def drawn(module: nn.Module) -> nn.Module:
    """``module`` with random weights that depend on a parameter's name and shape only: equal parts of networks share them."""
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        random = np.random.default_rng(zlib.crc32(f"{name} {shape}".encode()))
        if "norm" in name:
            values = random.uniform(*((0.5, 1.5) if name.endswith("weight") else (-0.4, 0.4)), shape)
        elif name.split(".")[-2:-1] in (["word"], ["kind"], ["place"]) or name.startswith(("tokens", "position")):
            values = random.normal(size=shape)
        else:
            bound = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2
            values = random.uniform(-bound, bound, shape)
        parameter.data = torch.tensor(values, dtype=torch.float32)
    return module.eval()


def traced(
    make: Callable[[], nn.Module], inputs: dict[str, torch.Tensor], opset: int, dynamic: bool
) -> Callable[[], onnx.ModelProto]:
    """What exports the module by tracing, as most files that are about were; ``dynamic``: with open axes of batch and tokens."""
    axes = {name: {0: "batch", 1: "sequence"} if x.ndim == 2 else {0: "batch"} for name, x in inputs.items()}

    def exported() -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            path = Path(folder) / "model.onnx"
            torch.onnx.export(
                drawn(make()), tuple(inputs.values()), path, dynamo=False, opset_version=opset,
                input_names=list(inputs), dynamic_axes=axes if dynamic else None,
            )  # fmt: skip
            return onnx.load(path)

    return exported


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without the exporter's notes: its version, and for each node the lines of Python that it comes from."""
    model.producer_version = ""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del graph.value_info[:]
    return model


def exported() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each model's name, and the model with its weights in it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for name, make in models().items():
        yield name, bare(make())


def main() -> None:
    """Write the archive: the same bytes for the same models."""
    weights, places, files = bytearray(), dict[bytes, int](), dict[str, bytes]()
    for name, model in exported():
        for tensor in model.graph.initializer:
            share(tensor, weights, places)
        files[f"{name}.onnx"] = model.SerializeToString(deterministic=True)
    files[WEIGHTS] = bytes(weights)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    print(f"{ARCHIVE}: {len(files) - 1} models, {ARCHIVE.stat().st_size} bytes")


def share(tensor: TensorProto, weights: bytearray, places: dict[bytes, int]) -> None:
    """Move what ``tensor`` holds to ``weights``, or to where the same bytes already are; ``places``: bytes to their offset."""
    data: Any = onnx.numpy_helper.to_array(tensor).tobytes()
    if len(data) < SHARED_BYTES:
        return
    if data not in places:
        places[data] = len(weights)
        weights.extend(data)
    tensor.ClearField("float_data")
    tensor.raw_data = data
    set_external_data(tensor, WEIGHTS, offset=places[data], length=len(data))
    tensor.ClearField("raw_data")


if __name__ == "__main__":
    main()
