"""Tails on real ONNX models: layout, softmax or not, wrong payloads, what is kept in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import onnx
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_server.tails.pool import LoadedTail, TailHandler, TailPool
from splitedge import codec, errors, limits
from splitedge.codec import padding_mask
from splitedge.protocol.frames import Frame, unpack_topk
from splitedge.protocol.messages import Output
from tests.raising import raises

RNG = np.random.default_rng(7)
WEIGHT = RNG.normal(size=(5, 3, 2, 2)).astype(np.float32)
SHAPE = [4, 4, 3]


def tail_bytes(*ends: str) -> bytes:
    """Convolution over the whole plane to 5 values, then the operators ``ends``."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["t0"]), helper.make_node("GlobalAveragePool", ["t0"], ["t1"])]
    nodes.append(helper.make_node("Flatten", ["t1"], ["t2"]))
    for i, op in enumerate(ends):
        nodes.append(helper.make_node(op, [f"t{2 + i}"], [f"t{3 + i}"]))
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])
    leave = helper.make_tensor_value_info(f"t{2 + len(ends)}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "tail", [entry], [leave], [numpy_helper.from_array(WEIGHT, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def logits(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The tail of `tail_bytes`, written out: x [4, 4, 3]."""
    out = np.zeros(5)
    for row in range(3):
        for column in range(3):
            window = x[row : row + 2, column : column + 2].transpose(2, 0, 1)
            out += (WEIGHT.astype(np.float64) * window).sum(axis=(1, 2, 3))
    return out / 9


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


@pytest_asyncio.fixture
async def tails() -> AsyncIterator[TailPool]:
    made = TailPool()
    yield made
    made.close()


X = RNG.normal(size=SHAPE).astype(np.float32)
LADDER = [codec.fit(X, "minmax", 8), codec.fit(X, "minmax", 4)]


def handler(tails: TailPool, topk: int, *ends: str, load: Callable[[], LoadedTail] | None = None) -> TailHandler:
    output = Output("probabilities" if "Softmax" in ends else "logits", [5])
    return TailHandler(tails, ("b", 1), load or (lambda: LoadedTail(tail_bytes(*ends), SHAPE)), LADDER, output, topk)


@pytest.mark.parametrize("ends", [(), ("Softmax",), ("Softmax", "Identity")])
async def test_topk_is_the_softmax_of_the_logits_exactly_once(tails: TailPool, ends: tuple[str, ...]) -> None:
    payload = codec.encode(X, LADDER[0])
    answer, tail_us = await handler(tails, 3, *ends).answer(Frame(1, 0, 0, payload))
    pairs = unpack_topk(answer)
    expected = softmax(logits(codec.decode(payload, LADDER[0], SHAPE)))
    order = np.argsort(-expected)[:3]
    assert [index for index, _ in pairs] == order.tolist()
    assert [p for _, p in pairs] == pytest.approx(expected[order], abs=1e-5)
    assert tail_us > 0


async def test_each_frame_is_decoded_by_its_own_codec(tails: TailPool) -> None:
    for index, chosen in enumerate(LADDER):
        payload = codec.encode(X, chosen)
        answer, _ = await handler(tails, 0).answer(Frame(1, index, 0, payload))
        expected = logits(codec.decode(payload, chosen, SHAPE))
        np.testing.assert_allclose(np.frombuffer(answer, "<f4"), expected, atol=1e-5)


async def test_a_payload_of_the_wrong_size_is_refused(tails: TailPool) -> None:
    with raises(errors.CodecError, reason="payload-bytes"):
        await handler(tails, 1).answer(Frame(1, 0, 0, b"\0" * 47))


async def test_a_codec_off_the_ladder_is_refused(tails: TailPool) -> None:
    with raises(errors.CodecError, reason="codec-not-on-ladder"):
        await handler(tails, 1).answer(Frame(1, 2, 0, b"\0" * 48))


async def test_a_tail_is_loaded_once_and_the_least_used_goes(tails: TailPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TAILS", 2)
    data, loads = tail_bytes(), []

    def load(cut: int) -> Callable[[], LoadedTail]:
        return lambda: (loads.append(cut), LoadedTail(data, SHAPE))[1]

    for cut in (0, 1, 0, 2, 0, 1):
        tails.get(("b", cut), load(cut))
    assert loads == [0, 1, 2, 1]


async def test_a_tail_that_loads_delays_no_frame_of_another(tails: TailPool) -> None:
    going, begun = threading.Event(), threading.Event()

    def slow() -> LoadedTail:
        begun.set()
        assert going.wait(10)
        return LoadedTail(tail_bytes(), SHAPE)

    quick = handler(tails, 1)
    await quick.ready()
    loads = [asyncio.create_task(asyncio.to_thread(tails.get, ("b", 2), slow)) for _ in range(2)]
    await asyncio.to_thread(begun.wait, 10)
    try:
        async with asyncio.timeout(5):
            await quick.answer(Frame(1, 0, 0, codec.encode(X, LADDER[0])))
    finally:
        going.set()
    first, second = await asyncio.gather(*loads)
    assert first is second


async def test_tails_that_load_leave_the_shared_threads_free(tails: TailPool) -> None:
    going = threading.Event()

    def slow() -> LoadedTail:
        assert going.wait(10)
        return LoadedTail(tail_bytes(), SHAPE)

    streams = [asyncio.create_task(handler(tails, 1, load=slow).ready()) for _ in range(64)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: 1) == 1
    finally:
        going.set()
        await asyncio.gather(*streams)


async def test_a_tail_that_failed_to_load_is_tried_again(tails: TailPool) -> None:
    def fail() -> LoadedTail:
        raise errors.ModelError("not now", reason="told-to")

    with raises(errors.ModelError, reason="told-to"):
        tails.get(("b", 1), fail)
    assert tails.get(("b", 1), lambda: LoadedTail(tail_bytes(), SHAPE)).shape == SHAPE


async def test_frames_beyond_the_queue_are_refused_not_queued(tails: TailPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TAIL_QUEUE", 0)
    with pytest.raises(errors.BusyError):
        await handler(tails, 1).answer(Frame(1, 0, 0, codec.encode(X, LADDER[0])))


def test_a_tail_that_does_not_load_is_one_sentence() -> None:
    with raises(errors.ModelError, reason="tail-broken"):
        LoadedTail(b"not a model", SHAPE)


async def test_a_tail_that_has_no_answer_to_zeros_is_warmed_all_the_same(tails: TailPool) -> None:
    """A norm of zeros is NaN, and no frame of a caller need be zeros."""
    nodes = [
        helper.make_node("ReduceL2", ["x"], ["n"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["n", "one"], ["m"]),
        helper.make_node("Div", ["m", "m"], ["y"]),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "g", [entry], [leave], [numpy_helper.from_array(np.array([1]), "one")])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    served = TailHandler(tails, ("b", 1), lambda: LoadedTail(data, SHAPE), LADDER, Output("tensor", [1]), 0)
    await served.ready()
    answer, _ = await served.answer(Frame(1, 0, 0, codec.encode(X, LADDER[0])))
    np.testing.assert_array_equal(np.frombuffer(answer, "<f4"), [1.0])


def test_a_plane_comes_back_in_onnx_order() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])
    graph = helper.make_graph([node], "g", [entry], [leave])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(
        LoadedTail(model.SerializeToString(), SHAPE).run(X), np.maximum(X, 0).transpose(2, 0, 1)
    )


def marked_tail(padding: int) -> bytes:
    """x [1, 9, 4] and token ids [1, 9] to the sum of the rows whose id is not ``padding``."""
    nodes = [
        helper.make_node("Equal", ["ids", "pad"], ["padding"]),
        helper.make_node("Not", ["padding"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "axis"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "tokens"], ["y"], keepdims=0),
    ]
    constants = {"pad": np.array(padding), "axis": np.array([2]), "tokens": np.array([1])}
    weights = [numpy_helper.from_array(value.astype(np.int64), name) for name, value in constants.items()]
    entries = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 9, 4]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 9]),
    ]
    leave = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", entries, [leave], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("padding", [0, 1, 7])
async def test_a_tail_learns_which_tokens_are_padding(tails: TailPool, padding: int) -> None:
    x = RNG.normal(size=(9, 4)).astype(np.float32)
    ids = np.array([3, 4, padding, 5, 6, padding, 8, 9, 2], np.int32)
    one = codec.fit(x, "minmax", 8)
    served = TailHandler(
        tails, ("b", 1), lambda: LoadedTail(marked_tail(padding), [9, 4], padding), [one], Output("tensor", [4]), 0
    )
    await served.ready()
    codes = codec.encode(x, one)
    answer, _ = await served.answer(Frame(1, 0, 0, codes + padding_mask.pack(ids, padding)))
    wanted = codec.decode(codes, one, [9, 4])[ids != padding].sum(axis=0)
    np.testing.assert_allclose(np.frombuffer(answer, "<f4"), wanted, rtol=1e-5)
    for payload in (codes, codes + b"\xff\xff", codes + b"\xff\x01\x00"):
        with pytest.raises(errors.CodecError):
            await served.answer(Frame(2, 0, 0, payload))
