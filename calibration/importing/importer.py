"""Imports a trained model as a simplified ONNX model with standard operators only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import onnx

from calibration.importing import (
    branches,
    checks,
    joining,
    masks,
    outputs,
    plane_rewrites,
    precision,
    quantized,
    rewrites,
    signature,
    tflite,
)
from calibration.importing.graph import Graph, inputs, with_batch
from calibration.importing.reading import export, read
from calibration.importing.rows import has_attention, streams_to_rows
from calibration.importing.sessions import EVERY, OPTIMIZERS, disable, optimized, session, session_options, unoptimized
from calibration.importing.verify import Reference, resemble
from splitedge import errors, limits

__all__ = ["BATCH", "batched", "export", "load", "session", "session_options", "simplify"]

#: Symbolic name of the batch axis of models that accept batches.
BATCH: Final = "batch"

#: Our own rewrites, by the names that disable them. "batch" opens the batch axis.
_REWRITES: Final[dict[str, Callable[[onnx.ModelProto], None]]] = {
    "batch norms": rewrites.batch_norms_to_affine,
    "averages": rewrites.averages_into_weights,
    "masks": masks.unify,
    "rows": streams_to_rows,
    "lines": plane_rewrites.lines_to_planes,
    "transposed convolutions": plane_rewrites.transposed_convolutions,
    "forms": plane_rewrites.elementwise_forms,
    "channels last": plane_rewrites.channels_last_parts,
}
#: All steps that can be disabled if they change the answers.
_STEPS: Final = (*OPTIMIZERS, *_REWRITES, "batch")
#: Maximum number of disabled steps. If more steps change the answers, all steps are disabled.
_MOST_LEFT_OUT: Final = 4


def load(
    source: str,
    input_shape: Sequence[int] | None = None,
    output: str | Sequence[str] | None = None,
    padding: int = 0,
    constants: Mapping[str, float] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Import the model in ``source``.

    ``source`` is an ``.onnx`` or ``.tflite`` file, an exported program ``.pt2``, or ``package.module:callable`` that returns an
    nn.Module. ``input_shape`` is the whole shape in the file's own order with a batch of 1, such as [1, 3, 224, 224] or
    [1, 224, 224, 3]. A module requires it; an ONNX file requires it only for open dimensions. ``output`` names the
    output tensor (None: the first output). Several names, or an empty list for all outputs, are joined to one vector
    (`calibration.importing.joining`). Other inputs of a text model are computed from its token ids, where
    ``padding`` marks padding (`signature.derive_inputs`). ``constants``: values of further inputs.

    The result has one input, float32 (images [1, C, H, W]) or int64 token ids, and one output. Constants and batch
    norms are folded, and operators are standard. The batch axis is named `BATCH` if the model treats the samples of a
    batch alike; else its size is 1.

    Half-precision and quantized files become float32 (`calibration.importing.precision`,
    `calibration.importing.quantized`). Where that changes their answers by more than rounding, they stay as they are,
    and an integer head ends before the first such operator.

    The result answers as the file does without graph optimization (`calibration.importing.verify`). Steps that change
    the answers are disabled, and the metadata names the ONNX Runtime optimizers that `session` disables. If the model
    ends in an ArgMax, the result outputs the scores before it and the metadata records the ArgMax (`outputs.recorded`).
    Raises `errors.ModelError`.
    """
    file = read(source, input_shape)
    signature.fix_inputs(file, constants)
    branches.take_constant(file)
    prepare = functools.partial(_prepared, source=source, input_shape=input_shape, output=output, padding=padding)
    model, fixed, indices = _in_floats(file, prepare) or prepare(file)
    reference = _reference(fixed, _batch_of(model), padding)
    turned = signature.channels_first(fixed)
    signature.with_batch_axis(fixed, reference.shape)
    made = _faithful(fixed, lambda one: reference.agrees(one, signature.TURNED if turned else None))
    checks.refuse_nonfinite(made)
    outputs.record(made, indices)
    joining.keep(made, joining.joined(fixed))
    quantized.record(made, quantized.codes(model))
    return made


def simplify(model: onnx.ModelProto, without: Collection[str] = ()) -> onnx.ModelProto:
    """``model`` after ONNX Runtime's basic optimizations and our own rewrites.

    Each remaining batch norm becomes a Mul and an Add, and padding masks get one form. If the optimizations create
    nonstandard operators, only our own rewrites apply. ``without``: optimizers and rewrites to disable.
    """
    model = plane_rewrites.group_norms(model)
    off = set(OPTIMIZERS) & set(without)
    if off == set(OPTIMIZERS):
        off, simple = {EVERY}, _copy(model)
    else:
        # This fusion turns a MatMul of rows with a bias into a Gemm between two reshapes, which move rows to the batch
        # axis. Transposes that move into norms and between tokens hide what a head recognizes.
        skipped = {"MatMulAddFusion", *(["TransposeOptimizer"] if has_attention(model.graph) else [])}
        simple = optimized(model, {*off, *skipped})
    if any(node.domain for node in simple.graph.node):
        simple = _copy(model)
    standard = [o for o in simple.opset_import if o.domain in {node.domain for node in simple.graph.node} | {""}]
    del simple.opset_import[:]
    simple.opset_import.extend(standard)
    disable(simple, off)
    for name, rewrite in _REWRITES.items():
        if name not in without:
            rewrite(simple)
    return simple


def batched(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with an open batch axis, or with a batch of 1.

    The axis is open if a batch of two gives the same answers as two batches of one.
    """
    opened = with_batch(model, BATCH)
    graph = Graph.of(model)
    rewrites.class_tokens_to_sums(opened, graph)
    for node in opened.graph.node:
        shape = graph.shapes.get(node.output[0], ())
        if node.op_type == "Reshape" and shape[:1] == (1,):
            name = f"{node.output[0]}@shape"
            opened.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), name))
            node.input[1] = name
    return opened if _treats_samples_alike(opened) else with_batch(model, 1)


# --- simplification with unchanged answers --------------------------------------------------------------------------


def _faithful(model: onnx.ModelProto, agrees: Callable[[onnx.ModelProto], bool]) -> onnx.ModelProto:
    """``model`` simplified and batched, without the steps that make `agrees` fail.

    If more than `_MOST_LEFT_OUT` steps fail, all steps are disabled.
    """

    def tried(without: frozenset[str]) -> onnx.ModelProto | None:
        try:
            made = _made(model, without)
            return made if agrees(made) else None
        except Exception:  # a step that breaks the graph: onnx and ONNX Runtime raise many types of errors
            return None

    off: frozenset[str] = frozenset()
    while (made := tried(off)) is None:
        step = _erring(lambda without: tried(without) is not None, off) if len(off) < _MOST_LEFT_OUT else None
        if step is None:
            return _made(model, frozenset(_STEPS))
        off |= {step}
    return made


def _made(model: onnx.ModelProto, without: frozenset[str]) -> onnx.ModelProto:
    simple = simplify(model, without)
    return with_batch(simple, 1) if "batch" in without else batched(simple)


def _erring(works: Callable[[frozenset[str]], bool], off: frozenset[str]) -> str | None:
    """A step that must be disabled besides ``off``, found by bisection; None if disabling all steps does not help.

    It is the last step of the shortest prefix of `_STEPS` without which ``works`` is true.
    """
    low, high = 0, len(_STEPS)
    if not works(off | {*_STEPS}):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(off | {*_STEPS[:middle]}) else (middle, high)
    return _STEPS[high - 1]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


# --- other number types ---------------------------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """A ``model`` with one input and one output, the same ``fixed`` to a batch of 1, and the ArgMax that it ends in."""

    model: onnx.ModelProto
    fixed: onnx.ModelProto
    indices: signature.ArgMax | None


def _in_floats(file: onnx.ModelProto, prepare: Callable[[onnx.ModelProto], _Prepared]) -> _Prepared | None:
    """The float32 form of ``file``, without codes and half precision (`quantized.to_float`).

    None if it has neither, if its form of them is not known, or if the float form gives other answers.
    """
    codes = quantized.is_quantized(file)
    if not codes and not precision.has_other_floats(file):
        return None
    model = _copy(file)
    try:
        precision.to_float32(model)
        if codes:
            quantized.to_float(model)
        floats = prepare(model)
        unoptimized(floats.fixed)
    except (KeyError, ValueError, IndexError, errors.ModelError):
        return None
    try:
        taken = inputs(file.graph)[0].type.tensor_type.elem_type
        fits = resemble(prepare(_copy(file)).fixed, floats.fixed, quantized.codes(floats.model), taken)
    except errors.ModelError:
        return floats  # ONNX Runtime runs the float form only
    return floats if fits else None


def _prepared(
    model: onnx.ModelProto,
    source: str,
    input_shape: Sequence[int] | None,
    output: str | Sequence[str] | None,
    padding: int,
) -> _Prepared:
    several = None if output is None or isinstance(output, str) else list(output)
    if several is not None and len(several or model.graph.output) == 1:
        output, several = next(iter(several), None), None
    indices = None
    if several is None:
        assert output is None or isinstance(output, str)
        indices = signature.scores_for_indices(model, output)
        signature.keep_output(model, None if indices else output)
    tflite.refuse_unconverted(model)
    checks.refuse_training(model)
    checks.refuse_nonfinite(model)
    signature.main_input_first(model)
    precision.float_ends(model)
    signature.with_few_axes(model)
    _check(model, source)
    fixed = _fixed(model, input_shape)
    if several is not None:
        joining.join(fixed, several or joining.outputs(fixed))
    signature.derive_inputs(fixed, padding)
    return _Prepared(model, fixed, indices)


# --- checks ---------------------------------------------------------------------------------------------------------


def _reference(fixed: onnx.ModelProto, declared: int, padding: int) -> Reference:
    """The answers of ``fixed`` with a batch of 1. ``declared`` is the file's batch size (0: open)."""
    if declared <= 1:
        return Reference.of(fixed, padding)
    try:
        found = Reference.of(fixed, padding)
        if found.given[0].dtype == np.float32:
            found.check_batch(declared)
    except errors.ModelError as error:
        raise errors.ModelError(
            f"the model has a batch of {declared} and does not work for one sample; export it with a batch of 1",
            reason="batch",
        ) from error
    return found


def _check(model: onnx.ModelProto, source: str) -> None:
    kind = inputs(model.graph)[0].type.tensor_type
    ids = kind.elem_type == onnx.TensorProto.INT64 and len(kind.shape.dim) == 2
    if not ids and (kind.elem_type != onnx.TensorProto.FLOAT or not 2 <= len(kind.shape.dim) <= 4):
        raise errors.ModelError(
            f"the input of {source} is neither a float32 tensor of 2 to 4 axes nor int64 token ids [batch, tokens]; "
            "export it with one of them",
            reason="input-type",
        )


def _batch_of(model: onnx.ModelProto) -> int:
    """The batch size of the file; 0 if it is open."""
    return int(inputs(model.graph)[0].type.tensor_type.shape.dim[0].dim_value)


def _fixed(model: onnx.ModelProto, input_shape: Sequence[int] | None) -> onnx.ModelProto:
    """``model`` with a batch of 1 and all dimensions of its input known."""
    fixed = with_batch(model, 1)
    dims = inputs(fixed.graph)[0].type.tensor_type.shape.dim
    if input_shape is not None:
        if len(input_shape) != len(dims) or input_shape[0] != 1:
            raise errors.ModelError(
                f"the input shape must have {len(dims)} numbers and begin with 1", reason="input-shape"
            )
        if any(dim.dim_value not in (0, size) for dim, size in zip(dims, input_shape, strict=True)):
            own = ",".join(str(dim.dim_value or "?") for dim in dims)
            raise errors.ModelError(
                f"the model's input is {own}, not {','.join(map(str, input_shape))}; "
                "give the shape in the file's own order",
                reason="other-shape",
            )
        for dim, size in zip(dims, input_shape, strict=True):
            dim.dim_value = size
    if not all(0 < dim.dim_value <= limits.MAX_DIM for dim in dims):
        raise errors.ModelError(
            "the model's input has open dimensions; give an input shape such as 1,3,224,224, or 1,128 for token ids",
            reason="open-dimensions",
        )
    return fixed


def _treats_samples_alike(model: onnx.ModelProto) -> bool:
    graph = Graph.of(model)
    random, shape = np.random.default_rng(0), (2, *graph.shapes[graph.input][1:])
    x = random.integers(0, 2, shape) if graph.takes_ids else random.normal(size=shape).astype(np.float32)
    try:
        run = session(model).run
        both = run(None, {graph.input: x})[0]
        each = [run(None, {graph.input: x[i : i + 1]})[0] for i in range(2)]
    except Exception:  # a batch of two does not fit this graph: ONNX Runtime raises many types of errors
        return False
    room = 1e-4 * (1 + np.abs(both[np.isfinite(both)]).max(initial=0))
    return both.shape[:1] == (2,) and np.allclose(both, np.concatenate(each), rtol=1e-3, atol=room, equal_nan=True)
