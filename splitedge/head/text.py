"""From a text to the token ids of a head. Calibration and the agent share it, so both see the same ids.

The library `tokenizers` does the work and is loaded when the first `Tokenizer` is made: agents of other models do without it.
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

#: How vocabularies call the token that fills a text up.
PADDING: Final = ("[PAD]", "<pad>")
#: What a vocabulary of BERT's own form must hold.
_SPECIAL: Final = ("[UNK]", "[CLS]", "[SEP]")


class Tokenizer:
    """Texts to token ids of one length.

    ``data``: what Hugging Face libraries call tokenizer.json; where it cuts or fills texts itself, that is left out. ``tokens``: ids of a text, its special
    tokens included; what is longer is cut at its end, what is shorter is filled with the id ``padding``. Raises `errors.InputError` for data that is no
    tokenizer, or one whose special tokens leave a text no room, `errors.PlatformError` where the library is not installed. Ids may be any: a head refuses
    those that it does not know. May be used by several threads.
    """

    def __init__(self, data: bytes, tokens: int, padding: int) -> None:
        if len(data) > limits.MAX_TOKENIZER_BYTES:
            raise errors.InputError(
                f"a tokenizer of {len(data)} bytes is over the limit of {limits.MAX_TOKENIZER_BYTES}; give a smaller one"
            )
        self.data, self.tokens, self.padding = data, tokens, padding
        library = _library()
        self._inner = _guarded(lambda: library.Tokenizer.from_buffer(data), "this is no tokenizer that can be read")
        special = self._inner.num_special_tokens_to_add(is_pair=False)
        if tokens <= special:
            raise errors.InputError(
                f"the model takes {tokens} tokens, of which the tokenizer's special ones leave none; give a tokenizer that fits it"
            )
        self._inner.no_padding()
        self._inner.enable_truncation(max_length=tokens)

    def ids(self, text: str) -> I32:
        """The ids of ``text``, int32 [tokens]. Raises `errors.InputError` for one that is empty, too long or not Unicode."""
        check(text)
        found = _guarded(lambda: self._inner.encode(text).ids, "this text cannot be cut into tokens")
        ids = np.full(self.tokens, self.padding, np.int64)
        ids[: len(found)] = found[: self.tokens]
        return np.minimum(ids, np.iinfo(np.int32).max).astype(np.int32)

    def reference(self) -> TokenizerRef:
        """What a plan says of it."""
        return TokenizerRef(hashlib.sha256(self.data).hexdigest(), len(self.data), self.padding)

    def named_padding(self) -> int | None:
        """The id that the vocabulary itself calls padding, or None where it has no such token."""
        named = (self._inner.token_to_id(token) for token in PADDING)
        return next((found for found in named if found is not None), None)


def installed() -> bool:
    """Whether the library is there; it is not loaded."""
    return importlib.util.find_spec("tokenizers") is not None


def missing() -> errors.PlatformError:
    """What to say where it is not."""
    return errors.PlatformError(
        "texts need the library tokenizers, which is not installed here: install splitedge with its extra `text` (pip install '.[text]') and start again"
    )


def check(text: str) -> None:
    """Raises `errors.InputError` for a text that is empty, longer than `limits.MAX_TEXT_BYTES` of UTF-8, or not Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise not_unicode() from error
    if size > limits.MAX_TEXT_BYTES:
        raise errors.InputError(
            f"a text of {size} bytes is over the limit of {limits.MAX_TEXT_BYTES}; send its beginning, the model reads no more"
        )
    if not text.strip():
        raise errors.InputError("the text is empty; send some words")


def decode(data: bytes) -> str:
    """The text in ``data``, UTF-8 with or without its mark. Raises `errors.InputError` for bytes that are none, or hold zeros."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_unicode() from error
    if "\0" in text:
        raise not_unicode()
    return text


def not_unicode() -> errors.InputError:
    return errors.InputError("this is no text in UTF-8; save it in that encoding, or send token ids as an array")


def of_vocabulary(vocabulary: str) -> bytes:
    """The tokenizer.json of BERT's uncased WordPiece over the lines of a vocab.txt: lower case, without accents, [CLS] text [SEP].

    Raises `errors.InputError` for lines without the special tokens.
    """
    ids = {token: i for i, token in enumerate(vocabulary.splitlines())}
    lacking = [token for token in _SPECIAL if token not in ids]
    if lacking:
        raise errors.InputError(
            f"the vocabulary has no {', '.join(lacking)}; give the vocab.txt of a BERT, or the model's tokenizer.json"
        )
    library = _library()
    made = library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106 (no password)
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.post_processor = library.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return str(made.to_str()).encode()


def read(path: Path) -> bytes:
    """The tokenizer.json in the file ``path``, or made of the vocabulary in it where its name ends in .txt. Raises `errors.InputError`."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise errors.InputError(f"the tokenizer {path} cannot be read ({error.strerror}); check the path") from error
    if len(data) > limits.MAX_TOKENIZER_BYTES:
        raise errors.InputError(
            f"the tokenizer {path} has more than the {limits.MAX_TOKENIZER_BYTES} bytes allowed; give a smaller one"
        )
    return of_vocabulary(decode(data)) if path.suffix == ".txt" else data


def _library() -> Any:
    if not installed():
        raise missing()
    import tokenizers

    return tokenizers


def _guarded(work: Any, what: str) -> Any:
    """The value of ``work()``. Whatever the library makes of hostile data is an `errors.InputError`; a panic of its own is no `Exception`."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise errors.InputError(
            f"{what} ({reason}); give the tokenizer.json of the model, or upgrade tokenizers"
        ) from error
