"""The plan message and its prediction, built the same way for one device and for each board of a chain."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from calibration.bundle.bundle import Bundle
from device_profiles import schema
from edge_server.planner import MODES, CutCodec, CutOption, PowerDraw, WeightLayer
from edge_server.planner.allocation import WIDTHS, segment_bytes
from splitedge import errors, limits
from splitedge.codec import STAGES
from splitedge.protocol.messages import (
    OLDEST_PROTOCOL,
    OUTPUTS_PROTOCOL,
    PROTOCOL_VERSION,
    Candidate,
    Codec,
    Cut,
    Demand,
    LayerBits,
    Output,
    Parts,
    Plan,
    Prediction,
    Preprocess,
    Rung,
    SegmentRef,
    Stage,
)


class Costs(NamedTuple):
    """What a part of a plan costs. The fields are as in `Prediction`; ``energy_source`` follows from ``power``."""

    device_ms: float
    transfer_ms: float
    queue_ms: float
    server_ms: float
    total_ms: float
    energy_j: float
    power: PowerDraw
    segment_bytes: int
    objective: float
    parts: Parts
    sending_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHead:
    """The head that a plan runs on one board, and the codecs at its cut.

    ``option``: the cut. ``layers``, ``bits``: the weight layers that this board computes. ``codec``: the chosen one of
    the option's codecs; None if nothing is sent. ``ladder``: indices of these codecs. ``noise``: of the whole answer;
    ``other_noise``: the part that does not depend on this codec; ``head_noise``: of the head's activations.
    """

    bundle: Bundle
    option: CutOption
    layers: Sequence[WeightLayer]
    bits: tuple[int, ...]
    codec: int | None
    ladder: Sequence[int]
    noise: float
    other_noise: float
    head_noise: float

    @property
    def chosen(self) -> CutCodec | None:
        """The chosen codec; None if nothing is sent."""
        return None if self.codec is None else self.option.codecs[self.codec]


def build_prediction(head: PlannedHead, costs: Costs) -> Prediction:
    """The prediction of a plan: its costs, and the accuracy drop of its noise."""
    drop = head.bundle.accuracy.at(head.noise)
    return Prediction(
        device_ms=costs.device_ms,
        transfer_ms=costs.transfer_ms,
        queue_ms=costs.queue_ms,
        server_ms=costs.server_ms,
        total_ms=costs.total_ms,
        energy_j=costs.energy_j,
        energy_source=energy_source(costs.power),
        drop_points=drop.expected,
        drop_low=drop.low,
        drop_high=drop.high,
        samples=head.bundle.accuracy.samples,
        noise=head.noise,
        payload_bytes=head.chosen.frame_bytes if head.chosen else 0,
        float_bytes=4 * math.prod(head.option.cut.shape),
        segment_bytes=costs.segment_bytes,
        objective=costs.objective,
        parts=costs.parts,
        sending_ms=costs.sending_ms,
    )


def build_plan(
    head: PlannedHead,
    prediction: Prediction,
    segment: SegmentRef,
    demand: Demand,
    *,
    considered: int,
    runners_up: list[Candidate] | None = None,
    stage: Stage | None = None,
    plan_id: str | None = None,
) -> Plan:
    """The plan message. ``stage``: the board's place in a chain; only the first board accepts text."""
    bundle, option = head.bundle, head.option
    first = stage is None or not stage.upstream
    return Plan(
        id=plan_id or new_plan_id(),
        model=bundle.name,
        bundle=bundle.sha256,
        mode=MODES[option.cut.kind],
        cut=option.cut,
        layers=_layer_bits(head),
        codec_share=head.chosen.noise / (head.noise or 1.0) if head.chosen else 0.0,
        head_share=head.head_noise / (head.noise or 1.0),
        ladder=[codec_message(bundle, option, i) for i in head.ladder],
        rungs=[_rung(head, option.codecs[i]) for i in head.ladder],
        codec=0 if head.codec is None else head.ladder.index(head.codec),
        segment=segment,
        preprocess=bundle.preprocess if stage is None else preprocess_from(bundle, stage.start),
        prediction=prediction,
        runners_up=runners_up or [],
        considered=considered,
        expires_unix=time.time() + limits.PLAN_LIFETIME,
        demand=demand,
        labels=bundle.labels,
        metric=bundle.metric,
        stage=stage,
        tokenizer=bundle.tokenizer if first else None,
        output=bundle.output,
    )


def new_plan_id() -> str:
    """A random id that cannot be guessed."""
    return secrets.token_urlsafe(18)


def codec_message(bundle: Bundle, option: CutOption, index: int) -> Codec:
    """The option's codec ``index`` as it travels in a plan."""
    codec = option.codecs[index]
    if codec.rule == "exact":
        return bundle.exact_codec(option.cut.index)
    return bundle.codec(option.cut.index, codec.rule, codec.bits)


def preprocess_from(bundle: Bundle, start: Cut) -> Preprocess:
    """The preprocessing of a segment that begins at ``start``: the model's at the input, none elsewhere."""
    return bundle.preprocess if start.index == 0 else Preprocess("tensor", start.shape)


def mean_bits(layers: Sequence[WeightLayer], bits: tuple[int, ...]) -> float:
    """The mean number of bits of a weight in a segment; 0 without weights."""
    return 8 * segment_bytes(layers, bits) / max(1, sum(layer.weights for layer in layers))


def power_draw(power: schema.Power) -> PowerDraw:
    """A board's power; sending takes the idle power, or the load power if the idle power is unknown."""
    sending = power.idle_watts if power.idle_watts is not None else power.load_watts
    return PowerDraw(power.load_watts, sending, measured=power.source == "sensor")


def energy_source(power: PowerDraw) -> Literal["measured", "declared", "unknown"]:
    """The origin of a plan's energy."""
    if power.compute_w is None or power.transmit_w is None:
        return "unknown"
    return "measured" if power.measured else "declared"


def codec_stage_ns(profile: schema.DeviceProfile) -> tuple[float, ...]:
    """Nanoseconds a value for each of `codec.STAGES`; 0 for a stage that the profile lacks."""
    return tuple(profile.overhead.stage_ns.get(stage, 0.0) for stage in STAGES)


def check_protocol(version: int, oldest: int = OLDEST_PROTOCOL) -> None:
    """Raise `errors.ProtocolError` unless this server works with an agent of protocol ``version``, ``oldest`` or newer."""
    if not oldest <= version <= PROTOCOL_VERSION:
        known = str(PROTOCOL_VERSION) if oldest == PROTOCOL_VERSION else f"{oldest} to {PROTOCOL_VERSION}"
        raise errors.ProtocolError(
            f"the agent uses protocol {version} and this server {known}: upgrade the older of the two",
            reason="protocol-version",
        )


def check_output(version: int, tasks: Collection[str], output: Output, preprocess: Preprocess) -> None:
    """Raise `errors.ProtocolError` if an agent of protocol ``version`` that knows ``tasks`` cannot use a model with
    ``output`` and ``preprocess``.

    Protocol 3 knows only logits: its agents would take a softmax of other values, or cannot read them.
    """
    needed = output.needs | ({"pad"} if isinstance(preprocess.border, int) else set())
    if missing := sorted(needed - set(tasks)):
        raise errors.ProtocolError(
            f"the agent does not know what this model needs ({', '.join(missing)}); upgrade splitedge on the board",
            reason="protocol-output",
            missing=missing,
        )
    if version < OUTPUTS_PROTOCOL and (output.kind != "logits" or output.greatest is not None):
        raise errors.ProtocolError(
            f"the agent uses protocol {version}, which has no answers for a model with {output.kind} as its output; "
            "upgrade splitedge on the board",
            reason="protocol-output",
        )


def _layer_bits(head: PlannedHead) -> list[LayerBits]:
    return [
        LayerBits(
            layer=layer.name,
            bits=mean_bits([layer], (bits,)),
            weights=layer.weights,
            noise_share=layer.noise[bits - WIDTHS[0]] / (head.noise or 1.0),
        )
        for layer, bits in zip(head.layers, head.bits, strict=True)
    ]


def _rung(head: PlannedHead, codec: CutCodec) -> Rung:
    """What ``codec`` costs in place of the chosen one."""
    noise = head.other_noise + codec.noise
    drop = head.bundle.accuracy.at(noise)
    return Rung(payload_bytes=codec.frame_bytes, noise=noise, drop_points=drop.expected, drop_high=drop.high)
