"""Command-line options generated from a settings struct (see `settings`), so that no command lacks one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup

from splitedge.settings import Setting, base, reference, words

Function = Callable[..., Any]

#: Arguments of every `typer.Typer`: plain help, which loads quickly and fits narrow terminals, and ``-h``.
APP: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_HEADINGS = {"api": "Local API options", "stage": "Later-board options"}
#: Typer's names of types, in the words of `Setting.type`.
_TYPES = {
    "str": "string",
    "list[str]": "string",
    "int": "integer",
    "int range": "integer",
    "float": "number",
    "float range": "number",
}
_FILE = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (TOML). Options override it.", show_default=False)
]


#: Options of every command that prints a plan or a list.
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", help="Plot size against accuracy, and the best cut at each bandwidth, to this .svg or .png file."
    ),
]
#: Of every command that plans for a board that may not be measured.
Pace = Annotated[
    Literal["fast", "middle", "slow"],
    typer.Option(
        "--pace",
        help="What if: which end of the predicted times of a board that was not measured the plan counts on.",
    ),
]
Layers = Annotated[bool, typer.Option("--layers", help="List every layer with its bits and share of noise.")]


class Given(NamedTuple):
    """The settings on a command line: the configuration file, and values by key (None: not given)."""

    file: Path | None
    options: dict[str, object]


def takes(struct: type[msgspec.Struct], *groups: str, file: bool) -> Callable[[Function], Function]:
    """Give a command an option for each setting of ``groups``, and ``--config`` if ``file``.

    The command's parameter ``given`` receives them as `Given`.
    """
    found = [setting for setting in reference(struct) if setting.group in groups]

    def decorate(command: Function) -> Function:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "given"]
        added = [_parameter("config", _FILE)] if file else []
        added += [_parameter(_name(setting), _annotation(setting)) for setting in found]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            options = {setting.key: values.pop(_name(setting)) for setting in found}
            return command(given=Given(values.pop("config", None), options), **values)

        parameters = [*(one.replace(kind=one.KEYWORD_ONLY) for one in own), *added]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


class _Grouped:
    """Help that lists the options of each group under a heading."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As the base class, in groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            if (record := parameter.get_help_record(ctx)) is not None:
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                name = re.sub(r"<([a-z \[\]]+)>", lambda found: f"<{_TYPES.get(found[1], found[1])}>", record[0])
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append((name, record[1]))
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Command(_Grouped, TyperCommand):
    """A command whose help lists the options of each group under a heading."""


class Group(_Grouped, TyperGroup):
    """As `Command`, for a command with commands of its own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def _name(setting: Setting) -> str:
    return setting.key.replace(".", "_")


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(setting: Setting) -> Any:
    choices = words(setting.kind)
    kind: Any = Literal[tuple(choices)] if choices else base(setting.kind)
    known = setting.default not in ("", "false")  # a flag that is off needs no words
    shown = f"{setting.sentence} [default: {setting.default}]" if known else setting.sentence
    option = typer.Option(
        setting.option,
        help=shown,
        show_default=False,
        rich_help_panel=_HEADINGS.get(setting.group, f"{setting.group.capitalize()} options"),
        metavar=None if choices or kind is bool else f"<{setting.type}>",
    )
    return Annotated[kind | None, option]
