"""Checks the model, the samples and the metric before calibration starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from calibration.bundle.manifest import Metric
from calibration.importing import cuts
from calibration.importing.graph import Graph
from calibration.lowering import layers
from calibration.samples.samples import Samples
from splitedge import errors
from splitedge.protocol.messages import Detection, Output, Preprocess, Segmentation

#: A metric, or "auto": top1 with labels, agreement without; for outputs without classes that of the task, or cosine.
MetricChoice = Metric | Literal["auto"]


def cut_places(network: layers.Network) -> list[cuts.Place]:
    """All cuts of ``network``. Raises `errors.ModelError` if none is offered."""
    places = cuts.find(network)
    if not any(place.offered for place in places):
        reason = "; ".join(f"{node}: {why}" for node, why in network.unsupported[:1])
        raise errors.ModelError(
            f"no part of this model can run on a device, and a device cannot send token ids ({reason}); "
            "export a model that starts as docs/architecture/transformers.md describes",
            reason="nothing-for-a-device",
        )
    return places


def metric_for(wanted: MetricChoice, samples: Samples, output: Output) -> Metric:
    """The metric for ``samples`` and ``output``. Raises `errors.UsageError` if ``wanted`` does not fit them."""
    if isinstance(output.task, Detection | Segmentation):
        own: Metric = "boxes" if isinstance(output.task, Detection) else "pixels"
        if wanted not in ("auto", own):
            raise errors.UsageError(
                f"--metric {wanted} does not fit this task, whose metric is {own}; omit it", reason="metric-of-task"
            )
        return own
    if not output.has_classes and wanted in ("auto", "cosine"):
        return "cosine"
    if not output.has_classes:
        raise errors.UsageError(
            f"--metric {wanted} needs classes, and the output of shape {output.shape} has none; omit it, or choose "
            "cosine",
            reason="metric-without-classes",
        )
    if wanted == "auto":
        return "agreement" if samples.classes is None else "top1"
    if wanted == "top1" and samples.classes is None:
        raise errors.UsageError(
            "--metric top1 needs labels; give --labels or a labels.csv, or choose agreement or cosine",
            reason="no-labels",
        )
    return wanted


def check_shape(graph: Graph, preprocess: Preprocess) -> None:
    """Check that the preprocessing is consistent and produces the model's input. Raises `errors.InputError`."""
    wanted = graph.stored_shape(graph.input)
    if preprocess.shape != wanted:
        raise errors.InputError(
            f"preprocessing gives {preprocess.shape}, the model takes {wanted} (channels last); make them the same",
            reason="other-shape",
        )
    if preprocess.kind == "image" and (len(wanted) != 3 or wanted[2] not in (1, 3)):
        raise errors.InputError(
            f"the model's input {wanted} is not an image; calibrate it with .npy arrays", reason="no-image"
        )
    if preprocess.kind == "image":
        lengths = {len(preprocess.mean), len(preprocess.std)}
        if not lengths <= {1, wanted[2]} or not all(s > 0 for s in preprocess.std):
            raise errors.InputError(
                "mean and std need one number, or one for each channel, and std above 0; correct them",
                reason="mean-and-std",
            )


def check_ids(network: layers.Network, samples: Samples) -> None:
    """Check that all token ids are in the model's embedding table. Raises `errors.InputError`."""
    tables = [len(layer.weight) for layer in network.layers if isinstance(layer, layers.Embed)]
    for index in range(len(samples) if tables else 0):
        ids = samples[index]
        if not (ids.min() >= 0 and ids.max() < min(tables)):
            raise errors.InputError(
                f"sample {index} has token ids from {ids.min():.0f} to {ids.max():.0f}, the model has 0 to "
                f"{min(tables) - 1}; "
                "use the tokenizer of this model",
                reason="token-ids",
            )


def check_output(values: int) -> None:
    """Check that the output has at least two ``values``. Raises `errors.ModelError`."""
    if values < 2:
        raise errors.ModelError(
            "the model has one output value, and every --metric needs two or more; give a model with more outputs",
            reason="one-output",
        )


def check_classes(outputs: int, samples: Samples, names: Sequence[str]) -> None:
    """Check that labels and class names match the model's ``outputs``. Raises `errors.InputError`."""
    samples.check_classes(outputs)
    if names and len(names) != outputs:
        raise errors.InputError(
            f"there are {len(names)} class names and the model has {outputs} outputs; "
            "give one name for each output, including a background class",
            reason="class-names",
        )
