"""Text that others chose, made fit for a log line or a terminal."""

from typing import Any

LONGEST = 300
"""Characters of foreign text that are shown."""


def shown(text: Any, longest: int = LONGEST) -> Any:
    """Escape what is not printable (control characters, line ends, bidirectional marks) and cut what is long.

    Anything but text is given back as it is.
    """
    if not isinstance(text, str):
        return text
    if len(text) <= longest and text.isprintable():
        return text
    kept = text[:longest]
    if not kept.isprintable():
        kept = "".join(
            one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in kept
        )
    return kept if len(text) <= longest else f"{kept}… ({len(text)} characters)"
