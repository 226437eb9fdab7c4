"""A question asked before, beside a Django view that does nothing: `make bench-hit`.

Every contestant is a granian of its own, with the processes and threads that `make up` gives it, upon the same
PostgreSQL and Valkey; one of them is asked at a time, in turn, and each round is compared within itself. CPU is that of
the server's processes and of Valkey, from the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.hit import load, steps
from bench.measure import cpu
from bench.services import servers
from tests.live import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "bench" / "results" / "hit.json"
SETTINGS = {
    "MEM0_USE_REST_API": "true",
    "MEM0_REST_API_URL": "http://127.0.0.1:9",
    "LOCAL_SEARCH": "off",
    "PROACTIVE_CACHE_ENABLED": "false",
    "WEB_PROCESSES": "2",
}
USERS, FACTS, TURNS = 8, 10, 20
WARM_SECONDS = 0.5


@dataclass(frozen=True)
class Contestant:
    """Something to ask: which server, what of it, and what tells that the right thing answered."""

    name: str
    server: str
    asks: Mapping[str, Any]
    mark: bytes
    path: str = "/api/v1/memory/search"


BOUNDED = {"consistency": "bounded", "max_age_ms": 5000}
SERVERS: dict[str, tuple[str, dict[str, str]]] = {
    "noop": ("bench.hit.noop:view", {}),
    "plain": ("bench.hit.noop:plain", {}),
    "django": ("memsvc.wsgi:django", {}),
    "hot": ("memsvc.wsgi:application", {}),
    "hot without L0": ("memsvc.wsgi:application", {"L0_MAX_BYTES": "0"}),
}
NOOP, L2, L0, BOUND = "no-op Django view", "strict, from L2", "strict, from L0", "bounded, from L0"
CONTESTANTS = (
    Contestant(NOOP, "noop", {}, b'"ok":true'),
    Contestant("no-op WSGI application", "plain", {}, b'"ok":true'),
    Contestant("the view, strict, from L0", "django", {}, b"detail=L0"),
    Contestant(L2, "hot without L0", {}, b"detail=L2"),
    Contestant(L0, "hot", {}, b"detail=L0"),
    Contestant(BOUND, "hot", BOUNDED, b"detail=L0"),
    Contestant("strict with a session, from L0", "hot", {"session_id": "of the user"}, b'"stm_layer":"stm.L0"'),
    Contestant("in the Platform's words, from L0", "hot", {}, b"detail=L0", "/v2/memories/search/"),
    Contestant("in the words of Mem0's server, from L0", "hot", {}, b"detail=L0", "/search"),
)


def main() -> int:
    """Measure and print; the exit status says whether every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    chosen = parser.parse_args()
    with servers(SETTINGS) as services, ExitStack() as started:
        key = _seed()
        alone = steps.measure(key, {"user_id": _users()[0], "query": _question(_users()[0])}, BOUNDED)
        ports = {name: started.enter_context(_serving(name, services.cache.process)) for name in SERVERS}
        runs = [
            _run(contestant, ports[contestant.server], key, connections, chosen.seconds)
            for connections in chosen.connections
            for number in range(chosen.rounds)
            for contestant in (*CONTESTANTS[number % 2 :], *CONTESTANTS[: number % 2])
        ]
    told = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "asked": {**vars(chosen), "users": USERS, "facts": FACTS},
        "steps": alone,
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    steps.show(alone)
    return 0 if _show(runs) else 1


# -- what is asked -----------------------------------------------------------------------------------------------------


def _seed() -> str:
    """Users with an answer in L2 and a session each; a key. Hits ask no Mem0, so there is none."""
    from memory import recall, stack, versions
    from memory.clock import Deadline
    from memory.layers.base import encode
    from memory.models import Project
    from memory.stm import store
    from memory.stm.store import Said
    from memory.tenancy import keys, projects
    from memory.types import Query, Scope

    project = Project.objects.create(name="Bench", slug="bench")
    policy = projects.policy(project.pk)
    for user in _users():
        query = Query(Scope(project.pk, user), _question(user))
        (version,) = versions.move([query.scope.pin])
        versions.publish([version])
        now = stack.L2.fetch(query, policy.generation).store_now
        entry = encode(map(partial(_memory, user), range(FACTS)), version=version.number, as_of=now, ranking="upstream")
        stack.L2.put(query, entry, policy.generation, now)
        said = [Said("user", f"Goat number {n} was out on the hill again.", {}) for n in range(TURNS)]
        store.add(user, user, said, policy)
        recall.search(query, policy, Deadline.after(10), session_id=user)
    return keys.create(project, name="bench", scopes=["read"])[1]


def _memory(user: str, n: int) -> Any:
    from memory.types import Memory

    said, at = f"{user} keeps {n} goats and calls the oldest one Number {n}.", "2026-11-22T10:00:00+00:00"
    return Memory(
        str(UUID(int=n)), said, user, metadata={"room": "stable"}, created_at=at, updated_at=at, score=0.9 - n / 100
    )


def _users() -> list[str]:
    return [f"user-{n}" for n in range(USERS)]


def _question(user: str) -> str:
    return f"How many goats does {user} keep?"


def _requests(contestant: Contestant, port: int, key: str) -> list[bytes]:
    found = []
    for user in _users():
        session = {"session_id": user} if "session_id" in contestant.asks else {}
        size = {"top_k": FACTS} if "memory" not in contestant.path.split("/") else {}
        body = {"user_id": user, "query": _question(user), **size, **contestant.asks, **session}
        found.append(load.post(port, contestant.path, body, f"Authorization: Bearer {key}"))
    return found


# -- who is asked ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A granian that runs, and the Valkey beside it."""

    port: int
    pid: int
    cache: int


@contextmanager
def _serving(name: str, cache: Any) -> Iterator[Server]:
    """As `make up` starts it."""
    from django.conf import settings

    application, more = SERVERS[name]
    port = free_port()
    size = ["--workers", str(settings.WEB_PROCESSES), "--blocking-threads", str(settings.WEB_THREADS)]
    listen = ["--host", "127.0.0.1", "--port", str(port), "--workers-kill-timeout", "5"]
    argv = [sys.executable, "-m", "granian", "--interface", "wsgi", "--no-ws", "--log-level", "warning", *size, *listen]
    with (settings.MEMSVC_HOME / f"{port}.log").open("wb") as log:
        process = subprocess.Popen([*argv, application], cwd=ROOT, env={**os.environ, **more}, stderr=log)
        try:
            _wait(port)
            yield Server(port, process.pid, cache.record.pid)
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: int) -> None:
    import socket

    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


# -- what came of it ---------------------------------------------------------------------------------------------------


def _run(contestant: Contestant, server: Server, key: str, connections: int, seconds: float) -> dict[str, Any]:
    requests = _requests(contestant, server.port, key)
    load.run(server.port, cycle(requests), connections, WARM_SECONDS, contestant.mark)
    before = cpu(server.pid), cpu(server.cache)
    done = load.run(server.port, cycle(requests), connections, seconds, contestant.mark)
    after = cpu(server.pid), cpu(server.cache)
    count = len(done.took)
    done.took.sort()
    told = {
        "name": contestant.name,
        "connections": connections,
        "rate": count / done.seconds,
        **{f"p{share}": done.took[int(count * share / 100)] * 1000 for share in (50, 95, 99)},
        "cpu": (after[0] - before[0]) / count * 1e6,
        "cache_cpu": (after[1] - before[1]) / count * 1e6,
        "load_cpu": done.cpu / count * 1e6,
        "marked": done.marked / count,
    }
    print(".", end="", flush=True, file=sys.stderr)
    return told


def _show(runs: list[dict[str, Any]]) -> bool:
    """The table and the goals; whether all were met."""
    figures = {}
    for connections in sorted({run["connections"] for run in runs}):
        print(f"\n{connections} connections; medians, req/s as a ratio to the no-op view's of the same round\n")
        print("| | req/s | ratio (range) | p50 / p95 / p99, ms | CPU µs, server + Valkey | as expected |")
        print("|---|---|---|---|---|---|")
        noop = [run for run in runs if (run["name"], run["connections"]) == (NOOP, connections)]
        for contestant in CONTESTANTS:
            own = [run for run in runs if (run["name"], run["connections"]) == (contestant.name, connections)]
            ratios = [run["rate"] / base["rate"] for run, base in zip(own, noop, strict=True)]
            at = {name: statistics.median(run[name] for run in own) for name in own[0] if name not in ("name",)}
            tails = [run["p99"] / base["p99"] for run, base in zip(own, noop, strict=True)]
            at |= {"ratio": statistics.median(ratios), "tail": statistics.median(tails)}
            figures[contestant.name, connections] = at
            print(
                f"| {contestant.name} | {at['rate']:,.0f} | {at['ratio']:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
                f"| {at['p50']:.2f} / {at['p95']:.2f} / {at['p99']:.2f} | {at['cpu']:.0f} + {at['cache_cpu']:.0f} "
                f"| {at['marked']:.1%} |"
            )
        print(f"\nThe load itself: {statistics.median(run['load_cpu'] for run in noop):.0f} µs of CPU a request.")
    return _goals(figures)


def _goals(figures: Mapping[tuple[str, int], Mapping[str, float]]) -> bool:
    every = True
    print()
    for connections in sorted({at for _, at in figures}):
        goals = [
            (L2, "ratio", "at least", 2.0),
            (L0, "ratio", "at least", 2.0),
            (BOUND, "ratio", "at least", 3.0),
            *((name, "tail", "at most", 2.0) for name in (L2, L0, BOUND)),
        ]
        for name, figure, word, bound in goals:
            found = figures[name, connections][figure]
            met = found >= bound if word == "at least" else found <= bound
            every = every and met
            what = "p99 over the no-op view's" if figure == "tail" else "req/s over the no-op view's"
            said = f"{name}, {connections} connections: {what} {word} {bound}: {found:.2f}"
            print(f"{'met' if met else 'MISSED':>6}: {said}")
        for name in (L2, L0):
            cpu = figures[name, connections]["cpu"] + figures[name, connections]["cache_cpu"]
            every = every and cpu <= 90
            word = "met" if cpu <= 90 else "MISSED"
            print(f"{word:>6}: {name}, {connections} connections: CPU µs with Valkey at most 90: {cpu:.0f}")
    return every


if __name__ == "__main__":
    sys.exit(main())
