"""Warming at scale, beside a bare script that writes the same rows and entries: `make bench-warm`.

For each number of users, each the owner of an MSC persona's sentences: the real rebuild in a process of its own warms
everybody, a stretch of users at a time; after each stretch the bare script writes once more what the rebuild left of
it. Then further rebuilds find nobody changed. Mem0 and the embedder are stand-ins that cost next to nothing, and the
little they cost is taken off. PostgreSQL and Valkey are real, and each number's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from bench.warm import flows, scale, trace

T = TypeVar("T")

RESULTS = Path(__file__).resolve().parent.parent / "results" / "warm.json"
EMBEDDED = 60
"""Sentences by which the real embedder's time is told."""
SHARE, UNCHANGED, LINEAR, FLAT = 0.6, 20_000, 0.8, 1.25
"""Goals: of the bare script's rate; users a second; CPU a user of the first stretches to the last;
memory of the last stretches to the first."""


PARTS = ("sizes", "trace", "flows", "embedding")


def main() -> int:
    """Measure and print; the exit status says whether every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--requests", type=int, default=2000, help="of the trace")
    parser.add_argument("--pairs", type=int, default=20, help="of writes, one of each flow")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the rest is kept as it was measured")
    chosen = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "settings": scale.SETTINGS,
    }
    if "sizes" in chosen.parts:
        result["sizes"] = [_alone(scale.measured, users) for users in chosen.users]
    if "trace" in chosen.parts:
        result["trace"] = _alone(trace.measured, chosen.requests)
    if "embedding" in chosen.parts:
        result["embedding"] = _alone(scale.embedding, EMBEDDED)
    if "flows" in chosen.parts:
        with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
            result["flows"] = flows.measured(Path(folder), chosen.pairs)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    met = "sizes" not in result or show(result["sizes"])
    for part, table in (("trace", trace.show), ("flows", flows.show)):
        if part in result:
            table(result[part])
    if "embedding" in result:
        print(f"\nThe real embedder, apart: {result['embedding']['cpu'] * 1e3:.1f} ms of CPU a sentence.")
    return 0 if met else 1


def _alone(work: Callable[[int], T], size: int) -> T:
    """In a process of its own: Django is set up once, and memory starts small."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, size).result()


# -- what came of it ---------------------------------------------------------------------------------------------------


def figures(size: Mapping[str, Any]) -> dict[str, float]:
    """What the measurement of one number of users says."""
    users, stretches = size["users"], size["stretches"]
    ratios = [_rate(one["warm"]) / _bare_rate(one) for one in stretches]
    quarter = max(1, len(stretches) // 4)
    kept = size["postgresql"]["public"]
    rss = [one["warm"]["rss"] for one in stretches]
    return {
        "users": users,
        "rate": statistics.median(_rate(one["warm"]) for one in stretches),
        "bare": statistics.median(map(_bare_rate, stretches)),
        "share": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "cpu": _per_user(stretches, "warm", "cpu"),
        "servers_cpu": _per_user(stretches, "warm", "servers_cpu"),
        "bare_cpu": _per_user(stretches, "bare", "cpu"),
        "bare_servers_cpu": _per_user(stretches, "bare", "servers_cpu"),
        "apart": _per_user(stretches, "warm", "apart"),
        "calls": sum(one["warm"]["calls"] for one in stretches) / users,
        "embedded": sum(one["warm"]["embedded"] for one in stretches) / users,
        "linear": _cpu(stretches[:quarter]) / _cpu(stretches[-quarter:]),
        "rss": rss[-1],
        "flat": rss[-1] / rss[0],
        "peak": max(one["warm"]["peak"] for one in stretches),
        "postgresql": sum(sum(parts.values()) for parts in kept.values()) / users,
        "valkey": size["valkey"]["bytes_of_entry"] * stretches[0]["bare"]["entries"] / stretches[0]["warm"]["users"],
        "unchanged": statistics.median(_rate(one) for one in size["unchanged"]),
        "unchanged_cpu": statistics.median(one["cpu"] / one["users"] * 1e6 for one in size["unchanged"]),
        "spared": sum(one["unchanged"] for one in size["unchanged"]) / len(size["unchanged"]),
    }


def show(sizes: Sequence[Mapping[str, Any]]) -> bool:
    """The table and the goals; whether all were met."""
    found = [figures(size) for size in sizes]
    print(
        "\n| users | users/s | bare script | share (range) | CPU µs, worker + servers | bare script's | unchanged/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for one in found:
        print(
            f"| {one['users']:,.0f} | {one['rate']:,.0f} | {one['bare']:,.0f} "
            f"| {one['share']:.2f} ({one['least']:.2f}-{one['most']:.2f}) "
            f"| {one['cpu']:.0f} + {one['servers_cpu']:.0f} | {one['bare_cpu']:.0f} + {one['bare_servers_cpu']:.0f} "
            f"| {one['unchanged']:,.0f} |"
        )
    print("\n| users | Mem0 calls, embeddings, stand-ins' µs | PostgreSQL, Valkey, KB a user | memory, MB (peak) |")
    print("|---|---|---|---|")
    for one in found:
        print(
            f"| {one['users']:,.0f} | {one['calls']:.2f}, {one['embedded']:.2f}, {one['apart']:.0f} "
            f"| {one['postgresql'] / 1024:.1f}, {one['valkey'] / 1024:.1f} "
            f"| {one['rss'] / 2**20:.0f} ({one['peak'] / 2**20:.0f}) |"
        )
    print()
    met = [_goals(one) for one in found]
    return all(met)


def _goals(one: Mapping[str, float]) -> bool:
    goals = [
        ("of the bare script's rate", one["share"], SHARE, one["share"] >= SHARE),
        ("linear: CPU a user in the first quarter to the last", one["linear"], LINEAR, one["linear"] >= LINEAR),
        (
            "flat: the worker's memory at the end to that after the first stretch",
            one["flat"],
            FLAT,
            one["flat"] <= FLAT,
        ),
        ("unchanged users a second", one["unchanged"], UNCHANGED, one["unchanged"] >= UNCHANGED),
    ]
    for what, found, bound, met in goals:
        print(f"{'met' if met else 'MISSED':>6}: {one['users']:,.0f} users, {what}, goal {bound:,}: {found:,.2f}")
    return all(met for *_, met in goals)


def _rate(work: Mapping[str, float]) -> float:
    """Users a second, without what the stand-ins took."""
    return work["users"] / (work["seconds"] - work["apart"])


def _cpu(stretches: Sequence[Any]) -> float:
    """CPU of worker and servers, microseconds a user."""
    return _per_user(stretches, "warm", "cpu") + _per_user(stretches, "warm", "servers_cpu")


def _bare_rate(one: Mapping[str, Mapping[str, float]]) -> float:
    return one["warm"]["users"] / one["bare"]["seconds"]


def _per_user(stretches: Sequence[Any], side: str, what: str) -> float:
    """Microseconds a user, of all stretches."""
    return sum(one[side][what] for one in stretches) / sum(one["warm"]["users"] for one in stretches) * 1e6


if __name__ == "__main__":
    sys.exit(main())
