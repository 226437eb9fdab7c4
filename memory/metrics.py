"""Every metric, declared once with its meaning; counting an undeclared one is an error.

Counts are kept in the process and added to PostgreSQL a few times a second, so that `/api/v1/stats` tells of all
processes since the counters began. A killed process loses what it counted in the last moment and nothing else.
"""

from __future__ import annotations

import threading
from collections import Counter

DECLARED: dict[str, tuple[tuple[str, ...], str]] = {
    "searches": (("layer",), "Searches answered, by the layer that answered."),
    "lookups": (("layer", "outcome"), "Look-ups of a layer: hit, miss or error."),
    "fills": (("layer", "outcome"), "Fills of a layer: stored, refused or error."),
    "upstream_calls": (("kind",), "Calls to Mem0 by kind: search, list, get, add, extract, update, delete, …"),
    "upstream_errors": (("kind", "code"), "Calls to Mem0 that failed, by the error's code."),
    "loads_joined": ((), "Searches that waited for an identical one in flight instead of asking Mem0."),
    "embeddings": (("outcome",), "Texts embedded: hit from L1, computed, or error."),
    "degraded": (("reason",), "Answers marked degraded."),
    "jobs": (("kind", "outcome"), "Jobs ended: completed or failed."),
    "attempts": (("outcome",), "Attempts to deliver: stored, rejected, unavailable, unknown."),
    "surplus_removed": ((), "Second copies of a job's facts found in Mem0 and removed."),
    "warms": (("reason", "outcome"), "Warms ended: completed, superseded, unchanged or failed."),
    "rebuild_differences": ((), "Users found changed in Mem0 at an unmoved version."),
}

Key = tuple[int, str, str]
"""(project id or 0, metric, its labels as `a=b,c=d`)"""

_counts: Counter[Key] = Counter()
_lock = threading.Lock()


def count(name: str, n: int = 1, *, project: int = 0, **labels: str) -> None:
    """Add `n` to a metric of a project (0: of none). KeyError for an undeclared metric, ValueError for other labels."""
    declared, _ = DECLARED[name]
    if tuple(sorted(labels)) != tuple(sorted(declared)):
        raise ValueError(f"{name} has the labels {declared}, not {tuple(labels)}")
    key = (project, name, ",".join(f"{label}={labels[label]}" for label in declared))
    with _lock:
        _counts[key] += n


def drain() -> dict[Key, int]:
    """What was counted since the last drain, and forget it."""
    with _lock:
        counts = dict(_counts)
        _counts.clear()
    return counts


def restore(counts: dict[Key, int]) -> None:
    """Put back what could not be saved."""
    with _lock:
        _counts.update(counts)
