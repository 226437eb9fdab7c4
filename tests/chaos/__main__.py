"""Runs of chaos: `python -m tests.chaos --runs 20 --seed 7`.

Each run: clients write, delete, erase and read for a few seconds while one to three random faults come and go; then
everything is mended, what was accepted has to come to rest, and the guarantees are held against what was seen. Run N of
seed S is planned by S and N alone.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import faults, judge
from tests.chaos.history import History, Person, Read, now
from tests.chaos.load import Load, query
from tests.chaos.world import World
from tests.live import eventually

LOAD_SECONDS = 7.0
REST_SECONDS = 60.0
"""How long everything may take to come to rest after the faults."""


@dataclass
class Outcome:
    """What one run did and what was wrong."""

    number: int
    faults: list[str] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    degraded: int = 0
    refused: int = 0
    surplus: int = 0
    """Copies that were seen in Mem0 and removed by the service itself afterwards."""
    failed: Counter[str] = field(default_factory=Counter)
    """Writes that ended failed with their payload kept, by reason."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For the table."""
        verdict = f"{len(self.wrong)} VIOLATIONS" if self.wrong else "held"
        return (
            f"{self.number:>4} {self.seconds:>5.1f} s {self.writes:>5} {self.reads:>6} {self.degraded:>8} "
            f"{self.refused:>7} {self.surplus:>7} {self.failed.total():>6}  {verdict} {dict(self.failed) or ''}"
        )


HEAD = f"{'run':>4} {'time':>7} {'writes':>5} {'reads':>6} {'degraded':>8} {'refused':>7} {'surplus':>7} {'failed':>6}"


def run(world: World, seed: int, number: int, *, erases: bool = True) -> Outcome:
    """One run; the world is healthy before and after it."""
    began = time.monotonic()
    chance = random.Random(f"{seed}/{number}")
    people = [Person(project, f"s{seed}r{number}u{n}") for project in (1, 2) for n in (1, 2)]
    history = History.of(people)
    load = Load(world.live.url, world.keys, history, chance.randrange(2**32), erases=erases and chance.random() < 0.4)
    planned = faults.plan(chance, LOAD_SECONDS)
    outcome = Outcome(number)
    load.start()
    try:
        outcome.faults = faults.play(world, planned)
    finally:
        time.sleep(max(0.0, LOAD_SECONDS - (time.monotonic() - began)))
        load.stop()
    world.healthy()
    outcome.writes = sum(len(facts) for facts in history.facts.values())
    outcome.reads, outcome.refused = len(history.reads), history.refused
    outcome.degraded = sum(bool(read.meta.get("degraded")) for read in history.reads)
    outcome.wrong += judge.reads(history)
    outcome.wrong += _rest(world, history, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _rest(world: World, history: History, outcome: Outcome) -> list[str]:
    """Wait until every write has ended, and look at what there is."""
    try:
        eventually(lambda: not world.open_jobs(), REST_SECONDS)
    except AssertionError:
        return [f"G3: {world.open_jobs()} writes have not ended {REST_SECONDS:.0f} s after the faults"]
    ended = now()

    def wrong() -> list[str]:
        found = {person: world.in_mem0(person) for person in history.facts}
        failed = world.failed_jobs()
        mine = {fact.job for facts in history.facts.values() for fact in facts}
        outcome.failed = Counter(reason for job, reason in failed.items() if job in mine)
        outcome.surplus = max(
            outcome.surplus, sum(count - 1 for texts in found.values() for count in Counter(texts).values())
        )
        said = list(judge.stored(history, found, failed, ended))
        for person in history.facts:
            said += judge.settled(person, _look(world, person), found[person])
        return said

    return _in_the_end(wrong, REST_SECONDS)


def _in_the_end(wrong: Callable[[], list[str]], seconds: float) -> list[str]:
    """What is still wrong after `seconds`, or nothing as soon as nothing is. Surplus copies have until then to go."""
    deadline = time.monotonic() + seconds
    while (said := wrong()) and time.monotonic() < deadline:
        if not all(line.startswith(("G4", "after", "G2: after")) for line in said):
            return said
        time.sleep(0.5)
    return said


def _look(world: World, person: Person) -> Read:
    body = {"user_id": person.user, "query": query(person), "top_k": 100}
    sent = now()
    answer = world.search(person, body)
    read = Read(person, "strict", 0, sent, now(), answer.status_code)
    if answer.status_code == 200:
        told = answer.json()
        read.texts, read.meta = [row["memory"] for row in told["results"]], told["meta"]
    return read


def main() -> int:
    """Print every run and a table; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=int(os.environ.get("CHAOS_RUNS", "20")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or random.randrange(10**6)))
    parser.add_argument("--first", type=int, default=0, help="begin with this run: what came before is done")
    given = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="memsvc-chaos-") as folder, World(Path(folder)) as world:
        for number in range(given.first, given.runs):
            print(f"seed {given.seed}, run {number} of {given.runs}", flush=True)
            outcome = run(world, given.seed, number)
            outcomes.append(outcome)
            for line in [*outcome.faults, *(f"!! {wrong}" for wrong in outcome.wrong)]:
                print(f"    {line}", flush=True)
            print(f"{HEAD}\n{outcome.line()}", flush=True)
    print(f"\nseed {given.seed}\n{HEAD}")
    for outcome in outcomes:
        print(outcome.line())
    bad = sum(bool(outcome.wrong) for outcome in outcomes)
    print(
        f"{len(outcomes)} runs, {bad} with violations, {sum(one.writes for one in outcomes)} writes,"
        f" {sum(one.reads for one in outcomes)} reads, {sum(one.surplus for one in outcomes)} transient surplus copies"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
