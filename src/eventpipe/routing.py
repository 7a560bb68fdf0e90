"""Exchanges, queues and bindings as plain values, with RabbitMQ's words and RabbitMQ's rules.

A combination that the broker would refuse is refused here, when the value is made. Names and arguments are those of
https://www.rabbitmq.com/docs/queues and https://www.rabbitmq.com/docs/exchanges (RabbitMQ 3.10 and newer).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from .errors import ConfigurationError

ExchangeKind = Literal["direct", "topic", "fanout", "headers"]
QueueKind = Literal["quorum", "classic", "stream"]

DELIVERY_LIMIT = 100
"""``x-delivery-limit`` of quorum queues: a last resort, the same everywhere, so that no policy change becomes a 406."""

UNDELIVERABLE = "eventpipe.undeliverable"
"""The queue of delayed messages whose destination was deleted while they waited."""

QUEUE_NAME_LIMIT = 200
"""Bytes: a ladder's routing key (255 at most) holds a queue's name and 20 bits."""

_EXCHANGE_KINDS = ("direct", "topic", "fanout", "headers")
_QUEUE_KINDS = ("quorum", "classic", "stream")
_SHORT = 255  # bytes of an AMQP short string


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What an exchange passes on: messages whose key (or headers) match. Made with ``Exchange.on``."""

    source: "Exchange"
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.source.name, self.key))


Bindings = Binding | Iterable[Binding]


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange; ``kind`` is topic unless said otherwise.

    ``bind`` feeds it from other exchanges (exchange-to-exchange), ``alternate`` gets what it can't route.
    ``declare=False``: it is somebody else's; only its existence is checked.
    """

    name: str
    kind: ExchangeKind = field(default="topic", kw_only=True)
    bind: Bindings = field(default=(), kw_only=True)
    alternate: "Exchange | None" = field(default=None, kw_only=True)
    durable: bool = field(default=True, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    internal: bool = field(default=False, kw_only=True)
    declare: bool = field(default=True, kw_only=True)
    arguments: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("exchange", self.name, _SHORT)
        object.__setattr__(self, "bind", _bindings(self.bind, f"exchange {self.name!r}"))
        if self.kind not in _EXCHANGE_KINDS:
            raise ConfigurationError(
                f"exchange {self.name!r}: kind {self.kind!r} is none of {', '.join(_EXCHANGE_KINDS)}"
            )

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def wire_arguments(self) -> dict[str, Any]:
        """The arguments of its declaration."""
        extra = {} if self.alternate is None else {"alternate-exchange": self.alternate.name}
        return {**self.arguments, **extra}

    def on(
        self, key: str = "", *, headers: Mapping[str, Any] | None = None, match: Literal["all", "any"] = "all"
    ) -> Binding:
        """Bind to this exchange: by ``key`` (direct, topic), by ``headers`` (headers), or to all of it (fanout).

        In a topic key ``*`` is one word and ``#`` any number of words, words being separated by dots.
        """
        if self.kind == "headers":
            if key or headers is None:
                raise ConfigurationError(f"exchange {self.name!r} is a headers exchange: use .on(headers={{...}})")
            return Binding(source=self, arguments=MappingProxyType({**headers, "x-match": match}))
        if headers is not None:
            raise ConfigurationError(f"exchange {self.name!r} is {self.kind}: only a headers exchange matches headers")
        if self.kind in ("direct", "topic") and not key:
            raise ConfigurationError(f"exchange {self.name!r} is {self.kind}: .on() needs a routing key")
        check_key(key)
        return Binding(source=self, key=key)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue; ``kind`` is quorum unless said otherwise. Lengths are in messages or bytes, times in seconds.

    Every queue but a stream comes with a dead-letter queue, ``<name>.dead``. It gets what eventpipe gives up on and,
    unless ``dead_letter_exchange`` names another place, what the broker itself drops from the queue: expired, over the
    delivery limit, or over the length limit with ``overflow="drop-head"``. ``dead_letter=False``: there is none, and
    what is dropped is lost.
    ``declare=False``: it is somebody else's; only its existence is checked. ``arguments`` is for what has no field.
    """

    name: str
    kind: QueueKind = field(default="quorum", kw_only=True)
    bind: Bindings = field(default=(), kw_only=True)
    durable: bool = field(default=True, kw_only=True)
    exclusive: bool = field(default=False, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    declare: bool = field(default=True, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    max_length_bytes: int | None = field(default=None, kw_only=True)
    overflow: Literal["drop-head", "reject-publish", "reject-publish-dlx"] = field(
        default="reject-publish", kw_only=True
    )
    message_ttl: float | None = field(default=None, kw_only=True)
    expires: float | None = field(default=None, kw_only=True)
    single_active_consumer: bool = field(default=False, kw_only=True)
    max_priority: int | None = field(default=None, kw_only=True)
    lazy: bool = field(default=False, kw_only=True)
    delivery_limit: int | None = field(default=None, kw_only=True)
    dead_letter: bool = field(default=True, kw_only=True)
    dead_letter_exchange: str | None = field(default=None, kw_only=True)
    dead_letter_routing_key: str | None = field(default=None, kw_only=True)
    dead_letter_strategy: Literal["at-least-once", "at-most-once"] | None = field(default=None, kw_only=True)
    leader_locator: Literal["client-local", "balanced"] | None = field(default=None, kw_only=True)
    initial_group_size: int | None = field(default=None, kw_only=True)
    max_age: str | None = field(default=None, kw_only=True)
    stream_max_segment_size: int | None = field(default=None, kw_only=True)
    arguments: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _check_name("queue", self.name, QUEUE_NAME_LIMIT)
        if any(word in ("#", "*") for word in self.name.split(".")):
            raise ConfigurationError(
                f"queue {self.name!r}: a word of its name is '#' or '*', which routing keys would obey"
            )
        object.__setattr__(self, "bind", _bindings(self.bind, f"queue {self.name!r}"))
        if self.kind not in _QUEUE_KINDS:
            raise ConfigurationError(f"queue {self.name!r}: kind {self.kind!r} is none of {', '.join(_QUEUE_KINDS)}")
        for problem in _refused(self):
            raise ConfigurationError(f"queue {self.name!r} ({self.kind}): {problem}")

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def wire_arguments(self) -> dict[str, Any]:
        """The ``x-`` arguments of its declaration; what is not set is not sent, so that a policy may set it."""
        return {name: value for name, value in _arguments(self) if value is not None}

    @property
    def rejects_when_full(self) -> bool:
        """Tell whether a full queue refuses publishes instead of dropping its oldest messages."""
        limited = self.max_length is not None or self.max_length_bytes is not None
        return limited and self.overflow != "drop-head"

    @property
    def dead(self) -> "Queue | None":
        """The queue of its dead letters, which never expire."""
        return companion(self, "dead") if self.dead_letter and self.kind != "stream" else None

    @property
    def suspects(self) -> "Queue | None":
        """The queue in which messages that may kill their process are handled one at a time, alone.

        An exclusive or non-durable queue has none: it does not outlive its process anyway.
        """
        return companion(self, "suspects") if self.kind != "stream" and self.durable and not self.exclusive else None


def companion(queue: Queue, suffix: str) -> Queue:
    """Make the durable queue ``<name>.<suffix>`` that serves ``queue``; what it holds stays until somebody takes it."""
    return keeping(f"{queue.name}.{suffix}", "quorum" if queue.kind == "quorum" else "classic")


def keeping(name: str, kind: QueueKind = "quorum") -> Queue:
    """Make a durable queue whose messages stay, however often somebody looks at them.

    RabbitMQ 4 drops after twenty give-backs what a quorum queue without a limit of its own and without a dead-letter
    exchange holds.
    """
    limit = {"x-delivery-limit": 1_000_000_000} if kind == "quorum" else {}
    return Queue(name, kind=kind, dead_letter=False, arguments=limit)


def check_key(key: str) -> None:
    """Refuse a routing key that does not fit an AMQP short string. Raises ``ConfigurationError``."""
    if len(key.encode()) > _SHORT:
        raise ConfigurationError(f"routing key of {len(key.encode())} bytes: AMQP allows {_SHORT}")


def _check_name(kind: str, name: str, limit: int) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{kind} name {name!r}: must be text of 1 to {limit} bytes")
    if len(name.encode()) > limit:
        raise ConfigurationError(f"{kind} name {name[:40]!r}…: {len(name.encode())} bytes, at most {limit} are allowed")
    if name.startswith("amq.") and kind == "queue":
        raise ConfigurationError(f"{kind} {name!r}: names that begin with 'amq.' are the broker's own")


def _bindings(given: Any, owner: str) -> tuple[Binding, ...]:
    found = (given,) if isinstance(given, Binding) else tuple(given)
    for one in found:
        if not isinstance(one, Binding):
            raise ConfigurationError(f"{owner}: bind={one!r} is no binding; make one with exchange.on(key)")
    return found


def _refused(queue: Queue) -> Iterable[str]:
    """Name what RabbitMQ would refuse with a 406, and what it would accept and silently weaken."""
    for name, low in (("max_length", 0), ("max_length_bytes", 0), ("delivery_limit", 0), ("initial_group_size", 1)):
        value = getattr(queue, name)
        if value is not None and (not isinstance(value, int) or value < low):
            yield f"{name}={value!r} must be a whole number, {low} or more"
    if queue.message_ttl is not None and queue.message_ttl < 0:
        yield f"message_ttl={queue.message_ttl!r} must not be negative"
    if queue.expires is not None and queue.expires <= 0:
        yield f"expires={queue.expires!r} must be more than 0 seconds"
    if queue.max_priority is not None and not 1 <= queue.max_priority <= 255:
        yield f"max_priority={queue.max_priority!r} must be between 1 and 255"
    yield from (f"{name} is not possible here: {why}" for name, why in _impossible(queue))


def _impossible(queue: Queue) -> Iterable[tuple[str, str]]:
    if queue.kind != "classic":
        yield from (
            (name, "only classic queues can")
            for name, wanted in (
                ("durable=False", not queue.durable),
                ("exclusive", queue.exclusive),
                ("auto_delete", queue.auto_delete),
                ("max_priority", queue.max_priority is not None),
                ("lazy", queue.lazy),
                ("overflow='reject-publish-dlx'", queue.overflow == "reject-publish-dlx"),
            )
            if wanted
        )
    if queue.kind != "quorum":
        yield from (
            (name, "only quorum queues can")
            for name, wanted in (
                ("delivery_limit", queue.delivery_limit is not None),
                ("dead_letter_strategy", queue.dead_letter_strategy is not None),
            )
            if wanted
        )
    if queue.kind == "classic" and queue.initial_group_size is not None:
        yield "initial_group_size", "a classic queue lives on one node"
    if queue.kind == "stream":
        yield from (
            (name, "a stream keeps what it has")
            for name, wanted in (
                ("message_ttl", queue.message_ttl is not None),
                ("expires", queue.expires is not None),
                ("max_length", queue.max_length is not None),
                ("single_active_consumer", queue.single_active_consumer),
                ("dead_letter_exchange", queue.dead_letter_exchange is not None),
            )
            if wanted
        )
    elif queue.max_age is not None or queue.stream_max_segment_size is not None:
        yield "max_age or stream_max_segment_size", "only streams can"
    if queue.dead_letter_strategy == "at-least-once" and queue.overflow != "reject-publish":
        yield "dead_letter_strategy='at-least-once'", "the broker silently weakens it without overflow='reject-publish'"
    if queue.overflow == "reject-publish-dlx" and not queue.dead_letter:
        yield "overflow='reject-publish-dlx'", "there is no dead-letter exchange"


def _arguments(queue: Queue) -> Iterable[tuple[str, Any]]:
    yield from (
        ("x-queue-type", queue.kind),
        ("x-max-length", queue.max_length),
        ("x-max-length-bytes", queue.max_length_bytes),
        ("x-message-ttl", _milliseconds(queue.message_ttl)),
        ("x-expires", _milliseconds(queue.expires)),
        ("x-single-active-consumer", queue.single_active_consumer or None),
        ("x-max-priority", queue.max_priority),
        ("x-queue-mode", "lazy" if queue.lazy else None),
        ("x-queue-leader-locator", queue.leader_locator),
        (
            "x-quorum-initial-group-size" if queue.kind == "quorum" else "x-initial-cluster-size",
            queue.initial_group_size,
        ),
        ("x-max-age", queue.max_age),
        ("x-stream-max-segment-size-bytes", queue.stream_max_segment_size),
    )
    if queue.kind != "stream":
        yield "x-overflow", queue.overflow
        yield from _dead_lettering(queue) if queue.dead_letter else ()
    yield from queue.arguments.items()


def _dead_lettering(queue: Queue) -> Iterable[tuple[str, Any]]:
    """Say where the broker puts what it drops: by default into ``<name>.dead``, at least once."""
    own = queue.dead_letter_exchange is None
    yield "x-dead-letter-exchange", queue.dead_letter_exchange or ""
    yield "x-dead-letter-routing-key", queue.dead_letter_routing_key or (f"{queue.name}.dead" if own else None)
    if queue.kind == "quorum":
        # Without a limit a message that kills its reader comes back for ever; without a dead-letter exchange the broker
        # would drop it.
        yield "x-delivery-limit", DELIVERY_LIMIT if queue.delivery_limit is None else queue.delivery_limit
        default = "at-least-once" if queue.overflow == "reject-publish" else "at-most-once"
        yield "x-dead-letter-strategy", queue.dead_letter_strategy or default


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Everything that a pipe declares, as immutable data, in an order in which it can be declared: targets first.

    ``retried`` names the queues whose messages may come back after a delay.
    """

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[tuple[Binding, str, Literal["queue", "exchange"]], ...] = ()
    retried: tuple[str, ...] = ()

    def mermaid(self) -> str:
        """Draw it as a Mermaid flowchart."""
        lines = ["flowchart LR"]
        lines += [f'    {_node("x", one.name)}{{{{"{_label(one.name)}<br/>{one.kind}"}}}}' for one in self.exchanges]
        lines += [f'    {_node("q", one.name)}[("{_label(one.name)}<br/>{one.kind}")]' for one in self.queues]
        for binding, target, kind in self.bindings:
            text = binding.key or ", ".join(f"{name}={value}" for name, value in binding.arguments.items())
            arrow = f'-- "{_label(text)}" -->' if text else "-->"
            lines.append(
                f"    {_node('x', binding.source.name)} {arrow} {_node(kind[0] if kind == 'queue' else 'x', target)}"
            )
        lines += [
            f'    {_node("x", one.name)} -. "unroutable" .-> {_node("x", one.alternate.name)}'
            for one in self.exchanges
            if one.alternate is not None
        ]
        lines += [
            f'    {_node("q", one.name)} -. "given up" .-> {_node("q", one.dead.name)}'
            for one in self.queues
            if one.dead is not None
        ]
        return "\n".join(lines)


def topology(
    *, exchanges: Iterable[Exchange] = (), queues: Iterable[Queue] = (), consumed: Iterable[Queue] = ()
) -> Topology:
    """Work out all objects behind these exchanges and queues. Raises ``ConfigurationError`` on contradictions."""
    consumed = tuple(consumed)
    found_exchanges: dict[str, Exchange] = {}
    found_queues: dict[str, Queue] = {}
    for exchange in exchanges:
        _add_exchange(exchange, found_exchanges)
    for queue in (*queues, *consumed):
        for one in (queue.dead, queue.suspects if queue in consumed else None, queue):
            if one is not None:
                _add(found_queues, one, "queue")
        for binding in _bindings(queue.bind, queue.name):
            _add_exchange(binding.source, found_exchanges)
    targets: tuple[tuple[Any, Literal["queue", "exchange"]], ...] = (
        *((one, "queue") for one in found_queues.values()),
        *((one, "exchange") for one in found_exchanges.values()),
    )
    return Topology(
        exchanges=tuple(found_exchanges.values()),
        queues=tuple(found_queues.values()),
        bindings=tuple((binding, one.name, kind) for one, kind in targets for binding in one.bind),
        retried=tuple(dict.fromkeys(queue.name for queue in consumed)),
    )


def _add_exchange(exchange: Exchange, found: dict[str, Exchange]) -> None:
    if exchange.alternate is not None:
        _add_exchange(exchange.alternate, found)
    for binding in _bindings(exchange.bind, exchange.name):
        _add_exchange(binding.source, found)
    _add(found, exchange, "exchange")


def _add(found: dict[str, Any], one: Any, kind: str) -> None:
    known = found.setdefault(one.name, one)
    if known != one:
        raise ConfigurationError(
            f"{kind} {one.name!r} is declared in two different ways: {known!r} and {one!r}. "
            f"Make it once and use that value in both places."
        )


def _node(kind: str, name: str) -> str:
    return f"{kind}_{name.encode().hex()}"


def _label(text: str) -> str:
    return text.replace('"', "#quot;")
