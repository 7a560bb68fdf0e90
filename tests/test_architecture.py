"""The import rule: errors <- pure values <- transports.base <- worker <- publisher, consumer <- pipe <- the rest."""

import ast
from pathlib import Path

import eventpipe

ROOT = Path(eventpipe.__file__).parent
LEVELS = [
    {"errors", "version"},
    {"message", "codec", "routing", "retry", "copies", "wish", "shown", "permissions", "where", "depends", "signature"},
    {"clock", "context", "handler", "providing", "middleware", "signals"},
    {"transports.base"},
    {"intake", "work"},
    {"recall", "unpacking", "slots"},
    {"handling"},
    {"storing"},
    {"worker", "outlet"},
    {"packing", "health", "watch", "deadletters"},
    {"publisher"},
    {"consumer"},
    {"transports.memory", "transports.rabbitmq"},
    {"transports.select"},
    {"pipe"},
    {""},
    {"testing", "sql"},
    {"cli"},
]
PURE = LEVELS[0] - {"version"} | LEVELS[1]
IMPURE_MODULES = {"asyncio", "time", "random", "secrets", "logging", "structlog", "socket", "threading", "os"}
AMQP = {"aio_pika", "aiormq", "pamqp", "yarl"}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _group(module: str) -> str:
    """Fold a module into the room it belongs to."""
    parts = module.split(".")
    if parts[0] in ("testing", "cli", "sql"):
        return parts[0]
    return ".".join(parts[:2]) if parts[0] == "transports" else parts[0]


def _imports(path: Path) -> list[tuple[str, bool]]:
    """List what a file imports, as (name, whether it is eventpipe's own)."""
    package = path.relative_to(ROOT).parent.parts
    found: list[tuple[str, bool]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(name.name.split(".")[0], False) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((str(node.module).split(".")[0], False))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module is None:
                found += [(".".join((*base, name.name)), True) for name in node.names]
            else:
                found.append((".".join((*base, node.module)), True))
    return found


def _level(group: str) -> int:
    return next(number for number, level in enumerate(LEVELS) if group in level)


def test_imports_point_inwards() -> None:
    """No module imports one of its own level's other rooms, or of an outer level."""
    for path in ROOT.rglob("*.py"):
        group = _group(_module(path))
        for name, own in _imports(path):
            target = _group(name)
            if own and target not in (group, "transports"):
                allowed = _level(target) < _level(group) or (group in PURE and target in PURE)
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_pure_part_is_pure() -> None:
    """Time, chance, tasks and logs arrive as arguments."""
    for name in PURE:
        outside = {module for module, own in _imports(ROOT / f"{name}.py") if not own}
        assert not outside & IMPURE_MODULES, name


def test_only_the_rabbitmq_room_knows_aio_pika() -> None:
    """Another AMQP library would change one folder."""
    for path in ROOT.rglob("*.py"):
        if _group(_module(path)) != "transports.rabbitmq":
            assert not {name for name, own in _imports(path) if not own} & AMQP, path


def test_nothing_hides_an_import() -> None:
    """A wish for TYPE_CHECKING is a wish to move something: a cycle is a design message."""
    for path in ROOT.rglob("*.py"):
        assert "TYPE_CHECKING" not in path.read_text(), path
