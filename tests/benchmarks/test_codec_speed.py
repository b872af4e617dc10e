"""PipeEdge's method written anew is a codec, and the table has what the figures want."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec_speed


@pytest.mark.parametrize("bits", codec_speed.BITS)
def test_pipeedge_puts_whole_codes_into_words_and_gets_them_back(bits: int) -> None:
    x = np.random.default_rng(bits).normal(0, 3, (13, 7)).astype(np.float32)
    words, least, span = codec_speed.pipeedge_encode(x, bits)
    assert words.size == -(-x.size // (32 // bits))
    y = codec_speed.pipeedge_decode(words, least, span, bits, x.shape)
    np.testing.assert_allclose(y, x, atol=float(span) / ((1 << bits) - 1) / 2 * 1.001 + 1e-6)
    assert y.min() == pytest.approx(x.min(), abs=1e-6)
    assert y.max() == pytest.approx(x.max(), abs=1e-5)


@pytest.mark.thorough
@pytest.mark.slow
def test_every_codec_is_timed_against_the_copy_and_pipeedge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_speed, "QUICK", 2)
    monkeypatch.setattr(codec_speed, "SHAPE", (20, 64))
    codec_speed.main(["--quick", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"encode_2bit_us", "decode_2bit_us", "speedup_over_pipeedge_min", "hadamard.encode_2bit_us"} <= set(
        found["summary"]
    )
    assert all(value > 0 for value in found["summary"].values())
    assert len(found["rows"]) == 3 * (2 * len(codec_speed.FAMILIES) + 4)
