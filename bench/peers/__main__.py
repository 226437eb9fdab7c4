"""memsvc beside other memory services: `make bench-peers`.

Everybody holds the same memories and is asked the same questions by the same clients: questions asked before, and
questions never asked before. One is asked at a time, in turn, each round compared within itself. All embed through one
endpoint of this run: the local embedder, or one that answers after 120 ms and costs this machine nothing, as a hosted
one does. CPU is that of all of a contestant's processes until they are quiet again, its databases' included and the
embedder's not, above what they use while nobody asks.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

from bench import embedding_server, traffic
from bench.hit import load
from bench.measure import cpu, medians, percentiles, save
from bench.peers.contestants import EVERY, Contestant, Endpoint, Memsvc
from bench.peers.environments import Unavailable
from memory.embedders.local import LocalEmbedder
from memsvc.embedded.process import StartError

USERS, FACTS, ASKED = 20, 100, 100
WARM_SECONDS = 0.4
IDLE_SECONDS = 5.0
QUIET_SECONDS, QUIET_SHARE, QUIET_AFTER = 0.3, 0.15, 10.0
"""A contestant is quiet when for so long it uses less than this share of a core; it is given so long to become so."""
EMBEDDERS: dict[str, tuple[list[str], str, int]] = {
    "local": (["--local"], LocalEmbedder.name, LocalEmbedder.dimensions),
    "slow": (["--delay", "0.12"], "text-embedding-3-small", embedding_server.DIMENSIONS),
}
"""Options of the endpoint, the model's name there, its dimensions."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedders", nargs="+", choices=EMBEDDERS, default=list(EMBEDDERS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    chosen = parser.parse_args()
    for embedder in chosen.embedders:
        with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
            measured = Measurement(chosen, embedder, Path(folder)).run()
        save(f"peers-{embedder}", {**vars(chosen), "users": USERS, "facts": FACTS, "repeated": ASKED}, **measured)
        _show(embedder, measured)


class Measurement:
    """Everybody who can run here, with one of the embedders."""

    def __init__(self, chosen: argparse.Namespace, embedder: str, folder: Path) -> None:
        self.chosen, self.folder = chosen, folder
        self.options, self.model, self.dimensions = EMBEDDERS[embedder]
        users = [f"user-{n}" for n in range(USERS)]
        self.facts = dict(zip(users, traffic.facts(USERS, FACTS), strict=True))
        asked = traffic.questions(random.Random(1))
        self.known = [(users[n % USERS], asked.pop()) for n in range(ASKED)]
        self.unasked = list(zip(cycle(users), asked, strict=False))
        self.repeated: dict[str, Iterator[bytes]] = {}
        self.new: dict[str, Iterator[bytes]] = {}
        self.idle: dict[str, float] = {}
        """Of a core, while nobody asks."""

    def run(self) -> dict[str, Any]:
        """Start them, fill them, ask them; what was seen."""
        with ExitStack() as stack:
            self.embedder = stack.enter_context(embedding_server.running(*self.options))
            missing: dict[str, str] = {}
            ready = [one for kind in EVERY if (one := self._started(kind, stack, missing))]
            for one in ready:
                self._fill(one)
            for one in ready:
                self._rest(one)
            runs = [
                self._run(one, kind, clients)
                for clients in self.chosen.clients
                for number in range(self.chosen.rounds)
                for kind in ("repeated", "new")
                for one in turned(ready, number)
            ]
        who = [
            {"name": one.name, "runs": one.runs, "differs": one.differs, "idle": self.idle[one.name]} for one in ready
        ]
        return {"contestants": who, "missing": missing, "runs": runs}

    def _started(self, kind: type[Any], stack: ExitStack, missing: dict[str, str]) -> Contestant | None:
        endpoint = Endpoint(f"{self.embedder.url}/v1", self.model, self.dimensions)
        one: Contestant = kind(self.folder / kind.__name__.lower(), endpoint)
        stack.callback(one.stop)
        try:
            one.start()
        except (Unavailable, StartError) as error:
            if isinstance(one, Memsvc):
                raise
            missing[one.name] = str(error)
            return None
        return one

    def _fill(self, one: Contestant) -> None:
        """The memories, and every known question once."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one.give, self.facts, self.facts.values()))
        one.settle(self.facts)
        known = [one.search(*asked) for asked in self.known]
        load.run(one.port, iter(known), 2, float("inf"), one.mark)
        self.repeated[one.name] = cycle(known)
        self.new[one.name] = (one.search(*asked) for asked in self.unasked)

    def _rest(self, one: Contestant) -> None:
        _quiet(one)
        used = cpu(*one.pids())
        time.sleep(IDLE_SECONDS)
        self.idle[one.name] = (cpu(*one.pids()) - used) / IDLE_SECONDS

    def _run(self, one: Contestant, kind: str, clients: int) -> dict[str, Any]:
        requests = self.repeated[one.name] if kind == "repeated" else self.new[one.name]
        load.run(one.port, requests, clients, WARM_SECONDS, one.mark)
        _quiet(one)
        began, before, texts = time.monotonic(), cpu(*one.pids()), self.embedder.texts()
        done = load.run(one.port, requests, clients, self.chosen.seconds, one.mark)
        _quiet(one)
        used = cpu(*one.pids()) - before - self.idle[one.name] * (time.monotonic() - began)
        count = len(done.took)
        told = {"name": one.name, "kind": kind, "clients": clients, "searches": count, "rate": count / done.seconds}
        told |= percentiles(done.took)
        told |= {"cpu": used / count * 1e6, "texts": (self.embedder.texts() - texts) / count}
        print(".", end="", flush=True, file=sys.stderr)
        return told | {"answered": done.marked / count}


def turned(ready: Sequence[Contestant], number: int) -> list[Contestant]:
    """The same in another order each round, so that nobody always follows the same one."""
    return [*ready[number % len(ready) :], *ready[: number % len(ready)]]


def _quiet(one: Contestant) -> None:
    """Wait until what its answers have left to do is done."""
    end = time.monotonic() + QUIET_AFTER
    used = cpu(*one.pids())
    while time.monotonic() < end:
        time.sleep(QUIET_SECONDS)
        before, used = used, cpu(*one.pids())
        if used - before < QUIET_SHARE * QUIET_SECONDS:
            return


def _show(embedder: str, measured: Mapping[str, Any]) -> None:
    print(f"\n## Embedder: {embedder}\n")
    print("| | what runs | differs from its defaults in | idle, of a core |\n|---|---|---|---|")
    for one in measured["contestants"]:
        print(f"| {one['name']} | {one['runs']} | {one['differs']} | {one['idle']:.1%} |")
    for name, why in measured["missing"].items():
        print(f"| {name} | **not measured**: {' '.join(why.split())} | | |")
    runs = measured["runs"]
    print("\nMedians; ratios to memsvc's req/s within a round.\n")
    print("| questions, clients | | req/s | memsvc ÷ it (range) | p50 / p95 / p99, ms | CPU µs | texts embedded |")
    print("|---|---|---|---|---|---|---|")
    for kind, clients in dict.fromkeys((run["kind"], run["clients"]) for run in runs):
        of = [run for run in runs if (run["kind"], run["clients"]) == (kind, clients)]
        ours = [run["rate"] for run in of if run["name"] == Memsvc.name]
        for name in dict.fromkeys(run["name"] for run in of):
            own = [run for run in of if run["name"] == name]
            at = medians(own)
            ratios = [our / run["rate"] for our, run in zip(ours, own, strict=True)]
            print(
                f"| {kind}, {clients} | {name} | {at['rate']:,.1f} "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
                f"| {at['p50']:.1f} / {at['p95']:.1f} / {at['p99']:.1f} | {at['cpu']:,.0f} | {at['texts']:.2f} |"
            )
    empty = [run for run in runs if run["answered"] < 1]
    print(f"\nRuns in which some answer held no memory: {len(empty)} of {len(runs)}.")


if __name__ == "__main__":
    main()
