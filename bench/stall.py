"""Cached hits while Mem0 stands still: `make bench-stall`.

One service as `make up` runs it. Quiet: two clients repeat a cached question. Stalled: the same two, while Mem0's table
is locked for ten seconds and 64 clients ask cold questions and wait on writes. The two are interleaved; each pair gives
a ratio of p99, and the median of the ratios is the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg2
import requests

from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from tests.live import Live, eventually

HITTERS = 2
WAITERS = 64
FACTS = [f"Ann keeps {n} goats and calls the oldest one Number {n}." for n in range(20)]


def main() -> int:
    """Measure and print; the exit status says whether the bound held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--bound", type=float, default=3.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
        live = Live(Path(folder)).up()
        try:
            rows = [_pair(live, number, chosen.seconds) for number in range(chosen.pairs)]
        finally:
            live.remove()
    ratios = [row["stalled"]["p99"] / row["quiet"]["p99"] for row in rows]
    print(json.dumps({"rows": rows, "ratios": ratios, "median": statistics.median(ratios)}, indent=1))
    median = statistics.median(ratios)
    word = "held" if median <= chosen.bound else "MISSED"
    print(f"p99 stalled / quiet: median {median:.2f} of {len(ratios)}, bound {chosen.bound}: {word}")
    return 0 if median <= chosen.bound else 1


def _pair(live: Live, number: int, seconds: float) -> dict[str, Any]:
    user = f"ann-{number}"
    live.call("POST", "/api/v1/memory/add", {"user_id": user, "memories": FACTS, "wait": "warm"}).raise_for_status()
    body = {"user_id": user, "query": "How many goats?"}
    for _ in range(20):
        live.call("POST", "/api/v1/memory/search", body)
    eventually(lambda: not live.rows("SELECT 1 FROM memory_job WHERE state <> 'completed' LIMIT 1"), 300)
    eventually(lambda: not live.rows("SELECT 1 FROM cachewarm_warmrun WHERE state IN ('due', 'running') LIMIT 1"), 300)
    quiet = _hits(live, body, seconds)
    with _stalled(live):
        spawned = get_context("spawn")
        told: Any = spawned.Queue()
        noise = spawned.Process(target=_waiters, args=(live.url, live.key, number, seconds + 2, told))
        noise.start()
        told.get()
        time.sleep(1)
        stalled = _hits(live, body, seconds - 1)
    answered = told.get()
    noise.join()
    return {"quiet": quiet, "stalled": stalled, "waiters": answered}


class _stalled:
    """Mem0's table is locked: every search and add inside Mem0 stands still."""

    def __init__(self, live: Live) -> None:
        self._connection = psycopg2.connect(Postgres(Home(live.home)).url)

    def __enter__(self) -> None:
        self._connection.cursor().execute("LOCK TABLE mem0_memories IN ACCESS EXCLUSIVE MODE")

    def __exit__(self, *_: object) -> None:
        with closing(self._connection):
            self._connection.rollback()


def _hits(live: Live, body: dict[str, Any], seconds: float) -> dict[str, float]:
    took: list[float] = []
    layers: Counter[str] = Counter()

    def ask() -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {live.key}"
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                began = time.perf_counter()
                answer = session.post(f"{live.url}/api/v1/memory/search", json=body, timeout=30)
                took.append(time.perf_counter() - began)
                layers[answer.json()["meta"]["layer"]] += 1

    threads = [threading.Thread(target=ask) for _ in range(HITTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    at = {f"p{share}": took[int(len(took) * share / 100)] * 1000 for share in (50, 95, 99)}
    return {**at, "requests": len(took), **layers}


def _waiters(url: str, key: str, number: int, seconds: float, told: Any) -> None:
    """64 clients; every other one waits on a write, the rest ask of users nobody has warmed."""
    answered: Counter[str] = Counter()

    def ask(client: int) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {key}"
            end, turn = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                turn += 1
                user = f"cold-{number}-{client}-{turn}"
                if client % 2:
                    path, body = "add", {"memories": ["a fact"], "wait": "stored", "timeout_ms": 9000}
                else:
                    path, body = "search", {"query": f"What of {turn}?", "timeout_ms": 9000}
                answer = session.post(f"{url}/api/v1/memory/{path}", json={"user_id": user, **body}, timeout=30)
                answered[f"{path} {answer.status_code}"] += 1
                if answer.status_code == 503:
                    time.sleep(float(answer.headers.get("Retry-After", 1)))

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(WAITERS)]
    for thread in threads:
        thread.start()
    told.put("begun")
    for thread in threads:
        thread.join()
    told.put(dict(answered))


if __name__ == "__main__":
    sys.exit(main())
