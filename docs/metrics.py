"""Writes the table of docs/metrics.md, between its comments, from the declaration: `python docs/metrics.py`."""

import re
from itertools import groupby
from pathlib import Path

from elbolab.evaluation.metrics import METRICS, SPLITS, Metric

PAGE = Path(__file__).with_suffix(".md")
PARTS = re.compile(r"(.*<!-- metrics -->\n)(.*)(<!-- end metrics -->.*)", re.DOTALL)
BETTER = {"maximize": "higher", "minimize": "lower", None: ""}


def keys(metric: Metric) -> list[str]:
    """A metric's keys, of all splits as one, as the page writes them."""
    name = re.sub(r"\{(\w+)\}", r"\1", metric.name)
    return [f"`{split}/{name}`" for split in (("SPLIT",) if metric.splits == SPLITS else metric.splits)]


def ends(metric: Metric) -> list[str]:
    """The suffixes of the keys of a metric's error and doubt, such as `…_se`."""
    return [f"`{name.format('…')}`" for name in (*metric.errors, metric.doubt) if name]


def table() -> str:
    """The table of every metric; those of one meaning share a row."""
    lines = ["| key | unit | better | error | what it is | source |", "|---|---|---|---|---|---|"]
    for meaning, group in groupby(METRICS, key=lambda metric: metric.meaning):
        metrics = list(group)
        first, several = metrics[0], len(metrics) > 1
        cells = [
            ", ".join(key for metric in metrics for key in keys(metric)),
            "" if several else first.unit,
            "" if several else BETTER[first.best],
            ", ".join(dict.fromkeys(end for metric in metrics for end in ends(metric))),
            meaning,
            "" if several else first.source,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(PARTS.sub(lambda found: found[1] + table() + found[3], PAGE.read_text(encoding="utf-8")))
