"""The command line as a user runs it: a process, its output and its exit status."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from device_profiles import known, schema
from edge_agent.commands import service
from edge_agent.service import check
from splitedge.protocol.messages import LinkEstimate
from tests.pipe import pipe
from tests.small_server import TENSOR, TOKEN, SmallServer

pytestmark = pytest.mark.slow

FORBIDDEN = {"torch", "onnx", "onnxruntime", "edge_server", "calibration"}


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def environment(tmp_path, profile_file):
    """``environment(server)``: what an agent's process needs, and nothing of this user's settings."""

    def make(server: SmallServer | None, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
        ours = {
            "SPLITEDGE_SERVER": server.url if server else "http://127.0.0.1:9", "SPLITEDGE_TOKEN": TOKEN, "SPLITEDGE_MODEL": "small",
            "SPLITEDGE_PROFILE": str(profile_file), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "160",
        }  # fmt: skip
        return kept | ours | changes

    return make


async def run(environment: dict[str, str], *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = await start(environment, *arguments)
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    finally:
        await ended(process)
    return process.returncode or 0, out.decode(), err.decode()


async def ended(process: Process) -> None:
    """Kill ``process`` if it runs still: one that is left to the garbage collector fails another test."""
    if process.returncode is None:
        process.kill()
        await process.communicate()


async def start(environment: dict[str, str], *arguments: str) -> Process:
    command = [sys.executable, "-W", "error", "-m", "edge_agent", *arguments]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)


def sentence(err: str) -> str:
    """The error of a failed command: its last line. Lines before it, if any, are status messages of slow steps."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert all(line.startswith("edge-agent: ") for line in lines), err
    return lines[-1]


async def test_images_are_classified_in_order_and_a_bad_one_does_not_stop_the_others(tmp_path, environment):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "1.png").write_bytes(b"not an image")
    async with SmallServer() as server:
        status, out, err = await run(environment(server), "infer", str(tmp_path / "*.png"), "-", stdin=png(9))
    assert status == 3
    assert sentence(err).startswith(f"edge-agent: {tmp_path}/1.png: ")
    named = [line.split(":")[0] for line in out.splitlines() if " % (" in line]
    assert named == [f"{tmp_path}/0.png", f"{tmp_path}/2.png", "standard input"]
    assert "frames answered 3/4" in out
    assert "link" in out


async def test_missing_files_are_reported_first_and_the_others_are_classified(tmp_path, environment):
    (tmp_path / "a.png").write_bytes(png())
    named = [str(tmp_path / name) for name in ("no.png", "a.png", "none*.png")]
    async with SmallServer() as server:
        env = environment(server)
        status, out, err = await run(env, "infer", *named)
        json_status, lines, _ = await run(env, "infer", "--json", *named)
    assert status == json_status == 3
    assert ["no.png" in err.splitlines()[0], "none*.png" in err.splitlines()[1]] == [True, True]
    assert "frames answered 1/3" in out
    values = [json.loads(line) for line in lines.splitlines()]
    assert [value.get("error", {}).get("code") for value in values] == ["input", "input", None]
    assert [value["image"] for value in values] == [named[0], named[2], named[1]]


async def test_a_file_is_looked_for_before_the_server_and_a_pipe_is_not_opened_to_look(tmp_path, environment):
    status, _, err = await run(environment(None), "infer", str(tmp_path / "no.png"))
    assert (status, "no.png" in sentence(err)) == (3, True)
    os.mkfifo(tmp_path / "pipe")
    writer = asyncio.to_thread((tmp_path / "pipe").write_bytes, png())
    async with SmallServer() as server:
        (status, out, _), _ = await asyncio.gather(run(environment(server), "infer", str(tmp_path / "pipe")), writer)
    assert status == 0
    assert "frames answered 1/1" in out


@pytest.mark.parametrize("command", [["infer", __file__], ["plan"]])
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"SPLITEDGE_SERVER": "http://127.0.0.1:9"}, 9), ({"SPLITEDGE_TOKEN": "wrong"}, 10), ({"SPLITEDGE_MODEL": "absent"}, 11), ({"SPLITEDGE_MODEL": ""}, 2),
        ({"SPLITEDGE_CHAIN_NEXT": "http://127.0.0.1:9"}, 9),
    ],
)  # fmt: skip
async def test_a_board_is_not_measured_for_what_cannot_be_served(tmp_path, environment, command, changes, status):
    kept = tmp_path / "cache"
    kept.mkdir()
    (tmp_path / "agent.toml").write_text(f"cache_dir = '{kept}'\n")
    async with SmallServer() as server:
        never_measured = {"SPLITEDGE_PROFILE": "", "SPLITEDGE_CONFIG": str(tmp_path / "agent.toml")}
        ended, _, err = await run(environment(server, **never_measured, **changes), *command)
    assert ended == status
    assert sentence(err)
    assert list(kept.glob("profile-*")) == []
    assert server.requests == []


async def test_a_plan_is_printed_though_its_picture_cannot_be_drawn(tmp_path, environment):
    async with SmallServer() as server:  # draws nothing
        status, out, err = await run(environment(server), "plan", "--plot", str(tmp_path / "c.svg"))
    assert status == 8
    assert "conv0" in out
    assert "curves" in sentence(err)
    assert not (tmp_path / "c.svg").exists()


async def test_json_is_one_object_a_line_and_the_summary_goes_elsewhere(tmp_path, environment):
    (tmp_path / "a.png").write_bytes(png())
    async with SmallServer() as server:
        status, out, err = await run(environment(server), "infer", "--json", str(tmp_path))
    (value,) = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert value["image"].endswith("a.png")
    assert value["top"][0]["label"].startswith("label ")
    assert "frames answered 1/1" in err


@pytest.mark.thorough
async def test_of_many_frames_that_are_alike_the_summary_says_what_was_not_sent(tmp_path, environment):
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(png())
    async with SmallServer() as server:
        env = environment(server, SPLITEDGE_REUSE_MAX_AGE_S="3600")
        status, out, _ = await run(env, "infer", "--reuse", "0.1", str(tmp_path))
    assert status == 0
    reused = 30 - server.frames
    assert reused >= 20  # those that begin when the first is answered
    assert f"frames answered 30/30, {reused} with" in out
    assert out.count("; nothing sent") == reused


@pytest.mark.thorough
async def test_an_array_is_known_by_its_content_also_from_standard_input(tmp_path, environment):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((16, 16, 3), np.float32))
    (tmp_path / "array.png").write_bytes(buffer.getvalue())
    async with SmallServer(preprocess=TENSOR) as server:
        status, out, _ = await run(
            environment(server), "infer", str(tmp_path / "array.png"), "-", stdin=buffer.getvalue()
        )
        assert status == 0
        assert "frames answered 2/2" in out
        assert "wait" not in out
        status, _, err = await run(environment(server), "infer", "-")
    assert status == 3
    assert sentence(err).startswith("edge-agent: standard input is empty; ")


async def test_an_array_of_the_wrong_size_names_both_shapes(tmp_path, environment):
    np.save(tmp_path / "good.npy", np.zeros((16, 16, 3), np.float32))
    np.save(tmp_path / "wrong.npy", np.zeros((8, 8, 3), np.float32))
    async with SmallServer(preprocess=TENSOR) as server:
        status, out, err = await run(environment(server), "infer", str(tmp_path))
    assert status == 3
    assert "[8, 8, 3]" in sentence(err)
    assert "[16, 16, 3]" in err
    assert "frames answered 1/2" in out


async def test_a_plan_is_explained_and_as_json_it_is_whole(environment):
    async with SmallServer() as server:
        env = environment(server)
        (status, out, _), (json_status, text, _) = await asyncio.gather(
            run(env, "plan", "--keep", "input", "--max-drop", "2"), run(env, "plan", "--json")
        )
        assert status == json_status == 0
        assert "conv0" in out
        assert "100 samples" in out
        assert json.loads(text)["mode"] == "split"
        assert {(r.demand.keep, r.demand.max_drop_points) for r in server.requests} == {
            ("input", 2.0),
            ("nothing", 1.0),
        }


async def test_what_if_plans_for_a_known_board_and_a_link_that_is_given_and_says_so(environment):
    link = ["--uplink", "5", "--downlink", "20", "--rtt", "30"]
    async with SmallServer() as server:
        (status, out, _), (json_status, text, _) = await asyncio.gather(
            run(environment(server), "plan", "--board", "pi5", *link), run(environment(server), "plan", "--board", "pi4", *link, "--json")
        )  # fmt: skip
        requests = server.requests
    assert status == json_status == 0
    assert (
        "What if: pi5 (Raspberry Pi 5, 8 GB), 5 Mbit/s up (given), 20 Mbit/s down (given), 30 ms round trip (given)"
        in out
    )
    assert "edge-agent profile --known pi5" in out
    assert {r.profile["machine"]["cpu"] for r in requests} == {"Cortex-A76", "Cortex-A72"}
    assert [r.link for r in requests] == [LinkEstimate(30, 5, 20)] * 2
    document = json.loads(text)
    assert document["mode"] == "split"
    what_if = document["what_if"]
    assert (what_if["board"], what_if["link"]["rtt_ms"]) == ("pi4", 30)
    assert what_if["marks"]["kernels.depthwise"]["mark"] == "estimated"
    assert "llvm-mca" in what_if["marks"]["kernels.depthwise"]["source"]
    assert set(what_if["link_marks"].values()) == {"given"}
    assert what_if["pace"] == "slow"
    band = what_if["device_ms"]
    assert band["fast"] < band["middle"] < band["slow"] == pytest.approx(document["prediction"]["device_ms"])
    assert {r.profile["pace"] for r in requests} == {"slow"}


async def test_a_what_if_plans_for_the_end_of_the_band_that_is_asked_for(environment):
    async with SmallServer() as server:
        asked = ["plan", "--board", "pi4", "--uplink", "5", "--downlink", "20", "--rtt", "30", "--json"]
        (status, text, _), (wrong, _, _) = await asyncio.gather(
            run(environment(server), *asked, "--pace", "fast"), run(environment(server), *asked, "--pace", "soon")
        )
        (request,) = server.requests
    assert (status, wrong) == (0, 2)
    assert request.profile["pace"] == "fast"
    document = json.loads(text)
    assert document["what_if"]["device_ms"]["fast"] == pytest.approx(document["prediction"]["device_ms"])


async def test_what_if_of_the_link_alone_keeps_the_own_profile_and_measures_what_is_not_given(environment):
    async with SmallServer() as server:
        status, out, _ = await run(environment(server), "plan", "--uplink", "5")
        (request,) = server.requests
    assert status == 0
    assert "What if: this machine, 5 Mbit/s up (given)" in out
    assert "(measured)" in out
    assert "--known" not in out
    assert request.link.uplink_mbps == 5


@pytest.mark.parametrize("command", [["run"], ["infer", __file__], ["plan"]])
async def test_a_profile_that_nobody_measured_is_not_carried_out(environment, command):
    env = environment(None, SPLITEDGE_PROFILE=str(known.FOLDER / "pi5.json"))
    status, _, err = await run(env, *command)
    assert status == 2
    assert "edge-agent profile" in sentence(err)


async def test_known_boards_are_listed_and_printed_and_nothing_is_measured(environment):
    listed, printed, wrong, unasked = await asyncio.gather(
        run(environment(None), "profile", "--known"),
        run(environment(None), "profile", "--known", "pi4", "--json"),
        run(environment(None), "profile", "--known", "pi9"),
        run(environment(None), "profile", "pi4"),
    )
    assert listed[0] == 0
    assert "Raspberry Pi 4 Model B, 4 GB" in listed[1]
    assert schema.from_dict(json.loads(printed[1])) == known.load("pi4")
    assert all(name in sentence(wrong[2]) for name in ("'pi9'", *known.names()))
    assert "--known pi4" in sentence(unasked[2])


@pytest.mark.parametrize("changes", [{"ladder": []}, {"codec": 1}, {"codec": -1}, {"rungs": []}])
async def test_a_plan_without_its_codec_is_one_sentence(environment, changes):
    async with SmallServer(**changes) as server:
        status, _, err = await run(environment(server), "plan")
    assert status == 11
    assert "codec" in sentence(err) or "ladder" in sentence(err)


async def test_models_are_listed(environment):
    async with SmallServer() as server:
        status, out, _ = await run(environment(server), "models")
    assert status == 0
    assert "16 x 16 x 3" in out


@pytest.mark.parametrize(
    ("changes", "arguments", "status", "words"),
    [
        ({"SPLITEDGE_TOKEN": "wrong"}, ["plan"], 10, "token"),
        ({}, ["plan", "--model", "absent"], 11, "absent"),
        ({}, ["infer", "--keep", "later", __file__], 11, "forbids"),
        ({"SPLITEDGE_CACHE_DIR": "/proc/nowhere"}, ["infer", __file__], 12, "cache folder"),
    ],
)
async def test_what_the_server_or_the_disk_refuses_is_one_sentence(environment, changes, arguments, status, words):
    async with SmallServer() as server:
        ended = await run(environment(server, **changes), *arguments)
    assert ended[0] == status
    assert words in sentence(ended[2])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["plan"], 9, "http://127.0.0.1:9"),
        (["infer"], 2, "--text"),
        (["infer", ""], 2, "empty"),
        (["infer", "/nowhere/*.png"], 3, "nothing matches"),
        (["infer", "/nowhere/a.png", "/nowhere/b.png", "/nowhere/*"], 3, "/nowhere/b.png"),
        (["infer", __file__, "--model", ""], 2, "edge-agent models"),
        (["infer", __file__], 9, "http://127.0.0.1:9"),
        (["models"], 9, "http://127.0.0.1:9"),
        (["plan", "--plot", "/nowhere/c.svg"], 12, "/nowhere/c.svg"),
        (["plan", "--plot", "c.pdf"], 2, ".svg"),
        (["plan", "--plot", "c.svg", "--next", "http://127.0.0.1:9"], 2, "--next"),
        (["plan", "--board", "pi9"], 2, "pi9"),
        (["plan", "--config", "/nowhere/agent.toml"], 2, "/nowhere/agent.toml"),
        (["plan", "--max-drop", "-1"], 2, "0 to 100"),
        (["plan", "--ca", "/nowhere/ca.pem"], 2, "CA file"),
        (["plan", "--server", "http://192.0.2.1:1"], 2, "`--allow-insecure`"),
        (["plan", "--server", "http://127.0.0.1:9"], 9, "(connection refused)"),
        (["profile", "--quick", "--out", "/nowhere/deep/p.json"], 12, "/nowhere/deep/p.json"),
        (["run", "--port", "99999"], 2, "65535"),
    ],
)
async def test_what_is_wrong_on_this_side_is_one_sentence(environment, arguments, status, words):
    ended = await run(environment(None), *arguments)
    assert ended[0] == status
    assert words in sentence(ended[2])


async def test_a_malformed_configuration_is_one_sentence(environment, tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text("[api]\nprot = 1\n")
    status, _, err = await run(environment(None), "run", "--config", str(path))
    assert status == 2
    assert "`api.prot`" in sentence(err)


async def test_without_a_place_for_compiled_kernels_the_agent_runs_and_says_so(environment, tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    (tmp_path / "agent.toml").write_text(f"cache_dir = '{tmp_path}/segments'\n")
    env = environment(None, XDG_CACHE_HOME=str(tmp_path / "file"), SPLITEDGE_CONFIG=str(tmp_path / "agent.toml"))
    process = await start(env, "run", "--port", "0")
    try:
        assert process.stderr is not None
        assert b"the local API listens" in await process.stderr.readline()
        warning = (await process.stderr.readline()).decode()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 60)
    finally:
        await ended(process)
    assert warning.startswith(
        f"edge-agent: warning: compiled kernels cannot be kept in {tmp_path}/file/splitedge/kernels-"
    )
    assert process.returncode == 0


def test_the_unit_can_be_seen_before_it_is_installed(capsys, monkeypatch):
    monkeypatch.setattr(check, "examine", lambda options, environ: check.Findings(notes=["the server is away"]))
    service.install(Path("/srv/agent.toml"), None, dry_run=True)
    out = capsys.readouterr().out
    assert "run --config /srv/agent.toml" in out
    assert "Type=notify" in out


@pytest.mark.thorough
async def test_a_profile_is_printed_and_written(environment, tmp_path):
    status, out, _ = await run(
        environment(None), "profile", "--quick", "--out", str(tmp_path / "p.json"), "--watts", "5"
    )
    assert status == 0
    assert "pointwise 56x56x24 -> 144" in out
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["power"]["load_watts"] == 5
    status, out, _ = await run(environment(None), "profile", "--quick", "--json")
    assert json.loads(out)["schema_version"] == written["schema_version"]


async def test_debugging_shows_the_traceback(environment):
    _, _, err = await run(environment(None, SPLITEDGE_DEBUG="1"), "plan", "--max-drop", "-1")
    assert "Traceback" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["infer"],
        ["infer", "/nowhere/a.png"],
        ["plan", "--plot", "c.pdf"],
        ["config", "show"],
        ["config", "set", "topk", "3"],
    ],
)
async def test_help_settings_and_errors_of_arguments_load_nothing_heavy(environment, arguments):
    code = (
        "import sys\nfrom edge_agent.__main__ import main\n"
        "try:\n main()\nfinally:\n print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'numba', 'aiohttp'}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, stdout=PIPE, stderr=PIPE, env=environment(None)
    )
    out, _ = await process.communicate()
    good = arguments[0].startswith("--") or "show" in arguments
    assert process.returncode == (0 if good else 3 if "/nowhere/a.png" in arguments else 2)
    assert out.decode().endswith("[]\n")


@pytest.mark.thorough
async def test_a_configuration_is_made_shown_checked_and_changed(environment, tmp_path):
    """The commands in a row, as a script runs them. None loads the kernels."""
    env = environment(None, SPLITEDGE_SERVER="", SPLITEDGE_TOKEN="", SPLITEDGE_MODEL="", SPLITEDGE_PROFILE="")
    path = tmp_path / "config/splitedge/agent.toml"
    steps = [
        (["init", "--server", "http://127.0.0.1:9", "--token", TOKEN, "--model", "small"], 0),
        (["init"], 2), (["check"], 0), (["set", "api.port", "70000"], 2), (["set", "api.port", "9"], 0), (["check", "--stage-port", "1"], 2),
        (["unset", "model"], 0), (["check"], 2),
    ]  # fmt: skip
    for arguments, wanted in steps:
        status, _, err = await run(env, "config", *arguments)
        assert status == wanted, err
        assert status == 0 or sentence(err)
    _, out, _ = await run(env, "config", "show", "--json")
    found = json.loads(out)
    given = {one["key"]: one["value"] for one in found["settings"] if one["origin"] == "file"}
    assert found["file"] == str(path)
    assert given == {"server": "http://127.0.0.1:9", "token_file": str(path.with_name("token")), "api.port": 9}
    code = "import sys\nfrom edge_agent.__main__ import main\ntry:\n main()\nfinally:\n print('kernels' in sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "config", "check", "--model", "m", stdout=PIPE, stderr=PIPE, env=env
    )
    out, _ = await process.communicate()
    assert out.decode().split() == ["ok:", str(path), "False"]


async def test_the_server_is_asked_before_the_kernels_are_loaded(environment):
    code = (
        "import sys\nfrom edge_agent.__main__ import main\n"
        "try:\n main()\nfinally:\n print(sorted({m.split('.')[0] for m in sys.modules} & {'numba', 'kernels'}))"
    )
    env = environment(None, SPLITEDGE_PROFILE="")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "infer", __file__, stdout=PIPE, stderr=PIPE, env=env
    )
    out, _ = await process.communicate()
    assert process.returncode == 9
    assert out.decode() == "[]\n"


async def test_the_agent_waits_for_its_server_serves_and_stops_in_order(environment, tmp_path):
    """One life of `edge-agent run` under systemd's eyes: no server yet, then one, a frame, SIGTERM; and what it had loaded by then."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: open({str(tmp_path / 'modules')!r}, 'w').write(' '.join({{m.split('.')[0] for m in sys.modules}})))\n"
        "from edge_agent.__main__ import main\nmain()"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        said: list[str] = []
        asyncio.get_running_loop().add_reader(systemd, lambda: said.append(systemd.recv(4096).decode()))
        env = environment(None, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000")
        async with SmallServer() as server:
            relay = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            port = relay.sockets[0].getsockname()[1]
            env["SPLITEDGE_SERVER"] = f"http://127.0.0.1:{port}"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, "run", "--port", "0", stdout=PIPE, stderr=PIPE, env=env
            )
            assert process.stderr is not None
            url = (await process.stderr.readline()).decode().rsplit(" ", 1)[1].strip()
            assert b"waiting for the server" in await process.stderr.readline()
            async with aiohttp.ClientSession(url) as http:
                assert (await http.get("/healthz")).status == 503
                assert (await http.post("/v1/infer", data=png())).status == 503
                relay.close()
                await relay.wait_closed()
                to = int(server.url.rsplit(":", 1)[1])
                relay = await asyncio.start_server(lambda r, w: pipe(r, w, to), "127.0.0.1", port)
                async with asyncio.timeout(60):
                    while (await http.get("/healthz")).status != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                value = await (await http.post("/v1/infer", data=png())).json()
                assert value["mode"] == "split"
                while b"ready on" not in await process.stderr.readline():
                    pass  # it waits for the server
                server.leave()
                assert b"the link to the server is down" in await process.stderr.readline()
                server.away = False
                assert b"the link to the server is back" in await process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(process.communicate(), 30)
            relay.close()
        asyncio.get_running_loop().remove_reader(systemd)
    assert process.returncode == 0, err.decode()
    assert "Traceback" not in err.decode()
    assert err.decode().endswith("edge-agent: stopped\n")
    assert any("READY=1" in message for message in said)
    assert said.count("WATCHDOG=1") > 1
    assert "STATUS=ready" in said
    assert said[-1] == "STOPPING=1"
    loaded = set((tmp_path / "modules").read_text().split())
    assert {"numpy", "numba", "aiohttp", "kernels", "device_profiles"} <= loaded
    assert not loaded & FORBIDDEN
