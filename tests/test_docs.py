"""The documents say what the programs do: commands parse, links lead somewhere, generated pages are current, examples run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

from benchmarks import readme
from benchmarks.first_hour import INSTALLATIONS, Block, blocks
from edge_agent import cli as agent_cli
from edge_agent.api import metrics
from edge_agent.runtime import status
from edge_agent.runtime.results import Counters
from edge_server import cli as server_cli
from edge_server.api.metrics import ServerCounters

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *ROOT.glob("[A-Z]*.md"),
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in dict.fromkeys(DOCUMENTS)]
PROGRAMS = {"edge-agent": agent_cli.app, "edge-server": server_cli.app}
USAGE_ERROR = typer.BadParameter.__mro__[1]  # of the click that typer brings, or of click itself
#: In front of a command: variables, sudo and a path.
_OURS = re.compile(r"(?:^|\s|/)(edge-agent|edge-server)(?= )")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def load_script(name: str) -> Any:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell_blocks() -> list[Block]:
    return [block for name in NAMES for block in blocks(name, read(name)) if block.language == "sh"]


def shown_commands() -> list[tuple[str, str]]:
    """(document, command) for each command of ours in a block of shell."""
    parts = [
        (block.page, part)
        for block in shell_blocks()
        for line in block.commands()
        for part in re.split(r"&&|\|| & ?$|;", line)
    ]
    return [(page, part.strip()) for page, part in parts if _OURS.search(part) and not part.strip().startswith("--")]


def parse(line: str) -> None:
    """Parse a command line as the program would. Raises `USAGE_ERROR`."""
    words = shlex.split(line, comments=True)
    start = next(i for i, word in enumerate(words) if Path(word).name in PROGRAMS)
    program, rest = Path(words[start]).name, [word for word in words[start + 1 :] if word not in ("--help", "&")]
    command: Any = typer.main.get_command(PROGRAMS[program])
    while hasattr(command, "commands") and not (
        command.invoke_without_command and rest[:1] and rest[0].startswith("-")
    ):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(program, rest)


@pytest.mark.parametrize(("document", "line"), shown_commands())
def test_a_shown_command_line_parses(document: str, line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["edge-agent plan --bored pi5", "edge-server serve --port x", "edge-server add"])
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parse(line)


def test_shown_benchmarks_and_scripts_exist() -> None:
    text = "\n".join(block.text for block in shell_blocks())
    modules = set(re.findall(r"python -m ((?:benchmarks|tests)\.[\w.]+)", text))
    scripts = set(re.findall(r"(?<![\w/.])(?:\.venv/bin/python )?(scripts/[\w.-]+)", text))
    assert modules
    assert scripts
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    assert [name for name in sorted(scripts) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", [page for pages in INSTALLATIONS for page in pages])
def test_each_shell_block_says_where_it_runs_or_why_it_does_not(page: str) -> None:
    unmarked = [
        block.line
        for block in blocks(page, read(page))
        if block.language == "sh" and not block.where and not block.skip
    ]
    assert unmarked == []


def test_every_tutorial_and_how_to_page_is_typed() -> None:
    pages = {name for name in NAMES if name.startswith("docs/howto/") or name == "docs/tutorial.md"}
    typed = {page for pages in INSTALLATIONS for page in pages}
    assert {page for page in pages if "```sh" in read(page)} <= typed


@pytest.mark.parametrize("document", NAMES)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", read(document), flags=re.DOTALL)
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]
    assert [target for target in targets if not _leads(ROOT / document, target)] == []


def _leads(page: Path, target: str) -> bool:
    file, _, anchor = target.partition("#")
    if "://" in target:
        return True
    path = page.parent / file if file else page
    return path.exists() and (not anchor or path.suffix != ".md" or anchor in _anchors(path))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


@pytest.mark.parametrize("document", NAMES)
def test_named_files_and_functions_exist(document: str) -> None:
    named = re.findall(r"`((?:[\w-]+/)+(?:[\w.-]+\.(?:py|json|md|html))?)(?::(\w+))?`", read(document))
    tops = {path.name for path in ROOT.iterdir()}
    ours = [(file, name) for file, name in named if file.split("/")[0] in tops]
    missing = [f"{file}:{name}" for file, name in ours if not _defines(ROOT / file, name)]
    assert missing == []


def _defines(path: Path, name: str) -> bool:
    return path.exists() and (not name or bool(re.search(rf"(def|class) {name}\b", path.read_text())))


def test_each_threat_names_its_defence_in_the_code() -> None:
    sections = re.split(r"^## ", read("docs/topics/security.md"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 17
    assert [section.splitlines()[0] for section in sections if not re.search(r"^Code: `", section, re.MULTILINE)] == []


def test_what_the_reference_script_generates_is_current() -> None:
    stale = [path.name for path, text in load_script("reference").pages().items() if path.read_text() != text]
    assert stale == []


def test_published_tables_are_those_of_the_kept_results() -> None:
    stale = [path.name for path, text in readme.pages().items() if path.read_text() != text]
    assert stale == []


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150


def test_the_glossary_lists_each_term_once_and_in_order() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", read("docs/reference/glossary.md"), re.MULTILINE)[2:]
    terms = [term.strip().lower() for row in rows for term in row.split(",")]
    assert len(terms) == len(set(terms))
    firsts = [row.strip().lower() for row in rows]
    assert firsts == sorted(firsts)


def test_the_notices_name_every_dependency() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {Requirement(line).name for line in lines} - {"splitedge"}
    notices = read("docs/reference/third-party.md")
    assert [name for name in sorted(names) if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", notices)] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", read("mkdocs.yml")))
    assert listed == {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}


def test_the_http_page_lists_every_metric() -> None:
    full = {
        "ready": True, "queue": {"frames": 0, "bytes": 0}, "reconnects_total": 0, "plans_total": 0,
        "link": dict.fromkeys(status._LINK_GAUGES, 0), "energy": {"joules": 1.0, "joules_per_frame": 1.0},
    }  # fmt: skip
    text = metrics.render(Counters(), status.gauges(full), {"id": "a"}) + ServerCounters().render(0)
    exposed = set(re.findall(r"^# TYPE splitedge_(\w+)", text, re.MULTILINE))
    agent, server = read("docs/reference/http-api.md").partition("## Metrics")[2].split("splitedge_server_")
    names = {name for row in re.findall(r"^\| (`.*?) \|", agent, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    names |= {f"server_{name}" for name in re.findall(r"^\| `(\w+)", server, re.MULTILINE)}
    assert names == exposed


def test_the_manual_of_the_benchmarks_lists_every_script() -> None:
    mains = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    listed = set(re.findall(r"^\| `(\w+)` \|", read("benchmarks/README.md"), re.MULTILINE))
    children = {"board", "restricted", "slower"}  # processes that others start
    assert listed == mains - children - {"readme"}
