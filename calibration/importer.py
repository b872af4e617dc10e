"""A trained model, wherever it comes from, to a simplified ONNX model with standard operators only."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from calibration import masks, signature
from calibration.graph import Graph, inputs, with_batch
from calibration.layers.views import rows_ahead
from edge_agent import errors, limits

#: Symbolic name of the batch axis where a model works on batches.
BATCH = "batch"


def load(
    source: str, input_shape: Sequence[int] | None = None, output: str | None = None, padding: int = 0
) -> onnx.ModelProto:
    """The model in ``source``: an ``.onnx`` file, an exported program ``.pt2``, or ``package.module:callable`` that returns an nn.Module.

    ``input_shape`` is the whole ONNX shape with a batch of 1, such as [1, 3, 224, 224]: a module needs it, an ONNX file only where its
    dimensions are open. The result has one input, float32 or int64 token ids, and one output, constants and batch norms folded, standard operators, and a
    batch axis named `BATCH` where the model computes each sample of a batch alike, else 1. ``output`` names the one to keep of several (None: the first);
    what a model takes beside token ids is made of them, the id ``padding`` being no token (`signature.derive_inputs`). Raises `errors.ModelError`.
    """
    model = _read(source, input_shape)
    signature.keep_output(model, output)
    signature.main_input_first(model)
    _check(model, source)
    fixed = _fixed(model, input_shape)
    signature.derive_inputs(fixed, padding)
    return batched(simplify(fixed))


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` after ONNX Runtime's basic offline optimisation, every batch norm that is left as a Mul and an Add, masks of padding in one form.

    Where that makes operators that are not standard ONNX, the model stays as it is but for batch norms and masks.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        # MatMul with rows and a bias would become a Gemm between two reshapes that put rows where the batch was
        _session(model, options, ["MatMulAddFusion"])
        simple = onnx.load(options.optimized_model_filepath)
    if any(node.domain not in ("", "ai.onnx") for node in simple.graph.node):
        simple = model
    standard = [o for o in simple.opset_import if o.domain in {node.domain for node in simple.graph.node} | {""}]
    del simple.opset_import[:]
    simple.opset_import.extend(standard)
    _batch_norms_to_affine(simple)
    _averages_into_weights(simple)
    masks.unify(simple)
    return simple


def batched(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with an open batch axis if a batch of two then gives what two batches of one give; else with a batch of 1."""
    opened = with_batch(model, BATCH)
    graph = Graph.of(model)
    _class_tokens_to_sums(opened, graph)
    for node in opened.graph.node:
        shape = graph.shapes.get(node.output[0], ())
        if node.op_type == "Reshape" and shape[:1] == (1,):
            name = f"{node.output[0]}@shape"
            opened.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), name))
            node.input[1] = name
    return opened if _treats_samples_alike(opened) else with_batch(model, 1)


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Options of every ONNX Runtime session here: quiet; ``threads`` 0 means as many as there are cores that this process may use.

    ONNX Runtime itself would count, and bind its threads to, all cores of the machine.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0)
    # spinning threads take the cores from whatever else runs here between two calls
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def session(model: onnx.ModelProto, threads: int = 0) -> ort.InferenceSession:
    """An inference session of ``model`` on the CPU. Raises `errors.ModelError`."""
    return _session(model, session_options(threads))


def _session(model: onnx.ModelProto, options: ort.SessionOptions, without: Sequence[str] = ()) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except Exception as error:  # ONNX Runtime's errors have no common base below Exception; protobuf's limit is 2 GiB
        raise errors.ModelError(f"ONNX Runtime cannot run the model ({_brief(error)}); export it again") from error


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- reading --------------------------------------------------------------------------------------------------------


def _read(source: str, input_shape: Sequence[int] | None) -> onnx.ModelProto:
    path = Path(source)
    if path.suffix == ".onnx":
        return _read_onnx(_existing(path))
    if path.suffix == ".pt2":
        return export(_read_exported(_existing(path)), None)
    if ":" in source:
        if input_shape is None:
            raise errors.ModelError(f"{source} needs an input shape such as 1,3,224,224; give one")
        return export(_call(source), input_shape)
    raise errors.ModelError(f"{source} is not a model: give an .onnx file, a .pt2 file, or package.module:callable")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise errors.ModelError(f"there is no model file {path}; check the path")
    if path.stat().st_size > limits.MAX_MODEL_BYTES:
        raise _too_large(path)
    return path


def _too_large(path: Path) -> errors.ModelError:
    return errors.ModelError(f"{path} is larger than {limits.MAX_MODEL_BYTES} bytes; use a smaller model")


def _external_bytes(model: onnx.ModelProto, folder: Path) -> int:
    """Bytes of the weights that lie in files beside the model."""
    stored = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    places = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    return sum((folder / place).stat().st_size for place in places)


def _read_onnx(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
        size = path.stat().st_size + _external_bytes(model, path.parent)
        if size > limits.MAX_MODEL_BYTES:
            raise _too_large(path)
        onnx.load_external_data_for_model(model, str(path.parent))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except errors.ModelError:
        raise
    except Exception as error:  # protobuf, checker and file errors have no common base
        raise errors.ModelError(f"{path} is not a readable ONNX model ({_brief(error)}); export it again") from error
    return model


def _read_exported(path: Path) -> Any:
    torch = _torch()
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    try:
        return torch.export.load(path)
    except Exception as error:  # zip, json and version errors
        reason = _brief(error).partition(" Please check the warnings")[0]
        raise errors.ModelError(
            f"{path} is not a readable exported program ({reason}); save it with torch.export.save"
        ) from error


def _call(source: str) -> Any:
    torch = _torch()
    module_name, _, attribute = source.partition(":")
    sys.path.insert(0, "")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for our own answer
            made = getattr(importlib.import_module(module_name), attribute)()
    except Exception as error:  # the user's own code runs here
        raise errors.ModelError(
            f"{source} cannot be called ({_brief(error)}); check the module and the callable"
        ) from error
    finally:
        sys.path.remove("")
    if not isinstance(made, torch.nn.Module):
        raise errors.ModelError(f"{source} returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made.eval()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise errors.ModelError(
            "a torch model needs PyTorch; install splitedge[torch] or give an .onnx file"
        ) from error
    return torch


def export(module: Any, shape: Sequence[int] | None) -> onnx.ModelProto:
    """A torch module, or an exported program (``shape`` None), as ONNX. A module with an embedding and an input of two axes takes token ids.

    Raises `errors.ModelError`.
    """
    torch = _torch()
    example = None if shape is None else (_example(module, shape),)
    # The exporter's own deprecations, and its regret that torchvision is not there, are not the user's.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(module, example, dynamo=True, verbose=False)
        except Exception as error:  # torch raises what it likes
            raise errors.ModelError(
                f"PyTorch cannot export the model to ONNX ({_brief(error)}); export it yourself"
            ) from error
    return program.model_proto


def _example(module: Any, shape: Sequence[int]) -> Any:
    torch = _torch()
    ids = len(shape) == 2 and any(isinstance(part, torch.nn.Embedding) for part in module.modules())
    return torch.ones(*shape, dtype=torch.int64) if ids else torch.zeros(*shape)


# --- checks and rewrites --------------------------------------------------------------------------------------------


def _check(model: onnx.ModelProto, source: str) -> None:
    kind = inputs(model.graph)[0].type.tensor_type
    ids = kind.elem_type == onnx.TensorProto.INT64 and len(kind.shape.dim) == 2
    if not ids and (kind.elem_type != onnx.TensorProto.FLOAT or not 2 <= len(kind.shape.dim) <= 4):
        raise errors.ModelError(
            f"the input of {source} is neither a float32 tensor of 2 to 4 axes nor int64 token ids [batch, tokens]; export it with one"
        )


def _fixed(model: onnx.ModelProto, input_shape: Sequence[int] | None) -> onnx.ModelProto:
    """``model`` with a batch of 1 and every other dimension of its input known."""
    fixed = with_batch(model, 1)
    dims = inputs(fixed.graph)[0].type.tensor_type.shape.dim
    if input_shape is not None:
        if len(input_shape) != len(dims) or input_shape[0] != 1:
            raise errors.ModelError(f"the input shape must have {len(dims)} numbers, the first of them 1")
        for dim, size in zip(dims, input_shape, strict=True):
            if dim.dim_value not in (0, size):
                raise errors.ModelError(
                    f"the model's input is {[d.dim_value for d in dims]}, not {list(input_shape)}; leave the shape out"
                )
            dim.dim_value = size
    if not all(0 < dim.dim_value <= limits.MAX_DIM for dim in dims):
        raise errors.ModelError(
            "the model leaves dimensions of its input open; give an input shape such as 1,3,224,224, or 1,128 for token ids"
        )
    return fixed


def _batch_norms_to_affine(model: onnx.ModelProto) -> None:
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    ranks = _ranks(model)
    nodes = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in weights for name in node.input[1:]):
            nodes.append(node)
            continue
        gamma, beta, mean, var = (
            onnx.numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(var + epsilon)
        rank = ranks[node.input[0]]
        names = [f"{node.output[0]}@{part}" for part in ("factor", "offset", "scaled")]
        graph.initializer.append(_weight(names[0], _over_channels(factor, rank)))
        graph.initializer.append(_weight(names[1], _over_channels(beta - mean * factor, rank)))
        nodes.append(onnx.helper.make_node("Mul", [node.input[0], names[0]], [names[2]], f"{node.name}@mul"))
        nodes.append(onnx.helper.make_node("Add", [names[2], names[1]], [node.output[0]], node.name))
    del graph.node[:]
    graph.node.extend(nodes)


def _class_tokens_to_sums(model: onnx.ModelProto, graph: Graph) -> None:
    """Constant rows that are joined ahead of [1, T, C] become rows of zeros ahead of it and a sum, which any batch may have."""
    nodes = []
    for node in model.graph.node:
        known = graph.producer.get(node.output[0])
        rows = None if known is None else rows_ahead(graph, known)
        if rows is None:
            nodes.append(node)
            continue
        table = np.zeros(graph.shapes[node.output[0]], np.float64)
        table[:, : len(rows)] = rows
        names = [f"{node.output[0]}@{part}" for part in ("pads", "rows", "table")]
        pads = np.array([0, len(rows), 0, 0, 0, 0], np.int64)
        model.graph.initializer.extend([onnx.numpy_helper.from_array(pads, names[0]), _weight(names[2], table)])
        nodes.append(onnx.helper.make_node("Pad", [node.input[-1], names[0]], [names[1]], f"{node.name}@pad"))
        nodes.append(onnx.helper.make_node("Add", [names[1], names[2]], [node.output[0]], node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _averages_into_weights(model: onnx.ModelProto) -> None:
    """A number times the sum of two products goes into their weights: what distilled transformers answer is the mean of two classifiers."""
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    makers = {t: n for n in graph.node for t in n.output}
    readers = Counter(t for n in graph.node for t in n.input)
    for node in [n for n in graph.node if n.op_type in ("Mul", "Div") and n.input[1] in weights]:
        summed = makers.get(node.input[0])
        products = [makers.get(t) for t in summed.input] if summed is not None and summed.op_type == "Add" else []
        scaled = [t for p in products if p is not None and p.op_type == "Gemm" for t in p.input[1:]]
        factor = onnx.numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        if len(scaled) != 4 or factor.size != 1 or not all(t in weights and readers[t] == 1 for t in scaled):
            continue
        assert summed is not None
        if any(readers[t] > 1 for t in (*summed.input, *summed.output)):
            continue
        number = factor.item() if node.op_type == "Mul" else 1 / factor.item()
        for name in scaled:
            values = onnx.numpy_helper.to_array(weights[name]).astype(np.float64)
            weights[name].CopyFrom(_weight(name, number * values))
        summed.output[0] = node.output[0]
        graph.node.remove(node)


def _weight(name: str, values: NDArray[np.float64]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


def _over_channels(values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    return values.reshape(1, -1, *[1] * (rank - 2))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {i.name: len(i.type.tensor_type.shape.dim) for i in [*graph.input, *graph.value_info]}


def _treats_samples_alike(model: onnx.ModelProto) -> bool:
    graph = Graph.of(model)
    random, shape = np.random.default_rng(0), (2, *graph.shapes[graph.input][1:])
    x = random.integers(0, 2, shape) if graph.takes_ids else random.normal(size=shape).astype(np.float32)
    try:
        run = session(model).run
        both = run(None, {graph.input: x})[0]
        each = [run(None, {graph.input: x[i : i + 1]})[0] for i in range(2)]
    except Exception:  # a batch of two does not fit this graph: ONNX Runtime says so in many ways
        return False
    return both.shape[:1] == (2,) and np.allclose(
        both, np.concatenate(each), rtol=1e-3, atol=1e-4 * (1 + np.abs(both).max())
    )
