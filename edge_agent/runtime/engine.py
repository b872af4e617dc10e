"""One plan's head, ready for frames: preprocessing, integer head, codec.

Blocking code for one thread at a time; no network.

A plan comes from a server, so before a frame is touched the engine checks that it obeys the demand
(`planning.plan_check`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_agent.inputs.sources import Text, is_array, load_array
from edge_agent.planning.plan_check import check_plan
from edge_agent.runtime.answer_reuse import Comparison, KeptAnswer
from splitedge import codec, errors, limits
from splitedge.codec import padding_mask
from splitedge.head import answers, executor, image_formats, preprocess, segment
from splitedge.head import text as texts
from splitedge.head.preprocess import Placement
from splitedge.head.text import Tokenizer
from splitedge.protocol.messages import Demand, Plan, Preprocess

InputFrame: TypeAlias = bytes | str | Image.Image | NDArray[np.generic]
"""One frame: the bytes of an image file, a text, a Pillow image, uint8 pixels [H, W, 3], or an array of the model's
input shape: float32, or token ids.

A ``str`` is a text. `Agent.infer` refuses one that names an existing file, unless it is an
`edge_agent.inputs.sources.Text`.
"""

Choose: TypeAlias = Callable[[], int]
"""Chooses the rung of the ladder for the frame that is encoded now."""

Compare: TypeAlias = Callable[[NDArray[Any]], Comparison]
"""Compares the head's output with the kept answer's frame."""


_UNIT: Final = Placement(0.0, 0.0, 1.0, 1.0)


class Encoded(NamedTuple):
    """A frame after head and codec.

    ``codes`` is the head's output: uint8 or float32. ``payload`` is empty in mode "device", and where the frame reuses
    an answer. ``placement``: where the model's input is over the caller's image.
    """

    codes: NDArray[Any]
    payload: bytes
    rung: int
    preprocess_ms: float
    head_ms: float
    encode_ms: float
    comparison: Comparison | None = None
    placement: Placement = _UNIT

    @property
    def reused(self) -> KeptAnswer | None:
        """The answer that this frame reuses; it then is not sent."""
        return self.comparison.reused if self.comparison is not None else None


class Engine:
    """The head of ``plan`` on ``threads``. ``data`` is its segment file. Without a ``tokenizer`` it refuses texts.

    The constructor parses, verifies and warms the head, and checks it against its golden vector. Raises
    `errors.SegmentError` for an invalid segment, and `errors.PlanError` for a plan that does not fit the segment or
    breaks ``demand``.
    """

    def __init__(
        self, plan: Plan, data: bytes, demand: Demand, threads: int = 1, tokenizer: Tokenizer | None = None
    ) -> None:
        self.plan, self._tokenizer = plan, tokenizer
        self._head = executor.load(data, threads)
        check_plan(plan, self._head.header, demand)
        self._input, self._output = self._head.input, self._head.output
        coded = plan.preprocess.kind == "image" and self._input.dtype == "u8"
        self._table = preprocess.code_table(plan.preprocess, self._input) if coded else None
        tensor = self._input
        self._exact = codec.exact(tensor.scale, tensor.zero_point) if tensor.dtype == "u8" else None
        self.codec = plan.codec
        zeros = np.zeros(self._output.shape, segment.DTYPES[self._output.dtype])
        for rung in range(len(plan.ladder)):  # compiles each codec, and refuses one that does not fit
            self._encode(zeros, rung)

    def process(self, frame: InputFrame, choose: Choose | None = None, compare: Compare | None = None) -> Encoded:
        """Preprocess ``frame``, run the head, and encode with the rung that ``choose`` returns after the head; without
        it, with the plan's first codec.

        Tokenizing is part of preprocessing. ``compare`` sees the head's output first; a frame that reuses an answer is
        not encoded. Its time counts as ``encode_ms``. Raises `errors.InputError` for a frame that does not fit the
        model, and `errors.PlatformError` for a text if the tokenizers library is missing.
        """
        start = time.perf_counter()
        codes, place = self._codes(frame)
        return self._run(codes, start, choose, compare)._replace(placement=place)

    def resume(self, x: NDArray[np.float32], choose: Choose | None = None) -> Encoded:
        """As `process`, for the decoded tensor of the board before: float32 in the segment's input shape.

        ``preprocess_ms`` is its conversion to codes.

        The codes are clamp(rint((x - lo) x (1 / scale))), with lo the value of code 0 and each step in float32. A
        tensor that was sent as its codes keeps them.
        """
        start = time.perf_counter()
        codes: NDArray[Any] = x
        if self._exact is not None:
            codes = np.frombuffer(codec.encode(x, self._exact), np.uint8).reshape(x.shape)
        return self._run(codes, start, choose)

    def output(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """The model's output for the head's output ``codes`` in mode "device": float32, in ONNX order without the batch
        axis.
        """
        values = codes
        if self._output.dtype != "f32":
            values = (codes.astype(np.float32) - np.float32(self._output.zero_point)) * np.float32(self._output.scale)
        return answers.to_onnx_order(values, self.plan.output)

    def _run(self, codes: NDArray[Any], start: float, choose: Choose | None, compare: Compare | None = None) -> Encoded:
        prepared = time.perf_counter()
        out = self._head.run(codes)
        done = time.perf_counter()
        found = None if compare is None else compare(out)
        rung, payload = self.codec, b""
        if found is None or found.reused is None:
            rung = self.codec if choose is None else choose()
            payload = self._encode(out, rung)
            if self.plan.cut.padding is not None:
                payload += padding_mask.pack(codes, self.plan.cut.padding)
        end = time.perf_counter()
        return Encoded(out, payload, rung, 1e3 * (prepared - start), 1e3 * (done - prepared), 1e3 * (end - done), found)

    def _encode(self, codes: NDArray[Any], rung: int) -> bytes:
        if self.plan.mode == "device":
            return b""
        if self._output.dtype == "f32":
            return codec.encode(codes, self.plan.ladder[rung])
        return codec.encode_codes(codes, self._output.scale, self._output.zero_point, self.plan.ladder[rung])

    def _codes(self, frame: InputFrame) -> tuple[NDArray[Any], Placement]:
        """The head's input for ``frame``, and its place over the frame's image or array."""
        spec = self.plan.preprocess
        whole = Placement(0.0, 0.0, spec.shape[1], spec.shape[0]) if len(spec.shape) == 3 else _UNIT
        if isinstance(frame, str):
            frame = self._ids(frame)
        if self._input.dtype != "u8" and (spec.kind == "tensor" or _holds_values(frame)):
            return _values(frame, self._input, self.plan.tokenizer is not None), whole
        if isinstance(frame, np.ndarray):
            if list(frame.shape) == spec.shape and frame.dtype == np.float32:
                return preprocess.quantize_tensor(frame, self._input), whole
            if spec.kind == "tensor" or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise _wrong_tensor(frame, spec.shape, spec.kind)
            frame = Image.fromarray(frame)
        if spec.kind == "tensor":
            raise errors.InputError(
                f"the model takes a float32 tensor of shape {spec.shape}, not an image; send an array",
                reason="no-image",
            )
        pixels, place = _pixels(frame, spec)
        if self._table is None:
            return preprocess.normalise(pixels, spec), place
        return preprocess.pixels_to_codes(pixels, self._table), place

    def _ids(self, text: str) -> NDArray[np.int32]:
        """The token ids of ``text``. Raises as `process` does."""
        if self._tokenizer is not None:
            return self._tokenizer.ids(text)
        if self.plan.tokenizer is not None:
            raise texts.missing()
        if self._input.dtype == "i32":
            raise errors.InputError(
                "the model was added without a tokenizer and takes no text; send token ids, or add it again with "
                "--tokenizer",
                reason="no-tokenizer",
            )
        raise errors.InputError(
            f"the model takes no text; send {_ACCEPTED[self.plan.preprocess.kind]}", reason="no-text"
        )


_ACCEPTED: Final = {
    "image": "an image (the bytes of its file or, in Python, its pathlib.Path)",
    "tensor": "an array (in Python also the pathlib.Path of a .npy file)",
}


def frame_of(data: bytes | str, name: str, plan: Plan | None) -> InputFrame:
    """The frame in a file's or a message's ``data``: an array, else a text if ``plan`` takes texts, else an image.

    Raises `errors.InputError`.
    """
    if isinstance(data, bytes) and is_array(data):
        return load_array(data, name)
    if isinstance(data, bytes) and plan is not None and plan.tokenizer is not None:
        return Text(texts.decode(data))
    return data


def frame_bytes(frame: InputFrame) -> int:
    """The memory that ``frame`` holds, in bytes."""
    if isinstance(frame, Image.Image):
        return frame.width * frame.height * len(frame.getbands())
    if isinstance(frame, str):
        return len(frame.encode(errors="replace"))
    return frame.nbytes if isinstance(frame, np.ndarray) else len(frame)


def _holds_values(frame: InputFrame) -> bool:
    """Whether ``frame`` is an array of values, not of pixels."""
    return isinstance(frame, np.ndarray) and frame.dtype != np.uint8


def _values(frame: InputFrame, tensor: segment.Tensor, text: bool) -> NDArray[Any]:
    """The input of a head that takes float32 values or int32 token ids.

    ``text``: the model takes texts too. Raises `errors.InputError`.
    """
    ids = tensor.dtype == "i32"
    if not isinstance(frame, np.ndarray):
        wanted, send = ("integer token ids", "token ids as an array") if ids else ("an array", "an array")
        wanted, send = (f"text or {wanted}", f"a text, or {send}") if text else (wanted, send)
        raise errors.InputError(
            f"the model takes {wanted} of shape {tensor.shape}, not an image; send {send}", reason="no-image"
        )
    fits = np.issubdtype(frame.dtype, np.integer) if ids else frame.dtype == np.float32
    if list(frame.shape) != tensor.shape or not fits:
        raise _wrong_tensor(frame, tensor.shape, "tensor", "integer token ids" if ids else "float32")
    if ids:
        # The head refuses -1 and every unknown id.
        return np.clip(frame, -1, np.iinfo(np.int32).max).astype(np.int32)
    if not np.isfinite(frame).all():
        raise errors.InputError("the frame holds NaN or infinity; check its source", reason="not-finite")
    return frame


def _pixels(frame: bytes | Image.Image, spec: Preprocess) -> tuple[NDArray[np.uint8], Placement]:
    """The pixels of the model's input, and its place over the image.

    Raises `errors.InputError` for bytes that are not an image, or an image that cannot be resized.
    """
    try:
        image = preprocess.load_image(frame) if isinstance(frame, bytes) else image_formats.eight_bits(frame)
        if spec.fit == "crop" and math.prod(preprocess.resized(image, spec)) > limits.MAX_IMAGE_PIXELS:
            raise errors.InputError(
                f"an image of {image.width} x {image.height} pixels is too narrow for this model; crop it",
                reason="too-narrow",
            )
        return preprocess.prepare_image(image, spec), preprocess.placement(image.size, spec)
    except errors.InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types: KeyError, struct.error, OverflowError, ...
        raise errors.InputError(
            f"this image cannot be read ({type(error).__name__}); save it again as JPEG or PNG", reason="undecodable"
        ) from error


def _wrong_tensor(
    frame: NDArray[np.generic], shape: list[int], kind: str, wanted: str = "float32"
) -> errors.InputError:
    also = " or a uint8 picture [H, W, 3]" if kind == "image" else ""
    return errors.InputError(
        f"the frame is {frame.dtype} of shape {list(frame.shape)}, the model takes {wanted} of shape {shape}{also}",
        shape=list(frame.shape),
        wanted=shape,
        dtype="float32" if wanted == "float32" else "int32",
        reason="other-frame",
    )
