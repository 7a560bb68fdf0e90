"""Throughput and latency of eventpipe and its peers, side by side on one private broker: ``make bench``."""
