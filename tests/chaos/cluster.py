"""Three private nodes that are one cluster."""

from typing import Self

from eventpipe.testing import RabbitNode


class Cluster:
    """Nodes of one cluster, each of which can be killed and healed by itself."""

    def __init__(self, nodes: list[RabbitNode]) -> None:
        self.nodes = nodes

    @classmethod
    def start(cls, size: int = 3, *, config: str = "") -> Self:
        """Start the nodes and join them. Raises ``BrokerUnavailable``."""
        nodes: list[RabbitNode] = []
        try:
            nodes.append(RabbitNode.start(config=config))
            for _ in range(size - 1):
                node = RabbitNode.start(config=config, beside=nodes[0])
                nodes.append(node)
                node.ctl("stop_app")
                node.ctl("join_cluster", nodes[0].facts["name"])
                node.ctl("start_app")
        except BaseException:
            for node in nodes:
                node.stop()
            raise
        return cls(nodes)

    def leader(self, queue: str, vhost: str = "%2F") -> RabbitNode:
        """Give the node that leads a quorum queue."""
        name = self.nodes[0].api("GET", f"queues/{vhost}/{queue}")["leader"]
        return next(node for node in self.nodes if node.facts["name"] == name)

    def urls(self, vhost: str = "") -> list[str]:
        """Give a URL for each node."""
        return [f"{node.url}{vhost}" for node in self.nodes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for node in self.nodes:
            node.stop()
