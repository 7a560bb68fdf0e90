"""The delay ladder: any delay from twenty queues of fixed TTL, without a plugin (the idea is NServiceBus's).

Level k is a queue whose messages wait 2**k units of 100 ms, fed by a topic exchange of its own. The routing key spells
the delay in bits, highest first: exchange k looks at bit k, sends the message into its level's queue (1) or straight on
to exchange k-1 (0); what expires in level k falls to exchange k-1 as well. Behind exchange 0 stands the exchange
``deliver``, to which each destination is bound with exactly twenty ``*`` words before its name: ``#.b`` would also
take what is meant for ``a.b``. A delay is rounded up to its four highest bits: at most four waits, at most 12.5 % late.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from ...errors import InvalidMessage
from ...routing import UNDELIVERABLE, Binding, Exchange, Queue, Topology, keeping

LEVELS = 20
UNIT = 0.1
"""Seconds."""

BASE = "eventpipe.delay.v1"
DELIVER = f"{BASE}.deliver"

_BITS = 4
_ANY = ".".join(["*"] * LEVELS)


def round_up(seconds: float) -> int:
    """Give a delay in units, rounded up to its four highest bits. Raises ``InvalidMessage`` if it is too long."""
    units = max(1, -(-round(seconds * 1000) // round(UNIT * 1000)))
    shift = max(0, units.bit_length() - _BITS)
    units = -(-units // (1 << shift)) << shift
    if units.bit_length() > LEVELS:
        raise InvalidMessage(f"a delay of {seconds} s is too long: at most 98304 s (27.3 hours)")
    return units


def first_exchange(units: int) -> str:
    """Give the exchange of the highest level that the delay passes."""
    return f"{BASE}.{units.bit_length() - 1:02}"


def key_to_queue(units: int, queue: str) -> str:
    """Give the routing key of a delay to a queue."""
    return f"eventpipe.{_spell(units)}.q.{queue}"


def key_to_exchange(units: int, exchange: str) -> str:
    """Give the routing key of a delay to an exchange; the user's own key travels in a ``CC`` header."""
    return f"eventpipe.{_spell(units)}.x.{exchange}"


def check_key(units: int, key: str) -> None:
    """Refuse a user's key that a level would take for bits of the delay. Raises ``InvalidMessage``.

    The ``CC`` header takes part in routing at every exchange on the way, and a level looks at one word only.
    """
    first = LEVELS - (units.bit_length() - 1)
    for index, word in enumerate(key.split(".")):
        if index >= first and word in ("0", "1"):
            raise InvalidMessage(
                f"routing key {key!r} can't be delayed so long: its word {index + 1} is {word!r}, which the delay "
                f"ladder would obey; use another key or a shorter delay"
            )


def objects() -> Topology:
    """List the ladder's own exchanges, queues and bindings, the same in every virtual host."""
    levels = [Exchange(f"{BASE}.{level:02}") for level in range(LEVELS)]
    bindings: list[tuple[Binding, str, Literal["queue", "exchange"]]] = [
        (Binding(source=_UNDELIVERABLE), UNDELIVERABLE, "queue")
    ]
    for level, exchange in enumerate(levels):
        skip = "*." * (LEVELS - level)  # the first word, and the bits above this one
        bindings.append((Binding(source=exchange, key=f"{skip}1.#"), exchange.name, "queue"))
        bindings.append((Binding(source=exchange, key=f"{skip}0.#"), _below(level), "exchange"))
    queues = [
        Queue(exchange.name, message_ttl=UNIT * 2**level, dead_letter_exchange=_below(level))
        for level, exchange in enumerate(levels)
    ]
    return Topology(
        exchanges=(_UNDELIVERABLE, _DELIVER, *levels),
        queues=(keeping(UNDELIVERABLE), *queues),
        bindings=tuple(bindings),
    )


def destinations(queues: Iterable[Queue], names: Callable[[str], str]) -> Topology:
    """List what lets delayed messages reach these queues.

    One that rejects when it is full gets a queue in front of it, which holds what is refused and offers it again:
    without that, one full queue would block the ladder for all.
    """
    queues = list(queues)
    fronts = {
        queue.name: Queue(
            f"{queue.name}.return", message_ttl=0, dead_letter_exchange="", dead_letter_routing_key=queue.name
        )
        for queue in queues
        if queue.rejects_when_full
    }
    targets = [(queue.name, fronts.get(queue.name, queue).name) for queue in queues]
    return Topology(
        queues=tuple(fronts.values()),
        bindings=tuple((_to("q", names(name)), front, "queue") for name, front in targets),
    )


def queue_destination(queue: str, names: Callable[[str], str]) -> Topology:
    """List what lets delayed messages reach a queue that is known by its name only."""
    return Topology(bindings=((_to("q", names(queue)), queue, "queue"),))


def exchange_destination(exchange: str, names: Callable[[str], str]) -> Topology:
    """List what lets delayed messages reach an exchange: a queue in front of it, which hands on at once.

    A message that the exchange can't route waits there. Bound to the exchange itself, the ladder's last level would
    keep it, and thirty-two of them would block the ladder for all. Raises ``ConfigurationError`` for too long a name.
    """
    front = Queue(f"{exchange}.delayed", message_ttl=0, dead_letter_exchange=exchange)
    return Topology(queues=(front,), bindings=((_to("x", names(exchange)), front.name, "queue"),))


_UNDELIVERABLE = Exchange(UNDELIVERABLE, kind="fanout")
# Without a place for what is undeliverable, one deleted destination would block its levels for everybody.
_DELIVER = Exchange(DELIVER, alternate=_UNDELIVERABLE)


def _to(kind: str, name: str) -> Binding:
    return Binding(source=_DELIVER, key=f"eventpipe.{_ANY}.{kind}.{name}")


def _below(level: int) -> str:
    return f"{BASE}.{level - 1:02}" if level else DELIVER


def _spell(units: int) -> str:
    return ".".join(f"{units:0{LEVELS}b}")
