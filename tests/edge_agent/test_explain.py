from __future__ import annotations

import io

import pytest
from rich.console import Console

from edge_agent.explain import drop, explain, headline, plain, size
from edge_agent.protocol.messages import Candidate, Codec, Cut, Demand, Plan, Prediction, Preprocess, SegmentRef


def prediction(**changes: object) -> Prediction:
    fields = {
        "device_ms": 4.0, "transfer_ms": 10.0, "server_ms": 2.0, "total_ms": 16.0, "energy_j": 0.0, "energy_source": "unknown",
        "drop_points": 0.4, "drop_low": -0.2, "drop_high": 1.0, "samples": 500, "payload_bytes": 9448, "float_bytes": 75264,
        "segment_bytes": 1_500_000, "objective": 16.0,
    }  # fmt: skip
    return Prediction(**(fields | changes))


def plan(mode: str = "split", **changes: object) -> Plan:
    kind = {"server": "input", "split": "inside", "device": "output"}[mode]
    cut = Cut(12, "blocks.5", "t5", [14, 14, 48], kind)
    other = Candidate(
        Cut(0, "input", "x", [224, 224, 3], "input"), 8, 8, "minmax", prediction(total_ms=60.0), "slower by 44 ms"
    )
    fields = {
        "id": "p1", "model": "lite0", "bundle": "0" * 64, "mode": mode, "cut": cut, "weight_bits": 6,
        "ladder": [Codec("mse", 4, [0.0], [0.1])] if mode != "device" else [], "codec": 0, "segment": SegmentRef("0" * 64, 9),
        "preprocess": Preprocess("image", [224, 224, 3]), "prediction": prediction(), "runners_up": [other], "considered": 321,
        "expires_unix": 2e9, "demand": Demand(keep="input"),
    }  # fmt: skip
    return Plan(**(fields | changes))


def text(value: Plan, width: int = 120) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(explain(value))
    return buffer.getvalue()


def test_a_split_plan_tells_cut_bits_times_drop_and_payload():
    shown = text(plan())
    for words in (
        "cut after blocks.5", "6 bits", "4 bits, clipped by mse, per tensor", "device 4.00 ms", "transfer 10.00 ms", "server 2.00 ms",
        "total 16.00 ms", "0.40 points (95 % interval -0.20 to 1.00, 500 samples)", "9.4 kB a frame; 75.3 kB in float, 12.6 % of it",
        "must stay here", "321 plans weighed", "slower by 44 ms",
    ):  # fmt: skip
        assert words in shown, words


@pytest.mark.parametrize(
    ("mode", "words"),
    [("server", "wholly on the server; the input is sent"), ("device", "wholly on this device; nothing is sent")],
)
def test_the_ends_are_said_in_words(mode, words):
    assert words in headline(plan(mode))
    shown = text(plan(mode))
    assert ("nothing leaves the device" in shown) == (mode == "device")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_plan_without_times_or_runners_up_still_prints_on_any_terminal(width):
    nothing = prediction(device_ms=0.0, transfer_ms=0.0, server_ms=0.0, total_ms=0.0, payload_bytes=0, float_bytes=0)
    assert "lite0" in text(plan(prediction=nothing, runners_up=[]), width)
    assert "lite0" in text(plan(), width)


def test_times_beyond_all_measure_still_print():
    assert "total" in text(plan(prediction=prediction(device_ms=1.7e308, transfer_ms=1.7e308)))


def test_names_from_the_server_cannot_steer_the_terminal_or_the_markup():
    hostile = plan(model="\x1b[2Jm[bold]x[/nope]", metric="[red]")
    assert "\x1b" not in text(hostile)
    assert "[bold]x[/nope]" in text(hostile)
    assert plain("a\x07\r\nb") == "ab"


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 999, 1000, 1.5e6, 2e9)] == ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB"]
    assert drop(prediction()).startswith("0.40 points")
