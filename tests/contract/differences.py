"""Where the memory broker is not RabbitMQ, on purpose; each name has its ``test_difference_…`` in the suite."""

DIFFERENCES: dict[str, frozenset[str]] = {
    "memory": frozenset(
        {
            "no_priorities",  # a queue that asks for them is refused
            "no_single_active_consumer",  # a queue that asks for it is refused
            "no_queue_expiry",  # an unused queue stays, whatever its ``expires``
            "exact_delays",  # a delay is not rounded up to a ladder's steps
            "delays_leave_no_trace",  # exchange, key and headers are the publisher's, not the ladder's
            "any_key_is_delayed",  # there is no ladder that would take a word of a key for a bit of the delay
            "requeued_keep_their_place",  # RabbitMQ's quorum queues without a delivery limit put them at the end
        }
    ),
    "rabbitmq": frozenset({"sent_at_once"}),  # a publish is on its way when the call returns
    "rabbitmq-plain": frozenset(),
}
