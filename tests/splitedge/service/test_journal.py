"""Messages of a service, with a real socket in the place of the journal's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitedge.service import journal

CHILD = """
import sys
from pathlib import Path
from splitedge.service import journal
journal.log("edge-agent", "lost\\nPRIORITY=0", journal.WARNING, {"event": "link-down\\nX=1"}, place=Path(sys.argv[1]))
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "socket"))
        found.setblocking(False)
        yield found


def logged(tmp_path: Path, *, of_systemd: bool, code: str = CHILD) -> str:
    """What a process writes to standard error, which is a file."""
    with (tmp_path / "stderr").open("w+b") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino}" if of_systemd else f"{found.st_dev}:{found.st_ino + 1}"
        command = [sys.executable, "-c", code, str(tmp_path / "socket")]
        subprocess.run(command, env=os.environ | {"JOURNAL_STREAM": stream}, stderr=file, check=False)
        file.seek(0)
        return file.read().decode()


def test_an_entry_has_its_priority_and_fields_and_no_text_adds_a_field(tmp_path, listener):
    assert logged(tmp_path, of_systemd=True) == ""
    assert listener.recv(4096).decode().splitlines() == [
        "MESSAGE=edge-agent: lostPRIORITY=0",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=edge-agent",
        "SPLITEDGE_EVENT=link-downX=1",
    ]


def test_a_message_that_the_journal_does_not_accept_goes_to_standard_error(tmp_path):
    assert logged(tmp_path, of_systemd=True) == "<4>edge-agent: lostPRIORITY=0\n"


def test_elsewhere_than_in_the_journal_it_is_a_plain_line(tmp_path, listener):
    assert logged(tmp_path, of_systemd=False) == "edge-agent: lostPRIORITY=0\n"
    with pytest.raises(BlockingIOError):
        listener.recv(4096)


def test_the_error_that_ends_a_service_has_the_priority_of_errors(tmp_path):
    code = (
        "import sys; sys.argv[1:] = ['run', '--config', '/no/such/file']; from edge_agent.__main__ import main; main()"
    )
    assert logged(tmp_path, of_systemd=True, code=code).startswith(f"<{journal.ERROR}>edge-agent: ")
