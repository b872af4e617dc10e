"""One plan's head, ready for frames: preprocess, integer head, codec. Blocking code for one thread at a time; no network.

The plan comes from a server, so before a frame is touched the engine checks that it keeps what the demand wants kept on the device.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_agent.inputs.sources import Text, is_array, load_array
from edge_agent.runtime.answer_reuse import Kept, Seen
from splitedge import codec, errors, limits
from splitedge.codec import padding_mask
from splitedge.head import answers, executor, image_formats, preprocess, segment
from splitedge.head import text as texts
from splitedge.head.text import Tokenizer
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import Demand, Plan, Preprocess

Frame: TypeAlias = bytes | str | Image.Image | NDArray[np.generic]
"""The bytes of an image file, a text, a decoded image, a uint8 [H, W, 3] picture, or the model's input of exactly its shape: float32, or integer token ids.

A ``str`` is a text. `edge_agent.runtime.agent.Agent.infer` refuses one that names an existing file, unless it is an `edge_agent.inputs.sources.Text`.
"""


class Encoded(NamedTuple):
    """A frame after the head. ``codes`` are the output's (uint8 or float32, its shape); ``payload`` is empty in mode "device", and where the answer of a
    frame ``seen`` before serves.
    """

    codes: NDArray[Any]
    payload: bytes
    rung: int
    preprocess_ms: float
    head_ms: float
    encode_ms: float
    seen: Seen | None = None

    @property
    def kept(self) -> Kept | None:
        """The answer that serves this frame, which then is not sent."""
        return self.seen.kept if self.seen is not None else None


class Engine:
    """The head of ``plan``. ``data`` is its segment file, ``tokenizer`` the plan's, without which texts are refused.

    ``threads`` work on one frame. Building one parses, verifies, proves by the golden vector and warms the head. Raises `errors.SegmentError` for a segment that fails, and
    `errors.PlanError` for a plan that does not fit the segment or breaks ``demand``.
    """

    def __init__(
        self, plan: Plan, data: bytes, demand: Demand, threads: int = 1, tokenizer: Tokenizer | None = None
    ) -> None:
        self.plan, self._tokenizer = plan, tokenizer
        self._head = executor.load(data, threads)
        header = self._head.header
        check_plan(plan, header, demand)
        self._input, self._output = self._head.input, self._head.output
        coded = plan.preprocess.kind == "image" and self._input.dtype == "u8"
        self._table = preprocess.code_table(plan.preprocess, self._input) if coded else None
        tensor = self._input
        self._exact = codec.exact(tensor.scale, tensor.zero_point) if tensor.dtype == "u8" else None
        self.codec = plan.codec
        zeros = np.zeros(self._output.shape, segment.DTYPES[self._output.dtype])
        for rung in range(len(plan.ladder)):  # compiles, and refuses a codec that does not fit
            self._encode(zeros, rung)

    def process(
        self,
        frame: Frame,
        choose: Callable[[], int] | None = None,
        look: Callable[[NDArray[Any]], Seen] | None = None,
    ) -> Encoded:
        """``frame`` through preprocessing, head and the codec of the rung that ``choose`` returns once the head is done, else the one to start with.

        A text's tokens are part of preprocessing. ``look`` sees the head's output before that; where it finds an answer that serves, nothing is chosen and coded. Its time is part of
        ``encode_ms``. Raises `errors.InputError` for a frame that does not fit the model, `errors.PlatformError` for a text where its library is missing.
        """
        start = time.perf_counter()
        return self._run(self._codes(frame), start, choose, look)

    def _run(
        self,
        codes: NDArray[Any],
        start: float,
        choose: Callable[[], int] | None,
        look: Callable[[NDArray[Any]], Seen] | None = None,
    ) -> Encoded:
        prepared = time.perf_counter()
        out = self._head.run(codes)
        done = time.perf_counter()
        seen = None if look is None else look(out)
        rung, payload = self.codec, b""
        if seen is None or seen.kept is None:
            rung = self.codec if choose is None else choose()
            payload = self._encode(out, rung)
            if self.plan.cut.padding is not None:
                payload += padding_mask.pack(codes, self.plan.cut.padding)
        end = time.perf_counter()
        return Encoded(out, payload, rung, 1e3 * (prepared - start), 1e3 * (done - prepared), 1e3 * (end - done), seen)

    def resume(self, x: NDArray[np.float32], choose: Callable[[], int] | None = None) -> Encoded:
        """As `process`, of what the stage before has sent: float32 in the shape of the segment's input, for which ``preprocess_ms`` tells the way to codes.

        Codes are clamp(rint((x - lo) x (1 / scale))) with lo the value of code 0, each step in float32: for a tensor that was sent as its codes, the same.
        """
        start = time.perf_counter()
        codes: NDArray[Any] = x
        if self._exact is not None:
            codes = np.frombuffer(codec.encode(x, self._exact), np.uint8).reshape(x.shape)
        return self._run(codes, start, choose)

    def output(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """The model's output that ``codes`` stand for in mode "device": float32, in ONNX order without the batch axis."""
        values = codes
        if self._output.dtype != "f32":
            values = (codes.astype(np.float32) - np.float32(self._output.zero_point)) * np.float32(self._output.scale)
        return answers.to_onnx_order(values, self.plan.output)

    def _encode(self, codes: NDArray[Any], rung: int) -> bytes:
        if self.plan.mode == "device":
            return b""
        if self._output.dtype == "f32":
            return codec.encode(codes, self.plan.ladder[rung])
        return codec.encode_codes(codes, self._output.scale, self._output.zero_point, self.plan.ladder[rung])

    def _codes(self, frame: Frame) -> NDArray[Any]:
        spec = self.plan.preprocess
        if isinstance(frame, str):
            frame = self._ids(frame)
        if self._input.dtype != "u8" and (spec.kind == "tensor" or _holds_values(frame)):
            return _values(frame, self._input, self.plan.tokenizer is not None)
        if isinstance(frame, np.ndarray):
            if list(frame.shape) == spec.shape and frame.dtype == np.float32:
                return preprocess.quantize_tensor(frame, self._input)
            if spec.kind == "tensor" or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise _wrong_tensor(frame, spec.shape, spec.kind)
            frame = Image.fromarray(frame)
        if spec.kind == "tensor":
            raise errors.InputError(
                f"the model takes a float32 tensor of shape {spec.shape}, not an image; send an array"
            )
        pixels = _pixels(frame, spec)
        return (
            preprocess.normalise(pixels, spec)
            if self._table is None
            else preprocess.pixels_to_codes(pixels, self._table)
        )

    def _ids(self, text: str) -> NDArray[np.int32]:
        """What the model takes of ``text``. Raises as `process` does."""
        if self._tokenizer is not None:
            return self._tokenizer.ids(text)
        if self.plan.tokenizer is not None:
            raise texts.missing()
        if self._input.dtype == "i32":
            raise errors.InputError(
                "the model was added without a tokenizer and takes no text; send token ids, or add it again with --tokenizer"
            )
        raise errors.InputError(f"the model takes no text; send {_WANTED[self.plan.preprocess.kind]}")


_MOST_AXES = 8  # of an output
_WANTED = {
    "image": "an image (the bytes of its file or, in Python, its pathlib.Path)",
    "tensor": "an array (in Python also the pathlib.Path of a .npy file)",
}


def _holds_values(frame: Frame) -> bool:
    """Whether ``frame`` is an array that is no picture."""
    return isinstance(frame, np.ndarray) and frame.dtype != np.uint8


def _values(frame: Frame, tensor: segment.Tensor, text: bool) -> NDArray[Any]:
    """``frame`` for a head that takes float32 values or int32 token ids; ``text``: or texts. Raises `errors.InputError`."""
    ids = tensor.dtype == "i32"
    if not isinstance(frame, np.ndarray):
        wanted, send = ("integer token ids", "token ids as an array") if ids else ("an array", "an array")
        wanted, send = (f"text or {wanted}", f"a text, or {send}") if text else (wanted, send)
        raise errors.InputError(f"the model takes {wanted} of shape {tensor.shape}, not an image; send {send}")
    fits = np.issubdtype(frame.dtype, np.integer) if ids else frame.dtype == np.float32
    if list(frame.shape) != tensor.shape or not fits:
        raise _wrong_tensor(frame, tensor.shape, "tensor", "integer token ids" if ids else "float32")
    if ids:
        return np.clip(frame, -1, np.iinfo(np.int32).max).astype(
            np.int32
        )  # the head refuses -1 and what it does not know
    if not np.isfinite(frame).all():
        raise errors.InputError("the frame holds NaN or infinity; look at what made it")
    return frame


def frame_of(data: bytes | str, name: str, plan: Plan | None) -> Frame:
    """What a file or a message holds: an array, else a text where ``plan`` takes texts, else an image. Raises `errors.InputError`."""
    if isinstance(data, bytes) and is_array(data):
        return load_array(data, name)
    if isinstance(data, bytes) and plan is not None and plan.tokenizer is not None:
        return Text(texts.decode(data))
    return data


def frame_bytes(frame: Frame) -> int:
    """How much memory ``frame`` holds, in bytes."""
    if isinstance(frame, Image.Image):
        return frame.width * frame.height * len(frame.getbands())
    if isinstance(frame, str):
        return len(frame.encode(errors="replace"))
    return frame.nbytes if isinstance(frame, np.ndarray) else len(frame)


def check_plan(plan: Plan, header: segment.Header, demand: Demand) -> None:
    """Raise `errors.PlanError` unless ``plan`` is consistent, fits the segment, and sends nothing that ``demand.keep`` wants kept.

    The segment itself is the proof: every operator in it lies before the cut, so a layer that is in it has been passed on the device.
    """
    source = header.tensors[header.input]
    ids = source.dtype == "i32"
    odd = ids if plan.preprocess.kind == "image" else plan.cut.padding is not None and not ids
    odd |= plan.tokenizer is not None and not (ids and len(source.shape) == 1)
    if plan.preprocess != header.preprocess or header.tensors[header.output].shape != plan.cut.shape or odd:
        raise errors.PlanError(
            "the server's plan and its segment do not fit together; ask for a new plan", plan=plan.id
        )
    if not _check_preprocess(plan.preprocess, header.tensors[header.input].shape):
        raise errors.PlanError(
            "the server's plan prepares frames in an impossible way; import the model again", plan=plan.id
        )
    if {"server": "input", "split": "inside", "device": "output"}[plan.mode] != plan.cut.kind:
        raise errors.PlanError(
            "the server's plan names a cut that its mode does not have; upgrade the older side", plan=plan.id
        )
    if demand.mode not in ("any", plan.mode):
        raise errors.PlanError(
            f"the server's plan has the mode {plan.mode!r} and {demand.mode!r} was asked for; upgrade the older side",
            plan=plan.id,
        )
    check_ladder(plan, demand)
    if not _check_output(plan, header.tensors[header.output].shape):
        raise errors.PlanError(
            "the server's plan describes an output that does not fit; upgrade the older side", plan=plan.id
        )
    if len(plan.labels) > limits.MAX_LABELS:
        raise errors.PlanError(f"the server's plan has more than {limits.MAX_LABELS} labels", plan=plan.id)
    if plan.mode != "device" and not _keeps(header, plan, demand.keep):
        raise errors.PlanError(
            f"the server's plan would send {plan.cut.tensor[:100]}, which the demand to keep {demand.keep!r} forbids; the plan is refused",
            plan=plan.id, keep=demand.keep,
        )  # fmt: skip


def _check_output(plan: Plan, shape: list[int]) -> bool:
    """Whether the output that ``plan`` describes is one that an answer can hold and, in mode "device", the head's, of ``shape``."""
    output, greatest = plan.output, plan.output.greatest
    axes = [*output.shape, *output.computed]
    bounded = len(axes) <= 2 * _MOST_AXES and all(0 < one <= limits.MAX_DIM for one in axes)
    fits = output.has_classes or 4 * math.prod(output.shape) <= limits.MAX_FRAME_BYTES
    if greatest is not None:
        left = [size for axis, size in enumerate(greatest.shape) if axis != greatest.axis]
        fits &= not output.has_classes and 0 <= greatest.axis < len(greatest.shape)
        fits &= math.prod(left) == math.prod(output.shape)
    return bounded and fits and (plan.mode != "device" or math.prod(output.computed) == math.prod(shape))


def check_ladder(plan: Plan, demand: Demand) -> None:
    """Raise `errors.PlanError` unless the codec that ``plan`` begins with is on its ladder, all of which meets ``demand``, or it sends nothing."""
    if plan.mode == "device":
        return
    if not 0 <= plan.codec < len(plan.ladder):
        raise errors.PlanError(
            "the server's plan names a codec that is not on its ladder; upgrade the older side", plan=plan.id
        )
    if not _consistent(plan, demand.max_drop_points):
        raise errors.PlanError(
            "the server's plan has a ladder that contradicts itself; ask for a new plan", plan=plan.id
        )


def _consistent(plan: Plan, most: float) -> bool:
    """Whether each codec has its rung, which loses ``most`` points at most and is no dearer and no more accurate than the one before.

    The codec that the plan begins with may be less accurate than cheaper ones.
    """
    rungs = plan.rungs
    return (
        len(rungs) == len(plan.ladder) <= limits.MAX_LADDER
        and all(0 < rung.payload_bytes <= limits.MAX_FRAME_BYTES + HEADER_BYTES for rung in rungs)
        and all(0 <= rung.noise < math.inf and math.isfinite(rung.drop_points) for rung in rungs)
        and all(rung.drop_high <= most * (1 + 1e-6) + 1e-6 for rung in rungs)
        and all(a.payload_bytes >= b.payload_bytes for a, b in itertools.pairwise(rungs))
        and all(i == plan.codec or a.noise <= b.noise for (i, a), (_, b) in itertools.combinations(enumerate(rungs), 2))
    )


def _check_preprocess(spec: Preprocess, shape: list[int]) -> bool:
    """Whether ``spec``, which a server sent, makes a head's input of ``shape``, costs bounded memory, and divides by nothing that is zero."""
    if spec.shape != shape or (spec.kind == "image" and len(shape) != 3):
        return False
    if spec.kind == "tensor":
        return True
    channels = shape[-1]
    return (
        channels in (1, 3)
        and 1 <= spec.resize <= limits.MAX_RESIZE
        and len(spec.mean) in (1, channels)
        and len(spec.std) in (1, channels)
        and all(math.isfinite(value) for value in spec.mean)
        and all(math.isfinite(value) and value > 0 for value in spec.std)
    )


def _pixels(frame: bytes | Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """The pixels that the model looks at. Raises `errors.InputError` for bytes that are no image, or one that cannot be resized."""
    try:
        image = preprocess.load_image(frame) if isinstance(frame, bytes) else image_formats.eight_bits(frame)
        if spec.fit == "crop" and math.prod(preprocess.resized(image, spec)) > limits.MAX_IMAGE_PIXELS:
            raise errors.InputError(
                f"an image of {image.width} x {image.height} pixels is too narrow for this model; crop it"
            )
        return preprocess.prepare_image(image, spec)
    except errors.InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet: KeyError, struct.error, OverflowError, ...
        raise errors.InputError(
            f"this image cannot be read ({type(error).__name__}); save it again as JPEG or PNG"
        ) from error


def _keeps(header: segment.Header, plan: Plan, keep: str) -> bool:
    if keep == "nothing":
        return True
    if keep == "input":
        return not segment.only_moves(header)
    return keep == plan.cut.layer or any(op.name == keep for op in header.ops)


def _wrong_tensor(
    frame: NDArray[np.generic], shape: list[int], kind: str, wanted: str = "float32"
) -> errors.InputError:
    also = " or a uint8 picture [H, W, 3]" if kind == "image" else ""
    return errors.InputError(
        f"the frame is {frame.dtype} of shape {list(frame.shape)}, the model takes {wanted} of shape {shape}{also}",
        shape=list(frame.shape), wanted=shape, dtype="float32" if wanted == "float32" else "int32",
    )  # fmt: skip
