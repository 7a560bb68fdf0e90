"""Find the object that ``module:name`` names."""

import importlib
import sys
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigurationError
from ..pipe import EventPipe

T = TypeVar("T")


def load_pipe(target: str) -> EventPipe:
    """Import ``module:pipe``. Raises ``ConfigurationError`` with what to do."""
    return load(target, EventPipe, "pipe")


def load(target: str, kind: type[T], what: str) -> T:
    """Import ``module:name``, looking in the current folder too. Raises ``ConfigurationError`` with what to do."""
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigurationError(f"{target!r} names no {what}: write module:{what}, for example feeds.service:{what}")
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
    if not isinstance(found, kind):
        names = [name for name, value in vars(module).items() if isinstance(value, kind)]
        known = f"it has {', '.join(names)}" if names else f"it has no {kind.__name__} at all"
        missing = "has no" if found is None else f"has no {kind.__name__} called"
        raise ConfigurationError(f"module {module_name!r} {missing} {attribute!r}; {known}")
    return found
