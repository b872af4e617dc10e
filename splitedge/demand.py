"""Settings of a demand: the requirements that a plan must meet. The agent and `edge-server explain` share them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitedge import limits
from splitedge.protocol.messages import Demand, Mode, Weights
from splitedge.settings import About, Milliseconds, Seconds

_Weight = Annotated[float, Meta(ge=0, le=1e9, description="a number, 0 or more")]


class WeightsConfig(Weights, forbid_unknown_fields=True):
    """``[demand.weights]``: weights of the objective that compares plans."""

    time: Annotated[_Weight, About("Weight of one second per frame, when plans are compared.", "--weight-time")] = 1.0
    energy: Annotated[_Weight, About("Weight of one joule on this board.", "--weight-energy")] = 0.0
    cost: Annotated[_Weight, About("Weight of one second of server time.", "--weight-cost")] = 0.0
    megabyte: Annotated[
        _Weight, About("Weight of one megabyte (10^6 bytes) over the link, for metered links.", "--weight-megabyte")
    ] = 0.0


class DemandConfig(Demand, forbid_unknown_fields=True):
    """``[demand]``: the requirements that a plan must meet."""

    max_drop_points: Annotated[
        float,
        Meta(ge=0, le=100, description="a number of points from 0 to 100"),
        About("Maximum accuracy drop in points: the upper end of the predicted interval.", "--max-drop"),
    ] = 1.0
    max_latency_ms: Annotated[
        Milliseconds | None, About("Maximum time per frame in ms.", "--max-latency", default="no limit")
    ] = None
    min_rate_fps: Annotated[
        Annotated[float, Meta(gt=0, le=1e6, description="a number of frames per second greater than 0")] | None,
        About("Minimum rate in frames per second.", "--min-rate", default="no limit"),
    ] = None
    weights: WeightsConfig = msgspec.field(default_factory=WeightsConfig)
    keep: Annotated[
        str,
        Meta(min_length=1, max_length=limits.MAX_NAME, description='"nothing", "input" or the name of a layer'),
        About(
            "Data that must not leave this board: nothing, input, or the name of a layer (then the input and every "
            "tensor "
            "before that layer's output).",
            "--keep",
        ),
    ] = "nothing"
    frames: Annotated[
        Annotated[float, Meta(gt=0, le=1e12, description="a number of frames greater than 0")] | None,
        About(
            "Expected number of frames per plan. The planner spreads the download of the segment over them.",
            "--frames",
            default="unlimited",
        ),
    ] = None
    max_away_s: Annotated[
        Seconds, About("Time in seconds that a frame waits for an unreachable server before it fails.", "--max-away")
    ] = 10.0
    mode: Annotated[
        Literal["any"] | Mode,
        Meta(description='"any", "server", "split" or "device"'),
        About("Plans that the planner may choose: all on the server, split, all on this board, or any.", "--mode"),
    ] = "any"
