"""Checks of a plan before a frame is touched. The plan comes from a server and may be wrong or hostile."""

from __future__ import annotations

import itertools
import math
from typing import Final

from splitedge import errors, limits, tasks
from splitedge.head import segment
from splitedge.protocol.frames import HEADER_BYTES
from splitedge.protocol.messages import Demand, Plan, Preprocess

_MAX_AXES: Final = 8  # of an output
_CUT_KINDS: Final = {"server": "input", "split": "inside", "device": "output"}  # by mode


def check_plan(plan: Plan, header: segment.Header, demand: Demand) -> None:
    """Raise `errors.PlanError` unless ``plan`` is consistent, fits the segment's ``header`` and obeys ``demand``.

    The segment proves that `demand.keep` is obeyed: every operator in it runs before the cut, so the device has passed
    each layer in it.
    """
    _check_mode(plan, demand)
    _check_segment(plan, header)
    check_ladder(plan, demand)
    if not _output_fits(plan, header.tensors[header.output].shape):
        raise errors.PlanError(
            "the server's plan describes an output that does not fit; upgrade the older side",
            plan=plan.id,
            reason="output",
        )
    if len(plan.labels) > limits.MAX_LABELS:
        raise errors.PlanError(
            f"the server's plan has more than {limits.MAX_LABELS} labels; import the model with fewer class names",
            plan=plan.id,
            reason="labels",
        )
    if plan.mode != "device" and not _obeys_keep(header, plan, demand.keep):
        raise errors.PlanError(
            f"the server's plan would send {plan.cut.tensor[:100]}, which the demand to keep {demand.keep!r} forbids; "
            "the plan is refused",
            plan=plan.id,
            keep=demand.keep,
            reason="keep-forbids",
        )


def check_ladder(plan: Plan, demand: Demand) -> None:
    """Raise `errors.PlanError` unless the ladder of ``plan`` is consistent, obeys ``demand`` and contains the first
    codec. A plan that sends nothing passes.
    """
    if plan.mode == "device":
        return
    if not 0 <= plan.codec < len(plan.ladder):
        raise errors.PlanError(
            "the server's plan names a codec that is not on its ladder; upgrade the older side",
            plan=plan.id,
            reason="codec-not-on-ladder",
        )
    if not _ladder_is_consistent(plan, demand.max_drop_points):
        raise errors.PlanError(
            "the server's plan has an inconsistent ladder; ask for a new plan", plan=plan.id, reason="ladder"
        )


def _check_mode(plan: Plan, demand: Demand) -> None:
    if _CUT_KINDS[plan.mode] != plan.cut.kind:
        raise errors.PlanError(
            "the server's plan names a cut that its mode does not have; upgrade the older side",
            plan=plan.id,
            reason="cut-of-mode",
        )
    if demand.mode not in ("any", plan.mode):
        raise errors.PlanError(
            f"the server's plan has mode {plan.mode!r} and the request asked for {demand.mode!r}; upgrade the older "
            "side",
            plan=plan.id,
            reason="other-mode",
        )


def _check_segment(plan: Plan, header: segment.Header) -> None:
    """Raise `errors.PlanError` unless ``plan`` and its segment describe the same input, preprocessing and cut."""
    source = header.tensors[header.input]
    ids = source.dtype == "i32"
    odd = ids if plan.preprocess.kind == "image" else plan.cut.padding is not None and not ids
    odd |= plan.tokenizer is not None and not (ids and len(source.shape) == 1)
    if plan.preprocess != header.preprocess or header.tensors[header.output].shape != plan.cut.shape or odd:
        raise errors.PlanError(
            "the server's plan and its segment do not fit together; ask for a new plan",
            plan=plan.id,
            reason="other-segment",
        )
    if not _preprocess_is_valid(plan.preprocess, source.shape):
        raise errors.PlanError(
            "the server's plan has invalid preprocessing parameters; import the model again",
            plan=plan.id,
            reason="preprocess",
        )


def _output_fits(plan: Plan, shape: list[int]) -> bool:
    """Whether an answer can hold the output of ``plan`` and, in mode "device", the head's output ``shape`` has as many
    values.
    """
    output, greatest = plan.output, plan.output.greatest
    axes = [*output.shape, *output.computed]
    bounded = len(axes) <= 2 * _MAX_AXES and all(0 < one <= limits.MAX_DIM for one in axes)
    bounded = bounded and tasks.fits(output)
    fits = output.has_classes or output.task is not None or 4 * math.prod(output.shape) <= limits.MAX_FRAME_BYTES
    if greatest is not None:
        left = [size for axis, size in enumerate(greatest.shape) if axis != greatest.axis]
        fits &= not output.has_classes and 0 <= greatest.axis < len(greatest.shape)
        fits &= math.prod(left) == math.prod(output.shape)
    return bounded and fits and (plan.mode != "device" or math.prod(output.computed) == math.prod(shape))


def _ladder_is_consistent(plan: Plan, max_drop: float) -> bool:
    """Whether each codec has a rung that loses at most ``max_drop`` points and is no dearer and no more accurate than
    the one before.

    Only the first codec may be less accurate than cheaper ones.
    """
    rungs = plan.rungs
    return (
        len(rungs) == len(plan.ladder) <= limits.MAX_LADDER
        and all(0 < rung.payload_bytes <= limits.MAX_FRAME_BYTES + HEADER_BYTES for rung in rungs)
        and all(0 <= rung.noise < math.inf and math.isfinite(rung.drop_points) for rung in rungs)
        and all(rung.drop_high <= max_drop * (1 + 1e-6) + 1e-6 for rung in rungs)
        and all(a.payload_bytes >= b.payload_bytes for a, b in itertools.pairwise(rungs))
        and all(i == plan.codec or a.noise <= b.noise for (i, a), (_, b) in itertools.combinations(enumerate(rungs), 2))
    )


def _preprocess_is_valid(spec: Preprocess, shape: list[int]) -> bool:
    """Whether ``spec`` yields a head input of ``shape``, needs bounded memory and divides by no zero."""
    if spec.shape != shape or (spec.kind == "image" and len(shape) != 3):
        return False
    if spec.kind == "tensor":
        return True
    channels = shape[-1]
    return (
        channels in (1, 3)
        and 1 <= spec.resize <= limits.MAX_RESIZE
        and len(spec.mean) in (1, channels)
        and len(spec.std) in (1, channels)
        and (not isinstance(spec.border, int) or 0 <= spec.border <= 255)
        and all(math.isfinite(value) for value in spec.mean)
        and all(math.isfinite(value) and value > 0 for value in spec.std)
    )


def _obeys_keep(header: segment.Header, plan: Plan, keep: str) -> bool:
    if keep == "nothing":
        return True
    if keep == "input":
        return not segment.reveals_input(header)
    return keep == plan.cut.layer or any(op.name == keep for op in header.ops)
