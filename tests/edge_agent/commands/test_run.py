"""`edge-agent run` at its start and in trouble: what its API answers meanwhile, which errors it waits out, and what systemd hears."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme

from edge_agent.commands import run
from edge_agent.runtime.agent import Agent
from splitedge import errors, limits
from splitedge.service import notify
from tests.pipe import pipe
from tests.small_server import TOKEN, SmallServer, make_plan

pytestmark = pytest.mark.slow

# The import of numba waits for the file `go`: the machine on which it takes a while.
SLOW = """
import pathlib, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        while name == "numba" and not pathlib.Path({go!r}).exists():
            time.sleep(0.01)
sys.meta_path.insert(0, Slow())
"""


@contextlib.asynccontextmanager
async def running(tmp_path: Path, before: str = "", **environ: str) -> AsyncIterator[tuple[Process, str]]:
    """`edge-agent run` in a process of its own, and the URL of its API; ``before``: Python that runs first there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPLITEDGE_", "NOTIFY_"))}
    ours = {"SPLITEDGE_TOKEN": TOKEN, "SPLITEDGE_MODEL": "small", "XDG_CONFIG_HOME": str(tmp_path / "none")}
    code = f"{before}\nfrom edge_agent.__main__ import main\nmain()"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        code,
        "run",
        "--port",
        "0",
        stdout=PIPE,
        stderr=PIPE,
        env=kept | ours | environ,
    )
    assert process.stderr is not None
    try:
        yield process, (await process.stderr.readline()).decode().rsplit(" ", 1)[-1].strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process: Process, words: Sequence[str]) -> str:
    """The next line on standard error that holds all ``words``."""
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := (await process.stderr.readline()).decode():
            if all(word in line for word in words):
                return line
    raise AssertionError(words)


async def test_the_api_answers_while_the_kernels_are_being_imported(tmp_path, profile_file):
    go = tmp_path / "go"
    async with SmallServer() as server:
        environ = {"SPLITEDGE_SERVER": server.url, "SPLITEDGE_PROFILE": str(profile_file)}
        async with (
            running(tmp_path, SLOW.format(go=str(go)), **environ) as (process, url),
            aiohttp.ClientSession(url) as http,
        ):
            for method, path in (("GET", "/healthz"), ("GET", "/v1/status")):
                async with http.request(method, path) as response:
                    value = await response.json()
                    assert (response.status, value["ready"], value["state"]) == (503, False, "loading")
            async with http.post("/v1/infer", data=b"x") as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (503, "unreachable")
                assert error["data"] == {"reason": "not-ready", "ready": False, "state": "loading"}
                assert response.headers["Retry-After"] == "1"
            async with http.get("/metrics") as response:
                assert "splitedge_ready 0" in (await response.text()).splitlines()
            async with http.get("/") as response:
                assert (response.status, response.content_type) == (200, "text/html")
                assert "loading" in await response.text()
            go.touch()
            await line_with(process, ["ready on", url])
            async with http.get("/v1/status") as response:
                value = await response.json()
            assert (response.status, value["ready"]) == (200, True)
            assert value["frames"]["failed"] == {"unreachable": 1}  # the one that came too early


async def test_a_stop_while_the_kernels_are_being_imported_is_in_order(tmp_path):
    go = tmp_path / "go"
    async with running(tmp_path, SLOW.format(go=str(go))) as (process, _):
        process.send_signal(signal.SIGTERM)
        await line_with(process, ["stopped"])
        go.touch()  # the import cannot be broken off
        assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize("environ", [{"SPLITEDGE_MODEL": ""}, {"SPLITEDGE_STAGE_PORT": "0"}], ids=["neither", "both"])
async def test_a_board_without_a_part_or_with_two_ends_at_once(tmp_path, environ):
    async with running(tmp_path, "import sys\nsys.modules['numba'] = None", **environ) as (process, _):
        assert await asyncio.wait_for(process.wait(), 60) == errors.ConfigError.exit_status


async def test_an_address_that_is_taken_may_be_free_at_the_next_start(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with running(tmp_path, "import sys\nsys.argv[-1] = '%d'" % taken.getsockname()[1]) as (process, _):  # noqa: UP031
            assert await asyncio.wait_for(process.wait(), 60) == errors.AddressError.exit_status


async def test_a_certificate_that_is_not_valid_yet_is_waited_for(tmp_path, profile_file):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    authority.issue_cert("127.0.0.1", not_before=tomorrow, not_after=tomorrow + timedelta(days=1)).configure_cert(
        context
    )
    async with SmallServer() as server:
        to = int(server.url.rsplit(":", 1)[1])
        front = await asyncio.start_server(lambda r, w: pipe(r, w, to), "127.0.0.1", 0, ssl=context)
        environ = {
            "SPLITEDGE_SERVER": f"https://127.0.0.1:{front.sockets[0].getsockname()[1]}", "SPLITEDGE_CA": str(tmp_path / "ca.pem"),
            "SPLITEDGE_PROFILE": str(profile_file),
        }  # fmt: skip
        async with front, running(tmp_path, **environ) as (process, _):
            await line_with(process, [notify.WAITING, "clock"])
            authority.issue_cert("127.0.0.1").configure_cert(context)  # as if the clock had been set
            await line_with(process, ["ready on"])


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def heard(systemd: socket.socket) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(systemd.recv(4096).decode())
    return found


async def test_what_the_server_refuses_ends_the_command_and_is_waited_for_by_the_service(
    settings, systemd, monkeypatch
):
    monkeypatch.setattr(limits, "REFUSED_AGAIN", 0.02)
    async with SmallServer(name="another") as server:
        agent = Agent(settings(server), notify.status)
        try:
            waiting = asyncio.create_task(run._become_ready(agent))
            async with asyncio.timeout(30):
                while not agent.state.startswith(notify.REFUSED):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            server.plan = make_plan("split", server.data)
            await asyncio.wait_for(waiting, 30)
            assert agent.ready
            assert any(said.startswith(f"STATUS={notify.REFUSED}: ") for said in heard(systemd))
            monkeypatch.delenv("NOTIFY_SOCKET")
            server.plan = make_plan("split", server.data, name="another")
            second = Agent(settings(server))
            with pytest.raises(errors.UnknownModelError):
                await run._become_ready(second)
            await second.close()
        finally:
            await agent.close()


@pytest.mark.parametrize(
    ("error", "remote", "mends"),
    [
        (errors.AuthError("refused"), False, True), (errors.UnknownModelError("absent"), False, True), (errors.UsageError("no such layer"), True, True),
        (errors.UnreachableError("certificate", tls=True), False, True), (errors.SegmentError("corrupt"), False, True),
        (errors.ConfigError("a path"), False, False), (errors.StoreError("full"), False, False), (errors.PlatformError("32 bit"), False, False),
    ],
)  # fmt: skip
def test_what_a_person_can_mend_on_the_server_is_told_from_what_is_wrong_here(error, remote, mends):
    error.remote = remote
    assert run.elsewhere(error) is mends


async def test_the_error_that_ends_the_service_is_left_with_systemd(tmp_path, systemd):
    (tmp_path / "ca.pem").write_text("none")
    environ = {"NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"], "SPLITEDGE_CA": str(tmp_path / "ca.pem")}
    async with running(tmp_path, **environ) as (process, _):
        assert await asyncio.wait_for(process.wait(), 120) == errors.ConfigError.exit_status
    said = heard(systemd)
    assert said[0] == "READY=1\nSTATUS=loading"
    assert said[-2] == "STOPPING=1"
    assert said[-1].startswith("STATUS=")
    assert str(tmp_path / "ca.pem") in said[-1]


async def test_each_cause_of_a_failed_start_is_logged_once(settings, capsys, monkeypatch):
    monkeypatch.setattr(limits, "BACKOFF_FIRST", 0.01)
    causes = [("refused", "at 10:00"), ("refused", "at 10:01"), ("timeout", "at 10:02"), ("refused", "at 10:03")]

    class Starting(Agent):
        async def start(self) -> None:
            if causes:
                reason, text = causes.pop(0)
                raise errors.UnreachableError(text, reason=reason)

    async with SmallServer() as server:
        await run._become_ready(Starting(settings(server)))
    said = capsys.readouterr().err.splitlines()
    assert [(line.split(": ")[2].split(";")[0]) for line in said] == ["at 10:00", "at 10:02"]
