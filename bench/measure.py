"""What measurements share: CPU from the kernel, percentiles, results as JSON, goals that are met or missed."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).resolve().parent / "results"
T = TypeVar("T")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(*pids: int) -> float:
    """Seconds of CPU that these processes and all their descendants have used, those that have ended included. Linux
    only."""
    used: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        used[int(folder.name)] = sum(map(int, fields[11:15]))
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return sum(used.get(pid, 0) for pid in found) / TICKS


def percentiles(took: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds, of seconds; ValueError of none."""
    ordered = sorted(took)
    if not ordered:
        raise ValueError("nothing was measured")
    return {f"p{share}": ordered[int(len(ordered) * share / 100)] * 1000 for share in (50, 95, 99)}


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each number that the runs tell."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(run[name] for run in runs) for name in names}


def turned(contestants: Sequence[T], number: int) -> list[T]:
    """The same in another order each round, so that what drifts favours none."""
    number %= len(contestants)
    return [*contestants[number:], *contestants[:number]]


def save(name: str, asked: Mapping[str, Any], **told: Any) -> None:
    """Keep raw results as bench/results/NAME.json."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    head = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "asked": dict(asked)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**head, **told}, indent=1) + "\n")


@dataclass
class Goals:
    """Goals as they are told, and whether all of them were met."""

    all_met: bool = True

    def at_least(self, bound: float, found: float, what: str) -> None:
        """Tell of a figure that may not be smaller."""
        self._tell(found >= bound, f"{what}: at least {bound:.2f}: {found:.2f}")

    def at_most(self, bound: float, found: float, what: str) -> None:
        """Tell of a figure that may not be larger."""
        self._tell(found <= bound, f"{what}: at most {bound:.2f}: {found:.2f}")

    def _tell(self, met: bool, said: str) -> None:
        self.all_met = self.all_met and met
        print(f"{'met' if met else 'MISSED':>6}: {said}")
