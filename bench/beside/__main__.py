"""memsvc beside Mem0 itself over REST: `make bench-mem0`.

The same users and memories, the same clients, one side asked at a time and each round compared within itself: questions
asked before, questions never asked before of warm users, the first question of users memsvc has never heard of, and
cached answers while Mem0 stands still. Once with the local embedder on both sides, once with one that takes 120 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import front, traffic, upstream
from bench.beside.tables import FACTS, LOCAL, SAME, STUCK, USERS, show
from bench.hit import load
from bench.measure import Goals, cpu, percentiles, save, turned
from tests.fake_mem0 import Fault
from tests.live import eventually

ASKED = 100
"""Questions that are repeated."""
COLD = 12
"""Users a round that memsvc has never heard of."""
HITTERS = 8
"""Clients that repeat questions while Mem0 stands still."""
PASSES = 4
"""How often repeated questions are asked before anything is measured: both web processes hear most of them."""
WARM_SECONDS = 0.5
EMBEDDED = 40
"""Texts that the embedder alone is measured with, a round."""
HIT = b"memsvc; hit"
"""What an answer from L0 or L2 says of itself (`Cache-Status`)."""
BOUNDED: dict[str, Any] = {"consistency": "bounded", "max_age_ms": 5000}
SETTINGS: dict[str, dict[str, dict[str, str]]] = {
    "local": {SAME: {"EMBEDDER": "local"}},
    "slow": {SAME: {"EMBEDDER": "openai", "EMBEDDER_API_KEY": "unused"}, LOCAL: {"EMBEDDER": "local"}},
}
"""What memsvc is told, by Mem0's embedder and contestant, beside where Mem0 is and that it may rank what is new."""


@dataclass(frozen=True)
class Cell:
    """One way to ask one side: its requests, and what tells that the right layer answered."""

    kind: str
    side: str
    port: int
    requests: Callable[[], Iterator[bytes]]
    mark: bytes
    warm: bool = False


def main() -> int:
    """Measure and print; the exit status says whether every goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedders", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5)
    upstream.add_arguments(parser)
    chosen = parser.parse_args()
    goals = Goals()
    for embedder in chosen.embedders:
        with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
            measured = Measurement(chosen, embedder, Path(folder)).run()
        asked = {**vars(chosen), "key": bool(chosen.key), "users": USERS, "facts": FACTS}
        save(f"mem0-{embedder}", asked, **measured)
        show(embedder, measured, goals)
    return 0 if goals.all_met else 1


class Measurement:
    """Both sides with one of the embedders."""

    def __init__(self, chosen: argparse.Namespace, embedder: str, folder: Path) -> None:
        self.chosen, self.embedder, self.folder = chosen, embedder, folder
        self.new = iter(traffic.questions(random.Random(1)))
        tag = random.randbytes(3).hex()
        self.users = [f"warm-{tag}-{n}" for n in range(USERS)]
        self.cold = [f"cold-{tag}-{n}" for n in range(COLD * chosen.rounds)]
        self.known = [(user, next(self.new)) for user in islice(cycle(self.users), ASKED)]

    def run(self) -> dict[str, Any]:
        """Start both, fill them, ask them; what was seen."""
        with ExitStack() as stack:
            self.mem0, endpoint = stack.enter_context(upstream.started(self.folder, self.chosen, self.embedder))
            self._give()
            where = {"EMBEDDER_URL": endpoint} if endpoint else {}
            self.services = {
                name: stack.enter_context(front.running(self.folder / str(number), self.mem0, settings | where))
                for number, (name, settings) in enumerate(SETTINGS[self.embedder].items())
            }
            for service in self.services.values():
                front.warm(service, self.users)
                known = [front.search(service, *asked) for asked in self.known]
                load.run(service.port, iter(known * PASSES), HITTERS, 600, HIT)
            print(f"{self.embedder}: stored and warm", flush=True, file=sys.stderr)
            rounds = range(self.chosen.rounds)
            runs = [
                self._run(cell, clients, number)
                for clients in self.chosen.clients
                for number in rounds
                for cell in turned(self._cells(), number)
            ]
            alone = [
                {
                    "clients": clients,
                    "round": number,
                    "cpu_ms": embedding_ms(min(clients, os.cpu_count() or 1), self.new),
                }
                for clients in self.chosen.clients
                for number in rounds
            ]
            first = [run for number in rounds for run in self._first(number)]
            stalled = [self._stalled() for _ in rounds] if self.mem0.stand_in else []
        return {"about": self._about(), "runs": runs, "embedding": alone, "first": first, "stalled": stalled}

    def _about(self) -> dict[str, str]:
        """What either side is, in a line."""
        told = {name: front.about(settings) for name, settings in SETTINGS[self.embedder].items()}
        return {"Mem0": self.mem0.about, **told}

    # -- what stands ---------------------------------------------------------------------------------------------------

    def _give(self) -> None:
        """Everybody's memories; those of cold users are of the warm ones, as nobody embeds them again."""
        facts = dict(zip(self.users, traffic.facts(USERS, FACTS), strict=True))
        self.mem0.give(facts, {user: self.cold[n::USERS] for n, user in enumerate(self.users)})

    def _cells(self) -> list[Cell]:
        mem0 = partial(Cell, side="Mem0", port=self.mem0.port, mark=b'"results"')
        cells = [
            mem0("repeated", requests=lambda: cycle([self.mem0.search(*asked) for asked in self.known])),
            mem0("new", requests=lambda: (self.mem0.search(*asked) for asked in self._unasked())),
        ]
        for name, live in self.services.items():
            ask, service = partial(front.search, live), partial(Cell, side=name, port=live.port)
            cells.append(service("new", requests=partial(self._new_ones, ask), mark=b"detail=L3"))
            if name == SAME:
                repeated = [ask(*asked) for asked in self.known]
                bounded = [ask(*asked, **BOUNDED) for asked in self.known]
                cells.append(service("repeated", requests=partial(cycle, repeated), mark=HIT, warm=True))
                cells.append(service("bounded", requests=partial(cycle, bounded), mark=HIT, warm=True))
        return cells

    def _unasked(self) -> Iterator[tuple[str, str]]:
        return zip(cycle(self.users), self.new)

    def _new_ones(self, ask: Callable[[str, str], bytes]) -> Iterator[bytes]:
        return (ask(*asked) for asked in self._unasked())

    # -- what is measured ----------------------------------------------------------------------------------------------

    def _cpu(self, side: str) -> tuple[float, float]:
        """Of the memsvc that is asked, if any, and of Mem0."""
        live = self.services.get(side)
        return cpu(live.supervisor.pid) if live and live.supervisor else 0.0, self.mem0.cpu()

    def _run(self, cell: Cell, clients: int, number: int) -> dict[str, Any]:
        if cell.warm:
            load.run(cell.port, cell.requests(), clients, WARM_SECONDS, cell.mark)
        before = self._cpu(cell.side)
        done = load.run(cell.port, cell.requests(), clients, self.chosen.seconds, cell.mark)
        memsvc, mem0 = (after - begun for after, begun in zip(self._cpu(cell.side), before, strict=True))
        count = len(done.took)
        print(".", end="", flush=True, file=sys.stderr)
        return {
            **{"kind": cell.kind, "side": cell.side, "clients": clients, "round": number, "count": count},
            **{"rate": count / done.seconds, **percentiles(done.took), "marked": done.marked / count},
            **{"memsvc_cpu_ms": memsvc / count * 1000, "mem0_cpu_ms": mem0 / count * 1000},
        }

    def _first(self, number: int) -> list[dict[str, Any]]:
        """The first question of each of some users memsvc has never heard of, and one of the same users to Mem0."""
        users = self.cold[number * COLD : (number + 1) * COLD]
        sides = {"Mem0": (self.mem0.port, self.mem0.search, b'"results"')}
        sides |= {name: (live.port, partial(front.search, live), b"detail=L4") for name, live in self.services.items()}
        told = []
        for side, (port, ask, mark) in turned(list(sides.items()), number):
            requests = iter([ask(user, next(self.new)) for user in users])
            done = load.run(port, requests, 1, 60, mark)
            told.append(
                {"side": side, "round": number, **percentiles(done.took), "marked": done.marked / len(done.took)}
            )
        return told

    def _stalled(self) -> dict[str, Any]:
        """Hits in quiet, and while callers wait for a Mem0 that stands still."""
        assert self.mem0.stand_in
        live = self.services[SAME]
        hits = [front.search(live, *asked) for asked in self.known]
        load.run(live.port, cycle(hits), HITTERS, WARM_SECONDS, HIT)
        quiet = load.run(live.port, cycle(hits), HITTERS, self.chosen.seconds, HIT)
        stand_in = self.mem0.stand_in
        stand_in.fault(Fault("stall", kinds=("search",)))
        unknown = [front.search(live, f"unknown-{n}", next(self.new), timeout_ms=30_000) for n in range(STUCK)]
        stuck = get_context("spawn").Process(target=load.run, args=(live.port, iter(unknown), STUCK, 60.0, b""))
        stuck.start()
        eventually(lambda: stand_in.running("search") == STUCK)
        stalled = load.run(live.port, cycle(hits), HITTERS, self.chosen.seconds, HIT)
        stand_in.fault()
        stuck.join()
        return {"quiet": percentiles(quiet.took), "stalled": percentiles(stalled.took)}


def embedding_ms(threads: int, texts: Iterator[str]) -> float:
    """Milliseconds of CPU that the local embedder alone needs for a question, so many at a time."""
    from memory.embedders import local

    made = local.make()
    asked = list(islice(texts, EMBEDDED))
    made.embed(asked[:1], "symmetric")
    with ThreadPoolExecutor(threads) as pool:
        began = time.process_time()
        list(pool.map(lambda text: made.embed([text], "symmetric"), asked))
        return (time.process_time() - began) / len(asked) * 1000


if __name__ == "__main__":
    sys.exit(main())
