"""Whether anybody has to look, or be called: a few small questions to PostgreSQL, and what is too much of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from django.db import connection

from memory import stack
from memory.backends.breaker import Guarded
from memory.status import MOST_FAILED, QUEUES

Level = Literal["ok", "look", "call"]
LEVELS: tuple[Level, ...] = ("ok", "look", "call")
NEVER = float("inf")

THRESHOLDS: dict[str, tuple[float, float, str]] = {
    "oldest_pending_seconds": (60, 600, "Age of the oldest write that Mem0 does not have."),
    "unattended_seconds": (30, 300, "How long a write has been due with no worker at its lane."),
    "erase_seconds": (600, 3600, "Age of the oldest erase that is not completed."),
    "reconcile_late_seconds": (120, 1800, "How far the looks for second copies are behind."),
    "failed_jobs": (1, MOST_FAILED, "Writes that failed and wait for a person; counted up to the threshold."),
    "missing_workers": (1, len(QUEUES), "Queues without a worker."),
    "sweep_seconds": (60, 600, "Since the sweeper last ran."),
    "breaker_open": (0.5, NEVER, "1 while Mem0 is not asked, 0.5 while it is tried."),
}
"""From which value on somebody should look, and from which be called."""

# By project, where that is, so that the indexes over unfinished and failed jobs serve among millions of others.
_AGES = """
SELECT
    (SELECT extract(epoch FROM clock_timestamp() - min(accepted_at)) FROM memory_job
     WHERE state IN ('pending', 'processing') AND {mine}),
    (SELECT extract(epoch FROM clock_timestamp() - min(greatest(j.next_attempt_at, l.lease_until)))
     FROM memory_job j JOIN memory_lane l ON l.id = j.lane_id
     WHERE j.state IN ('pending', 'processing') AND j.next_attempt_at < clock_timestamp() AND {its}
        AND (l.lease_until IS NULL OR l.lease_until < clock_timestamp())),
    (SELECT extract(epoch FROM clock_timestamp() - min(accepted_at)) FROM memory_erasure
     WHERE completed_at IS NULL AND {mine}),
    (SELECT extract(epoch FROM clock_timestamp() - min(reconcile_at)) FROM memory_job
     WHERE reconcile_at < clock_timestamp() AND {mine}),
    (SELECT count(*) FROM (SELECT FROM memory_job j JOIN memory_project p ON p.id = j.project_id
     WHERE j.state = 'failed' AND j.dismissed_at IS NULL AND {its} LIMIT {failed}) AS few),
    (SELECT count(*) FROM memory_lane WHERE lease_until > clock_timestamp() AND {mine}),
    (SELECT count(*) FROM memory_job WHERE reconcile_at IS NOT NULL AND {mine}),
    (SELECT extract(epoch FROM clock_timestamp() - at) FROM memory_heartbeat WHERE name = 'duty:sweep')
"""
_WORKERS = """
SELECT split_part(name, ':', 2), count(*) FROM memory_heartbeat
WHERE name LIKE 'worker:%%' AND at > clock_timestamp() - interval '10 seconds' GROUP BY 1
"""
BREAKER = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


@dataclass(frozen=True, slots=True)
class Finding:
    """One measure, and what it calls for."""

    name: str
    value: float
    level: Level


@dataclass(frozen=True, slots=True)
class Watch:
    """Every finding, the worst of their levels, and what else is shown beside them."""

    level: Level
    findings: Sequence[Finding]
    lanes_held: int
    reconciles_waiting: int
    workers: Mapping[str, int]

    def shown(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "level": self.level,
            "findings": {one.name: {"value": round(one.value, 3), "level": one.level} for one in self.findings},
            "lanes_held": self.lanes_held,
            "reconciles_waiting": self.reconciles_waiting,
        }


def read(project: int | None = None) -> Watch:
    """How things stand, of one project or of all; workers, sweeper and breaker are everybody's. DatabaseError."""
    values: dict[str, Any] = {"project": project}
    mine, its = ("project_id = %(project)s", "j.project_id = %(project)s") if project is not None else ("true", "true")
    with connection.cursor() as cursor:
        cursor.execute(_AGES.format(mine=mine, its=its, failed=MOST_FAILED), values)
        pending, unattended, erasing, late, failed, held, waiting, swept = cursor.fetchone()
        cursor.execute(_WORKERS)
        workers = dict.fromkeys(QUEUES, 0) | dict(cursor.fetchall())
    measured = {
        "oldest_pending_seconds": pending,
        "unattended_seconds": unattended,
        "erase_seconds": erasing,
        "reconcile_late_seconds": late,
        "failed_jobs": failed,
        "missing_workers": sum(workers[queue] == 0 for queue in QUEUES),
        "sweep_seconds": swept,
        "breaker_open": breaker(),
    }
    findings = [Finding(name, float(value or 0), level(name, float(value or 0))) for name, value in measured.items()]
    worst = max((one.level for one in findings), key=LEVELS.index)
    return Watch(worst, findings, held, waiting, workers)


def level(name: str, value: float) -> Level:
    """What a value calls for."""
    look, call, _ = THRESHOLDS[name]
    return "call" if value >= call else "look" if value >= look else "ok"


def breaker() -> float:
    """Whether Mem0 is asked: 0 yes, 0.5 it is tried, 1 not; 0 for Mem0 in process, which has none."""
    origin = stack.origin()
    return BREAKER[origin.state()["state"]] if isinstance(origin, Guarded) else 0.0
