"""Which acknowledgements to write for what was settled; pure bookkeeping of one channel's delivery tags."""

from collections.abc import Iterable


class Acks:
    """Collects settled tags and gives them out as few acknowledgements.

    ``multiple`` is used only over the prefix that is settled without gaps, and names only a tag that the broker still
    counts as outstanding: it answers one that was acknowledged singly before with a channel error (406).
    """

    def __init__(self) -> None:
        self._prefix = 0  # all tags up to here are settled
        self._below: list[int] = []  # of the prefix, those that are not written
        self._settled: set[int] = set()  # beyond the prefix, written or not
        self._beyond: set[int] = set()  # beyond the prefix, not written

    @property
    def unwritten(self) -> int:
        """How many settled tags the broker has not been told of."""
        return len(self._below) + len(self._beyond)

    def settle(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Note settled tags; with ``multiple`` all up to the highest."""
        if multiple:
            tags = range(self._prefix + 1, max(tags) + 1)
        for tag in tags:
            if tag == self._prefix + 1:
                self._prefix = tag
                self._below.append(tag)
            elif tag > self._prefix and tag not in self._settled:
                self._settled.add(tag)
                self._beyond.add(tag)
        self._advance()

    def written(self, tags: Iterable[int], *, multiple: bool = False) -> None:
        """Note tags that are given back to the broker; what was settled before stays to be acknowledged."""
        before = {*self._below, *self._beyond}
        self.settle(tags, multiple=multiple)
        self._below = [tag for tag in self._below if tag in before]
        self._beyond &= before

    def take(self) -> list[tuple[int, bool]]:
        """Give the acknowledgements to write now, as (tag, multiple), and count them as written."""
        acks = [(self._below[-1], len(self._below) > 1)] if self._below else []
        acks += [(tag, False) for tag in sorted(self._beyond)]
        self._below.clear()
        self._beyond.clear()
        return acks

    def _advance(self) -> None:
        """Let the prefix grow over what was settled out of order."""
        while self._settled and self._prefix + 1 in self._settled:
            self._prefix += 1
            self._settled.discard(self._prefix)
            if self._prefix in self._beyond:
                self._beyond.discard(self._prefix)
                self._below.append(self._prefix)
