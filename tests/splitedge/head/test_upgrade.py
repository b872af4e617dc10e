"""An upgrade makes the very file that was wanted, whatever is held, and takes less the more the two have in common."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.rounding.quantizer import pack, search
from splitedge.errors import SegmentError
from splitedge.head import segment as seg
from splitedge.head import upgrade
from tests.raising import raises
from tests.segment_builder import Builder
from tests.splitedge.head.test_verify import encoder, network


def file(segment: seg.Segment) -> bytes:
    return seg.build(segment.header, segment.blob.tobytes())


def quantized(bits: int, layers: int = 2, seed: int = 0) -> bytes:
    """The same random layers at ``bits``, as calibration would store them."""
    rng = np.random.default_rng(seed)
    builder = Builder([1, 1, 64])
    x = builder.input
    for _ in range(layers):
        x = builder.conv(x, 64, bits=bits)
        op = builder.ops[-1]
        assert isinstance(op, seg.Conv)
        levels, scale = search(rng.normal(size=(64, 64)).astype(np.float32), bits, np.zeros(64, np.float32))
        bias = rng.integers(-300, 300, 64).astype(np.int32)
        values = ((op.weight, pack(levels, bits)), (op.multiplier, scale / 64), (op.bias, bias))
        blob = bytearray(builder.blob)
        for place, value in values:
            blob[place : place + value.nbytes] = value.tobytes()
        builder.blob = bytes(blob)
    return file(builder.finish())


def check(held: bytes, wanted: bytes) -> int:
    patch = upgrade.make(held, wanted)
    assert upgrade.make(held, wanted) == patch
    assert upgrade.apply(held, patch, seg.digest(wanted)) == wanted
    return len(patch)


@pytest.mark.parametrize("wanted", range(2, 9))
@pytest.mark.parametrize("held", range(2, 9))
def test_any_bits_become_any_others(held: int, wanted: int) -> None:
    have, want = quantized(held), quantized(wanted)
    size = check(have, want)
    if held == wanted:
        assert size < 0.25 * len(want)
    elif held > 2:
        assert size < (0.5 + 0.25 * (abs(wanted - held) > 1)) * len(want) + 1200


def test_a_longer_head_takes_what_is_new() -> None:
    short, long = quantized(4, layers=2), quantized(4, layers=5)
    alone = len(long) - len(short)
    assert check(short, long) < 1.2 * alone
    assert check(long, short) < 0.4 * len(short)


@pytest.mark.parametrize("held", [network(), encoder(), Builder([3])], ids=["network", "encoder", "nothing"])
@pytest.mark.parametrize("wanted", [network(), encoder(), Builder([3])], ids=["network", "encoder", "nothing"])
def test_a_segment_that_has_nothing_in_common_does_no_harm(held: Builder, wanted: Builder) -> None:
    have, want = file(held.finish()), file(wanted.finish())
    assert check(have, want) < len(want) + 200


def test_scales_that_are_no_numbers_do_no_harm() -> None:
    held = seg.parse(quantized(4))
    first = held.header.ops[0]
    assert isinstance(first, seg.Conv)
    held.blob[first.multiplier : first.multiplier + 16] = np.array([np.nan, np.inf, 0, -1], np.float32).view(np.uint8)
    check(file(held), quantized(6))
    check(quantized(6), file(held))


_HELD, _WANTED = quantized(4), quantized(6)
_PATCH = upgrade.make(_HELD, _WANTED)


@pytest.mark.parametrize(
    ("held", "patch", "reason"),
    [
        (_HELD, b"", "not-an-upgrade"),
        (_HELD, b"X" + _PATCH[1:], "not-an-upgrade"),
        (_HELD, _PATCH[:8] + b"\x09" + _PATCH[9:], "not-an-upgrade"),
        (_HELD, _PATCH[:100], "truncated"),
        (_HELD, _PATCH[:-4], "damaged-constants"),
        (_HELD, _PATCH + bytes(4), "damaged-constants"),
        (_HELD, _PATCH[:12] + (int.from_bytes(_PATCH[12:16], "little") + 4).to_bytes(4, "little") + _PATCH[16:], "upgrade-header"),
        (quantized(4, seed=1), _PATCH, "damaged-constants"),
        (_HELD[:-1], _PATCH, "damaged-constants"),
        (b"", _PATCH, "not-a-segment"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(held: bytes, patch: bytes, reason: str) -> None:
    with raises(SegmentError, reason=reason):
        upgrade.apply(held, patch, seg.digest(_WANTED))


@given(st.dictionaries(st.integers(0, len(_PATCH) - 1), st.integers(0, 255), max_size=3), st.integers(0, len(_PATCH)))
def test_a_damaged_upgrade_is_refused(changes: dict[int, int], end: int) -> None:
    patch = bytes(changes.get(i, byte) for i, byte in enumerate(_PATCH))[:end]
    with contextlib.suppress(SegmentError):
        assert upgrade.apply(_HELD, patch, seg.digest(_WANTED)) == _WANTED
