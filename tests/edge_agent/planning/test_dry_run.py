"""A model's operators are timed before its weights are here, once, and the server hears of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

import device_profiles
from edge_agent.planning import measured_times
from edge_agent.planning.dry_run import _shares, memory_bytes, time_operators
from edge_agent.planning.dry_run_store import DryRunStore, KeptDryRun, contradicted
from edge_agent.runtime.agent import Agent
from kernels import warm
from splitedge import errors, limits
from splitedge.head import Head
from splitedge.head import segment as seg
from splitedge.protocol import messages
from splitedge.protocol.messages import DryRun, Outline
from tests import small_server
from tests.raising import raises
from tests.segment_builder import Builder
from tests.small_server import SmallServer


def outline(convolutions: int = 3, bundle: str = "0" * 64) -> Outline:
    """Of a head of equal convolutions, as it crosses the network."""
    builder = Builder([32, 32, 16])
    out = builder.input
    for _ in range(convolutions):
        out = builder.conv(out, 16, (3, 3), (1, 1), (1, 1, 1, 1))
    made = Outline(bundle, seg.frame(builder.finish().header))
    return messages.decode(messages.encode(made), Outline)


def test_every_operator_has_its_time_and_together_they_have_the_heads() -> None:
    found = time_operators(outline(6), 1)
    assert len(found.ms) == 6
    assert all(0 < a < b for a, b in pairwise(found.ms))
    shares = [b - a for a, b in pairwise([0.0, *found.ms])]
    assert max(shares[1:]) < 20 * min(shares[1:])  # equal work


def test_no_constant_is_needed_and_none_would_fit_in_the_outline() -> None:
    described = outline(8)
    assert len(described.header) < 2000 < memory_bytes(described)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_transformers_head_has_a_dry_run_too(threads: int) -> None:
    builder = Builder([8], dtype="i32")
    x = builder.embed(builder.input, 32)
    y = builder.attention(builder.linear(builder.norm(x), 96), 4, ids=builder.input)
    builder.linear(y, 32, residual=x)
    header = builder.finish().header
    found = time_operators(Outline("0" * 64, seg.frame(header)), threads)
    assert len(found.ms) == len(header.ops)
    assert found.ms[-1] > 0


@pytest.mark.parametrize("header", [b"", b"SPLTEDGE", outline().header[:-3], outline().header + b"x", b"\0" * 100])
def test_an_outline_that_is_none_is_refused_in_one_sentence(header: bytes) -> None:
    with pytest.raises(errors.SegmentError) as caught:
        time_operators(Outline("0" * 64, header), 1)
    assert "\n" not in str(caught.value)


def test_what_is_kept_is_bounded_and_a_broken_file_is_as_none(tmp_path: Path) -> None:
    kept = DryRunStore(tmp_path / "rehearsals.json")
    for i in range(limits.MAX_DRY_RUNS + 3):
        kept.put(f"model {i}", KeptDryRun(DryRun("0" * 64, [float(i)]), {}))
    assert kept.get("model 2") is None
    assert kept.get("model 18") == KeptDryRun(DryRun("0" * 64, [18.0]), {})
    kept.put("replaced", KeptDryRun(DryRun("2" * 64, []), {}))
    kept.remove("2" * 64)
    assert kept.get("replaced") is None
    assert kept.get("model 18") is not None
    (tmp_path / "rehearsals.json").write_text("[1, 2")
    assert kept.get("model 17") is None
    found = KeptDryRun(DryRun("1" * 64, []), {"a" * 64: 2.0})
    kept.put("model 17", found)
    assert kept.get("model 17") == found


def test_concurrent_writers_lose_no_dry_run(tmp_path: Path) -> None:
    path = tmp_path / "rehearsals.json"

    def put(i: int) -> None:  # each with a store of its own, as agents in several processes have
        DryRunStore(path).put(f"model {i}", KeptDryRun(DryRun("0" * 64, [float(i)]), {}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(limits.MAX_DRY_RUNS)))
    assert all(DryRunStore(path).get(f"model {i}") is not None for i in range(limits.MAX_DRY_RUNS))


@pytest.mark.parametrize(
    ("measured", "again"),
    [
        ({}, False),
        ({"first": 4.5, "whole": 11.0}, False),
        ({"first": 5.5}, True),
        ({"first": 2.9}, True),
        ({"whole": 30.0}, False),  # so it was at the dry run: another would give the same
        ({"whole": 40.0}, True),  # frames have come since
        ({"of another model": 99.0, "longer than the model": 99.0, "only tables": 99.0}, False),
    ],
)
def test_frames_after_a_dry_run_can_contradict_it(measured: dict[str, float], again: bool) -> None:
    kept = KeptDryRun(DryRun("0" * 64, [1.0, 4.0, 10.0]), {"whole": 30.0})
    operators = {"first": 2, "whole": 3, "longer than the model": 4, "only tables": 0}
    assert contradicted(kept, measured, operators) is again


def test_an_operator_within_a_slice_is_charged_for_the_slices_of_others() -> None:
    runs = [[10.0, 100.0] for _ in range(6)]  # a pause of 90 falls into the short one in two of six runs
    for run in runs[:2]:
        run[0], run[1] = 100.0, 10.0
    runs += [[10.0, 5000.0]] * 6  # and a bad moment
    assert _shares(runs) == pytest.approx([40 / 110, 70 / 110])


def test_a_folder_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    with raises(errors.StoreError, reason="cannot-write"):
        DryRunStore(tmp_path / "none" / "rehearsals.json").put("model", KeptDryRun(DryRun("0" * 64, []), {}))


@pytest.fixture
def own_profile(tmp_path: Path, profile_file: Path) -> Path:
    """A cache folder in which this machine's profile is kept already."""
    cache = tmp_path / "cache"
    cache.mkdir()
    device_profiles.save(
        device_profiles.load(profile_file),
        cache / f"profile-{warm.fingerprint()}.json",
    )
    return cache


@pytest.mark.usefixtures("own_profile")
async def test_the_agent_makes_one_dry_run_and_sends_it_to_the_server(settings) -> None:
    async with SmallServer() as server:
        server.outline = outline(4)
        for _ in range(2):
            async with Agent(settings(server, profile="")):
                pass
        first, second = (request.dry_run for request in server.requests)
        assert first is not None
        assert len(first.ms) == 4
        assert first == second
        assert server.outlines_served == 1


@pytest.mark.usefixtures("own_profile")
async def test_a_dry_run_that_frames_contradict_is_made_again(settings) -> None:
    async with SmallServer() as server:
        server.outline = outline(4)
        async with Agent(settings(server, profile="")) as agent:
            assert agent.plan is not None
            segment = agent.plan.segment.sha256
        frames = measured_times.time_log(settings(server, profile=""))
        for _ in range(5):
            frames.add_head(segment, 9999.0)
        frames.save()
        for _ in range(2):
            async with Agent(settings(server, profile="")):
                pass
        assert server.outlines_served == 2


@pytest.mark.usefixtures("own_profile")
async def test_a_model_that_was_replaced_has_a_new_dry_run(settings) -> None:
    async with SmallServer() as server:
        server.outline = outline(4, bundle="1" * 64)  # the plan's is another
        for _ in range(2):
            async with Agent(settings(server, profile="")):
                pass
        assert server.outlines_served == 2


@pytest.mark.usefixtures("own_profile")
async def test_a_server_without_outlines_and_one_that_sends_nonsense_plan_all_the_same(settings) -> None:
    async with SmallServer() as server:
        for header in (None, b"nonsense"):
            server.outline = None if header is None else Outline("0" * 64, header)
            async with Agent(settings(server, profile="")) as agent:
                assert agent.plan is not None
        assert [request.dry_run for request in server.requests] == [None, None]
        assert server.outlines_served == 2


@pytest.mark.usefixtures("own_profile")
async def test_a_model_beyond_the_memory_has_no_dry_run(settings, monkeypatch) -> None:
    monkeypatch.setattr("edge_agent.planning.dry_run._COPIES", 1e15)
    async with SmallServer() as server:
        server.outline = outline()
        async with Agent(settings(server, profile="")):
            pass
        assert server.requests[0].dry_run is None


async def test_a_named_profile_has_no_dry_run(settings) -> None:
    async with SmallServer() as server:
        server.outline = outline()
        async with Agent(settings(server)):
            pass
        assert server.requests[0].dry_run is None
        assert server.outlines_served == 0


def test_the_same_kernels_run_with_weights_and_without() -> None:
    whole = seg.parse(small_server.segment_file("device"))
    bare = Head(seg.Segment(whole.header, whole.blob * 0), check_golden=False)
    assert [one.kind for one in bare.profile(seg.golden_frame(whole.header), 1)] == [
        one.kind for one in Head(whole).profile(seg.golden_frame(whole.header), 1)
    ]
