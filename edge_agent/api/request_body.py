"""The frame in the body of `POST /v1/infer`.

The body is an image or a .npy array; a UTF-8 text with `Content-Type: text/plain`; or a little-endian tensor with
`X-Shape: 224,224,3`, of float32 or as `X-Dtype: int32` (or int64) says. A form (`curl -F file=@photo.jpg`) holds one of
these as its only file.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

import numpy as np
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from numpy.typing import NDArray

from edge_agent.inputs.sources import Text, is_array, load_array
from splitedge import errors, limits
from splitedge.protocol.messages import Plan

if TYPE_CHECKING:
    from edge_agent.runtime.engine import InputFrame

_DTYPES: Final = ("float32", "int32", "int64")


class BodyTooLargeError(errors.InputError):
    """More bytes than a frame may have."""

    http_status = 413


def declared_size(request: web.Request) -> int:
    """The body's length, or the limit if the client does not declare it. Raises `BodyTooLargeError`."""
    size = request.content_length
    if size is not None and size > limits.MAX_IMAGE_BYTES:
        raise _too_large(size)
    return limits.MAX_IMAGE_BYTES if size is None else size


async def read_frame(request: web.Request, size: int) -> InputFrame:
    """The frame in the body of ``request``, whose declared size is ``size``. Raises `errors.InputError`."""
    from splitedge.head import text as texts

    if "X-Shape" in request.headers:
        return await _tensor(request, size)
    if request.content_type.startswith("multipart/"):
        return await _form(request)
    if request.content_type == "text/plain":
        if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
            raise texts.not_unicode()
        if request.content_length is not None and size > limits.MAX_TEXT_BYTES:
            raise _too_large(size, limits.MAX_TEXT_BYTES, "shorten it, the model reads only its beginning")
        return Text(texts.decode(await _body(request)))
    body = await _body(request)
    if not body:
        raise errors.InputError(
            "the body is empty; send an image, an array or a text: curl --data-binary @FILE", reason="empty"
        )
    return load_array(body, "the body") if is_array(body) else body


async def _form(request: web.Request) -> InputFrame:
    """The only file or field of a form. Raises `errors.InputError` for none or several, and for a malformed form."""
    from splitedge.head import text as texts

    found: list[tuple[str, bytes]] = []
    try:
        async with asyncio.timeout(limits.BODY_TIMEOUT):
            async for part in await request.multipart():
                if found or not isinstance(part, BodyPartReader):
                    raise errors.InputError(
                        "the form has several parts; send one file per request", reason="several-parts"
                    )
                found.append((part.headers.get("Content-Type", ""), bytes(await part.read())))
    except TimeoutError as error:
        raise _too_late() from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large() from error
    except (ValueError, RuntimeError, AssertionError, web.HTTPException, HttpProcessingError) as error:
        raise errors.InputError(
            "the form is malformed; send the file as the body: curl --data-binary @FILE", reason="malformed-form"
        ) from error
    if not found:
        raise errors.InputError("the form is empty; send one file: curl -F file=@FILE", reason="empty-form")
    kind, body = found[0]
    if is_array(body):
        return load_array(body, "the file")
    return Text(texts.decode(body)) if kind.partition(";")[0].strip().lower() == "text/plain" else body


async def _tensor(request: web.Request, size: int) -> NDArray[np.generic]:
    shape, dtype = _shape(request.headers["X-Shape"]), _dtype(request.headers.get("X-Dtype", "float32"))
    _check_length(shape, dtype, size if request.content_length is not None else dtype.itemsize * math.prod(shape))
    body = await _body(request)
    _check_length(shape, dtype, len(body))
    return np.frombuffer(body, dtype.newbyteorder("<")).reshape(shape)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(limits.BODY_TIMEOUT):
            return await request.read()
    except TimeoutError as error:
        raise _too_late() from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large() from error


def _too_late() -> errors.InputError:
    return errors.InputError(
        f"the body did not arrive within {limits.BODY_TIMEOUT:g} s; send it again", reason="timeout"
    )


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",") if len(text) <= 100 else []
    if not 1 <= len(parts) <= 4 or not all(
        p.strip().isascii() and p.strip().isdigit() and 0 < int(p) <= limits.MAX_DIM for p in parts
    ):
        raise errors.InputError(f"X-Shape must be 1 to 4 sizes like 224,224,3, not {text[:100]!r}", reason="shape")
    return tuple(int(p) for p in parts)


def _dtype(text: str) -> np.dtype[np.generic]:
    if text.strip() not in _DTYPES:
        raise errors.InputError(
            f"X-Dtype must be {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, not {text[:100]!r}", reason="dtype"
        )
    return np.dtype(text.strip())


def advice(
    request: web.Request, frame: InputFrame, plan: Plan | None, error: errors.InputError
) -> errors.InputError | None:
    """A better error than ``error`` for ``frame``, in terms of HTTP; None if there is none."""
    from splitedge.head.preprocess import is_image

    if isinstance(frame, bytes) and not is_image(frame):
        if request.content_type == "application/octet-stream":
            return _no_shape(plan)
        if plan is not None and plan.tokenizer is not None:
            return errors.InputError(
                "the body is not an image; send a text with `Content-Type: text/plain`", reason="not-said-text"
            )
    if isinstance(frame, bytes) and is_image(frame) and len(frame) > 1000 and b"\n" not in frame and b"\r" not in frame:
        return errors.InputError(
            f"{error.message} (curl -d removes line ends from a file; use --data-binary)", **error.data
        )
    if error.data.get("dtype") == "int32" and "X-Shape" in request.headers and "X-Dtype" not in request.headers:
        return errors.InputError(f"{error.message}; send them with `X-Dtype: int32`", **error.data)
    return None


def _no_shape(plan: Plan | None) -> errors.InputError:
    example = ",".join(map(str, plan.preprocess.shape if plan else (224, 224, 3)))
    if plan is not None and plan.tokenizer is not None:
        return errors.InputError(
            f"token ids need a shape and a type: send `X-Shape: {example}` and `X-Dtype: int32`; send a text with "
            "`Content-Type: text/plain`",
            reason="no-shape",
        )
    return errors.InputError(
        f"the body is not an image, and a tensor needs the header X-Shape; send `X-Shape: {example}`",
        reason="no-shape",
    )


def _check_length(shape: tuple[int, ...], dtype: np.dtype[np.generic], size: int) -> None:
    wanted = dtype.itemsize * math.prod(shape)
    if wanted > limits.MAX_IMAGE_BYTES:
        raise _too_large(wanted)
    if size != wanted:
        article = "an" if dtype.kind == "i" else "a"
        raise errors.InputError(
            f"{article} {dtype} tensor of shape {list(shape)} has {wanted} bytes, the body has {size}; correct "
            "X-Shape or X-Dtype",
            reason="body-bytes",
        )


def _too_large(size: int | None = None, limit: int | None = None, advice: str = "scale it down") -> BodyTooLargeError:
    limit = limit or limits.MAX_IMAGE_BYTES
    body = "the body" if size is None else f"the body of {size} bytes"
    return BodyTooLargeError(f"{body} exceeds the limit of {limit} bytes; {advice}", reason="too-large", limit=limit)
