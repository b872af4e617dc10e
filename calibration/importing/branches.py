"""Replaces an If whose condition is constant with the branch that it takes.

ONNX Runtime does so too, and ends the process for some branches whose condition depends on an input that became a
constant (versions up to 1.31, silero-vad).
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from calibration.importing.graph import in_order, reads, rename
from calibration.importing.sessions import unoptimized


def take_constant(model: onnx.ModelProto) -> None:
    """Inline the branch of every If in ``model`` whose condition no input changes, also of those within it."""
    graph = model.graph
    while True:
        known = {t.name for t in graph.initializer}
        for node in graph.node:
            if all(t in known for t in reads(node) if t) and node.op_type != "If":
                known |= set(node.output)
        chosen = next((n for n in graph.node if n.op_type == "If" and n.input[0] in known), None)
        if chosen is None:
            return
        _inline(graph, chosen, _value(model, chosen.input[0]))


def _value(model: onnx.ModelProto, name: str) -> bool:
    """The value of the constant tensor ``name``."""
    wanted, needed = {name}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(reads(node))
            needed.append(node)
    out = helper.make_tensor_value_info(name, TensorProto.BOOL, None)
    constants = [t for t in model.graph.initializer if t.name in wanted]
    graph = helper.make_graph(needed[::-1], "condition", [], [out], constants)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bool(unoptimized(made).run(None, {})[0].reshape(()))


def _inline(graph: onnx.GraphProto, node: onnx.NodeProto, condition: bool) -> None:
    """Replace ``node`` with its branch. A branch may answer with a tensor from outside."""
    branch = onnx.GraphProto()
    wanted = "then_branch" if condition else "else_branch"
    branch.CopyFrom(next(a.g for a in node.attribute if a.name == wanted))
    made = {t for inner in branch.node for t in inner.output} | {t.name for t in branch.initializer}
    taken = {t for outer in graph.node for t in outer.output} | {t.name for t in graph.initializer}
    for name in made & taken:
        rename(branch, name, f"{node.output[0]}@{name}")
        for tensor in (*branch.initializer, *branch.output):
            tensor.name = f"{node.output[0]}@{name}" if tensor.name == name else tensor.name
    place = list(graph.node).index(node)
    ends = [
        helper.make_node("Identity", [inner.name], [out], f"{out}@branch")
        for inner, out in zip(branch.output, node.output, strict=True)
        if out
    ]
    nodes = [*list(graph.node)[:place], *branch.node, *ends, *list(graph.node)[place + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(branch.initializer)
    in_order(graph)
