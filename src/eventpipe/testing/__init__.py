"""Integration tests of services that use eventpipe: on the memory broker, and on a real RabbitMQ."""
