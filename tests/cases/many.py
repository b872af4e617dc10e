"""Small networks made of what files of many years hold: operators in the forms of their operator set, IR versions, layouts, ways to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.cases.build import NEWEST_IR, File

CHANNELS: Final = 6
SIDE: Final = 10
CLASSES: Final = 5
OPSETS: Final = (7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21)
LAYOUTS: Final = ("first", "last", "listed", "nodes")

Feature = Callable[[File], object]


def model(seed: int) -> tuple[onnx.ModelProto, list[int]]:
    """A seeded file, and the shape [H, W, C] of its samples."""
    random = np.random.default_rng(seed)
    opset, layout = OPSETS[seed % len(OPSETS)], LAYOUTS[seed // len(OPSETS) % len(LAYOUTS)]
    known = [name for name, (since, until, _) in FEATURES.items() if since <= opset <= until]
    own = known[seed * 7 % len(known)]
    chosen = [own, *random.choice(known, 2, replace=False)]
    return build(seed, opset, layout, sorted(chosen, key=RESIZING.__contains__), sorted(ENDS)[seed % len(ENDS)])


def build(seed: int, opset: int, layout: str, features: list[str], end: str) -> tuple[onnx.ModelProto, list[int]]:
    """The file of these ``features`` in this order."""
    rng = np.random.default_rng(seed)
    height, width = SIDE, SIDE + 2
    shape = [1, height, width, 3] if layout == "last" else [1, 3, height, width]
    ir = 3 if layout == "listed" else int(rng.integers(4, NEWEST_IR + 1))
    domain = "ai.onnx" if seed % 5 == 4 else ""
    file = File(shape, seed, opset, ir, domain, layout == "listed", layout == "nodes")
    if layout == "last":
        file.add("Transpose", perm=[0, 3, 1, 2])
    conv(file, CHANNELS, 3)
    for name in features:
        FEATURES[name][2](file)
        conv(file, CHANNELS, CHANNELS, kernel=1)
        file.add("Relu")  # else means of planes would undo norms
    outputs = ENDS[end](file)
    return file.model(outputs), [height, width, 3]


def conv(file: File, outs: int, ins: int, kernel: int = 3, **attributes: object) -> str:
    attributes.setdefault("pads", [kernel // 2] * 4)
    return file.add(
        "Conv", file.last, file.weight(outs, ins, kernel, kernel), file.weight(outs, spread=0.3), **attributes
    )


# --- operators, each from and to [1, CHANNELS, H, W] ----------------------------------------------------------------


def _op(kind: str, **attributes: object) -> Feature:
    return lambda file: file.add(kind, **attributes)


def _pad_max(file: File) -> None:
    file.add("Sub", file.last, file.constant([3.0]))
    _pad(file, [0, 0, 1, 1, 0, 0, 1, 1])
    file.add("MaxPool", kernel_shape=[3, 3], strides=[1, 1])


def _pad(file: File, pads: list[int], mode: str = "constant", value: float = 0.0) -> None:
    if file.opset < 11:
        file.add("Pad", pads=pads, mode=mode, value=value)
    else:
        file.add("Pad", file.last, file.ints(*pads), *([file.constant(value)] if value else []), mode=mode)


def _padded(pads: list[int], mode: str = "constant", value: float = 0.0) -> Feature:
    return lambda file: _pad(file, pads, mode, value)


def _conv(**attributes: object) -> Feature:
    def feature(file: File) -> None:
        groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
        size = [int(k) for k in attributes.get("kernel_shape", [3, 3])]  # type: ignore[attr-defined]
        file.add("Conv", file.last, file.weight(CHANNELS, CHANNELS // groups, *size), **attributes)

    return feature


def _conv_transpose(file: File) -> None:
    file.add("ConvTranspose", file.last, file.weight(CHANNELS, CHANNELS, 2, 2), strides=[2, 2])
    file.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])


def _clip(lo: float | None, hi: float | None) -> Feature:
    def feature(file: File) -> None:
        if file.opset < 11:
            ends = {name: value for name, value in (("min", lo), ("max", hi)) if value is not None}
            file.add("Clip", file.last, **ends)
            return
        names = ["" if value is None else file.constant(value) for value in (lo, hi)]
        file.add("Clip", file.last, *(names if names[1] else names[:1]))

    return feature


def _batch_norm(file: File) -> None:
    parts = [
        file.constant(file.random.uniform(0.5, 1.5, CHANNELS)),
        *(file.weight(CHANNELS, spread=0.3) for _ in range(2)),
    ]
    x = file.last
    file.add("BatchNormalization", x, *parts, file.constant(file.random.uniform(0.5, 1.5, CHANNELS)), epsilon=1e-3)


def _dropout(file: File) -> None:
    if file.opset < 12:
        file.add("Dropout", ratio=0.4)
    else:
        file.add("Dropout", file.last, file.constant(0.4), file.constant(False, np.bool_), outputs=2)


def _softmax(axis: int) -> Feature:
    def feature(file: File) -> None:
        file.add("Softmax", axis=axis)
        file.add("Mul", file.last, file.constant(5.0))

    return feature


def _prelu(*shape: int) -> Feature:
    return lambda file: file.add("PRelu", file.last, file.constant(file.random.uniform(-0.5, 0.5, shape)))


def _with_constant(kind: str, *shape: int, first: bool = False) -> Feature:
    """``kind`` with a constant from 0.5 to 2 of ``shape``, as its first or second operand."""

    def feature(file: File) -> None:
        x, other = file.last, file.constant(file.random.uniform(0.5, 2.0, shape))
        file.add(kind, *((other, x) if first else (x, other)))

    return feature


def _with_itself(kind: str) -> Feature:
    def feature(file: File) -> None:
        x = file.last
        conv(file, CHANNELS, CHANNELS)
        file.add(kind, file.last, x)

    return feature


def _squeeze_and_excite(file: File) -> None:
    x = file.last
    file.add("GlobalAveragePool")
    conv(file, CHANNELS, CHANNELS, 1)
    file.add("Sigmoid")
    file.add("Mul", x, file.last)


def _spatial_gate(file: File) -> None:
    """One factor for each place, of a channel's mean."""
    x = file.last
    conv(file, 1, CHANNELS, 1)
    file.add("Sigmoid")
    file.add("Mul", x, file.last)


def _swish(file: File) -> None:
    x = file.last
    file.add("Sigmoid")
    file.add("Mul", x, file.last)


def _hard_swish_of_parts(file: File) -> None:
    x = file.last
    file.add("Add", x, file.constant(3.0))
    _clip(0.0, 6.0)(file)
    file.add("Mul", x, file.last)
    file.add("Div", file.last, file.constant(6.0))


def _gelu_of_parts(file: File) -> None:
    x = file.last
    file.add("Div", x, file.constant(2**0.5))
    file.add("Erf")
    file.add("Add", file.last, file.constant(1.0))
    file.add("Mul", x, file.last)
    file.add("Mul", file.last, file.constant(0.5))


def _split_and_join(file: File) -> None:
    sizes = [2, 4]
    if file.opset < 13:
        file.add("Split", outputs=2, axis=1, split=sizes)
    else:
        file.add("Split", file.last, file.ints(*sizes), outputs=2, axis=-3)
    a, b = file.outputs()
    file.add("Relu", a)
    file.add("Concat", b, file.last, axis=1)


def _slice(file: File) -> None:
    """The plane without its first row and last column, then padded again."""
    starts, ends, axes = [1, 0], [1000, -1], [2, 3]
    if file.opset < 10:
        file.add("Slice", starts=starts, ends=ends, axes=axes)
    else:
        file.add("Slice", file.last, file.ints(*starts), file.ints(*ends), file.ints(*axes))
    _pad(file, [0, 0, 1, 0, 0, 0, 0, 1])


def _joined_rows(file: File) -> None:
    x = file.last
    file.add("Concat", x, x, axis=2)
    file.add("MaxPool", kernel_shape=[2, 1], strides=[2, 1])


def _shuffle(file: File) -> None:
    file.add("Reshape", file.last, file.ints(0, 2, CHANNELS // 2, SIDE, -1))
    file.add("Transpose", perm=[0, 2, 1, 3, 4])
    file.add("Reshape", file.last, file.ints(0, CHANNELS, SIDE, -1))


def _shrink_and_grow(file: File) -> None:
    file.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    if file.opset < 9:
        file.add("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    elif file.opset == 9:
        file.add("Upsample", file.last, file.constant([1, 1, 2, 2]), mode="nearest")
    elif file.opset == 10:
        file.add("Resize", file.last, file.constant([1, 1, 2, 2]), mode="nearest")
    else:
        roi = file.constant([]) if file.opset < 13 else ""
        attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        file.add("Resize", file.last, roi, file.constant([1, 1, 2, 2]), mode="nearest", **attributes)


def _space_to_depth(file: File) -> None:
    file.add("SpaceToDepth", blocksize=2)
    file.add("DepthToSpace", blocksize=2)


def _squeeze_forms(file: File) -> None:
    file.with_numbers("Unsqueeze", 13, "axes", [2])
    file.with_numbers("Squeeze", 13, "axes", [2])


def _instance_norm(file: File) -> None:
    file.add("InstanceNormalization", file.last, file.weight(CHANNELS, spread=1.0), file.weight(CHANNELS, spread=0.3))


def _shared_weight(file: File) -> None:
    weight = file.weight(CHANNELS, CHANNELS, 3, 3)
    for _ in range(2):
        file.add("Conv", file.last, weight, pads=[1, 1, 1, 1])
        file.add("Relu")


def _several(kind: str) -> Feature:
    def feature(file: File) -> None:
        x = file.last
        a = file.add("Tanh", x)
        file.add(kind, x, a, file.add("Neg", a))

    return feature


def _where(file: File) -> None:
    x = file.last
    over = file.add("Greater", x, file.constant(0.0))
    file.add("Where", over, x, file.add("Mul", x, file.constant(0.1)))


def _branch(file: File) -> None:
    """An If on a constant, whose branches read the tensor around them."""
    x, out = file.last, [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)]
    parts = {
        name: helper.make_graph([helper.make_node(op, [x], ["branch"], f"in {op}")], name, [], out)
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    file.add("If", file.constant(True, np.bool_), **parts)


def _mean_of_planes(file: File) -> None:
    """x + the mean of its planes, which has no spatial axes in between."""
    x = file.last
    _reduce(file, "ReduceMean", [2, 3], keepdims=0)
    file.with_numbers("Unsqueeze", 13, "axes", [2, 3])
    file.add("Add", x, file.last)


def _reduce(file: File, kind: str, axes: list[int], **attributes: object) -> None:
    file.with_numbers(kind, 18, "axes", axes, **attributes)


def _mean_over_channels(file: File) -> None:
    x = file.last
    _reduce(file, "ReduceMean", [1], keepdims=1)
    file.add("Sub", x, file.last)


def _half(file: File) -> None:
    file.add("Cast", to=TensorProto.FLOAT16)
    file.add("Relu")
    file.add("Cast", to=TensorProto.FLOAT)


def _max_pool_indices(file: File) -> None:
    file.add("MaxPool", outputs=2, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])


def _quantized(file: File) -> None:
    scale, zero = file.constant(0.05), file.constant(120, np.uint8)
    file.add("QuantizeLinear", file.last, scale, zero)
    file.add("DequantizeLinear", file.last, scale, zero)


def _pad_average(file: File) -> None:
    """Padding that counts before an average that would not count its own."""
    _pad(file, [0, 0, 1, 1, 0, 0, 1, 1])
    file.add("AveragePool", kernel_shape=[3, 3], strides=[1, 1])


def _relu_and_clip(file: File) -> None:
    file.add("Relu")
    _clip(-1.0, 1.5)(file)


def _plus_zero_of_five_axes(file: File) -> None:
    file.add("Add", file.last, file.constant(np.zeros((1, 1, 1, 1, 1))))
    file.with_numbers("Squeeze", 13, "axes", [0])


def _through_double(file: File) -> None:
    file.add("Cast", to=TensorProto.DOUBLE)
    file.add("Cast", to=TensorProto.FLOAT)


def _over_its_size(file: File) -> None:
    """x times 1 / (1 + |x|), by a division of 1."""
    x = file.last
    file.add("Abs")
    file.add("Add", file.last, file.constant(1.0))
    file.add("Div", file.constant(1.0), file.last)
    file.add("Mul", file.last, x)


def _expanded(file: File) -> None:
    x = file.last
    file.add("GlobalMaxPool")
    file.add("Expand", file.last, file.ints(1, CHANNELS, SIDE, SIDE + 2))
    file.add("Add", x, file.last)


def _layer_norm_of_parts(file: File) -> None:
    """Over the last axis, with weights."""
    x = file.last
    _reduce(file, "ReduceMean", [3], keepdims=1)
    centred = file.add("Sub", x, file.last)
    file.add("Pow", centred, file.constant(2.0))
    _reduce(file, "ReduceMean", [3], keepdims=1)
    file.add("Add", file.last, file.constant(1e-5))
    file.add("Sqrt")
    file.add("Div", centred, file.last)
    file.add("Mul", file.last, file.constant(file.random.uniform(0.5, 1.5, SIDE + 2)))
    file.add("Add", file.last, file.weight(SIDE + 2, spread=0.2))


def _bare_conv(file: File) -> None:
    """A convolution without bias, and what fuses into it, in an order of its own."""
    file.add("Conv", file.last, file.weight(CHANNELS, CHANNELS, 3, 3), pads=[1, 1, 1, 1])
    _with_constant("Add", CHANNELS, 1, 1)(file)
    _with_constant("Mul", 1, CHANNELS, 1, 1)(file)
    _batch_norm(file)


def _gathered_channels(file: File) -> None:
    file.add("Gather", file.last, file.ints(3, 0, 1, 5, 4, 2), axis=1)


def _channels_last_part(file: File) -> None:
    file.add("Transpose", perm=[0, 2, 3, 1])
    _with_constant("Mul", CHANNELS)(file)
    _with_constant("Add", 1, 1, CHANNELS)(file)
    file.add("Transpose", perm=[0, 3, 1, 2])


def _flat_and_back(file: File) -> None:
    file.add("Flatten", axis=2)
    file.add("Reshape", file.last, file.ints(1, CHANNELS, -1, SIDE + 2))


def _mean_of_nothing(file: File) -> None:
    file.add("ReduceMean", noop_with_empty_axes=1)


def _shape_of_itself(file: File) -> None:
    """A Reshape to what the tensor's own Shape says."""
    x = file.last
    shape = file.add("Shape", x)
    file.add("Reshape", file.add("Flatten", x), shape)


def _linear_up_and_down(file: File) -> None:
    attributes = {"coordinate_transformation_mode": "half_pixel"} if file.opset > 10 else {}
    inputs = ([file.constant([])] if file.opset in (11, 12) else [""]) if file.opset > 10 else []
    file.add("Resize", file.last, *inputs, file.constant([1, 1, 2, 3]), mode="linear", **attributes)
    file.add("AveragePool", kernel_shape=[2, 3], strides=[2, 3])


def _transposed_conv_of_phases(file: File) -> None:
    """Windows that overlap, a norm and a bound behind."""
    file.add("ConvTranspose", file.last, file.weight(CHANNELS, CHANNELS, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    _batch_norm(file)
    file.add("Relu")
    file.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])


def _group_norm_of_parts(file: File) -> None:
    file.add("Reshape", file.last, file.ints(0, 2, -1))
    file.add("InstanceNormalization", file.last, file.constant(np.ones(2)), file.constant(np.zeros(2)))
    file.add("Reshape", file.last, file.ints(1, CHANNELS, SIDE, SIDE + 2))
    _with_constant("Mul", CHANNELS, 1, 1)(file)
    _with_constant("Add", CHANNELS, 1, 1)(file)


def _channels_last_block(file: File) -> None:
    """As ConvNeXt: a layer norm and products of [N, H, W, C], added to what was before."""
    x = file.last
    file.add("Transpose", perm=[0, 2, 3, 1])
    file.add("LayerNormalization", file.last, file.constant(file.random.uniform(0.5, 1.5, CHANNELS)))
    file.add("MatMul", file.last, file.weight(CHANNELS, 2 * CHANNELS, spread=0.4))
    file.add("Add", file.last, file.weight(2 * CHANNELS, spread=0.2))
    file.add("Relu")
    file.add("MatMul", file.last, file.weight(2 * CHANNELS, CHANNELS, spread=0.3))
    file.add("Transpose", perm=[0, 3, 1, 2])
    file.add("Add", file.last, x)


def _rows_and_columns(file: File) -> None:
    """Means of rows plus greatest of columns: both repeat."""
    x = file.last
    _reduce(file, "ReduceMean", [3], keepdims=1)
    rows, file.last = file.last, x
    _reduce(file, "ReduceMax", [2], keepdims=1)
    file.add("Add", rows, file.last)


def _quotient(file: File) -> None:
    x = file.last
    conv(file, CHANNELS, CHANNELS)
    file.add("Sigmoid")
    file.add("Add", file.last, file.constant(0.5))
    file.add("Div", x, file.last)


_MAX: Final = 99
#: Name: first and last operator set, and the operators.
FEATURES: Final[dict[str, tuple[int, int, Feature]]] = {
    "pad max": (7, _MAX, _pad_max),
    "pad, then conv": (7, _MAX, _padded([0, 0, 0, 1, 0, 0, 2, 0])),
    "pad by a number": (7, _MAX, _padded([0, 0, 1, 1, 0, 0, 1, 1], value=0.7)),
    "pad by reflection": (7, _MAX, _padded([0, 0, 1, 2, 0, 0, 1, 0], "reflect")),
    "pad by the edge": (7, _MAX, _padded([0, 0, 1, 1, 0, 0, 0, 1], "edge")),
    "crop": (7, _MAX, _padded([0, 0, -1, 0, 0, 0, 1, 0])),
    "max pool, padded": (7, _MAX, _op("MaxPool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])),
    "max pool, asymmetric": (7, _MAX, _op("MaxPool", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 1, 1, 0])),
    "max pool, same lower": (7, _MAX, _op("MaxPool", kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")),
    "max pool, up": (10, _MAX, _op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "max pool, dilated": (10, _MAX, _op("MaxPool", kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])),
    "max pool, indices": (8, _MAX, _max_pool_indices),
    "average pool": (7, _MAX, _op("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])),
    "average pool, counted": (
        7, _MAX, _op("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 0, 1, 2], count_include_pad=1)
    ),
    "average pool, up": (10, _MAX, _op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
    "average pool, up, counted": (
        10, _MAX, _op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1)
    ),
    "average pool, same lower": (7, _MAX, _op("AveragePool", kernel_shape=[2, 3], strides=[1, 1], auto_pad="SAME_LOWER")),
    "average pool, same upper": (7, _MAX, _op("AveragePool", kernel_shape=[4, 2], strides=[1, 1], auto_pad="SAME_UPPER")),
    "conv, asymmetric": (7, _MAX, _conv(pads=[0, 1, 2, 0])),
    "conv, same lower": (7, _MAX, _conv(kernel_shape=[2, 4], auto_pad="SAME_LOWER")),
    "conv, same upper": (7, _MAX, _conv(auto_pad="SAME_UPPER", strides=[2, 1])),
    "conv, valid": (7, _MAX, _conv(auto_pad="VALID")),
    "conv, dilated": (7, _MAX, _conv(dilations=[2, 1], pads=[2, 1, 2, 1])),
    "conv, groups": (7, _MAX, _conv(group=2, pads=[1, 1, 1, 1])),
    "conv, depthwise": (7, _MAX, _conv(group=CHANNELS, pads=[1, 1, 1, 1])),
    "conv, wide padding": (7, _MAX, _conv(kernel_shape=[1, 1], pads=[1, 0, 0, 2])),
    "conv transposed": (7, _MAX, _conv_transpose),
    "shared weight": (7, _MAX, _shared_weight),
    "relu": (7, _MAX, _op("Relu")),
    "relu6": (7, _MAX, _clip(0.0, 6.0)),
    "clip below": (7, _MAX, _clip(-0.5, None)),
    "clip above": (7, _MAX, _clip(None, 0.75)),
    "sigmoid": (7, _MAX, _op("Sigmoid")),
    "tanh": (7, _MAX, _op("Tanh")),
    "hard sigmoid": (7, _MAX, _op("HardSigmoid", alpha=0.3)),
    "hard swish": (14, _MAX, _op("HardSwish")),
    "hard swish of parts": (7, _MAX, _hard_swish_of_parts),
    "leaky relu": (7, _MAX, _op("LeakyRelu", alpha=0.2)),
    "elu": (7, _MAX, _op("Elu", alpha=0.7)),
    "selu": (7, _MAX, _op("Selu")),
    "softplus": (7, _MAX, _op("Softplus")),
    "softsign": (7, _MAX, _op("Softsign")),
    "mish": (18, _MAX, _op("Mish")),
    "gelu": (20, _MAX, _op("Gelu")),
    "gelu by tanh": (20, _MAX, _op("Gelu", approximate="tanh")),
    "gelu of parts": (9, _MAX, _gelu_of_parts),
    "swish": (7, _MAX, _swish),
    "prelu, one slope": (7, _MAX, _prelu(1)),
    "prelu, channels": (7, _MAX, _prelu(CHANNELS, 1, 1)),
    "abs": (7, _MAX, _op("Abs")),
    "neg": (7, _MAX, _op("Neg")),
    "batch norm": (7, _MAX, _batch_norm),
    "instance norm": (7, _MAX, _instance_norm),
    "lrn": (7, _MAX, _op("LRN", size=3, alpha=0.2, beta=0.7, bias=2.0)),
    "dropout": (7, _MAX, _dropout),
    "identity": (7, _MAX, _op("Identity")),
    "half": (7, _MAX, _half),
    "quantized": (10, _MAX, _quantized),
    "softmax over channels": (7, _MAX, _softmax(1)),
    "softmax over the last axis": (7, _MAX, _softmax(3)),
    "softmax over a negative axis": (11, _MAX, _softmax(-3)),
    "plus a number": (7, _MAX, _with_constant("Add", 1)),
    "plus channels": (7, _MAX, _with_constant("Add", CHANNELS, 1, 1)),
    "plus places": (7, _MAX, _with_constant("Add", 1, 1, SIDE, 1)),
    "times channels": (7, _MAX, _with_constant("Mul", 1, CHANNELS, 1, 1)),
    "times columns": (7, _MAX, _with_constant("Mul", SIDE + 2)),
    "number minus": (7, _MAX, _with_constant("Sub", 1, first=True)),
    "over channels": (7, _MAX, _with_constant("Div", CHANNELS, 1, 1)),
    "power": (7, _MAX, lambda file: file.add("Pow", file.last, file.constant(2.0))),
    "sum of two": (7, _MAX, _with_itself("Add")),
    "product of two": (7, _MAX, _with_itself("Mul")),
    "difference of two": (7, _MAX, _with_itself("Sub")),
    "greatest of two": (8, _MAX, _with_itself("Max")),
    "sum of three": (8, _MAX, _several("Sum")),
    "mean of three": (8, _MAX, _several("Mean")),
    "squeeze and excite": (7, _MAX, _squeeze_and_excite),
    "spatial gate": (7, _MAX, _spatial_gate),
    "split and join": (7, _MAX, _split_and_join),
    "slice": (7, _MAX, _slice),
    "joined rows": (7, _MAX, _joined_rows),
    "shuffle": (7, _MAX, _shuffle),
    "shrink and grow": (7, _MAX, _shrink_and_grow),
    "space to depth": (7, _MAX, _space_to_depth),
    "squeeze forms": (7, _MAX, _squeeze_forms),
    "mean of planes": (7, _MAX, _mean_of_planes),
    "mean over channels": (7, _MAX, _mean_over_channels),
    "pad, then average pool": (7, _MAX, _pad_average),
    "relu, then clip": (7, _MAX, _relu_and_clip),
    "plus zero of five axes": (7, _MAX, _plus_zero_of_five_axes),
    "through double": (7, _MAX, _through_double),
    "over its size": (7, _MAX, _over_its_size),
    "expanded": (8, _MAX, _expanded),
    "layer norm of parts": (7, _MAX, _layer_norm_of_parts),
    "bare conv": (7, _MAX, _bare_conv),
    "gathered channels": (7, _MAX, _gathered_channels),
    "channels last inside": (7, _MAX, _channels_last_part),
    "flat and back": (9, _MAX, _flat_and_back),
    "mean of nothing": (18, _MAX, _mean_of_nothing),
    "shape of itself": (7, _MAX, _shape_of_itself),
    "sum with a number first": (7, _MAX, _with_constant("Add", 1, first=True)),
    "greatest with a number": (8, _MAX, _with_constant("Max", 1)),
    "least with channels": (8, _MAX, _with_constant("Min", CHANNELS, 1, 1)),
    "power of a half": (7, _MAX, lambda file: (file.add("Abs"), file.add("Pow", file.last, file.constant(0.5)))),
    "where": (9, _MAX, _where),
    "branch": (11, _MAX, _branch),
}  # fmt: skip
#: These change the plane's size: they come last.
RESIZING: Final = {"pad, then conv", "pad by a number", "pad by reflection", "pad by the edge", "max pool, up", "average pool, up",
    "average pool, up, counted", "conv, same upper", "conv, valid", "conv, wide padding", "conv, asymmetric"}  # fmt: skip


# --- ways to end: from a plane to the answer, whose shape they return -------------------------------------------------


def _dense(file: File, ins: int, **attributes: object) -> list[int]:
    file.add("Gemm", file.last, file.weight(CLASSES, ins), file.weight(CLASSES, spread=0.3), transB=1, **attributes)
    return [1, CLASSES]


def _pooled_gemm(file: File) -> list[int]:
    file.add("GlobalAveragePool")
    file.add("Flatten")
    return _dense(file, CHANNELS, alpha=0.7, beta=1.5)


def _flat_gemm(file: File) -> list[int]:
    """A plane of 3 x 3 in one row, by a Reshape with 0 and -1."""
    file.add("AveragePool", kernel_shape=[3, 3], strides=[3, 3])
    file.add("MaxPool", kernel_shape=[1, 2])
    file.add("GlobalMaxPool")
    file.add("Reshape", file.last, file.ints(0, -1))
    return _dense(file, CHANNELS)


def _mean_matmul(file: File) -> list[int]:
    _reduce(file, "ReduceMean", [-1, -2] if file.opset >= 11 else [3, 2], keepdims=0)
    file.add("MatMul", file.last, file.weight(CHANNELS, CLASSES, spread=0.4))
    file.add("Add", file.last, file.weight(CLASSES))
    return [1, CLASSES]


def _transposed_gemm(file: File) -> list[int]:
    """A Gemm that transposes its first input, of one row, twice."""
    file.add("GlobalMaxPool")
    file.with_numbers("Squeeze", 13, "axes", [2, 3])
    file.add("Transpose", perm=[1, 0])
    file.add("Gemm", file.last, file.weight(CHANNELS, CLASSES), file.weight(CLASSES, spread=0.3), transA=1)
    return [1, CLASSES]


def _softmax_end(file: File) -> list[int]:
    _pooled_gemm(file)
    file.add("Softmax", axis=-1 if file.opset >= 11 else 1)
    return [1, CLASSES]


def _sigmoid_end(file: File) -> list[int]:
    _mean_matmul(file)
    file.add("Sigmoid")
    return [1, CLASSES]


def _squeezed_end(file: File) -> list[int]:
    conv(file, CLASSES, CHANNELS, 1)
    file.add("GlobalAveragePool")
    file.add("Squeeze")
    return [CLASSES]


def _map_end(file: File) -> None:
    conv(file, CLASSES, CHANNELS, 1)


def _norm_end(file: File) -> list[int]:
    _pooled_gemm(file)
    parts = [file.constant(np.linspace(0.5, 1.5, CLASSES)), *(file.weight(CLASSES, spread=0.3) for _ in range(2))]
    file.add("BatchNormalization", file.last, *parts, file.constant(np.linspace(1.5, 0.5, CLASSES)))
    return [1, CLASSES]


def _two_products(file: File) -> list[int]:
    """Two Gemms with a Relu between, and a third output of the operators, which nothing reads."""
    file.add("GlobalAveragePool")
    file.add("Flatten", axis=-3 if file.opset >= 11 else 1)
    file.add("Gemm", file.last, file.weight(8, CHANNELS), file.weight(1, 8, spread=0.3), transB=1)
    file.add("Relu")
    file.add("Gemm", file.last, file.weight(8, CLASSES), file.constant(0.25), beta=2.0)
    x = file.last
    file.add("ArgMax", x, axis=1)
    file.last = x
    return [1, CLASSES]


def _sum_end(file: File) -> list[int]:
    """The mean of two products, as distilled transformers have it."""
    file.add("GlobalAveragePool")
    flat = file.add("Flatten")
    a = file.add("Gemm", flat, file.weight(CHANNELS, CLASSES), file.weight(CLASSES, spread=0.3))
    b = file.add("Gemm", flat, file.weight(CHANNELS, CLASSES), file.weight(CLASSES, spread=0.3))
    file.add("Add", a, b)
    file.add("Div", file.last, file.constant(2.0))
    return [1, CLASSES]


def _reduced_sum(file: File) -> list[int]:
    """Sums of planes, and their square roots."""
    conv(file, CLASSES, CHANNELS, 1)
    file.add("Abs")
    file.with_numbers("ReduceSum", 13, "axes", [2, 3], keepdims=0)
    file.add("Sqrt")
    return [1, CLASSES]


ENDS: Final[dict[str, Callable[[File], list[int] | None]]] = {
    "pooled gemm": _pooled_gemm,
    "flat gemm": _flat_gemm,
    "mean, matmul": _mean_matmul,
    "transposed gemm": _transposed_gemm,
    "softmax": _softmax_end,
    "sigmoid": _sigmoid_end,
    "squeezed": _squeezed_end,
    "map": _map_end,
    "norm": _norm_end,
    "two products": _two_products,
    "mean of two": _sum_end,
    "sums": _reduced_sum,
}


# --- networks that take no pictures -----------------------------------------------------------------------------------


def vectors(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """A perceptron with a batch norm over [N, C], its batch of any size."""
    file = File(["n", 12], opset, opset, ir=7)
    for outs, ins in ((10, 12), (8, 10)):
        file.add("MatMul", file.last, file.weight(ins, outs, spread=ins**-0.5))
        file.add("Add", file.last, file.weight(outs, spread=0.3))
        parts = [file.constant(np.linspace(0.5, 1.5, outs)), *(file.weight(outs, spread=0.3) for _ in range(2))]
        file.add("BatchNormalization", file.last, *parts, file.constant(np.linspace(1.5, 0.5, outs)))
        file.add("LeakyRelu", alpha=0.1)
    _dense(file, 8)
    return file.model(["n", CLASSES]), [12]


def rows(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """Products of [1, T, C], a norm of parts, and the mean of the rows."""
    file = File([1, 7, 12], opset, opset, ir=6)
    file.add("MatMul", file.last, file.weight(12, 16, spread=0.3))
    x = file.add("Add", file.last, file.weight(16, spread=0.3))
    _reduce(file, "ReduceMean", [-1], keepdims=1)
    centred = file.add("Sub", x, file.last)
    file.add("Pow", centred, file.constant(2.0))
    _reduce(file, "ReduceMean", [-1], keepdims=1)
    file.add("Add", file.last, file.constant(1e-5))
    file.add("Sqrt")
    file.add("Div", centred, file.last)
    file.add("Mul", file.last, file.constant(file.random.uniform(0.5, 1.5, 16)))
    file.add("Add", file.last, file.weight(16, spread=0.2))
    file.add("MatMul", file.last, file.weight(16, 10, spread=0.3))
    file.add("Add", file.last, file.weight(10, spread=0.3))
    _reduce(file, "ReduceMean", [1], keepdims=0)
    _dense(file, 10)
    return file.model([1, CLASSES]), [7, 12]


def grey(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """A grey picture with its channels last, in one row at once."""
    file = File([1, 6, 8, 1], opset, opset, ir=5)
    file.add("Reshape", file.last, file.ints(-1, 48))
    file.add("Gemm", file.last, file.weight(48, 9, spread=0.15), file.weight(9, spread=0.3))
    file.add("Tanh")
    _dense(file, 9)
    return file.model([1, CLASSES]), [6, 8, 1]


#: What `planes` strings together, as `FEATURES`.
PLANES: Final[dict[str, tuple[int, int, Feature]]] = {
    "linear up and down": (10, _MAX, _linear_up_and_down),
    "conv transposed, phases": (7, _MAX, _transposed_conv_of_phases),
    "group norm of parts": (7, _MAX, _group_norm_of_parts),
    "channels last block": (17, _MAX, _channels_last_block),
    "rows and columns": (7, _MAX, _rows_and_columns),
    "quotient of two": (7, _MAX, _quotient),
}  # fmt: skip


def planes(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """Norms, resizing, transposed convolutions and gates of a picture, one behind the other."""
    file = File([1, 3, SIDE, SIDE + 2], opset, opset, ir=8)
    conv(file, CHANNELS, 3)
    for since, until, feature in PLANES.values():
        if since <= opset <= until:
            feature(file)
            conv(file, CHANNELS, CHANNELS, kernel=1)
            file.add("Relu")
    return file.model(_pooled_gemm(file)), [SIDE, SIDE + 2, 3]


def lines(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """Sound: convolutions, pooling and a skip connection along one axis."""
    file = File([1, 2, 48], opset, opset, ir=7)
    wide = file.add("Conv", file.last, file.weight(8, 2, 5), file.weight(8, spread=0.3), strides=[2], pads=[2, 2])
    file.add("Conv", wide, file.weight(8, 4, 3), dilations=[2], pads=[2, 2], group=2)
    file.add("Relu", file.add("Add", file.last, wide))
    file.add("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])
    file.add("ConvTranspose", file.last, file.weight(8, 6, 4), strides=[2], pads=[1, 1])
    file.add("Concat", file.last, wide, axis=1)
    file.add("GlobalAveragePool")
    file.add("Flatten")
    _dense(file, 14)
    return file.model([1, CLASSES]), [2, 48]


def tokens(opset: int) -> tuple[onnx.ModelProto, list[int]]:
    """Token ids, their rows, a product of these, and the mean."""
    file = File([1, 9], opset, opset, ir=8, element=TensorProto.INT64)
    file.add("Gather", file.weight(TOKENS, 16, spread=1.0), "x")
    file.add("MatMul", file.last, file.weight(16, 12, spread=0.3))
    file.add("Add", file.last, file.weight(12, spread=0.3))
    _reduce(file, "ReduceMean", [1], keepdims=0)
    _dense(file, 12)
    return file.model([1, CLASSES]), [9]


TOKENS: Final = 30
OTHERS: Final = (planes, lines, vectors, rows, grey, tokens)


def sample(shape: list[int], random: np.random.Generator) -> NDArray[np.float32]:
    """Of noise whose size and mean vary, stored layout; of token ids where the shape is that of `tokens`."""
    if shape == [9]:
        return random.integers(0, TOKENS, shape).astype(np.float32)
    return (random.normal(size=shape) * random.uniform(0.3, 2) + 2 * random.normal(size=shape[-1])).astype(np.float32)
