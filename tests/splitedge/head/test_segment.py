"""The segment file: what is built comes back, and whatever else is refused in one sentence and within the memory that limits allow."""

from __future__ import annotations

import contextlib
import copy
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge import limits
from splitedge.errors import SegmentError
from splitedge.head import Head, compression
from splitedge.head import segment as seg
from splitedge.protocol.messages import Preprocess
from tests.raising import raises
from tests.segment_builder import Builder
from tests.splitedge.head.test_verify import encoder, network

_GOOD = network().finish()
_FILE = seg.build(_GOOD.header, _GOOD.blob.tobytes())
_START = seg.parse_header(_FILE)[1]


@pytest.mark.parametrize("builder", [network(), encoder(), Builder([3, 4])], ids=["network", "encoder", "no operators"])
def test_a_built_file_parses_to_the_same_segment(builder: Builder) -> None:
    good = builder.finish()
    file = seg.build(good.header, good.blob.tobytes())
    parsed = seg.parse(file)
    assert parsed.header == good.header
    assert parsed.blob.tobytes() == good.blob.tobytes()
    assert seg.build(parsed.header, parsed.blob.tobytes()) == file


def test_constants_may_lie_anywhere_in_the_blob() -> None:
    """The file keeps their order, not their places."""
    builder = Builder([6, 6, 3])
    builder.constant(np.zeros(300, np.uint8))
    builder.conv(builder.input, 8, (3, 3), bits=3)
    codes = builder.codes()
    moved = builder.finish()
    here = seg.Segment(moved.header, np.frombuffer(builder.blob, np.uint8))
    assert moved.header.ops[0].weight == 0  # type: ignore[union-attr]
    assert moved.header.blob_bytes == len(builder.blob) - 320
    here.header = copy.deepcopy(moved.header)
    for constant in seg.constants(here.header):
        constant.place(constant.offset + 320)
    again = Head(here, check_golden=False).run(codes)
    np.testing.assert_array_equal(Head(moved, check_golden=False).run(codes), again)


def test_what_is_no_segment_is_not_built() -> None:
    with raises(SegmentError, reason="blob-bytes"):
        seg.build(_GOOD.header, b"")
    header = copy.deepcopy(_GOOD.header)
    seg.constants(header)[0].place(1 << 30)
    with raises(SegmentError, reason="constants-outside"):
        seg.build(header, _GOOD.blob.tobytes())
    header = copy.deepcopy(_GOOD.header)
    header.blob_bytes += 64
    assert seg.parse(seg.build(header, _GOOD.blob.tobytes() + bytes(64))).blob.tobytes() == _GOOD.blob.tobytes()
    with raises(SegmentError, reason="unnamed-bytes"):
        seg.build(header, _GOOD.blob.tobytes() + bytes(63) + b"x")


def test_weights_take_less_than_their_bits() -> None:
    rng = np.random.default_rng(0)
    builder = Builder([1, 1, 100])
    builder.conv(builder.input, 200, bits=4)
    segment = builder.finish()
    conv = segment.header.ops[0]
    assert isinstance(conv, seg.Conv)
    codes = np.clip(np.rint(rng.normal(7, 2, 20_000)), 0, 14).astype(np.uint8)
    segment.blob[: codes.size // 2] = codes[::2] | codes[1::2] << 4
    shares = np.bincount(codes) / codes.size
    entropy = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum() * codes.size / 8
    plain = seg.build(segment.header, bytes(segment.blob.nbytes))
    assert len(seg.build(segment.header, segment.blob.tobytes())) - len(plain) < 1.01 * entropy + 3 * 4 * 200


@pytest.mark.parametrize("different", [1, 2, 64, 65, 300])
def test_tables_of_any_number_of_scales_are_read_as_they_were(different: int) -> None:
    """Rows of the same scale are coded by themselves, unless there are too many of them."""
    rng = np.random.default_rng(different)
    builder = Builder([6], dtype="i32")
    builder.embed(builder.input, 16, vocabulary=300)
    segment = builder.finish()
    table = segment.header.ops[0]
    assert isinstance(table, seg.Embed)
    scales = 0.01 * 1.1 ** rng.permutation(np.arange(300) % different)
    segment.blob[table.scales : table.scales + 1200] = np.frombuffer(scales.astype("<f4").tobytes(), np.uint8)
    (part,) = (part for part in seg.parts(segment.header) if part.kind == "codes")
    assert len(compression.alike(scales.astype(np.float32))) == (different if different <= compression.SCALES else 1)
    found = seg.parse(seg.build(segment.header, segment.blob.tobytes()))
    (there,) = (part for part in seg.parts(found.header) if part.kind == "codes")
    assert there.of(found.blob).tobytes() == part.of(segment.blob).tobytes()


def test_the_files_before_this_version_are_refused_with_advice() -> None:
    with raises(SegmentError, reason="format"):
        seg.parse(_FILE[:8] + (1).to_bytes(4, "little") + _FILE[12:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not-a-segment"),
        (b"NOTASEGM" + bytes(100), "not-a-segment"),
        (_FILE[:50], "truncated"),
        (_FILE[:-1], "damaged-constants"),
        (_FILE[:-4], "damaged-constants"),
        (_FILE + b"x", "damaged-constants"),
        (_FILE + bytes(4), "damaged-constants"),
        (_FILE[:_START], "damaged-constants"),
        (_FILE[:16] + b"\xff" + _FILE[17:], "header"),
        (_FILE[:12] + (_START - 17).to_bytes(4, "little") + _FILE[16:], "header"),
        (_FILE[:12] + (_START - 15).to_bytes(4, "little") + _FILE[16:], "header"),
        (_FILE[:12] + (2**31).to_bytes(4, "little") + _FILE[16:], "truncated"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with raises(SegmentError, reason=reason):
        seg.parse(data)


def _pieces(file: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, a beginning, a file with some bytes changed."""
    changed = st.dictionaries(st.integers(0, len(file) - 1), st.integers(0, 255), max_size=4)
    return st.one_of(
        st.binary(max_size=400),
        st.integers(0, len(file)).map(lambda n: file[:n]),
        changed.map(lambda new: bytes(new.get(i, byte) for i, byte in enumerate(file))),
        st.binary(max_size=400).map(lambda data: file[:_START] + data),
    )


@given(_pieces(_FILE))
def test_parse_returns_a_segment_or_raises_segment_error(data: bytes) -> None:
    with contextlib.suppress(SegmentError):
        seg.parse(data)


def _peak(data: bytes) -> int:
    """Bytes that `parse` takes of ``data``, which it refuses."""
    tracemalloc.start()
    try:
        with pytest.raises(SegmentError):
            seg.parse(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("channels", "outs"), [(1 << 20, 1 << 20), (1 << 14, 1 << 14), (1 << 12, 1 << 13)], ids=["beyond all", "256 MiB", "32 MiB"]
)  # fmt: skip
def test_a_small_file_does_not_fill_the_memory_with_weights(
    monkeypatch: pytest.MonkeyPatch, channels: int, outs: int
) -> None:
    builder = Builder([1, 1, 4])
    builder.conv(builder.input, 4)
    header = builder.finish().header
    first, last = (tensor.shape for tensor in header.tensors)
    first[-1], last[-1] = channels, outs
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_SEGMENT_BYTES", 1 << 62)  # whoever makes such a file has no limits
        file = seg.frame(header) + bytes(1000)
    assert _peak(file) < 1 << 20


def test_a_small_file_does_not_fill_the_memory_with_its_header() -> None:
    builder = Builder([4])
    header = builder.finish().header
    header.model = "x" * (4 * limits.MAX_HEADER_BYTES)
    file = seg.frame(header) + bytes(100)
    assert len(file) < 1 << 20
    assert _peak(file) < 4 * limits.MAX_HEADER_BYTES


def test_a_small_file_does_not_fill_the_memory_with_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder([4])
    builder.append(seg.Concat, [4], inputs=[builder.input], tables=[-1])
    header = builder.finish().header
    header.ops[0].tables = [0] * 100_000  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_CONSTANTS", 1 << 62)
        file = seg.frame(header) + bytes(100)
    assert len(file) < 1 << 14
    assert _peak(file) < 4 * limits.MAX_HEADER_BYTES


def test_a_view_of_floats_needs_an_agent_that_knows_it() -> None:
    def header(dtype: str) -> seg.Header:
        tensors = [seg.Tensor([4, 3], 1.0, 0, 0, dtype), seg.Tensor([2, 3], 1.0, 0, 64, dtype)]  # type: ignore[arg-type]
        ops: list[seg.AnyOp] = [seg.View("rows", 1, 0, 0, [2, 3], [6, 1])]
        spec = Preprocess("tensor", [4, 3])
        return seg.Header("m", "rows", 8, spec, tensors, 0, 1, ops, 128, 0, seg.Golden("", "0" * 64))

    assert seg.needed(header("u8")) == {"view"}
    assert seg.needed(header("f32")) == {"view", "gather"}
