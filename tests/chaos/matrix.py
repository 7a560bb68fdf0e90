"""The fault matrix, put together from the tests that prove it: ``python -m tests.chaos.matrix`` writes docs/faults.md.

A test says ``@pytest.mark.fault("F01", …)`` which rows it proves, and its docstring says what is expected.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"

FAULTS = {
    "F01": "The broker is killed (-9) under load",
    "F02": "The broker is frozen",
    "F03": "The broker is frozen while a connection is made",
    "F04": "The broker closes the connections",
    "F05": "The broker's application is stopped and started",
    "F06": "The connection breaks while the topology is declared again, at any byte",
    "F07": "The leader of a quorum queue is killed",
    "F08": "The node that we are connected to dies",
    "F09": "The majority of a cluster is lost",
    "F10": "A cluster is partitioned",
    "F11": "The network drops everything, both ways",
    "F12": "The network drops what we send, and passes what the broker sends",
    "F13": "The connection is cut at any byte of a publish",
    "F14": "Segments of one byte, half a second of delay, ten kilobytes a second",
    "F15": "Memory alarm",
    "F16": "Disk alarm",
    "F17": "A confirm never comes",
    "F18": "The broker refuses a message (nack)",
    "F19": "A mandatory message reaches no queue",
    "F20": "Two messages with one id in flight, one of them unroutable",
    "F21": "Publishing to an exchange that does not exist",
    "F22": "A permission is taken away",
    "F23": "The login is refused, at the start and after a change of the password",
    "F24": "TLS: expired, wrong host, plain port",
    "F25": "The host name can't be resolved, or leads elsewhere",
    "F26": "The queue is deleted under its consumer",
    "F27": "The queue is declared anew with other arguments",
    "F28": "An exclusive queue is still held by a dead connection",
    "F29": "A worker is killed (-9) while it handles messages",
    "F30": "SIGTERM under load",
    "F31": "A handler holds up the event loop",
    "F32": "A handler never returns",
    "F33": "A handler ignores its cancellation",
    "F34": "A handler fails always",
    "F35": "A handler returns what can't be published",
    "F36": "The connection is lost while a handler runs",
    "F37": "The connection is lost with a full prefetch buffer",
    "F38": "The broker is away for long",
    "F39": "Bodies over the limit, in and out",
    "F40": "Headers over frame_max, out",
    "F41": "Bodies that are not the event",
    "F42": "Deep JSON, numbers of thousands of digits, NaN",
    "F43": "A type that no handler takes",
    "F44": "Properties that do not decode",
    "F45": "Arguments of a publish that AMQP can't carry",
    "F46": "The same message twice",
    "F47": "Forged headers",
    "F48": "A compressed body that grows without bound",
    "F49": "The clock jumps by an hour",
    "F50": "A slow consumer and a million messages",
    "F51": "A fast publisher and a blocked broker",
    "F52": "Thousands of channels, consumers and reconnects",
    "F53": "The dead-letter queue is missing or full",
    "F54": "Crashes around an outbox",
    "F55": "Crashes in a flow of stages",
    "F56": "A broker that counts deliveries otherwise",
}

NOT_HERE = {
    "F48": "eventpipe does not decompress: a `content_encoding` is left to the handler.",
    "F55": "There are no flows yet.",
}
"""Rows that no test proves, and why."""


def proofs() -> dict[str, list[tuple[str, str]]]:
    """Find the tests of each row, as (file::test, its docstring)."""
    found: dict[str, list[tuple[str, str]]] = {row: [] for row in FAULTS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                for row in _rows(node):
                    found[row].append((f"{path.relative_to(ROOT)}::{node.name}", text))
    return found


def _rows(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
            yield from (one.value for one in decorator.args if isinstance(one, ast.Constant))


def page() -> str:
    """Write the page."""
    lines = [
        "# What eventpipe survives",
        "",
        "Every row is proven by the tests named in it, on a real RabbitMQ where the broker takes part. Common to all:",
        "each call ends within its timeout and a second with success or a typed error, nothing that was confirmed is",
        "lost, no task and no descriptor is left, and no text shows a password. `make faults` runs their long form.",
        "",
        "<!-- written by `python -m tests.chaos.matrix`; do not edit -->",
        "",
        "| | Fault | What is proven | Test |",
        "|---|---|---|---|",
    ]
    for row, tests in proofs().items():
        if tests:
            what = "<br>".join(text for _, text in tests)
            where = "<br>".join(f"`{name}`" for name, _ in tests)
        else:
            what, where = NOT_HERE[row], ""
        lines.append(f"| {row} | {FAULTS[row]} | {what.replace('|', chr(92) + '|')} | {where} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
