"""The documents say what the programs do."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from PIL import Image

from edge_agent import cli as agent_cli
from edge_agent import config
from edge_server import cli as server_cli
from tests.small_server import TOKEN, SmallServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"edge-agent": agent_cli.app, "edge-server": server_cli.app}


def commands(program: str) -> dict[str, Any]:
    """Every command of ``program`` ("service install"), with its click object."""
    return dict(walk(typer.main.get_command(PROGRAMS[program]), ""))


def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def examples() -> list[tuple[str, str]]:
    """(document, command line) of every command of ours in a fenced block of shell."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(document.name, line) for line in lines if re.search(r"\bedge-(agent|server) ", line)]
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_readme_lists_every_command(program: str) -> None:
    rows = re.findall(r"^\| `(edge-[a-z ]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {row.removeprefix(f"{program} ") for row in rows if row.startswith(program)} == set(commands(program))


@pytest.mark.parametrize(("document", "line"), examples())
def test_a_shown_command_line_has_only_options_that_exist(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    start = next(i for i, word in enumerate(words) if Path(word).name in PROGRAMS)
    program, rest = Path(words[start]).name, words[start + 1 :]
    known = commands(program)
    name = next(name for size in (2, 1) if (name := " ".join(rest[:size])) in known)
    command: click.Command = known[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= options | {"--help"}


def test_the_configuration_page_lists_every_setting_and_its_variable() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `([A-Z_]+)`", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert dict(rows) == {setting.key: setting.variable for setting in config.reference()}


def test_the_mitigations_of_the_threat_model_exist() -> None:
    named = re.findall(r"`([a-z_/]+\.py)(?::(\w+))?`", (ROOT / "docs/security.md").read_text())
    missing = [
        f"{file}:{name}"
        for file, name in named
        if not re.search(rf"(def|class) {name}\b" if name else "", (ROOT / file).read_text())
    ]
    assert len(named) > 20
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = [*re.findall(r"\]\(([^)#]+)[^)]*\)", text), *re.findall(r'(?:src|href)="([^"#]+)"', text)]
    assert [t for t in targets if "://" not in t and not (document.parent / t).exists()] == []


@pytest.mark.slow
async def test_the_examples_in_code_of_the_configuration_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    Image.new("RGB", (32, 24)).save(tmp_path / "photo.jpg")
    async with SmallServer(name="flowers") as server:
        variables = {
            "SPLITEDGE_SERVER": server.url,
            "SPLITEDGE_TOKEN": TOKEN,
            "SPLITEDGE_CACHE_DIR": str(tmp_path / "cache"),
        }
        first, second = [await python(block, tmp_path, variables) for block in blocks]
    assert first.startswith("label ")
    assert second == "input 8471\n"


async def python(code: str, folder: Path, variables: dict[str, str]) -> str:
    """What ``code`` prints in a process of its own, with no settings but ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPLITEDGE_")}
    environ = kept | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder)} | variables
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=folder, env=environ, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
