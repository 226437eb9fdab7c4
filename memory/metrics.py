"""Every metric, declared once with its meaning; counting an undeclared one is an error. No label holds an id or a text.

Counts are kept in the process and added to PostgreSQL a few times a second, so that `/api/v1/stats` tells of all
processes since the counters began. A killed process loses what it counted in the last moment and nothing else.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import cache as once
from itertools import accumulate

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
    "reconciles": (("outcome",), "Looks for second copies after an unknown outcome: clean, surplus, cut or error."),
    "surplus_removed": ((), "Second copies of a job's facts found in Mem0 and removed."),
    "warm_steps": (("step",), "Steps of warms that ended: L3, L2, L1 or record."),
    "warms": (("reason", "outcome"), "Warms ended: completed, superseded, unchanged or failed."),
    "rebuild_differences": ((), "Users found changed in Mem0 at an unmoved version."),
}

TIMED: dict[str, tuple[tuple[str, ...], str]] = {
    "search_seconds": (("layer",), "Seconds from a search's arrival to its answer, by the layer that answered."),
    "upstream_seconds": (("kind",), "Seconds of a call to Mem0, by its kind."),
    "delivery_seconds": (("kind",), "Seconds from accepting a write to its completion."),
    "warm_seconds": (("outcome",), "Seconds of a warm's work."),
}
"""Histograms over BUCKETS; of no project."""

GAUGES: dict[str, tuple[tuple[str, ...], str]] = {
    "up": (("part",), "Whether postgresql, cache or mem0 (by its breaker) answers."),
    "level": ((), "0 ok, 1 look, 2 call someone: the worst of the findings."),
    "finding": (("name",), "What the watchdog measures, in the unit of its name."),
    "finding_level": (("name",), "0 ok, 1 look, 2 call someone."),
    "jobs_unfinished": (("state",), "Writes accepted and not completed."),
    "lanes_held": ((), "Lanes a worker is at."),
    "reconciles_waiting": ((), "Jobs whose second copies will be looked for."),
    "workers": (("queue",), "Worker processes seen within ten seconds."),
    "breaker_open": ((), "0 closed, 0.5 half open, 1 open: Mem0 is not asked."),
}
"""Read when somebody asks."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Seconds up to which each bucket of a histogram counts."""
SUM = "sum"

Key = tuple[int, str, str]
"""(project id or 0, metric, its labels as `a=b,c=d`)"""

_counts: Counter[Key] = Counter()
_lock = threading.Lock()


def count(name: str, n: int = 1, *, project: int = 0, **labels: str) -> None:
    """Add `n` to a metric of a project (0: of none). KeyError for an undeclared metric, ValueError for other labels."""
    key = series(project, name, *labels.items())
    with _lock:
        _counts[key] += n


def add(keys: Iterable[Key]) -> None:
    """Add one to each of these series."""
    with _lock:
        for key in keys:
            _counts[key] += 1


def observe(name: str, seconds: float, **labels: str) -> None:
    """Note how long something took. KeyError for an undeclared histogram, ValueError for other labels."""
    buckets = _buckets(name, *labels.items())
    with _lock:
        _counts[buckets[bisect_left(BUCKETS, seconds)]] += 1
        _counts[buckets[-1]] += int(seconds * 1_000_000)


# Both are made once: how often something is said of a series is what costs.


@once
def series(project: int, name: str, *labels: tuple[str, str]) -> Key:
    """What a metric with these labels is counted under. KeyError for an undeclared one, ValueError for other labels."""
    return project, name, _labelled(name, DECLARED[name][0], dict(labels))


@once
def _buckets(name: str, *labels: tuple[str, str]) -> list[Key]:
    before = _labelled(name, TIMED[name][0], dict(labels))
    ends = (*(f"{bound:g}" for bound in BUCKETS), "+Inf", SUM)
    return [(0, name, f"{before},le={end}" if before else f"le={end}") for end in ends]


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


def histogram(counts: dict[str, int]) -> tuple[list[tuple[str, int]], float]:
    """[(bound, how many took at most so long)] and the sum in seconds, of one series' counts by bound."""
    bounds = [f"{bound:g}" for bound in BUCKETS] + ["+Inf"]
    upto = accumulate(counts.get(bound, 0) for bound in bounds)
    return list(zip(bounds, upto, strict=True)), counts.get(SUM, 0) / 1_000_000


def _labelled(name: str, declared: tuple[str, ...], labels: dict[str, str]) -> str:
    if labels.keys() != set(declared):
        raise ValueError(f"{name} has the labels {declared}, not {tuple(labels)}")
    return ",".join(f"{label}={labels[label]}" for label in declared)
