from __future__ import annotations

import io

import pytest
from rich.console import Console

from splitedge.protocol.messages import (
    Candidate,
    Codec,
    Cut,
    Demand,
    LayerBits,
    Parts,
    Plan,
    Prediction,
    Preprocess,
    Rung,
    SegmentRef,
    Stage,
    StageTime,
)
from splitedge.report import drop, explain, headline
from splitedge.terminal import plain, size


def prediction(**changes: object) -> Prediction:
    fields = {
        "device_ms": 4.0, "transfer_ms": 10.0, "server_ms": 2.0, "total_ms": 16.0, "energy_j": 0.0, "energy_source": "unknown",
        "drop_points": 0.4, "drop_low": -0.2, "drop_high": 1.0, "samples": 500, "noise": 0.1, "queue_ms": 0.0, "parts": Parts(time=16.0, fetch=0.0, energy=0.0, cost=0.0), "payload_bytes": 9448, "float_bytes": 75264,
        "segment_bytes": 1_500_000, "objective": 16.0,
    }  # fmt: skip
    return Prediction(**(fields | changes))


def plan(mode: str = "split", **changes: object) -> Plan:
    kind = {"server": "input", "split": "inside", "device": "output"}[mode]
    cut = Cut(12, "blocks.5", "t5", [14, 14, 48], kind)
    other = Candidate(
        cut=Cut(0, "input", "x", [224, 224, 3], "input"),
        weight_bits=8,
        activation_bits=8,
        rule="minmax",
        prediction=prediction(total_ms=60.0),
        reason="slower by 44 ms",
    )
    fields = {
        "id": "p1", "model": "lite0", "bundle": "0" * 64, "mode": mode, "cut": cut, "layers": [] if mode == "server" else [LayerBits(layer="stem", bits=8, weights=100, noise_share=0.2), LayerBits(layer="body", bits=3, weights=900, noise_share=0.5)], "codec_share": 0.2, "head_share": 0.1,
        "ladder": [Codec("mse", 4, (0.0,), (0.1,))] if mode != "device" else [], "codec": 0,
        "rungs": [Rung(payload_bytes=296, noise=0.1, drop_points=0.1, drop_high=0.2)] if mode != "device" else [], "segment": SegmentRef("0" * 64, 9),
        "preprocess": Preprocess("image", [224, 224, 3]), "prediction": prediction(), "runners_up": [other], "considered": 321,
        "expires_unix": 2e9, "demand": Demand(keep="input"),
    }  # fmt: skip
    return Plan(**(fields | changes))


def text(value: Plan, width: int = 120, *, layers: bool = False) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(explain(value, width, "edge-agent plan", layers=layers), soft_wrap=True)
    return buffer.getvalue()


def test_a_split_plan_tells_cut_bits_times_drop_and_payload():
    shown = text(plan())
    for words in (
        "blocks.5", "3.5 bits", "3.0 to 8.0", "segment 9 B", "4 bits, clip rule mse", "device 4.00 ms", "transfer 10.00 ms", "server 2.00 ms", "16.00 ms per frame",
        "0.40 points (-0.20 to 1.00", "500 samples", "9.4 kB per frame, 12.6 %", "14 x 14 x 48", "the input", "321 plans", "slower by 44 ms",
    ):  # fmt: skip
        assert words in shown, words
    assert "queue" not in shown  # it takes no time
    assert "objective" not in shown  # the time is all that counts


def test_layers_are_listed_only_where_they_are_asked_for():
    assert "stem" not in text(plan())
    shown = text(plan(), layers=True)
    assert "stem" in shown
    assert "50.0 %" in shown


def test_energy_and_the_objective_are_told_where_they_count():
    weighed = prediction(
        parts=Parts(time=16.0, fetch=0.0, energy=4.0, cost=0.0), objective=20.0, energy_j=2.0, energy_source="declared"
    )
    shown = text(plan(prediction=weighed))
    assert "2 J per frame (declared)" in shown
    assert "20 = time 16 + energy 4" in shown


def test_a_plan_tells_between_what_codecs_the_agent_may_move():
    one = plan()
    assert "1 codec" in text(one)
    one.ladder = [Codec("mse", bits, (0.0,), (0.1,)) for bits in (8, 3)]
    one.rungs = [
        Rung(payload_bytes=5000, noise=0.1, drop_points=0.1, drop_high=0.2),
        Rung(payload_bytes=2000, noise=0.2, drop_points=0.3, drop_high=0.4),
    ]
    one.codec = 1
    assert "2 codecs, 5.0 kB (8 bits, drop 0.10) to 2.0 kB (3 bits, 0.30)" in text(one)


@pytest.mark.parametrize(("mode", "place"), [("server", "on the server"), ("device", "on this board")])
def test_the_ends_are_said_in_words(mode, place):
    assert place in headline(plan(mode))
    assert (" per frame, 12.6 %" in text(plan(mode))) == (mode == "server")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_plan_without_times_or_runners_up_still_prints_on_any_terminal(width):
    nothing = prediction(device_ms=0.0, transfer_ms=0.0, server_ms=0.0, total_ms=0.0, payload_bytes=0, float_bytes=0)
    assert "lite0" in text(plan(prediction=nothing, runners_up=[]), width)
    assert "lite0" in text(plan(), width)


def test_times_beyond_all_measure_still_print():
    assert "ms per frame" in text(plan(prediction=prediction(device_ms=1.7e308, transfer_ms=1.7e308)))


def rivals(inside: int, name: str = "_blocks.{}._project_conv") -> list[Candidate]:
    """A runner-up for each of so many cuts, then all on the server, then all on the device."""
    cuts = [Cut(i + 1, name.format(i), f"t{i}", [14, 14, 48], "inside") for i in range(inside)]
    ends = [Cut(0, "input", "x", [224, 224, 3], "input"), Cut(99, "_fc", "y", [1000], "output")]
    reason = "+272 % time: transfer 4.95 ms"
    return [
        Candidate(
            cut=c,
            weight_bits=8,
            activation_bits=2,
            rule="aciq-gauss-channel",
            prediction=prediction(total_ms=106.95),
            reason=reason,
        )
        for c in cuts + ends
    ]


@pytest.mark.parametrize("width", [80, 110])
def test_each_runner_up_has_one_line_with_its_whole_name(width):
    lines = text(plan(runners_up=rivals(20)), width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if "+272 % time: transfer 4.95 ms" in line]
    assert [row.split("  ")[0] for row in rows] == [
        *(f"_blocks.{i}._project_conv" for i in range(3)), "(all on the server)", "(all on this board)",
    ]  # fmt: skip
    assert any("5 of 22" in line and "edge-agent plan --json" in line for line in lines)
    assert any("device 4.00 ms" in line and "server 2.00 ms" in line for line in lines)


def test_a_plan_of_a_deep_network_fits_a_small_terminal():
    deep = plan(
        runners_up=rivals(20),
        demand=Demand(keep="input"),
        layers=[LayerBits(layer=f"l{i}", bits=4, weights=9, noise_share=0.01) for i in range(60)],
    )
    assert len(text(deep, 80).splitlines()) <= 24


@pytest.mark.parametrize("width", [40, 80])
def test_names_of_any_length_stand_whole_on_lines_of_their_own(width):
    long = "encoder/layer.{}/attention.self/query_key_value." + "x" * 50
    lines = text(plan(runners_up=rivals(20, long)), width).splitlines()
    assert [line for line in lines if line.startswith("encoder/")] == [long.format(i) for i in range(3)]
    others = [line for line in lines if not line.startswith("encoder/")]
    assert max(map(len, others)) <= width
    assert sum("106.95" in line and "1.50" not in line for line in others) == 5


def test_few_runners_up_are_all_and_a_cut_is_shown_once():
    assert "--json" not in text(plan(runners_up=rivals(3)))
    twice = rivals(1)[:1] * 2
    assert text(plan(runners_up=twice), 80).count("_blocks.0") == 1


def test_the_greatest_times_keep_their_legend_on_one_line():
    slow = prediction(device_ms=99_999.0, transfer_ms=999_999.0, server_ms=99_999.0, total_ms=1.2e6)
    lines = text(plan(prediction=slow), 80).splitlines()
    assert any("device 99999 ms" in line and "server 99999 ms" in line for line in lines)
    assert max(map(len, text(plan(prediction=slow, runners_up=[]), 40).splitlines())) <= 40


def test_what_the_prediction_leaves_out_is_said_where_there_is_an_image():
    assert "decoding" in text(plan(), 80)
    assert "decoding" not in text(plan(preprocess=Preprocess("tensor", [4])), 80)


def test_names_from_the_server_cannot_steer_the_terminal_or_the_markup():
    hostile = plan(model="\x1b[2Jm[bold]x[/nope]", metric="[red]")
    assert "\x1b" not in text(hostile)
    assert "[bold]x[/nope]" in text(hostile)
    assert plain("a\x07\r\nb") == "ab"


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 1000, 1.5e6, 2e9)] == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB"]
    assert drop(prediction()).startswith("0.40 points")


def test_a_chain_tells_what_each_board_does():
    route = [
        StageTime(
            device="a",
            start="x",
            cut="stem",
            weight_bits=4.0,
            activation_bits=6,
            device_ms=12.0,
            sending_ms=3.0,
            rtt_ms=1.0,
            payload_bytes=900,
        ),
        StageTime(
            device="b",
            start="stem",
            cut="fc",
            weight_bits=3.5,
            activation_bits=0,
            device_ms=20.0,
            sending_ms=0.0,
            rtt_ms=0.0,
            payload_bytes=0,
        ),
    ]
    stage = Stage(
        device="a",
        start=Cut(0, "x", "x", [8], "input"),
        incoming=[],
        upstream="",
        downstream="p2",
        route=route,
        rate_fps=31.25,
    )
    shown = text(plan(stage=stage))
    assert "2 boards" in headline(plan(stage=stage))
    assert "blocks.5" in headline(plan(stage=stage))
    for words in (
        "2 boards, 31.25 frames/s",
        "4.0 / 6 bits",
        "3.5 / - bits",
        "12.00",
        "4.00",
        "900 B",
    ):
        assert words in shown
    assert "boards" not in text(
        plan(
            stage=Stage(
                device="a", start=stage.start, incoming=[], upstream="", downstream="", route=route[:1], rate_fps=31.25
            )
        )
    )
