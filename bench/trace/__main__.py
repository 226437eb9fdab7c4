"""A day of an assistant's users in minutes: `make bench-trace`.

Arrivals and re-visits of a production chat service (Mooncake), users by Zipf's law, questions new, reworded and
repeated, and a few writes; the same trace to Mem0 alone, to memsvc with local search off, and with it on. It is cut
into parts, each played to one after the other, so that what drifts meets all three; each part gives ratios, and the
median of the ratios is the result. Once with the local embedder, once with one that takes 120 ms.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import front, traffic, upstream
from bench.measure import Goals, cpu, percentiles, save, turned
from bench.trace.made import Request, Writer, shares
from bench.trace.play import Contestant, Player
from bench.trace.tables import ALONE, OFF, ON, show
from bench.upstream import EMBEDDERS, TOP_K, Mem0

FACTS = 20
"""Memories of each user, before the trace begins."""
SETTINGS = {"EMBEDDER": "local"}
PROJECT = """
from memory.models import Project
from memory.tenancy import keys, projects
project = Project(name="Off", slug="off", local_search="off")
projects.save(project)
print(project.namespace, keys.create(project, name="bench", scopes=["read", "write", "admin"])[1])
"""


@dataclass(frozen=True)
class Alone:
    """Mem0, asked as its clients ask it."""

    mem0: Mem0
    prefix: str
    name: str = ALONE

    @property
    def port(self) -> int:
        """See Contestant."""
        return self.mem0.port

    @property
    def header(self) -> tuple[str, str]:
        """See Contestant."""
        return "X-API-Key", self.mem0.key

    def search(self, user: int, question: str) -> tuple[str, Any]:
        """See Contestant."""
        return "/search", {"query": question, "filters": {"user_id": f"{self.prefix}{user}"}, "top_k": TOP_K}

    def write(self, user: int, fact: str) -> tuple[str, Any]:
        """See Contestant."""
        message = {"role": "user", "content": fact}
        return "/memories", {"messages": [message], "user_id": f"{self.prefix}{user}", "infer": False}


@dataclass(frozen=True)
class Memsvc:
    """One project of the service. `prefix` is of its users, `namespace` what Mem0 knows them by beside it."""

    name: str
    port: int
    key: str
    prefix: str
    namespace: str = ""

    @property
    def header(self) -> tuple[str, str]:
        """See Contestant."""
        return "Authorization", f"Bearer {self.key}"

    def search(self, user: int, question: str) -> tuple[str, Any]:
        """See Contestant."""
        return "/api/v1/memory/search", {"user_id": f"{self.prefix}{user}", "query": question, "top_k": TOP_K}

    def write(self, user: int, fact: str) -> tuple[str, Any]:
        """See Contestant."""
        return "/api/v1/memory/add", {"user_id": f"{self.prefix}{user}", "memories": [fact], "wait": "stored"}


def main() -> int:
    """Measure and print; the exit status says whether every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedders", nargs="+", choices=EMBEDDERS, default=list(EMBEDDERS))
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="that a part is played for")
    parser.add_argument("--speed", type=float, default=4, help="how many times faster than it was; 1 is 3.4 a second")
    parser.add_argument("--seed", type=int, default=1)
    upstream.add_arguments(parser)
    chosen = parser.parse_args()
    whole = chosen.seconds * chosen.speed
    made = Writer(chosen.users, chosen.seed).write(whole * chosen.parts)
    parts = [[one for one in made if part * whole <= one.at < (part + 1) * whole] for part in range(chosen.parts)]
    goals = Goals()
    for embedder in chosen.embedders:
        with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
            played = Trial(chosen, embedder, Path(folder)).run(parts)
        asked = {**vars(chosen), "key": bool(chosen.key), "facts": FACTS}
        save(f"trace-{embedder}", asked, shares=shares(made), parts=played)
        show(embedder, played, shares(made), goals)
    return 0 if goals.all_met else 1


class Trial:
    """The trace with one of the embedders behind Mem0."""

    def __init__(self, chosen: argparse.Namespace, embedder: str, folder: Path) -> None:
        self.chosen, self.embedder, self.folder = chosen, embedder, folder

    def run(self, parts: Sequence[Sequence[Request]]) -> list[dict[str, Any]]:
        """Start everything, play every part to each; what was seen, a row for each part and contestant."""
        with ExitStack() as stack:
            self.mem0, _ = stack.enter_context(upstream.started(self.folder, self.chosen, self.embedder))
            self.live = stack.enter_context(front.running(self.folder / "memsvc", self.mem0, SETTINGS))
            players = [Player(to) for to in self._contestants()]
            print(f"\nMem0: {self.mem0.about}.\nmemsvc: {front.about(SETTINGS)}; a second project has it off.")
            return [
                self._part(player, part, number)
                for number, part in enumerate(parts)
                for player in turned(players, number)
            ]

    def _contestants(self) -> list[Alone | Memsvc]:
        """All three, their users' memories stored and, in memsvc, warm."""
        tag = random.randbytes(3).hex()
        namespace, key = self.live.manage("shell", "-v", "0", "-c", PROJECT).split()
        alone = Alone(self.mem0, f"alone-{tag}-")
        on = Memsvc(ON, self.live.port, self.live.key, f"trace-{tag}-")
        off = Memsvc(OFF, self.live.port, key, f"trace-{tag}-", f"memsvc~{namespace}~")
        users = range(self.chosen.users)
        others = {f"{alone.prefix}{n}": [f"{one.namespace}{one.prefix}{n}" for one in (on, off)] for n in users}
        self.mem0.give(dict(zip(others, traffic.facts(len(users), FACTS), strict=True)), others)
        for service in (on, off):
            front.warm(self.live, [f"{service.prefix}{n}" for n in users], service.key)
        print(f"{self.embedder}: stored and warm", flush=True, file=sys.stderr)
        return [alone, off, on]

    # -- what is measured ----------------------------------------------------------------------------------------------

    def _part(self, player: Player, part: Sequence[Request], number: int) -> dict[str, Any]:
        before = self._counts(player.to)
        heard = player.play(part, self.chosen.speed)
        front.settle(self.live)
        after = self._counts(player.to)
        searches = [one for one in heard if one.request.kind != "write"]
        answered = [one for one in searches if one.status == 200]
        print(".", end="", flush=True, file=sys.stderr)
        return {
            "name": player.to.name,
            "part": number,
            "searches": len(searches),
            "writes": len(heard) - len(searches),
            "not_answered": sum(one.status != 200 for one in heard),
            "degraded": sum(one.degraded for one in answered),
            "layers": Counter(one.layer for one in answered),
            "checked": sum(one.checked for one in answered),
            "stale": sum(one.stale for one in answered),
            **percentiles(one.seconds for one in searches),
            "writes_took": percentiles(one.seconds for one in heard if one.request.kind == "write"),
            **{name: after[name] - before[name] for name in before},
        }

    def _counts(self, to: Contestant) -> dict[str, float]:
        """What has been used so far: searches of Mem0, texts embedded by either side, seconds of CPU."""
        assert self.live.supervisor
        mem0 = {"mem0_texts": self.mem0.texts(), "mem0_cpu": self.mem0.cpu()}
        own = {"memsvc_texts": 0, "searches_of_mem0": 0, "other_calls_of_mem0": 0, "memsvc_cpu": 0.0}
        if isinstance(to, Memsvc):
            told = self.live.call("GET", "/api/v1/stats", key=to.key).json()
            calls = told["upstream_calls"]
            searches = calls.get("search", 0)
            own = {
                "memsvc_texts": told["embeddings"]["computed"],
                "searches_of_mem0": searches,
                "other_calls_of_mem0": sum(calls.values()) - searches,
                "memsvc_cpu": cpu(self.live.supervisor.pid),
            }
        return {**mem0, **own}


if __name__ == "__main__":
    sys.exit(main())
