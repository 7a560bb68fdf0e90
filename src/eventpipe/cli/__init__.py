"""The ``eventpipe`` command."""

import sys


def main() -> None:
    """Run the command, or say what to install for it."""
    try:
        from .app import app  # noqa: PLC0415  typer and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("error: the eventpipe command needs typer and rich: pip install 'eventpipe[cli]'")
    app()
