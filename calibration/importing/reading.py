"""Reads model files, exported programs and modules as ONNX models."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import onnx.version_converter

from calibration.importing import tflite
from calibration.importing.graph import in_order, infer_shapes, subgraphs
from calibration.importing.sessions import brief, unoptimized
from splitedge import errors, limits

#: Newest IR version that every supported ONNX Runtime reads.
_NEWEST_IR: Final = 10
#: Newest operator set that every supported ONNX Runtime knows.
_OLDER_OPSET: Final = 21
#: First bytes of a Git LFS pointer, which replaces a large file that was not downloaded.
_POINTER: Final = b"version https://git-lfs"


def read(source: str, input_shape: Sequence[int] | None) -> onnx.ModelProto:
    """The model that ``source`` names (see `calibration.importing.importer.load`), with its weights.

    Raises `errors.ModelError`.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        return _read_onnx(_existing(path))
    if path.suffix == ".tflite":
        return tflite.read(_existing(path))
    if path.suffix == ".pt2":
        return export(_read_exported(_existing(path)), None)
    if ":" in source:
        if input_shape is None:
            raise errors.ModelError(
                f"{source} has no input shape; give one such as 1,3,224,224", reason="no-input-shape"
            )
        return export(_call(source), input_shape)
    raise errors.ModelError(
        f"{source} is not a model: give an .onnx, .tflite or .pt2 file, or package.module:callable",
        reason="not-a-model",
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise errors.ModelError(f"the model file {path} does not exist; check the path", reason="no-file")
    if path.stat().st_size > limits.MAX_MODEL_BYTES:
        raise _too_large(path)
    _refuse_pointer(path)
    return path


def _too_large(path: Path) -> errors.ModelError:
    return errors.ModelError(
        f"{path} is larger than the maximum of {limits.MAX_MODEL_BYTES} bytes; use a smaller model", reason="too-large"
    )


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise errors.ModelError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull`",
                reason="lfs-pointer",
                file=path.name,
            )


# --- ONNX files -----------------------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
        size = path.stat().st_size + sum(_size_beside(path, place) for place in _places(model.graph))
        if size > limits.MAX_MODEL_BYTES:
            raise _too_large(path)
        onnx.load_external_data_for_model(model, str(path.parent))
        _one_domain(model)
        _constants_are_no_inputs(model.graph)
        # before IR 4, constants must also be inputs; newer ones only add types and notes
        model.ir_version = min(max(model.ir_version, 4), _NEWEST_IR)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for part in subgraphs(model.graph):
            in_order(part)
        if not all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
            _shape_outputs(model)
        _check(model)
        model = _known_opset(model)
    except errors.ModelError:
        raise
    except Exception as error:  # protobuf, checker and file errors have no common base
        raise errors.ModelError(
            f"{path} is not a readable ONNX model ({brief(error)}); export it again", reason="not-onnx"
        ) from error
    return model


def _check(model: onnx.ModelProto) -> None:
    """Raise an error for a model that onnx refuses and ONNX Runtime too: it knows forms that onnx does not."""
    try:
        onnx.checker.check_model(model)
    except Exception:
        try:
            unoptimized(model)
        except errors.ModelError:
            pass
        else:
            return
        raise


def _known_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, or its form in an older operator set if ONNX Runtime does not know its own yet."""
    if max((o.version for o in model.opset_import if not o.domain), default=0) <= _OLDER_OPSET:
        return model
    try:
        unoptimized(model)
    except errors.ModelError:
        with contextlib.suppress(Exception):  # the converter's errors have no common base
            return onnx.version_converter.convert_version(model, _OLDER_OPSET)
    return model


def _places(graph: onnx.GraphProto) -> set[str]:
    """External files with weights, as the model names them."""
    tensors = [t for part in subgraphs(graph) for t in (*part.initializer, *_attributes(part))]
    stored = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    return {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}


def _attributes(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    return (a.t for node in graph.node for a in node.attribute if a.HasField("t"))


def _size_beside(model: Path, place: str) -> int:
    """Size in bytes of the weights file ``place``. Raises `errors.ModelError` for a file that onnx does not read."""
    path = model.parent / place
    if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
        raise errors.ModelError(
            f"the weights of {model} are in {place}, which is a link; onnx does not read weights through links, "
            "so copy both files into one folder",
            reason="linked-weights",
        )
    if not path.is_file():
        raise errors.ModelError(
            f"the weights of {model} are in {place}, which does not exist beside it; copy both files into one folder",
            reason="no-weights",
        )
    _refuse_pointer(path)
    return path.stat().st_size


def _one_domain(model: onnx.ModelProto) -> None:
    """Rename the domain "ai.onnx" to "", its other name."""
    for owner in (model, *model.functions):
        versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in owner.opset_import}
        del owner.opset_import[:]
        owner.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    nodes = [node for part in subgraphs(model.graph) for node in part.node]
    for node in (*nodes, *(node for function in model.functions for node in function.node)):
        if node.domain == "ai.onnx":
            node.domain = ""


def _constants_are_no_inputs(graph: onnx.GraphProto) -> None:
    """Remove constants from the inputs.

    Files of IR 3, and some later ones, list their constants as inputs so that a caller can replace them.
    """
    constants = {t.name for t in graph.initializer}
    for entry in [i for i in graph.input if i.name in constants]:
        graph.input.remove(entry)


def _shape_outputs(model: onnx.ModelProto) -> None:
    """Add the output shapes that the checker requires and some tools omit."""
    for own, known in zip(model.graph.output, infer_shapes(model).graph.output, strict=True):
        own.CopyFrom(known)


# --- PyTorch --------------------------------------------------------------------------------------------------------


def _read_exported(path: Path) -> Any:
    torch = _torch()
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs the traceback of every error that it raises
    try:
        return torch.export.load(path)
    except Exception as error:  # zip, json and version errors
        reason = brief(error).partition(" Please check the warnings")[0]
        raise errors.ModelError(
            f"{path} is not a readable exported program ({reason}); save it with torch.export.save",
            reason="not-an-exported-program",
        ) from error


def _call(source: str) -> Any:
    torch = _torch()
    module_name, _, attribute = source.partition(":")
    sys.path.insert(0, "")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is reserved for our own results
            made = getattr(importlib.import_module(module_name), attribute)()
    except Exception as error:  # the user's own code runs here
        raise errors.ModelError(
            f"{source} cannot be called ({brief(error)}); check the module and the callable", reason="call-failed"
        ) from error
    finally:
        sys.path.remove("")
    if not isinstance(made, torch.nn.Module):
        raise errors.ModelError(
            f"{source} returned a {type(made).__name__}; it must return a torch.nn.Module", reason="not-a-module"
        )
    return made.eval()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise errors.ModelError(
            "a torch model needs PyTorch; install splitedge[torch] or give an .onnx file", reason="no-torch"
        ) from error
    return torch


def export(module: Any, shape: Sequence[int] | None) -> onnx.ModelProto:
    """Export a torch module, or an exported program (``shape`` None), to ONNX.

    A module with an embedding and an input of two axes takes token ids. Raises `errors.ModelError`.
    """
    torch = _torch()
    example = None if shape is None else (_example(module, shape),)
    # The exporter's deprecation warnings, and its warning that torchvision is missing, do not concern the user.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(module, example, dynamo=True, verbose=False)
        except Exception as error:  # torch's errors have no common base below Exception
            raise errors.ModelError(
                f"PyTorch cannot export the model to ONNX ({brief(error)}); export it yourself", reason="export-failed"
            ) from error
    return program.model_proto


def _example(module: Any, shape: Sequence[int]) -> Any:
    torch = _torch()
    ids = len(shape) == 2 and any(isinstance(part, torch.nn.Embedding) for part in module.modules())
    return torch.ones(*shape, dtype=torch.int64) if ids else torch.zeros(*shape)
