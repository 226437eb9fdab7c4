"""Mem0's server away for a minute under load: `make bench-outage`.

One service over REST with the defaults of that mode, twenty warm users. Readers ask known questions and new ones,
writers add numbered facts without waiting. In the middle of it Mem0's server is killed, a minute later it is started
again. Every read must be answered, and labelled where Mem0 would have been needed; every write must be accepted, and be
in Mem0 afterwards, once, in its user's order.

Behind it is the tests' stand-in, or a server of yours: --url, --key, and shell commands to --stop and --start it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import requests

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services
from tests.fake_mem0 import FakeMem0
from tests.live import Live, eventually

USERS, READERS, WRITERS = 20, 4, 4
PAUSE_SECONDS = 0.1
"""Between two requests of one client: what is measured is whether they are answered, not how many."""
THINGS = ["goats", "cats", "lamps", "boats", "kites", "drums", "books", "stamps", "shells", "knives"]


class Upstream(Protocol):
    """Mem0's server, which can be killed and started again."""

    url: str
    key: str

    def start(self) -> None: ...
    def stop(self) -> None: ...


class StandIn(FakeMem0):
    """The stand-in; its end comes without warning."""

    def stop(self, *, kill: bool = True) -> None:
        super().stop(kill=kill)


@dataclass
class Commanded:
    """A server that shell commands stop and start."""

    url: str
    key: str
    stop_command: str
    start_command: str

    def start(self) -> None:
        self._run(self.start_command)

    def stop(self) -> None:
        self._run(self.stop_command)

    @staticmethod
    def _run(command: str) -> None:
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


@dataclass
class Told:
    """What the clients were answered while the server was in one state."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    read_ms: list[float] = field(default_factory=list)
    write_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """For the table and for JSON."""
        times = {
            f"{kind}_{at}": percentile(took, share)
            for kind, took in (("read", self.read_ms), ("write", self.write_ms))
            for at, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
        }
        return {"phase": name, "reads": dict(self.reads), "writes": dict(self.writes), **times, "wrong": self.wrong[:5]}


def percentile(took: list[float], share: float) -> float:
    """In milliseconds; 0 of none."""
    ordered = sorted(took)
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 1) if ordered else 0.0


class Load:
    """Readers and writers, until told to stop."""

    def __init__(self, live: Live, users: list[str]) -> None:
        self.live, self.users = live, users
        self.told = Told()
        self.accepted: dict[str, list[str]] = {user: [] for user in users}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(READERS)]
        self._threads += [threading.Thread(target=self._write, args=(users[n::WRITERS],)) for n in range(WRITERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def phase(self, seconds: float) -> Told:
        """Let it run; what was answered meanwhile."""
        self.told = Told()
        self._over.wait(seconds)
        return self.told

    def _ask(self, session: requests.Session, path: str, body: dict[str, Any]) -> tuple[requests.Response, float]:
        began = time.perf_counter()
        answer = session.post(f"{self.live.url}/api/v1/memory/{path}", json=body, timeout=60)
        return answer, (time.perf_counter() - began) * 1000

    def _read(self, number: int) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self.live.key}"
            for turn in range(10**9):
                if self._over.wait(PAUSE_SECONDS):
                    return
                user = self.users[(number + turn * READERS) % len(self.users)]
                known = turn % 2 == 0
                query = "Which lamps?" if known else f"Who keeps {THINGS[turn % 10]} since {number}.{turn}?"
                told = self.told
                answer, took = self._ask(session, "search", {"user_id": user, "query": query})
                told.read_ms.append(took)
                told.reads[label(answer)] += 1
                if reason := wrong(answer):
                    told.wrong.append(reason)

    def _write(self, users: list[str]) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self.live.key}"
            for turn in range(10**9):
                if self._over.wait(PAUSE_SECONDS * 2):
                    return
                user = users[turn % len(users)]
                fact = f"Note {len(self.accepted[user])}: {THINGS[turn % 10]} for {user}."
                told = self.told
                answer, took = self._ask(session, "add", {"user_id": user, "memories": [fact]})
                told.write_ms.append(took)
                told.writes[str(answer.status_code)] += 1
                if answer.status_code == 202:
                    self.accepted[user].append(fact)
                else:
                    told.wrong.append(f"a write was answered {answer.status_code}: {answer.text[:200]}")


def label(answer: requests.Response) -> str:
    """How an answer names itself: status, layer, and why it is degraded."""
    if answer.status_code != 200:
        return str(answer.status_code)
    meta = answer.json()["meta"]
    return f"{meta['layer']} degraded: {meta['reason']}" if meta["degraded"] else str(meta["layer"])


def wrong(answer: requests.Response) -> str | None:
    """What is wrong with an answer: none at all, none of the user's memories, or a label that is missing."""
    if answer.status_code != 200:
        return f"a read was answered {answer.status_code}: {answer.text[:200]}"
    body = answer.json()
    meta = body["meta"]
    if not body["results"]:
        return f"no memory at all: {meta}"
    if meta["degraded"] and (not meta["reason"] or meta["age_ms"] is None):
        return f"degraded without why or how old: {meta}"
    if meta["stale"] and not meta["degraded"]:
        return f"stale and not labelled: {meta}"
    return None


def in_mem0(upstream: Upstream, user: str) -> list[str]:
    """What Mem0 holds of a user, oldest first."""
    asked = {"user_id": user, "top_k": "1000", "show_expired": "true"}
    reply = requests.get(f"{upstream.url}/memories", asked, headers={"X-API-Key": upstream.key}, timeout=60)
    reply.raise_for_status()
    return [row["memory"] for row in sorted(reply.json()["results"], key=lambda row: row["created_at"])]


def run(live: Live, upstream: Upstream, seconds: float) -> dict[str, Any]:
    """The whole of it; what was seen."""
    users = [f"outage-{uuid.uuid4().hex[:6]}-{n}" for n in range(USERS)]
    known = {user: [f"{user} keeps {n + 3} {thing}." for n, thing in enumerate(THINGS)] for user in users}
    for user in users:
        body = {"user_id": user, "memories": known[user], "wait": "warm", "timeout_ms": 55_000}
        live.call("POST", "/api/v1/memory/add", body).raise_for_status()
        live.call("POST", "/api/v1/memory/search", {"user_id": user, "query": "Which lamps?"}).raise_for_status()
    with Load(live, users) as load:
        phases = [load.phase(10).row("before")]
        upstream.stop()
        phases.append(load.phase(seconds).row("away"))
        upstream.start()
        back = time.monotonic()
        phases.append(load.phase(20).row("back"))
    eventually(lambda: not live.rows("SELECT 1 FROM memory_job WHERE state <> 'completed' LIMIT 1"), 300)
    drained = time.monotonic() - back
    found = {user: in_mem0(upstream, user) for user in users}
    wanted = {user: known[user] + load.accepted[user] for user in users}
    return {
        "phases": phases,
        "accepted": sum(len(facts) for facts in load.accepted.values()),
        "all_stored_seconds_after_the_return": round(drained, 1),
        "missing": sum(len(set(wanted[user]) - set(found[user])) for user in users),
        "twice": sum(len(found[user]) - len(set(found[user])) for user in users),
        "users_out_of_order": sum(
            [fact for fact in found[user] if fact in load.accepted[user]] != load.accepted[user] for user in users
        ),
    }


def main() -> int:
    """Print what was seen; the exit status says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--url")
    parser.add_argument("--key", default="")
    parser.add_argument("--stop")
    parser.add_argument("--start")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
        servers = Services(Home(Path(folder) / "servers"), cache_mb=64, durable=True)
        for server in servers.every.values():
            server.start()
        upstream: Upstream
        if given.url:
            upstream = Commanded(given.url, given.key, given.stop, given.start)
        else:
            upstream = StandIn(servers.postgres.url, Path(folder) / "mem0")
            upstream.start()
        live = Live(
            Path(folder) / "service",
            servers=servers,
            MEM0_USE_REST_API="true",
            MEM0_REST_API_URL=upstream.url,
            MEM0_REST_API_KEY=upstream.key,
        ).up()
        try:
            seen = run(live, upstream, given.seconds)
        finally:
            live.remove()
            if not given.url:
                upstream.stop()
            for server in servers.every.values():
                server.stop()
    print(json.dumps(seen, indent=1))
    bad = [*(phase["wrong"] for phase in seen["phases"]), seen["missing"], seen["twice"], seen["users_out_of_order"]]
    print("VIOLATED" if any(bad) else "held")
    return int(any(bad))


if __name__ == "__main__":
    sys.exit(main())
