"""What so many users need: `make capacity`, from the constants that `make bench-warm` measured.

python -m bench.capacity --users 1000000 100000000 --active 0.3 --memories 20
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.warm.__main__ import RESULTS, figures

PERIOD_SECONDS = 1800
"""REBUILD_PERIOD_SECONDS."""
CALLS_PER_SECOND = 50
"""REBUILD_CALLS_PER_SECOND."""
SPARE = 0.5
"""Of cores, memory and disks, what is left for live traffic, for vacuum, and for what dies between two vacuums."""
SHARD_GB = 500
"""Of PostgreSQL's rows and indexes on one machine: what a night backs up, and a day restores."""
FIXED = ("memory_memoryuser", "memory_snapshot", "cachewarm_warmrun")


@dataclass(frozen=True)
class Constants:
    """Of one user, as measured: bytes, and seconds of CPU; `embed` is of one text, `memories` how many a user had."""

    memories: float
    fixed: float
    memory: float
    entries: float
    warm_cpu: float
    warm: float
    unchanged: float
    embed: float


def measured(result: Mapping[str, Any]) -> Constants:
    """From the greatest number of users that the benchmark was run with."""
    size = max(result["sizes"], key=lambda one: one["users"])
    found, users = figures(size), size["users"]
    tables = {name: sum(parts.values()) for name, parts in size["postgresql"]["public"].items()}
    memories = size["memories"] / users
    return Constants(
        memories=memories,
        fixed=sum(tables[name] for name in FIXED) / users,
        memory=tables["memory_snapshotmemory"] / size["memories"],
        entries=found["valkey"],
        warm_cpu=(found["cpu"] + found["servers_cpu"]) / 1e6,
        warm=1 / found["rate"],
        unchanged=1 / found["unchanged"],
        embed=result["embedding"]["cpu"],
    )


def model(one: Constants, users: int, active: float, changed: float, memories: float) -> dict[str, float]:
    """What `users` need of which the share `active` was seen within L3_ACTIVE_DAYS, and `changed` of those between two
    rebuilds, each with so many memories. Sizes in GB, times in seconds, of one rebuild process."""
    awake = users * active
    rows = awake * (one.fixed + memories * one.memory) / 1e9
    # An answer shows at most ten memories.
    entries = awake * one.entries * min(10, memories) / min(10, one.memories) / 1e9
    rebuild = awake * ((1 - changed) * one.unchanged + changed * one.warm * memories / one.memories)
    warming = awake * changed * one.warm_cpu * memories / one.memories / PERIOD_SECONDS
    return {
        "postgresql": rows,
        "valkey": entries,
        "shards": math.ceil(max(rows / SHARD_GB, rebuild / PERIOD_SECONDS) / (1 - SPARE)),
        "first": awake * one.warm * memories / one.memories,
        "first_embedding": awake * memories * one.embed,
        "first_listing": awake / CALLS_PER_SECOND,
        "rebuild": rebuild,
        "cores": (warming + awake * one.unchanged / PERIOD_SECONDS) / (1 - SPARE),
    }


def main() -> None:
    """Print the constants and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1_000_000, 100_000_000])
    parser.add_argument("--active", type=float, default=0.3, help="share of users seen within L3_ACTIVE_DAYS")
    parser.add_argument("--changed", type=float, default=0.01, help="share of those written between two rebuilds")
    parser.add_argument("--memories", type=float, default=20, help="of a user")
    chosen = parser.parse_args()
    one = measured(json.loads(RESULTS.read_text()))
    print(f"Measured with {one.memories:.1f} memories a user: in PostgreSQL {one.fixed / 1024:.1f} KB, and")
    print(
        f"{one.memory:.0f} bytes a memory; in Valkey {one.entries / 1024:.0f} KB; {one.warm_cpu * 1e6:.0f} µs of CPU,"
    )
    print(f"{1 / one.warm:,.0f} users/s; {1 / one.unchanged:,.0f} unchanged users/s; {one.embed * 1e3:.0f} ms a text.")
    print(f"\n{chosen.active:.0%} active, {chosen.changed:.1%} of them written between two rebuilds, ", end="")
    print(f"{chosen.memories:.0f} memories each\n")
    print("| | " + " | ".join(f"{users:,} users" for users in chosen.users) + " |")
    print("|---|" + "---|" * len(chosen.users))
    found = [model(one, users, chosen.active, chosen.changed, chosen.memories) for users in chosen.users]
    for title, name, show in ROWS:
        print(f"| {title} | " + " | ".join(show(each[name]) for each in found) + " |")


def _size(gigabytes: float) -> str:
    return f"{gigabytes / 1000:,.1f} TB" if gigabytes >= 1000 else f"{gigabytes:,.0f} GB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


ROWS = (
    ("PostgreSQL: rows, indexes, TOAST", "postgresql", _size),
    (f"shards: {SHARD_GB} GB, and one rebuild at a time, half full", "shards", lambda shards: f"{shards:,.0f}"),
    ("Valkey: the warm sets' answers", "valkey", _size),
    ("first warm, were there one shard", "first", _time),
    ("… the texts embedded on one core", "first_embedding", _time),
    (f"… the listings, at {CALLS_PER_SECOND} a second", "first_listing", _time),
    ("each rebuild after it, were there one shard", "rebuild", _time),
    ("cores for rebuilds, half of them free", "cores", lambda cores: f"{cores:,.1f}"),
)


if __name__ == "__main__":
    main()
