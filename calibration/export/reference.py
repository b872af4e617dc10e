"""The reference network: `python -m calibration.export.reference [FOLDER]` writes its files for all backends.

`edge-agent profile` runs it to compare backends. Its weights are seeded noise, so only its speed means something. It
has the operators of a small convolutional network, 10 million products, and files of 60 kB.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.export import whole
from calibration.importing.importer import batched, simplify
from splitedge.errors import SplitEdgeError

#: Where the package keeps the files.
FOLDER: Final = Path(__file__).parents[2] / "edge_agent/backends/reference"
FILES: Final = (whole.SEGMENT, whole.INT8_ONNX, whole.TFLITE)
_SIZE: Final = 96
#: Output channels of the pointwise convolutions, and the stride of the depthwise one before each.
_BLOCKS: Final = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
_CLASSES: Final = 10


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        (folder / name).write_bytes(data)


def files() -> dict[str, bytes]:
    """The files by name. Raises `SplitEdgeError` if one cannot be made."""
    made = whole.make(batched(simplify(model())))
    found = {}
    for name in FILES:
        data = made[name]
        if isinstance(data, SplitEdgeError):
            raise data
        found[name] = data
    return found


def model() -> onnx.ModelProto:
    """The float network: [1, 3, 96, 96] to [1, 10]."""
    net = _Net()
    net.conv(16, 3, kernel=3, stride=2)
    channels = 16
    for outs, stride in _BLOCKS:
        before = net.last
        net.conv(channels, channels, kernel=3, stride=stride, groups=channels)
        net.conv(outs, channels)
        if outs == channels and stride == 1:
            net.add("Add", before, net.last)
        channels = outs
    net.add("GlobalAveragePool", net.last)
    net.add("Flatten", net.last)
    net.add("Gemm", net.last, net.weight(_CLASSES, channels), net.weight(_CLASSES, spread=0.1), transB=1)
    return net.model()


class _Net:
    """A graph that grows at its end."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(17)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.last = "x"

    def weight(self, *shape: int, spread: float | None = None) -> str:
        scale = spread or np.sqrt(2 / np.prod(shape[1:]))
        values: NDArray[np.float32] = (scale * self._random.normal(size=shape)).astype(np.float32)
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> None:
        self.last = f"t{len(self._nodes)}"
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [self.last], name, **attributes))

    def conv(self, outs: int, ins: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        """A convolution with TensorFlow's SAME padding, and its ReLU."""
        total = kernel - stride if kernel > 1 else 0
        pads = [total // 2] * 2 + [total - total // 2] * 2
        weight, bias = self.weight(outs, ins // groups, kernel, kernel), self.weight(outs, spread=0.1)
        self.add(
            "Conv", self.last, weight, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=groups
        )
        self.add("Relu", self.last)

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, _SIZE, _SIZE])
        y = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, [1, _CLASSES])
        graph = helper.make_graph(self._nodes, "reference", [x], [y], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


if __name__ == "__main__":
    main()
