"""Opens ONNX Runtime sessions and disables the optimizers that change a model's answers.

ONNX Runtime rewrites a graph before it runs it, and some rewrites change the answers of some models. Import detects
them (`calibration.importing.verify`) and records them in the model's metadata. Every later session of the model, or of
a tail of it, then disables them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort

from calibration.importing.graph import metadata, set_metadata
from splitedge import errors

#: Key in `ModelProto.metadata_props`: names of optimizers, separated by commas, or `EVERY`.
DISABLED_OPTIMIZERS: Final = "splitedge.disabled_optimizers"
#: Value in place of names: disables all graph optimization.
EVERY: Final = "all"
#: Optimizers of ONNX Runtime for the CPU, by level. ONNX Runtime ignores names that the installed version does not
#: have.
OPTIMIZERS: Final = (
    "EliminateIdentity",
    "EliminateSlice",
    "UnsqueezeElimination",
    "EliminateDropout",
    "ExpandElimination",
    "CastElimination",
    "PreShapeNodeElimination",
    "NoopElimination",
    "DivMulFusion",
    "FuseReluClip",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "NotWhereFusion",
    "ConvAddFusion",
    "ConvMulFusion",
    "ConvBNFusion",
    "Pad_Fusion",
    "MatMul_BatchNormalization_Fusion",
    "LabelEncoderFusion",
    "DoubleQDQPairsRemover",
    "ConstantSharing",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "MatMulAddFusion",
    "ReshapeFusion",
    "GeluFusionL1",
    "LayerNormFusionL1",
    "QDQPropagationTransformer",
    "WeightBiasQuantization",
    "SliceConcatToSpaceToDepthFusion",
    "TransposeOptimizer",
    "ClipQuantRewrite",
    "ReluQuantRewrite",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "GemmActivationFusion",
    "MatMulIntegerToFloatFusion",
    "DynamicQuantizeMatMulFusion",
    "ConvActivationFusion",
    "GeluFusionL2",
    "LayerNormFusionL2",
    "SimplifiedLayerNormFusion",
    "AttentionFusion",
    "EmbedLayerNormFusion",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "MatmulTransposeFusion",
    "BiasGeluFusion",
    "SkipLayerNormFusion",
    "FastGeluFusion",
    "QuickGeluFusion",
    "BiasSoftmaxFusion",
    "MatMulScaleFusion",
    "MatMulNBitsFusion",
    "QDQFinalCleanupTransformer",
    "NchwcTransformer",
    "NhwcTransformer",
    "ConvAddActivationFusion",
)

_OFF: Final = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Options of every ONNX Runtime session: log output is off.

    ``threads`` 0 means one per core that this process may use.

    By default ONNX Runtime counts all cores of the machine and binds its threads to them.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or (len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0)
    # spinning threads occupy cores that other work needs between two calls
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def session(model: onnx.ModelProto | bytes, threads: int = 0) -> ort.InferenceSession:
    """An inference session of ``model`` on the CPU without the optimizers that its metadata disables.

    Raises `errors.ModelError`.
    """
    parsed = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    data = model if isinstance(model, bytes) else None
    options, names = session_options(threads), disabled(parsed)
    if EVERY in names:
        options.graph_optimization_level = _OFF
    return _open(parsed, options, names, data)


def unoptimized(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session that runs ``model`` without graph optimization. Raises `errors.ModelError`."""
    options = session_options()
    options.graph_optimization_level = _OFF
    return _open(model, options)


def optimized(model: onnx.ModelProto, without: Collection[str]) -> onnx.ModelProto:
    """``model`` after ONNX Runtime's basic optimizations, which usually yield standard operators.

    Raises `errors.ModelError`.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        _open(model, options, without)
        return onnx.load(options.optimized_model_filepath)


def disabled(model: onnx.ModelProto) -> list[str]:
    """The optimizers that are disabled for ``model``."""
    found = metadata(model, DISABLED_OPTIMIZERS)
    return found.split(",") if found else []


def disable(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Record in ``model`` that exactly the optimizers ``names`` are disabled."""
    set_metadata(model, DISABLED_OPTIMIZERS, ",".join(sorted(names)) or None)


def brief(error: BaseException) -> str:
    """The message of ``error`` in one line.

    Of a long text it keeps the beginning and the end, where ONNX Runtime gives the reason.
    """
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}") or type(error).__name__


def _open(
    model: onnx.ModelProto, options: ort.SessionOptions, without: Collection[str] = (), data: bytes | None = None
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(
            data or model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(without),
        )
    except Exception as error:  # ONNX Runtime's errors have no common base below Exception; protobuf's limit is 2 GiB
        raise errors.ModelError(
            f"ONNX Runtime cannot run the model ({brief(error)}); export it again, with a batch of 1",
            reason="cannot-run",
        ) from error
