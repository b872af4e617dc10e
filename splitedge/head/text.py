"""Converts texts to the token ids of a head. Calibration and the agent share it, so both use the same ids.

It uses the library `tokenizers`, and loads it with the first `Tokenizer`. Agents of other models do not need it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitedge import errors, limits
from splitedge.protocol.messages import TokenizerRef

I32 = NDArray[np.int32]

#: Names of the padding token in vocabularies.
PADDING: Final = ("[PAD]", "<pad>")
#: Tokens that a BERT vocabulary must have.
_SPECIAL: Final = ("[UNK]", "[CLS]", "[SEP]")


class Tokenizer:
    """Texts to token ids of one length.

    ``data``: a tokenizer.json of the Hugging Face libraries; its own truncation and padding are ignored. ``tokens``:
    the number of ids of a text with
    its special tokens. Longer texts are truncated, shorter ones are filled with the id ``padding``. Thread-safe. Ids
    are not checked: the head refuses unknown ones. Raises `errors.InputError` for data that is no tokenizer, or one
    whose special tokens leave no room, and `errors.PlatformError` without the library.
    """

    def __init__(self, data: bytes, tokens: int, padding: int) -> None:
        if len(data) > limits.MAX_TOKENIZER_BYTES:
            raise errors.InputError(
                f"a tokenizer of {len(data)} bytes exceeds the limit of {limits.MAX_TOKENIZER_BYTES}; use a smaller "
                "one",
                reason="too-many-bytes",
            )
        self.data, self.tokens, self.padding = data, tokens, padding
        library = _library()
        self._inner = _guarded(
            lambda: library.Tokenizer.from_buffer(data), "not-a-tokenizer", "the tokenizer cannot be read"
        )
        special = self._inner.num_special_tokens_to_add(is_pair=False)
        if tokens <= special:
            raise errors.InputError(
                f"the model takes {tokens} tokens, and the tokenizer's special tokens use all of them; use the "
                "model's own tokenizer",
                reason="too-few-tokens",
            )
        self._inner.no_padding()
        self._inner.enable_truncation(max_length=tokens)

    def ids(self, text: str) -> I32:
        """The ids of ``text``, int32 [tokens].

        Raises `errors.InputError` for a text that is empty, too long or not Unicode.
        """
        check(text)
        found = _guarded(lambda: self._inner.encode(text).ids, "no-tokens", "the text cannot be tokenized")
        ids = np.full(self.tokens, self.padding, np.int64)
        ids[: len(found)] = found[: self.tokens]
        return np.minimum(ids, np.iinfo(np.int32).max).astype(np.int32)

    def reference(self) -> TokenizerRef:
        """Its reference for a plan."""
        return TokenizerRef(hashlib.sha256(self.data).hexdigest(), len(self.data), self.padding)

    def named_padding(self) -> int | None:
        """The id of the vocabulary's padding token, or None."""
        named = (self._inner.token_to_id(token) for token in PADDING)
        return next((found for found in named if found is not None), None)


def installed() -> bool:
    """Whether the library is installed. Does not load it."""
    return importlib.util.find_spec("tokenizers") is not None


def missing() -> errors.PlatformError:
    """The error without the library."""
    return errors.PlatformError(
        "texts need the library tokenizers, which is not installed (extra `text` of splitedge); run `pip install "
        "tokenizers`",
        reason="no-tokenizers",
    )


def check(text: str) -> None:
    """Raise `errors.InputError` for a text that is empty, longer than `limits.MAX_TEXT_BYTES` of UTF-8, or not
    Unicode.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise not_unicode() from error
    if size > limits.MAX_TEXT_BYTES:
        raise errors.InputError(
            f"a text of {size} bytes exceeds the limit of {limits.MAX_TEXT_BYTES}; shorten it, the model reads only "
            "its beginning",
            reason="too-many-bytes",
        )
    if not text.strip():
        raise errors.InputError("the text is empty; send at least one word", reason="empty")


def decode(data: bytes) -> str:
    """The text in ``data``, UTF-8 with or without a byte order mark.

    Raises `errors.InputError` for other bytes, and for zeros.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_unicode() from error
    if "\0" in text:
        raise not_unicode()
    return text


def not_unicode() -> errors.InputError:
    return errors.InputError(
        "the text is not UTF-8; save it in that encoding, or send token ids as an array", reason="not-utf8"
    )


def of_vocabulary(vocabulary: str) -> bytes:
    """The tokenizer.json of BERT's uncased WordPiece over the lines of a vocab.txt: lower case, without accents, [CLS]
    text [SEP].

    Raises `errors.InputError` for lines without the special tokens.
    """
    ids = {token: i for i, token in enumerate(vocabulary.splitlines())}
    lacking = [token for token in _SPECIAL if token not in ids]
    if lacking:
        raise errors.InputError(
            f"the vocabulary has no {', '.join(lacking)}; use the vocab.txt of a BERT, or the model's tokenizer.json",
            reason="special-tokens",
            lacking=lacking,
        )
    library = _library()
    made = library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106 (no password)
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.post_processor = library.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return str(made.to_str()).encode()


def read(path: Path) -> bytes:
    """The tokenizer.json in ``path``, or one made from its vocabulary if the name ends in .txt.

    Raises `errors.InputError`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise errors.InputError(
            f"the tokenizer {path} cannot be read ({error.strerror}); check the path", reason="unreadable"
        ) from error
    if len(data) > limits.MAX_TOKENIZER_BYTES:
        raise errors.InputError(
            f"the tokenizer {path} exceeds the limit of {limits.MAX_TOKENIZER_BYTES} bytes; use a smaller one",
            reason="too-many-bytes",
        )
    return of_vocabulary(decode(data)) if path.suffix == ".txt" else data


def _library() -> Any:
    if not installed():
        raise missing()
    import tokenizers

    return tokenizers


def _guarded(work: Any, reason: str, what: str) -> Any:
    """The value of ``work()``.

    Any failure of the library becomes an `errors.InputError`; its panics are not an `Exception`.
    """
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        raise errors.InputError(
            f"{what} ({said}); use the tokenizer.json of the model, or upgrade tokenizers",
            reason=reason,
        ) from error
