"""What eventpipe asks of a broker (``base``), and the brokers that answer: ``memory`` and ``rabbitmq``."""
