"""The bookkeeping of acknowledgements, against a model of the broker."""

from hypothesis import given
from hypothesis import strategies as st

from eventpipe.transports.rabbitmq.acks import Acks


class Channel:
    """What RabbitMQ does with basic.ack: a tag that is not outstanding closes the channel with 406."""

    def __init__(self, count: int) -> None:
        self.outstanding = set(range(1, count + 1))

    def ack(self, tag: int, multiple: bool) -> None:
        assert tag in self.outstanding, f"406: unknown delivery tag {tag}"
        self.outstanding -= {one for one in self.outstanding if one <= tag} if multiple else {tag}


@given(order=st.permutations(range(1, 31)), writes=st.sets(st.integers(0, 30)), keep=st.integers(0, 10))
def test_any_order_acknowledges_exactly_what_is_settled(order: list[int], writes: set[int], keep: int) -> None:
    """Whatever the order and whenever it is written, exactly the settled tags are acknowledged, each once."""
    acks, channel = Acks(), Channel(30)
    settled: set[int] = set()
    for step, tag in enumerate(order[: 30 - keep]):
        acks.settle([tag])
        settled.add(tag)
        if step in writes:
            for one in acks.take():
                channel.ack(*one)
            assert channel.outstanding == set(range(1, 31)) - settled
    for one in acks.take():
        channel.ack(*one)
    assert channel.outstanding == set(range(1, 31)) - settled
    assert acks.take() == []


def test_a_settled_prefix_is_one_acknowledgement() -> None:
    """A hundred in order are one frame; with a gap, the rest are single."""
    acks = Acks()
    acks.settle(range(1, 101))
    assert acks.take() == [(100, True)]
    acks.settle([102, 103])
    assert acks.take() == [(102, False), (103, False)]
    acks.settle([101])
    assert acks.take() == [(101, False)]
    acks.settle([104])
    assert acks.take() == [(104, False)]


def test_multiple_and_given_back() -> None:
    """Settling up to a tag takes all before it; what was given back is not acknowledged."""
    acks, channel = Acks(), Channel(10)
    acks.written([2])
    channel.outstanding.discard(2)
    acks.settle([5], multiple=True)
    for one in acks.take():
        channel.ack(*one)
    assert channel.outstanding == {6, 7, 8, 9, 10}
