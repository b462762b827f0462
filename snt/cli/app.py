"""The application: every command by its name, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from snt.errors import RequestError
from snt.processes import world

# In the order of the help; module and attribute below `snt.cli`.
_WHERE = {
    "detect": "detect:detect",
    "tune": "tune:tune",
    "robust-tune": "robust_tune:robust_tune",
    "eval": "eval:evaluate",
    "inspect": "inspect:inspect",
    "run": "run:run",
    "models": "lists:models",
    "backends": "lists:backends",
    "judges": "lists:judges",
    "doctor": "lists:doctor",
    "mask": "mask:mask_app",
    "patch": "patch:patch_app",
    "push": "share:push",
    "pull": "share:pull",
}


class _Commands(Mapping[str, Any]):
    """The commands by name, each read when it is asked for: all their options take a while."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        # The help asks twice.
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    @staticmethod
    def _build(name: str) -> Any:
        module, _, attribute = _WHERE[name].partition(":")
        found = getattr(import_module(f"snt.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command()(found)
            found = alone
        command = get_command(found)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _Commands()})


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find, measure and strengthen the neurons that carry a language model's refusals.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from snt import __version__

        typer.echo(f"snt {__version__}")
        raise typer.Exit


# Commands that share their work; any other would do it once in every process.
_SEVERAL = ("detect", "tune", "eval")


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Find, measure and strengthen the neurons that carry a language model's refusals."""
    here = world()
    if here.size > 1 and context.invoked_subcommand not in _SEVERAL:
        raise RequestError(
            f"{here.size} processes were started, and {context.invoked_subcommand} works in one; "
            f"start it alone ({', '.join(_SEVERAL)} share their work)"
        )
