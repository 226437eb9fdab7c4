"""Flow A beside Flow B: how long a write takes to be answered, and how long until its user is warm.

One service as `make up` runs it, the real Mem0 in process and the real embedder. Users with ten facts each are warm;
each then writes one more, every other with `wait=none` (A), the rest with `wait=warm` (B).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.live import Live, eventually

FACTS = 10
_TAKEN = """
SELECT extract(epoch FROM completed_at - accepted_at)::float * 1000,
    extract(epoch FROM warmed_at - accepted_at)::float * 1000
FROM memory_job WHERE job_id = %s
"""
_NOT_WARM = "SELECT count(*) FROM memory_job WHERE warmed_at IS NULL"


def measured(folder: Path, pairs: int) -> list[dict[str, Any]]:
    """Milliseconds of each write: until its answer, until Mem0 had it, until its user was warm."""
    live = Live(folder)
    try:
        live.up()
        names = [f"writer-{number}" for number in range(2 * pairs)]
        for name in names:
            facts = [f"{name} planted {count} pear trees behind the house" for count in range(FACTS)]
            _write(live, name, facts, "none")
        eventually(lambda: live.rows(_NOT_WARM)[0][0] == 0, 300)
        found = []
        for number, name in enumerate(names):
            flow = "AB"[number % 2]
            began = time.perf_counter()
            told = _write(live, name, ["I moved to Đà Lạt last week"], "none" if flow == "A" else "warm")
            answered = (time.perf_counter() - began) * 1000
            eventually(lambda job=told["job_id"]: live.rows(f"{_NOT_WARM} AND job_id = %s", job)[0][0] == 0, 60)
            found.append({"flow": flow, "job": told["job_id"], "answered": answered})
        for one in found:
            ((stored, warm),) = live.rows(_TAKEN, one["job"])
            one |= {"stored": stored, "warm": warm}
        return found
    finally:
        live.remove()


def show(found: list[dict[str, Any]]) -> None:
    """The table."""
    print("\n| | answered after, p50 / p95 ms | in Mem0 after | warm after |\n|---|---|---|---|")
    for flow, name in (("A", "Flow A, `wait=none`"), ("B", "Flow B, `wait=warm`")):
        mine = [one for one in found if one["flow"] == flow]
        cells = []
        for what in ("answered", "stored", "warm"):
            taken = sorted(one[what] for one in mine)
            cells.append(f"{taken[len(taken) // 2]:.0f} / {taken[int(len(taken) * 0.95)]:.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def _write(live: Live, user: str, facts: list[str], wait: str) -> Any:
    body = {"user_id": user, "memories": facts, "wait": wait}
    answer = live.call("POST", "/api/v1/memory/add", body)
    answer.raise_for_status()
    return answer.json()
