"""Options that a settings struct defines: every setting of a group is an option of the command."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
import typer
from msgspec import Meta
from typer.testing import CliRunner

from edge_agent import cli as agent
from edge_agent import config as agent_config
from edge_server import cli as server
from edge_server import config as server_config
from splitedge import options, settings
from splitedge.options import Given
from splitedge.settings import About, Flag, PathText

Count = Annotated[int, Meta(ge=0, description="0 or more")]


class Section(msgspec.Struct):
    count: Annotated[Count | None, About("A count.", "--count", default="all")] = None
    ratio_max: Annotated[float, Meta(le=1, description="at most 1"), About("A ratio.")] = 0.5


class Example(msgspec.Struct):
    file: Annotated[PathText, About("A file.", group="files")] = ""
    mode: Annotated[Literal["a", "b"], Meta(description="a or b"), About("A mode.", group="modes")] = "a"
    fast: Annotated[Flag, About("Be fast.", group="modes")] = False
    section: Section = msgspec.field(default_factory=Section)


def invoke(*arguments: str) -> Given:
    app = typer.Typer(**options.APP)
    found: list[Given] = []

    @app.command(cls=options.Command)
    @options.takes(Example, "modes", "section", file=True)
    def command(given: Given, other: bool = False) -> None:
        found.append(given)

    result = CliRunner().invoke(app, arguments or ["--mode", "a"])
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_command_takes_the_settings_of_its_groups() -> None:
    given = invoke(
        "--mode", "b", "--count", "3", "--section-ratio-max", "0.25", "--fast", "--config", "x.toml", "--other"
    )
    assert str(given.file) == "x.toml"
    assert given.options == {"mode": "b", "fast": True, "section.count": 3, "section.ratio_max": 0.25}


def test_an_option_that_is_not_given_is_none_and_a_flag_can_be_turned_off() -> None:
    assert invoke("--no-fast").options == {
        "mode": None,
        "fast": False,
        "section.count": None,
        "section.ratio_max": None,
    }


def test_the_reference_derives_every_form_from_the_struct() -> None:
    found = {one.key: one for one in settings.reference(Example)}
    assert [(one.type, one.default) for one in found.values()] == [
        ("path", ""),
        ("a | b", "a"),
        ("boolean", "false"),
        ("integer", "all"),
        ("number", "0.5"),
    ]
    assert found["section.ratio_max"].option == "--section-ratio-max"
    assert found["section.ratio_max"].variable == "SPLITEDGE_SECTION_RATIO_MAX"
    assert found["fast"].option == "--fast/--no-fast"


# --- both programs


PROGRAMS = [(agent.app, agent_config.reference()), (server.app, server_config.reference())]


def options_of(app: typer.Typer, command: str) -> set[str]:
    found: Any = typer.main.get_command(app)
    parameters = found.commands[command].params
    return {option for one in parameters for option in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize(
    ("app", "reference", "command", "missing"),
    [
        (*PROGRAMS[0], "run", set()),
        (*PROGRAMS[0], "infer", {"stage", "api"}),
        (*PROGRAMS[0], "plan", {"stage", "api", "link", "reuse", "output"}),
        (*PROGRAMS[1], "serve", {"demand"}),
        (*PROGRAMS[1], "explain", {"serve"}),
    ],
)
def test_every_setting_that_concerns_a_command_is_its_option(
    app: typer.Typer, reference: tuple[settings.Setting, ...], command: str, missing: set[str]
) -> None:
    offered = options_of(app, command)
    lacking = {one.key for one in reference if not set(one.option.split("/")) <= offered}
    assert lacking == {one.key for one in reference if one.group in missing}


@pytest.mark.parametrize("app", [agent.app, server.app])
def test_every_command_has_help_in_both_forms_and_80_columns(app: typer.Typer) -> None:
    found: Any = typer.main.get_command(app)
    names = [[name] for name in found.commands]
    names += [[name, child] for name, group in found.commands.items() for child in getattr(group, "commands", {})]
    for arguments in ([], *names):
        short, long = (CliRunner().invoke(app, [*arguments, flag], terminal_width=80) for flag in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output)
        assert max(map(len, short.output.splitlines())) <= 80


@pytest.mark.parametrize("app", [agent.app, server.app])
def test_both_programs_complete_in_a_shell_and_print_their_version(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in shown
    assert CliRunner().invoke(app, ["--version"]).output.split()[1][0].isdigit()
