"""Every table of both programs on a terminal of 80 and of 60 columns: no line is wider, and identifiers stay whole."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from device_profiles import known
from device_profiles import table as profile_table
from edge_agent.commands import doctor, infer, profile
from edge_agent.commands.what_if import WhatIf
from edge_agent.doctor import Check
from edge_agent.runtime.results import Result, Timing, TopClass
from edge_server.commands import add
from splitedge import report
from splitedge.protocol import messages as m

NAMES = [f"_blocks.{i}._project_conv" for i in range(16)] + ["encoder/layer.11/attention.self/query_key_value"]
SHAPE = [112, 112, 32]
REASON = "+272 % time: transfer 4.95 ms; drop up to 1.25 points > 1"


def prediction() -> m.Prediction:
    parts = m.Parts(time=1234.5, fetch=0.1, energy=4.0, cost=0.0)
    return m.Prediction(
        device_ms=12.34, transfer_ms=123.45, queue_ms=1.5, server_ms=12.3, total_ms=1234.56, energy_j=2.0, energy_source="declared", drop_points=0.95, drop_low=-0.2, drop_high=1.0, samples=500, noise=0.1, payload_bytes=123_456, float_bytes=1_605_632, segment_bytes=9_000_000, objective=1238.6, parts=parts
    )  # fmt: skip


def plan(boards: int = 0) -> m.Plan:
    cuts = [m.Cut(i, name, f"t{i}", SHAPE, "inside") for i, name in enumerate(NAMES)]
    codecs = [m.Codec("aciq-gauss-channel", bits, (0.0,), (0.1,)) for bits in (8, 3)]
    losers = [
        m.Candidate(
            cut=cut, weight_bits=3.4, activation_bits=2, rule="entropy-laplace", prediction=prediction(), reason=REASON
        )
        for cut in reversed(cuts)
    ]
    ends = [m.Cut(0, "input", "x", SHAPE, "input"), m.Cut(99, "_fc", "y", [1000], "output")]
    losers += [
        m.Candidate(cut=cut, weight_bits=8.0, activation_bits=8, rule="minmax", prediction=prediction(), reason=REASON)
        for cut in ends
    ]
    route = [
        m.StageTime(
            device=f"d{i}",
            start=NAMES[i],
            cut=NAMES[-1],
            weight_bits=3.4,
            activation_bits=4,
            device_ms=1234.5,
            sending_ms=99.5,
            rtt_ms=20.5,
            payload_bytes=123_456,
        )
        for i in range(boards)
    ]
    return m.Plan(
        id="p", model="efficientnet-lite0", bundle="0" * 64, mode="split", cut=cuts[-1],
        layers=[m.LayerBits(layer=name, bits=3.4, weights=1_234_567, noise_share=0.0123) for name in NAMES], codec_share=0.2, head_share=0.1,
        ladder=codecs, codec=0, rungs=[m.Rung(payload_bytes=123_456, noise=0.1, drop_points=0.1, drop_high=0.2), m.Rung(payload_bytes=45_678, noise=0.2, drop_points=0.3, drop_high=0.4)],
        segment=m.SegmentRef("0" * 64, 1_234_567), preprocess=m.Preprocess("image", [224, 224, 3]), prediction=prediction(),
        runners_up=losers, considered=12_345, expires_unix=2e9, demand=m.Demand(keep=NAMES[3]),
        stage=m.Stage(device="d0", start=ends[0], incoming=[], upstream="", downstream="p2", route=route, rate_fps=31.25) if boards else None,
    )  # fmt: skip


MODELS = [
    m.ModelInfo(name=name, bundle="0" * 64, metric="agreement", samples=12_345, cuts=[], unsupported=["Gather (/model/embeddings/Gather)"] * 9, preprocess=m.Preprocess("image", [224, 224, 3]), float_top1=88.8)
    for name in ("efficientnet-lite0", "a-model-with-a-very-long-name-of-forty-eight-char")
]  # fmt: skip
CHECKS = [
    Check("instructions", "ok", "avx512vnni, the fastest set: LLVM finds avx2, avx512bw, avx512dq, avx512f, avx512vl, avx512vnni"),
    Check("kernel cache", "warn", "/var/cache/splitedge/kernels-f58763a23ae2eb88: 0 of 17 compiled", "run `edge-agent warm`"),
    Check("server", "fail", "https://server.example:8470", "it does not answer; check the network and that edge-server runs there"),
]  # fmt: skip
CUTS = [[name, "12", "112x112x32", "3.4 bits", "1234.5", "entropy-laplace", "123.45"] for name in NAMES] + [
    ["_fc", "99", "1000", "over 1 pt", "", "", ""]
]
RESULT = Result(
    [TopClass(i, "great white shark, white shark, man-eater", 0.3) for i in range(5)],
    Timing(1.5, 12.5, 123.5, 1.5, 123.5, 1.5, 12.5, 276.5),
    123_456,
    "p",
    "split",
    cached=True,
)

TABLES: dict[str, tuple[Callable[[int], RenderableType], list[str]]] = {
    "plan": (lambda width: report.explain(plan(), width, "edge-agent plan"), [NAMES[-1], *NAMES[14:16]]),
    "plan --layers": (lambda width: report.noise(plan(), width), NAMES),
    "plan of a chain": (lambda width: report.explain(plan(3), width, "edge-agent plan"), []),
    "what if": (
        lambda width: WhatIf("pi5", known.load("pi5"), m.LinkEstimate(30, 5.25, 20), ["rtt_ms"], 12.3).words(width), ["--known", "pi5", "--pace"],
    ),
    "models": (lambda width: report.models(MODELS, width), [model.name for model in MODELS]),
    "doctor": (lambda width: doctor.report(CHECKS, width), [check.found.split(":")[0] for check in CHECKS[1:2]]),
    "infer": (lambda width: infer.text("photos/somewhere/image-0001.jpg", RESULT, ["out/image-0001.npy"], width), ["photos/somewhere/image-0001.jpg"]),
    "known boards": (lambda width: profile.boards(width), known.names()),
    "add": (lambda width: add.offered(CUTS, width), [*NAMES, "entropy-laplace"]),
} | {
    f"profile --known {name}": (
        lambda width, name=name: profile_table(known.load(name), width),  # type: ignore[misc]
        [kernel.name for kernel in known.load(name).kernels],
    )
    for name in known.names()
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_and_no_identifier_is_broken(name: str, width: int) -> None:
    make, identifiers = TABLES[name]
    shown = io.StringIO()
    Console(file=shown, width=1000, color_system=None).print(make(width), soft_wrap=True, markup=False)
    lines = shown.getvalue().splitlines()
    too_wide = [line for line in lines if len(line) > width and max(map(len, line.split())) < 40]  # a path stays whole
    assert too_wide == []
    assert width == 60 or max(map(len, lines)) <= width
    assert [word for word in identifiers if not any(word in line for line in lines)] == []
