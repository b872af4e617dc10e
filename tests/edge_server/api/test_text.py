"""A text model with a mask, from the file that its library wrote to the answers of a split network."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.importing.importer import session
from edge_agent.runtime.engine import Engine
from edge_server.commands.add import add
from edge_server.planning import chain_plan, device_plan
from edge_server.planning.catalog import Catalog
from edge_server.store.store import Store
from edge_server.tails.pool import TailHandler, TailPool
from splitedge.head.segment import OPERATORS
from splitedge.protocol.frames import Frame
from splitedge.protocol.messages import ChainDevice, ChainRequest, Demand, LinkEstimate, Plan, PlanRequest
from tests import models
from tests.edge_server.small_network import request_of
from tests.small_transformers import TOKENS

pytestmark = pytest.mark.slow
NEAR = LinkEstimate(0.0, 1e4, 1e4)
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(1, 50, (16, TOKENS)) * (np.arange(TOKENS) < random.integers(3, TOKENS + 1, (16, 1)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, texts: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("text") / "bert.onnx"
    onnx.save(onnx.load(models.path("traced-bert-14-dynamic")), path)
    np.save(path.parent / "x.npy", texts)
    return path


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    name = onnx.load(source).graph.output[1].name  # the pooled output: one vector for a text
    asked = request_of(source, name="bert", input_shape=f"1,{TOKENS}", output=name, rounding="nearest", metric="cosine")
    add(folder, asked)
    with Store(folder) as opened:
        yield opened


@pytest.fixture
async def tails() -> AsyncIterator[TailPool]:
    made = TailPool()
    yield made
    made.close()


def plans_of_all_cuts(store: Store, profile: dict[str, Any], max_drop: float = 100.0) -> list[Plan]:
    bundle = Catalog(store).bundle("bert")
    layers = [bundle.cuts[i].layer for i in bundle.offered if bundle.cuts[i].kind != "output"]
    found = {}
    for layer in layers:
        demand = Demand(max_drop_points=max_drop, mode="split", keep=layer)
        plan = device_plan.make_plan(
            Catalog(store), PlanRequest(model="bert", profile=profile, link=NEAR, demand=demand)
        )
        found[plan.cut.index] = plan
    return list(found.values())


async def test_frames_tell_which_tokens_are_padding(
    store: Store, profile: dict[str, Any], tails: TailPool, source: Path, texts: np.ndarray
) -> None:
    catalog, whole = Catalog(store), session(onnx.load(source))
    bundle, met = catalog.bundle("bert"), set()
    for plan in plans_of_all_cuts(store, profile, max_drop=1.0):
        met.add(plan.cut.padding)
        engine = Engine(plan, store.segments.path(plan.segment.sha256).read_bytes(), Demand(max_drop_points=100.0))
        load = lambda cut=plan.cut: catalog.tail(bundle, cut)  # noqa: E731
        handler = TailHandler(tails, (bundle.sha256, plan.cut.index), load, plan.ladder, plan.output, 0)
        await handler.ready()
        for ids in texts[:4]:
            sent = engine.process(ids, choose=lambda: 0)
            answer, _ = await handler.answer(Frame(1, sent.rung, 0, sent.payload))
            fed = {NAMES[0]: ids[None], NAMES[1]: (ids[None] != 0).astype(np.int64), NAMES[2]: 0 * ids[None]}
            assert np.corrcoef(np.frombuffer(answer, "<f4"), whole.run(None, fed)[1][0])[0, 1] > 0.99
    assert met == {0, None}


async def test_the_most_accurate_rung_is_float16(
    store: Store, profile: dict[str, Any], tails: TailPool, texts: np.ndarray
) -> None:
    """A head of floats sends what 8 bits would lose; a better link is worth twice the bytes."""
    catalog, seen = Catalog(store), 0
    bundle = catalog.bundle("bert")
    for plan in plans_of_all_cuts(store, profile):
        wide = [i for i, one in enumerate(plan.ladder) if one.bits == 16]
        if not wide:
            continue
        assert wide == [0]
        seen += 1
        assert plan.rungs[0].noise == min(rung.noise for rung in plan.rungs)
        engine = Engine(plan, store.segments.path(plan.segment.sha256).read_bytes(), Demand(max_drop_points=100.0))
        load = lambda cut=plan.cut: catalog.tail(bundle, cut)  # noqa: E731
        handler = TailHandler(tails, (bundle.sha256, plan.cut.index), load, plan.ladder, plan.output, 0)
        sent = engine.process(texts[0], choose=lambda: 0)
        assert len(sent.payload) == 2 * int(np.prod(plan.cut.shape)) + (2 if plan.cut.padding is not None else 0)
        answer, _ = await handler.answer(Frame(1, 0, 0, sent.payload))
        assert np.isfinite(np.frombuffer(answer, "<f4")).all()
    assert seen


def test_a_chain_divides_it_only_where_the_mask_is_read_no_more(store: Store, profile: dict[str, Any]) -> None:
    pair = [
        ChainDevice(
            device=n,
            profile=copy.deepcopy(profile),
            next=NEAR if n == "a" else None,
            server=NEAR,
            operators=sorted(OPERATORS),
        )
        for n in "ab"
    ]
    asked = ChainRequest(model="bert", devices=pair, demand=Demand(max_drop_points=100.0, mode="any"), objective="rate")
    found = [chain_plan.make_chain(Catalog(store), asked)]
    while found[-1].stage is not None and found[-1].stage.downstream:
        found.append(store.plans.get(found[-1].stage.downstream))
    assert [plan.cut.padding for plan in found] == [None] * len(found)
