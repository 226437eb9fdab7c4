"""What was measured of memsvc beside Mem0, as tables and goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.measure import Goals, medians
from bench.upstream import EMBEDDERS

USERS, FACTS = 20, 100
"""Users, and memories of each."""
STUCK = 48
"""Clients that wait for Mem0 while it stands still."""
SAME, LOCAL = "memsvc", "memsvc, local embedder"
"""The contestants beside Mem0: with Mem0's embedder, and with its own where Mem0's is elsewhere."""
AGAINST = {"repeated": "repeated", "bounded": "repeated", "new": "new"}
"""Which of Mem0's runs each kind is held against."""


def show(embedder: str, measured: Mapping[str, Any], goals: Goals) -> None:
    """The tables of one embedder, and its goals."""
    clients = sorted({run["clients"] for run in measured["runs"]})
    print()
    for side, about in measured["about"].items():
        print(f"{side}: {about}.")
    for count in clients:
        _table(embedder, measured["runs"], count)
    alone = {count: _median(measured["embedding"], "cpu_ms", clients=count) for count in clients}
    told = ", ".join(f"{ms:.1f} ms at {count} clients" for count, ms in alone.items())
    print(f"\nCPU of one embedding alone: {told}. Keep-alive, top_k 10, {USERS} users of {FACTS} memories.\n")
    for count in clients:
        _goals(embedder, measured["runs"], count, alone[count], goals)
    for side in sorted({run["side"] for run in measured["first"]} - {"Mem0"}):
        theirs, ours = (_by_round(measured["first"], side=name) for name in ("Mem0", side))
        ratio = statistics.median(own["p50"] / base["p50"] for own, base in zip(ours, theirs, strict=True))
        p50 = [medians(runs)["p50"] for runs in (theirs, ours)]
        print(f"First question of a cold user, p50: Mem0 {p50[0]:.1f} ms, {side} {p50[1]:.1f} ms")
        goals.at_most(1.1, ratio, f"{side}: first question of a cold user, p50 over Mem0's")
    if stalled := measured["stalled"]:
        tails = [one["stalled"]["p99"] / one["quiet"]["p99"] for one in stalled]
        goals.at_most(3.0, statistics.median(tails), f"hits, p99 while {STUCK} callers wait for Mem0 over p99 in quiet")


def _by_round(runs: Sequence[Mapping[str, Any]], **what: Any) -> list[Mapping[str, Any]]:
    found = [run for run in runs if all(run[name] == value for name, value in what.items())]
    return sorted(found, key=lambda run: run["round"])


def _median(runs: Sequence[Mapping[str, Any]], figure: str, **what: Any) -> float:
    return statistics.median(float(run[figure]) for run in _by_round(runs, **what))


def _ratios(runs: Sequence[Mapping[str, Any]], figure: str, kind: str, side: str, clients: int) -> list[float]:
    """A side's figure over Mem0's, round by round."""
    own = _by_round(runs, kind=kind, side=side, clients=clients)
    base = _by_round(runs, kind=AGAINST[kind], side="Mem0", clients=clients)
    return [one[figure] / other[figure] for one, other in zip(own, base, strict=True)]


def _table(embedder: str, runs: Sequence[Mapping[str, Any]], clients: int) -> None:
    print(
        f"\n{clients} clients, Mem0 with {EMBEDDERS[embedder]}; medians, req/s as a ratio to Mem0's of the same round\n"
    )
    print("| | req/s | ratio (range) | p50 / p95 / p99, ms | CPU ms, memsvc + Mem0 | as expected |")
    print("|---|---|---|---|---|---|")
    rows = sorted({(list(AGAINST).index(run["kind"]), run["side"] != "Mem0", run["side"]) for run in runs})
    for place, _, side in rows:
        kind = list(AGAINST)[place]
        at = medians(_by_round(runs, kind=kind, side=side, clients=clients))
        ratios = _ratios(runs, "rate", kind, side, clients)
        middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
        print(
            f"| {kind}: {side} | {at['rate']:,.1f} | {middle:.2f} ({least:.2f}-{most:.2f}) "
            f"| {at['p50']:.2f} / {at['p95']:.2f} / {at['p99']:.2f} "
            f"| {at['memsvc_cpu_ms']:.2f} + {at['mem0_cpu_ms']:.2f} | {at['marked']:.1%} |"
        )


def _goals(embedder: str, runs: Sequence[Mapping[str, Any]], clients: int, alone: float, goals: Goals) -> None:
    def ratio(figure: str, kind: str, side: str) -> float:
        return statistics.median(_ratios(runs, figure, kind, side, clients))

    at = f"{clients} clients"
    goals.at_least(200, ratio("rate", "repeated", SAME), f"{at}: repeated questions, req/s over Mem0's")
    goals.at_most(1 / 20, ratio("p50", "repeated", SAME), f"{at}: repeated questions, p50 over Mem0's")
    if embedder == "slow":
        goals.at_least(
            5, ratio("rate", "new", LOCAL), f"{at}: new questions ranked with the local embedder, req/s over Mem0's"
        )
    elif cost := _median(runs, "mem0_cpu_ms", kind="new", side="Mem0", clients=clients):
        said = (
            f"{at}: new questions, req/s over Mem0's (0.9 x its {cost:.1f} ms of CPU / {alone:.1f} ms of an embedding)"
        )
        goals.at_least(0.9 * cost / alone, ratio("rate", "new", SAME), said)
