"""Checks that a simplified model answers as its file does.

Runs both models on a few inputs, the file without any graph optimization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from calibration.importing.graph import inputs, with_batch
from calibration.importing.sessions import brief, session, unoptimized
from splitedge import errors

F32 = NDArray[np.float32]
Array = NDArray[Any]

#: Maximum difference from the file's answer that rounding may cause, relative to its largest value. The order of
#: float32 sums changes answers of EfficientNet-Lite0 by 1e-6 and those of small networks by at most 2e-5. Wrong
#: rewrites change some answers by one per cent or more.
RELATIVE: Final = 1e-4
#: For an input whose last digits matter (a norm over equal values), the answer may differ by this multiple of their
#: effect.
UNLUCKY: Final = 30.0
#: Maximum distance of a quantized file's answer from that of its float form, relative to the length
#: of all answers.
COARSE: Final = 0.5
#: The same for half precision: deep networks are about 0.01 away.
HALF: Final = 0.1
_LAST_DIGITS: Final = 2e-7
#: Maximum number of values in a batch of the file's own size that is run at once.
_BATCH_VALUES: Final = 1 << 24


@dataclass(frozen=True)
class Reference:
    """The ``answers`` of ``model`` to the inputs ``given``, run without graph optimization.

    Each input is one sample in the model's own layout.
    """

    model: onnx.ModelProto
    given: list[Array]
    answers: list[F32]

    @classmethod
    def of(cls, model: onnx.ModelProto, padding: int = 0) -> Reference:
        """The reference of a model with one input and a batch of 1. Token ids may contain ``padding``.

        Raises `errors.ModelError` if the model does not run, gives two answers to one input, or has an output of
        variable shape.
        """
        given = list(_inputs(model, padding))
        run = _runner(unoptimized(model))
        answers = [run(x) for x in given]
        if not np.allclose(run(given[0]), answers[0], rtol=0, atol=_room(answers[0]), equal_nan=True):
            raise errors.ModelError(
                "the model gives two answers to one input; export it after model.eval(), without random numbers",
                reason="random",
            )
        shapes = {y.shape for y in answers}
        if len(shapes) > 1 or not answers[0].size:
            raise errors.ModelError(
                f"the shape of the model's output {model.graph.output[0].name} depends on the input; "
                "choose a tensor of a fixed shape with --output",
                reason="output-shape",
            )
        return cls(model, given, answers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self.answers[0].shape

    def agrees(self, model: onnx.ModelProto, order: Sequence[int] | None = None) -> bool:
        """Whether ``model``, run in a normal session, gives the reference answers.

        ``order``: permutation from the reference's input axes to those of ``model``; None if they are the same.
        """
        try:
            run = _runner(session(model))
            return all(
                self._near(i, run(x if order is None else np.ascontiguousarray(x.transpose(order))))
                for i, x in enumerate(self.given)
            )
        except Exception:  # an optimizer that breaks the graph: ONNX Runtime raises many types of errors
            return False

    def check_batch(self, size: int) -> None:
        """Check that a batch of ``size``, the file's own, gives the same answers as its samples one by one.

        Raises `errors.ModelError`.
        """
        x = np.concatenate([self.given[i % len(self.given)] for i in range(size)])
        if x.size > _BATCH_VALUES:
            return
        whole = _runner(unoptimized(with_batch(self.model, size)))(x)
        rows = whole.reshape(size, -1) if whole.size == size * self.answers[0].size else None
        if rows is None or not all(self._near(i % len(self.given), row) for i, row in enumerate(rows)):
            raise errors.ModelError(
                f"a batch of {size} gives other answers than its samples alone; export it with a batch of 1",
                reason="batch",
            )

    def _near(self, index: int, found: F32) -> bool:
        wanted = self.answers[index].reshape(-1)
        # an answer with NaN or infinity cannot be compared
        if found.size != wanted.size or not np.isfinite(wanted).all():
            return found.size == wanted.size
        room = _room(wanted)
        difference = float(np.abs(found.reshape(-1) - wanted).max())
        return difference <= room or difference <= room + UNLUCKY * self._moved(index)

    def _moved(self, index: int) -> float:
        """Maximum change of the answer when the last digits of the input change."""
        x = self.given[index]
        if x.dtype != np.float32:
            return 0.0
        signs = np.random.default_rng(index).choice([-1.0, 1.0], x.shape)
        near = (x + _LAST_DIGITS * signs * (np.abs(x) + 1)).astype(np.float32)
        moved = _runner(unoptimized(self.model))(near)
        return float(np.nan_to_num(np.abs(moved - self.answers[index])).max())


def resemble(
    file: onnx.ModelProto,
    floats: onnx.ModelProto,
    codes: Mapping[str, tuple[float, int]],
    taken: int,
) -> bool:
    """Whether ``file``, which rounds to codes or to half precision, answers as ``floats`` does: at most `COARSE` away
    if ``floats`` has codes, else `HALF`.

    Both have one input and a batch of 1. ``codes``: scale and zero point of quantized tensors. If the input has codes,
    the check takes inputs in their range. ``taken``: type of the input in the file, which may take the codes themselves.
    Answers that are not finite, as half precision overflows, are not compared.
    Raises `errors.ModelError` if ONNX Runtime does not run one of them.
    """
    given = own = list(_inputs(floats, 0))
    if (code := codes.get(inputs(floats.graph)[0].name)) is not None:
        levels = np.random.default_rng(0).integers(0, 256, (4, *given[0].shape))
        given = own = [(code[0] * (each - float(code[1]))).astype(np.float32) for each in levels]
        if taken in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            own = [(each - 128.0 * (taken == onnx.TensorProto.INT8)).astype(np.float32) for each in levels]
    runs = [_runner(unoptimized(model)) for model in (file, floats)]
    away = whole = 0.0
    for pair in zip(own, given, strict=True):
        found, wanted = (run(x).astype(np.float64) for run, x in zip(runs, pair, strict=True))
        if found.shape != wanted.shape:
            return False
        known = np.isfinite(found) & np.isfinite(wanted)
        away += float(((found - wanted)[known] ** 2).sum())
        whole += float((wanted[known] ** 2).sum())
    return away <= (COARSE if codes else HALF) ** 2 * max(whole, 1e-12)


def _room(wanted: F32) -> float:
    return RELATIVE * float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0))


def _runner(made: ort.InferenceSession) -> Callable[[Array], F32]:
    name = made.get_inputs()[0].name

    def run(x: Array) -> F32:
        try:
            found: F32 = made.run(None, {name: x})[0]
        except Exception as error:  # ONNX Runtime's errors have no common base below Exception
            raise errors.ModelError(
                f"ONNX Runtime cannot run the model with an input of {list(x.shape)} ({brief(error)}); "
                "export it with a batch of 1",
                reason="cannot-run",
            ) from error
        return found

    return run


def _inputs(model: onnx.ModelProto, padding: int) -> Iterator[Array]:
    """A few inputs of different kinds.

    Noise, pixels from 0 to 1 and from 0 to 255, zeros, and large numbers; or token ids with and without padding.
    """
    entry, random = inputs(model.graph)[0].type.tensor_type, np.random.default_rng(0)
    shape = [dim.dim_value for dim in entry.shape.dim]
    if entry.elem_type == onnx.TensorProto.INT64:
        for kept in (1.0, 1.0, 0.5, 0.1):
            ids = random.integers(0, _rows(model.graph), shape)
            ids[:, max(1, round(kept * shape[1])) :] = padding
            yield ids
        return
    noise, even = random.normal(size=shape), random.uniform(size=shape)
    for values in (noise, even, 255 * even, np.zeros(shape), 50 * noise):
        yield values.astype(np.float32)


def _rows(graph: onnx.GraphProto) -> int:
    """The number of token ids that every embedding table of ``graph`` holds; 2 if no table is indexed by the input."""
    makers = {t: node for node in graph.node for t in node.output}
    sizes = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    found = []
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in sizes:
            ids = node.input[1]
            while ids in makers and makers[ids].op_type in ("Cast", "Identity"):
                ids = makers[ids].input[0]
            found += [sizes[node.input[0]]] if ids == inputs(graph)[0].name else []
    return min(found, default=2)
