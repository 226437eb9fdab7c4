"""How well each ranking finds what answers a question: LoCoMo dev, and XQuAD in Vietnamese and English.

    python -m bench.quality            some ten minutes, most of it embedding

Every user's facts are stored in the real Mem0 through the write path, then brought into L3 by a warm's first step. What
`hybrid` weighs was tuned on one half of the people; the other half decides. Prints the tables, keeps the figures in
bench/results/quality.json; the exit status says whether every goal was met.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bench.agreement import ndcg, recall
from bench.services import servers

if TYPE_CHECKING:
    from memory.rank import Rows
    from memory.tenancy.projects import Policy
    from memory.types import Entry, Query, Scope

SETTINGS = {"EMBEDDER": "local", "LOCAL_SEARCH": "on", "PROACTIVE_CACHE_ENABLED": "false", "LOG_LEVEL": "WARNING"}
RESULTS = Path(__file__).parent / "results" / "quality.json"
TOP, FACTS_A_WRITE = 10, 100
TUNED_ON = ("conv-26", "conv-41")
"""Of the LoCoMo conversations; of XQuAD's articles every second."""
SETS = {
    "locomo": "LoCoMo",
    "vi": "Vietnamese",
    "bare": "… without accents",
    "vi-en": "Vietnamese on English",
    "en-vi": "English on Vietnamese",
    "en": "English",
}
RANKINGS = {
    "mem0": "Mem0's own search",
    "like_upstream": "like_upstream",
    "by_words": "by words",
    "reranked": "Mem0's candidates, reranked",
    "hybrid": "hybrid",
}
GOALS = {"locomo": 0.625, "vi": 0.88, "bare": 0.86}
REPEATED = 5
"""Questions of each user that are asked again, for what a cached answer is beside a fresh one."""


@dataclass(frozen=True)
class Asked:
    """A question of one of the SETS, and which of its user's facts answer it (indices)."""

    set: str
    text: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class User:
    """Somebody's facts and the questions about them; `tuned` if weights were chosen by them."""

    id: str
    tuned: bool
    facts: tuple[str, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Ways:
    """The project's policy, as each way of ranking needs it: with cached answers of its own."""

    mem0: Policy
    like_upstream: Policy
    hybrid: Policy

    @classmethod
    def of(cls, rules: Policy) -> Ways:
        """Generations 1 to 3, of which nobody else knows."""
        return cls(
            replace(rules, generation=1, local_search="off"),
            replace(rules, generation=2, local_search="on", local_ranking="like_upstream"),
            replace(rules, generation=3, local_search="on", local_ranking="hybrid"),
        )


def users() -> Iterator[User]:
    """Everybody, with the questions of every set that are about their facts."""
    from memory.text import strip_accents
    from tests import data

    for sample in data.locomo():
        asked = tuple(Asked("locomo", one.text, one.relevant) for one in sample.questions)
        yield User(sample.id, sample.id in TUNED_ON, sample.facts, asked)
    for number, article in enumerate(data.load("xquad-vi-en-dev.json.gz")["users"]):
        written: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
            "vi": lambda one: [("vi", one["q_vi"]), ("bare", strip_accents(one["q_vi"])), ("en-vi", one["q_en"])],
            "en": lambda one: [("en", one["q_en"]), ("vi-en", one["q_vi"])],
        }
        for language, questions in written.items():
            held = article["memories"][language]
            places = {one["id"]: place for place, one in enumerate(held)}
            asked = tuple(
                Asked(name, text, frozenset(places[id] for id in one[f"evidence_{language}"] if id in places))
                for one in article["queries"]
                for name, text in questions(one)
            )
            facts = tuple(one["text"] for one in held)
            yield User(f"{article['user']}-{language}", number % 2 == 0, facts, tuple(a for a in asked if a.relevant))


def measure() -> dict[str, Any]:
    """Each question's figures by ranking, and what cached answers are beside fresh ones."""
    from cachewarm import summarise
    from memory.models import Project
    from memory.rank import Rows
    from memory.tenancy.projects import policy
    from memory.types import Query, Scope

    project = Project.objects.create(name="quality", slug="quality").pk
    ways = Ways.of(policy(project))
    rows: list[dict[str, Any]] = []
    same: dict[str, list[bool]] = {}
    for user in users():
        scope = Scope(project, user.id)
        store(user, scope)
        questions = [Query(scope, one.text, TOP) for one in user.asked]
        repeated = questions[:: max(1, len(questions) // REPEATED)]
        told = [cold(query, ways) for query in questions]
        compare(same, repeated, (ways.mem0, ways.hybrid))
        summarise.summarise([scope])
        words = Rows(user.facts)
        told = [found | warm(words, query, ways) for found, query in zip(told, questions, strict=True)]
        # What was cached before the warm is not asked for again.
        later = [replace(one, generation=one.generation + 10) for one in (ways.like_upstream, ways.hybrid)]
        compare(same, repeated, later)
        for one, found in zip(user.asked, told, strict=True):
            figures = {way: (ndcg(places, one.relevant), recall(places, one.relevant)) for way, places in found.items()}
            rows.append({"set": one.set, "user": user.id, "tuned": user.tuned, "figures": figures})
        print(f"{user.id}: {len(user.facts)} facts, {len(user.asked)} questions", file=sys.stderr, flush=True)
    return {"rows": rows, "same": {ranking: (sum(each), len(each)) for ranking, each in same.items()}}


def store(user: User, scope: Scope) -> None:
    """The user's facts, in Mem0."""
    from memory import delivery, write
    from memory.models import Job
    from memory.models.jobs import UNFINISHED
    from memory.tenancy.projects import policy
    from memory.text import nfc
    from memory.write import Write

    for start in range(0, len(user.facts), FACTS_A_WRITE):
        part = user.facts[start : start + FACTS_A_WRITE]
        facts = [{"text": nfc(text), "metadata": {"place": at}} for at, text in enumerate(part, start)]
        job = write.accept(Write("add", scope, {"memories": facts}), policy(scope.project)).job
        while Job.objects.get(pk=job.pk).state in UNFINISHED:
            delivery.deliver(job.lane_id)


def cold(query: Query, ways: Ways) -> dict[str, list[int]]:
    """What Mem0 finds, as it ranks it and ranked again: places of facts, best first."""
    from memory import read
    from memory.clock import Deadline

    asked = {
        name: read.ask_mem0(query, rules, Deadline.after(60))[0]
        for name, rules in (("mem0", ways.mem0), ("reranked", ways.hybrid))
    }
    return {name: [found.metadata["place"] for found in memories] for name, memories in asked.items()}


def warm(words: Rows, query: Query, ways: Ways) -> dict[str, list[int]]:
    """What is found here, by each ranking: places of facts, best first."""
    from memory import rank, stack, versions

    version = versions.stored(query.scope.pin)
    found = {}
    for name, rules in (("like_upstream", ways.like_upstream), ("hybrid", ways.hybrid)):
        entry = stack.L3.get(query, version, rules)
        assert entry is not None, "the user is not warm"
        found[name] = _places(entry)
    return found | {"by_words": [place for place, _ in rank.by_words(query.text, words, query.top_k)]}


def _places(entry: Entry) -> list[int]:
    return [one["metadata"]["place"] for one in orjson.loads(entry.results)]


def compare(same: dict[str, list[bool]], queries: Sequence[Query], ways: Sequence[Policy]) -> None:
    """Ask twice, then where nothing is cached: whether the second answer is the third, by the ranking both name."""
    from memory import read
    from memory.clock import Deadline

    for rules in ways:
        elsewhere = replace(rules, generation=rules.generation + 100)
        for query in queries:
            read.search(query, rules, Deadline.after(60))
            cached = read.search(query, rules, Deadline.after(60))
            fresh = read.search(query, elsewhere, Deadline.after(60))
            assert cached.layer in ("L0", "L2"), cached.layer
            assert cached.entry.ranking == fresh.entry.ranking
            same.setdefault(fresh.entry.ranking, []).append(cached.entry.results == fresh.entry.results)


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{ranking: {set: means}}: NDCG of the tuned half, of the one held back and of all, and R of all."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for way in RANKINGS:
        figures[way] = {}
        for name in SETS:
            chosen = [row for row in rows if row["set"] == name]
            halves = {
                "tuned": [row["figures"][way][0] for row in chosen if row["tuned"]],
                "held": [row["figures"][way][0] for row in chosen if not row["tuned"]],
                "all": [row["figures"][way][0] for row in chosen],
                "recall": [row["figures"][way][1] for row in chosen],
            }
            figures[way][name] = {half: sum(each) / len(each) for half, each in halves.items()}
    return figures


def goals(figures: Mapping[str, Any], same: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """What was to be reached, and whether it is."""
    for name, least in GOALS.items():
        for half in ("held", "all"):
            found = figures["hybrid"][name][half]
            yield f"hybrid, {SETS[name]}, {half}: NDCG@10 {found:.4f}, at least {least}", found >= least
    for name in ("vi-en", "en-vi"):
        found, least = (figures[way][name]["all"] for way in ("hybrid", "mem0"))
        yield f"hybrid, {SETS[name]}: NDCG@10 {found:.4f}, at least Mem0's {least:.4f}", found >= least
    for ranking, (equal, asked) in same.items():
        yield f"{ranking}: {equal} of {asked} cached answers equal to fresh ones", equal == asked


def show(figures: Mapping[str, Any]) -> None:
    """Print the tables."""
    for title, halves in (("NDCG@10: tuned on / held back / all", ("tuned", "held", "all")), ("R@10", ("recall",))):
        print(f"\n{title}\n{'':>28}" + "".join(f"{name:>25}" for name in SETS.values()))
        for way, named in RANKINGS.items():
            cells = (" ".join(f"{figures[way][name][half]:.4f}" for half in halves) for name in SETS)
            print(f"{named:>28}" + "".join(f"{cell:>25}" for cell in cells))


def main() -> int:
    """Measure, print, keep."""
    with servers(SETTINGS):
        told = measure()
    figures = table(told["rows"])
    show(figures)
    print()
    met = True
    for goal, reached in goals(figures, told["same"]):
        met = met and reached
        print(f"{'met' if reached else 'MISSED':>6}: {goal}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    kept = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "same": told["same"]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept | {"figures": figures}, indent=1) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
