"""How a command fails: one line for what a person can mend, a traceback for what is a bug."""

import contextlib
from collections.abc import Iterator

import typer

from ..errors import EventPipeError
from .worker import explain


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Show what a person can mend as one line and exit with 1; anything else is a bug and keeps its traceback."""
    try:
        yield
    except EventPipeError as error:
        typer.echo(explain(error), err=True)
        raise typer.Exit(1) from error
