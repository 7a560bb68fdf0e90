"""The chart in the README."""

from pathlib import Path
from typing import Any

CASES = {"publish_concurrent": "publish, 500 callers", "publish_many": "publish many", "consume_ack": "consume + ack"}
PEERS = ("limit", "eventpipe", "eventpipe-plain", "aiormq", "aio-pika", "faststream", "taskiq")
OURS, THEIRS, LIMIT = "#1f6f5c", "#9aa5ab", "#d9dee1"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the medians on a quorum queue, 100 B, asyncio."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "eventpipe"
    import matplotlib.pyplot as plt

    medians = {
        (one["case"], one["peer"]): one["median"]
        for one in results
        if (one["queue"], one["body"], one["loop"]) == ("quorum", 100, "asyncio")
    }
    figure, axes = plt.subplots(1, len(CASES), figsize=(11, 2.8), layout="constrained")
    for axis, (case, title) in zip(axes, CASES.items(), strict=True):
        names = [peer for peer in reversed(PEERS) if (case, peer) in medians]
        values = [medians[case, peer] / 1000 for peer in names]
        colours = [LIMIT if name == "limit" else OURS if name.startswith("eventpipe") else THEIRS for name in names]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axis.set_title(f"{title}, thousands/s", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
