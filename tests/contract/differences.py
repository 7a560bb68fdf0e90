"""Where the memory broker is not RabbitMQ, on purpose; each name has its test in ``test_differences.py``."""

DIFFERENCES: dict[str, frozenset[str]] = {
    "memory": frozenset(
        {
            "no_priorities",  # a queue that asks for them is refused
            "no_single_active_consumer",  # a queue that asks for it is refused
            "exact_delays",  # a delay is not rounded up to a ladder's steps
            "dead_letter_cycles_go_on",  # RabbitMQ drops a message that died in a circle without being rejected
        }
    ),
    "rabbitmq": frozenset(),
}
