"""Which acknowledgements to write for what was settled; pure bookkeeping of one channel's delivery tags."""

from collections.abc import Iterable


class Acks:
    """Collects settled tags and gives them out as few acknowledgements.

    ``multiple`` is used only over the prefix that is settled without gaps, and names only a tag that the broker still
    counts as outstanding: it answers one that was acknowledged singly before with a channel error (406).
    """

    def __init__(self) -> None:
        self._prefix = 0  # all tags up to here are settled and written
        self._settled: set[int] = set()  # beyond the prefix, written or not
        self._unwritten: set[int] = set()

    def settle(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Note settled tags; with ``multiple`` all up to the highest."""
        if multiple:
            tags = range(self._prefix + 1, max(tags) + 1)
        fresh = [tag for tag in tags if tag > self._prefix and tag not in self._settled]
        self._settled.update(fresh)
        self._unwritten.update(fresh)

    def written(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Note tags that are given back to the broker; what was settled before stays to be acknowledged."""
        before = set(self._unwritten)
        self.settle(tags, multiple=multiple)
        self._unwritten &= before

    def take(self) -> list[tuple[int, bool]]:
        """Give the acknowledgements to write now, as (tag, multiple), and count them as written."""
        if not self._unwritten:
            return []
        prefix = self._prefix
        while prefix + 1 in self._settled:
            prefix += 1
        below = [tag for tag in self._unwritten if tag <= prefix]
        single = sorted(tag for tag in self._unwritten if tag > prefix)
        self._settled.difference_update(range(self._prefix + 1, prefix + 1))
        self._prefix = prefix
        self._unwritten.clear()
        first = [(max(below), len(below) > 1)] if below else []
        return first + [(tag, False) for tag in single]
