"""A text model from its file and its vocabulary to answers to words: real `edge-server add` and `serve`, real agents."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.bundle.bundle import Bundle
from edge_server.commands.add import add
from splitedge import errors
from splitedge.head.text import Tokenizer
from splitedge.head.text import read as read_tokenizer
from tests import models
from tests.edge_server.small_network import request_of
from tests.end_to_end.conftest import World, end
from tests.end_to_end.test_end_to_end import agent, run
from tests.raising import raises
from tests.small_texts import WORDS, vocabulary
from tests.small_transformers import TOKENS

pytest.importorskip("tokenizers", reason="texts need the extra `text`")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
CLASSES = ["film", "money", "sport"]
MODEL = {"SPLITEDGE_MODEL": "topics"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file, its vocabulary, and texts in a folder for each class."""
    place, random = tmp_path_factory.mktemp("topics"), np.random.default_rng(0)
    onnx.save(onnx.load(models.path("topics")), place / "topics.onnx")
    (place / "vocab.txt").write_text(vocabulary(), "utf-8")
    for name in CLASSES:
        (place / "texts" / name).mkdir(parents=True)
        for i in range(10):
            words = [word.removeprefix("##") for word in random.choice(WORDS, random.integers(2, 9))]
            (place / "texts" / name / f"{i}.txt").write_text(" ".join(words), "utf-8")
    return place


async def serve_command(world: World, *arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "edge_server", *map(str, arguments), "--store", str(world.store)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), 240)
    finally:
        await end(process)
    assert "Traceback" not in err.decode()
    return process.returncode or 0, (out + err).decode()


@pytest.fixture
async def topics(world: World, folder: Path) -> Path:
    """``folder``, and the model in the store."""
    if not (world.store / "bundles" / "topics").exists():
        status, said = await serve_command(
            world, "add", folder / "topics.onnx", "--name", "topics", "--tokenizer", folder / "vocab.txt", "--texts", folder / "texts",
            "--input-shape", f"1,{TOKENS}", "--rounding", "nearest",
        )  # fmt: skip
        assert status == 0, said
        assert "float top-1 on these 30 samples" in said
    return folder


def test_the_same_words_have_the_same_answer_in_every_form(topics: Path, world: World) -> None:
    bundle = Bundle.open(world.store / "bundles" / "topics")
    assert (bundle.labels, bundle.metric, bundle.samples) == (CLASSES, "top1", 30)
    assert bundle.tokenizer is not None
    assert bundle.preprocess.shape == [TOKENS]


@pytest.mark.thorough
async def test_words_are_answered(topics: Path, world: World, serving, tmp_path: Path) -> None:
    words = "The BALL, cafés playing 🎉!"
    ids = Tokenizer(read_tokenizer(topics / "vocab.txt"), TOKENS, 0).ids(words)
    array = io.BytesIO()
    np.save(array, ids)
    (tmp_path / "words.txt").write_text(words, "utf-8")
    async with serving() as server:
        environment = world.environment(server, tmp_path / "cache", **MODEL, SPLITEDGE_LINK_CONTROLLER="fixed")
        async with agent(environment) as (http, _):
            forms: list[tuple[bytes, dict[str, str]]] = [
                (words.encode(), {"Content-Type": "text/plain"}),
                (ids.tobytes(), {"Content-Type": "application/octet-stream", "X-Shape": str(TOKENS), "X-Dtype": "int32"}),
                (array.getvalue(), {"Content-Type": "application/octet-stream"}),
            ]  # fmt: skip
            found = []
            for body, headers in forms:
                async with http.post("/v1/infer", data=body, headers=headers) as response:
                    assert response.status == 200, await response.text()
                    found.append((await response.json())["top"])
            assert found[0] == found[1] == found[2]
            async with http.post("/v1/infer", data=b"loan rates", headers=forms[0][1]) as response:
                assert (await response.json())["top"] != found[0]
            async with http.post("/v1/infer", data=b"\xff\xfe", headers=forms[0][1]) as response:
                assert (response.status, "UTF-8" in await response.text()) == (400, True)
        status, out, err = await run(environment, "infer", "--json", "--text", words, tmp_path / "words.txt", tmp_path)
        assert status == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert lines[0]["top"] == lines[1]["top"] == lines[2]["top"]
        status, out, err = await run(environment, "plan")
        assert (status, "tokenizing" in out) == (0, True), err
        status, out, err = await run(environment, "models")
        assert (status, f"text, {TOKENS} tokens" in " ".join(out.split())) == (0, True), out
        status, out, err = await run(environment, "doctor", "--json")
        assert '"fail"' not in out


async def test_an_agent_without_the_library_says_what_to_install(topics: Path, world: World, serving, tmp_path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tokenizers'] = None\n")
    async with serving() as server:
        environment = world.environment(server, tmp_path / "cache", **MODEL)
        environment["PYTHONPATH"] = f"{tmp_path}:{environment.get('PYTHONPATH', '')}".rstrip(":")
        status, _, err = await run(environment, "infer", "--text", "the ball")
        assert (status, "extra `text`" in err) == (4, True), err


def test_what_does_not_fit_the_model_is_refused_when_it_is_added(folder: Path, world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS]), "utf-8")
    large = tmp_path / "large.txt"
    large.write_text(vocabulary(60).replace("word30", "zebra"), "utf-8")
    (tmp_path / "texts.txt").write_text("zebra ball\n" * 8)
    (tmp_path / "bad.json").write_text("{}")
    source, ids = folder / "topics.onnx", {"input_shape": f"1,{TOKENS}"}
    cases: list[tuple[Path, dict[str, object], type[errors.SplitEdgeError], str]] = [
        (source, ids, errors.UsageError, "no-tokenizer"),
        (source, {**ids, "tokenizer": other}, errors.UsageError, "other-padding"),
        (source, {**ids, "tokenizer": tmp_path / "bad.json"}, errors.InputError, "not-a-tokenizer"),
        (source, {**ids, "tokenizer": large, "texts": tmp_path / "texts.txt"}, errors.InputError, "token-ids"),
        (world.folder / "tiny.onnx", {"tokenizer": other}, errors.UsageError, "no-token-ids"),
    ]
    for model, changes, kind, reason in cases:
        asked = {"name": "other", "arrays": None, "texts": folder / "texts", **changes}
        with raises(kind, reason=reason):
            add(world.store, request_of(model, **asked))
        assert not (world.store / "bundles" / "other").exists()
