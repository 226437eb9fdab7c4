"""What was seen of the trace, as a table and goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.measure import Goals
from bench.upstream import EMBEDDERS

ALONE, OFF, ON = "Mem0 alone", "memsvc, local search off", "memsvc, local search on"
LAYERS = ("L0", "L2", "L3", "L4")
Rows = Sequence[Mapping[str, Any]]


def show(embedder: str, played: Rows, made: Mapping[str, float], goals: Goals) -> None:
    """The table of one embedder, and its goals."""
    told = ", ".join(f"{share:.1%} {kind}" for kind, share in made.items() if kind != "write")
    print(f"\nMem0 with {EMBEDDERS[embedder]}; of the searches {told}; {made['write']:.1%} of all requests write\n")
    print("| | " + " | ".join((ALONE, OFF, ON)) + " |\n|---|---|---|---|")
    contestants = [[row for row in played if row["name"] == name] for name in (ALONE, OFF, ON)]
    for name, figure in _FIGURES.items():
        print(f"| {name} | " + " | ".join(figure(rows) for rows in contestants) + " |")
    alone, off, on = contestants
    print()
    goals.at_least(0.9, 1 - _share(on, "L4"), f"{ON}: share of searches answered without Mem0")
    bound = 1 / 10 if embedder == "slow" else 1 / 3
    goals.at_most(bound, _ratio(on, alone, "p95"), f"{ON}: p95 over Mem0's, median of the parts")
    goals.at_most(0, sum(row["stale"] for row in [*off, *on]), "stale answers of memsvc")
    print(
        f"        {OFF}: {1 - _share(off, 'L4'):.3f} answered without Mem0; repeats, its ceiling: {made['repeat']:.3f}"
    )


def _share(rows: Rows, layer: str) -> float:
    return float(sum(row["layers"].get(layer, 0) for row in rows)) / _total(rows, "searches")


def _total(rows: Rows, name: str) -> float:
    return float(sum(row[name] for row in rows))


def _per_thousand(rows: Rows, name: str) -> str:
    return f"{_total(rows, name) / _total(rows, 'searches') * 1000:,.0f}"


def _ratio(rows: Rows, others: Rows, figure: str) -> float:
    return statistics.median(float(own[figure]) / float(other[figure]) for own, other in zip(rows, others, strict=True))


def _times(rows: Rows) -> str:
    return " / ".join(f"{statistics.median(float(row[name]) for row in rows):.1f}" for name in ("p50", "p95", "p99"))


def _searches(rows: Rows) -> str:
    """Mem0 alone is asked every one of them."""
    return _per_thousand(rows, "searches" if rows[0]["name"] == ALONE else "searches_of_mem0")


_FIGURES: dict[str, Callable[[Rows], str]] = {
    "searches, writes": lambda rows: f"{_total(rows, 'searches'):.0f}, {_total(rows, 'writes'):.0f}",
    "answered by L0 / L2 / L3 / Mem0": lambda rows: " / ".join(f"{_share(rows, layer):.1%}" for layer in LAYERS),
    "p50 / p95 / p99, ms, medians of the parts": _times,
    "a write until it is stored, p50, ms": lambda rows: (
        f"{statistics.median(row['writes_took']['p50'] for row in rows):.1f}"
    ),
    "searches of Mem0, warming's included, per 1,000 searches": _searches,
    "its other calls, per 1,000 searches": lambda rows: _per_thousand(rows, "other_calls_of_mem0"),
    "texts embedded by Mem0 + memsvc, per 1,000 searches": lambda rows: (
        f"{_per_thousand(rows, 'mem0_texts')} + {_per_thousand(rows, 'memsvc_texts')}"
    ),
    "CPU ms a search, Mem0 + memsvc": lambda rows: (
        f"{_per_thousand(rows, 'mem0_cpu')} + {_per_thousand(rows, 'memsvc_cpu')}"
    ),
    "stale, of answers that had to know of a write": lambda rows: (
        f"{_total(rows, 'stale'):.0f} of {_total(rows, 'checked'):.0f}"
    ),
    "not answered, degraded": lambda rows: f"{_total(rows, 'not_answered'):.0f}, {_total(rows, 'degraded'):.0f}",
}
