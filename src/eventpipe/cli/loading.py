"""Find the pipe that ``module:pipe`` names."""

import importlib
import sys
from pathlib import Path

from ..errors import ConfigurationError
from ..pipe import EventPipe


def load_pipe(target: str) -> EventPipe:
    """Import ``module:pipe``, looking in the current folder too. Raises ``ConfigurationError`` with what to do."""
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigurationError(f"{target!r} names no pipe: write module:pipe, for example feeds.service:pipe")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"there is no module {module_name!r} here ({here}) or installed") from error
        raise ConfigurationError(f"module {module_name!r} fails on import: {error}") from error
    except Exception as error:
        raise ConfigurationError(f"module {module_name!r} fails on import: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, EventPipe):
        pipes = [name for name, value in vars(module).items() if isinstance(value, EventPipe)]
        known = f"it has {', '.join(pipes)}" if pipes else "it has no EventPipe at all"
        what = "has no" if found is None else "has no EventPipe called"
        raise ConfigurationError(f"module {module_name!r} {what} {attribute!r}; {known}")
    return found
