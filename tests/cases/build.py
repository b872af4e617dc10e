"""ONNX files built by hand, each operator in the form that its version of ONNX has: what exporters of many years wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

#: Newest IR version that every supported ONNX Runtime reads.
NEWEST_IR = 10


class File:
    """A file in the making: ``add`` appends an operator to the last tensor, ``constant`` and ``weight`` store numbers.

    ``listed``: constants are inputs too, as in files of IR 3. ``as_nodes``: constants are Constant operators.
    """

    def __init__(
        self,
        shape: Sequence[int | str],
        seed: int = 0,
        opset: int = 17,
        ir: int = 8,
        domain: str = "",
        listed: bool = False,
        as_nodes: bool = False,
        element: int = TensorProto.FLOAT,
    ) -> None:
        self.random, self.opset = np.random.default_rng(seed), opset
        self.last = "x"
        self._shape, self._element, self._ir, self._domain = list(shape), element, ir, domain
        self._listed, self._as_nodes = listed, as_nodes
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def constant(self, value: object, dtype: Any = np.float32) -> str:
        name, array = self.name(), np.asarray(value, dtype)
        if self._as_nodes:
            self._nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self._constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int, spread: float | None = None) -> str:
        fan = max(1, int(np.prod(shape[1:])))
        return self.constant(self.random.normal(size=shape) * (fan**-0.5 if spread is None else spread))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Appends ``op`` to ``inputs``, or to the last tensor; returns its first output, which is then the last tensor."""
        names = [self.name() for _ in range(outputs)]
        self._nodes.append(
            helper.make_node(op, list(inputs) or [self.last], names, f"n{len(self._nodes)}", **attributes)
        )
        self.last = names[0]
        return self.last

    def outputs(self) -> list[str]:
        """All outputs of the last operator."""
        return list(self._nodes[-1].output)

    def with_numbers(self, op: str, since: int, name: str, values: Sequence[int], **attributes: Any) -> str:
        """``op`` with whole numbers ``name``, an input of operator sets from ``since`` on and an attribute before."""
        if self.opset < since:
            return self.add(op, self.last, **{name: list(values)}, **attributes)
        return self.add(op, self.last, self.ints(*values), **attributes)

    def model(
        self, shape: Sequence[int | str] | None, element: int = TensorProto.FLOAT, more: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """The file, which answers with the last tensor, of ``shape``; ``more`` are outputs beside it."""
        entries = [helper.make_tensor_value_info("x", self._element, self._shape)]
        if self._listed:
            entries += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self._constants]
        outputs = [helper.make_tensor_value_info(self.last, element, shape)]
        outputs += [helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in more]
        graph = helper.make_graph(self._nodes, "g", entries, outputs, self._constants)
        opsets = [helper.make_opsetid(self._domain, self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._ir)


def unoptimized(model: onnx.ModelProto, x: NDArray[np.generic], output: str | None = None) -> NDArray[Any]:
    """What ONNX Runtime answers to ``x`` with every graph optimization off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answer: NDArray[Any] = made.run([output or made.get_outputs()[0].name], {"x": x})[0]
    return answer
