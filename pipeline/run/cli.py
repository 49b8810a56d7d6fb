"""Commands about what a run left: parse, call one function, print. They join the commands of ``pipeline/cli.py``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

outputs_app = typer.Typer(no_args_is_help=True)
"""The commands of this file; the main command line takes them in without a name of their own."""

out = Console()
err = Console(stderr=True)

FOLDER = Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a plan or run.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def note(text: str) -> None:
    """A line before a slow step."""
    err.print(f"[dim]{escape(text)} ...[/]", highlight=False, soft_wrap=True)


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")
