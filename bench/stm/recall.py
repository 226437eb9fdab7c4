"""Which memory finds a question's evidence (LoCoMo dev): its share that the first ten items cover.

STM is the conversation as a session; LTM is the real Mem0, holding the facts observed in it. What may be tuned is tuned
on two conversations; the other three decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import orjson
from django.conf import settings

from bench.stm import locomo
from memory import delivery, merge, nearness, write
from memory import recall as service
from memory.clock import Deadline
from memory.merge import Near, Weights
from memory.models import Job
from memory.models.jobs import UNFINISHED
from memory.stm import search
from memory.stm.conversation import MOST_TURNS
from memory.tenancy.projects import policy
from memory.text import nfc, normalised
from memory.types import Query, Scope
from memory.write import Write

TOP = 10
TUNED_ON = ("conv-26", "conv-41")
FACTS_A_WRITE = 100
WORDS = (0.4, 0.5, 0.6)
BESIDE = (0.0, 0.25, 0.5, 0.75)
WEIGHTS = ((0.15, 0.10), (0.15, 0.05), (0.15, 0.0), (0.0, 0.0), (0.25, 0.10))
"""(both, STM alone); the first are the defaults."""


@dataclass(frozen=True)
class Asked:
    """A question, what Mem0 alone answers to it, and what the service answers with both memories."""

    text: str
    wanted: frozenset[str]
    ltm: list[dict[str, Any]]
    jobs: list[str | None]
    served: list[dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """A conversation in both memories; `covers` has the turns that each text stands for."""

    id: str
    scope: Scope
    covers: dict[str, frozenset[str]]
    asked: list[Asked]

    def share(self, one: Asked, texts: Iterable[str]) -> float:
        """The part of a question's evidence that the first TOP texts cover."""
        covered = [self.covers.get(normalised(text), frozenset()) for text in list(texts)[:TOP]]
        return len(one.wanted & frozenset().union(*covered)) / len(one.wanted)


def measure(project: int) -> dict[str, Any]:
    """Recall of each memory and of both, by conversation, for each of the ways to score and to weigh."""
    loaded = [load(talk, project) for talk in locomo.talks()]
    standing = (nearness.WORDS_WEIGHT, search.NEIGHBOUR)
    ways = [_way(loaded, words, beside) for words, beside in product(WORDS, BESIDE)]
    nearness.WORDS_WEIGHT, search.NEIGHBOUR = standing
    search.forget()
    return {
        "questions": {one.id: len(one.asked) for one in loaded},
        "ltm": {one.id: _mean(one.share(q, _texts(q.ltm)) for q in one.asked) for one in loaded},
        "served": {one.id: _mean(one.share(q, _texts(q.served)) for q in one.asked) for one in loaded},
        "standing": {"words": standing[0], "beside": standing[1]},
        "ways": ways,
    }


def load(talk: locomo.Talk, project: int) -> Loaded:
    """The conversation said, its facts stored, its questions asked."""
    scope, rules = Scope(project, talk.id), policy(project)
    locomo.hold(talk, talk.turns, project)
    nearness.warm([turn.text for turn in talk.turns[-MOST_TURNS:]], project)
    for at in range(0, len(talk.facts), FACTS_A_WRITE):
        facts = [{"text": nfc(text)} for text, _ in talk.facts[at : at + FACTS_A_WRITE]]
        job = write.accept(Write("add", scope, {"memories": facts}), rules).job
        while Job.objects.get(pk=job.pk).state in UNFINISHED:
            delivery.deliver(job.lane_id)
    covers: dict[str, frozenset[str]] = {}
    for text, turns in (*((turn.text, frozenset([turn.id])) for turn in talk.turns), *talk.facts):
        covers[normalised(text)] = covers.get(normalised(text), frozenset()) | turns
    return Loaded(talk.id, scope, covers, [_ask(talk.id, scope, *question) for question in talk.questions])


def _ask(session: str, scope: Scope, text: str, wanted: frozenset[str]) -> Asked:
    query, rules = Query(scope, nfc(text), TOP), policy(scope.project)
    alone = service.search(query, rules, Deadline.after(60))
    both = service.search(query, rules, Deadline.after(60), session_id=session)
    return Asked(text, wanted, orjson.loads(alone.results), alone.answer.entry.stored_by(), orjson.loads(both.results))


def _way(loaded: Sequence[Loaded], words: float, beside: float) -> dict[str, Any]:
    """Recall with one way to score messages."""
    nearness.WORDS_WEIGHT, search.NEIGHBOUR = words, beside
    stm: dict[str, float] = {}
    merged: dict[str, list[float]] = {}
    for one in loaded:
        rows = []
        for question in one.asked:
            query = Query(one.scope, nfc(question.text), TOP)
            near = search.look(one.id, query, policy(one.scope.project)).near
            told = [_merged(question, near, Weights(*weights)) for weights in WEIGHTS]
            rows.append([one.share(question, texts) for texts in ([n.shown["memory"] for n in near], *told)])
        stm[one.id], *merged[one.id] = (_mean(column) for column in zip(*rows, strict=True))
    return {"words": words, "beside": beside, "stm": stm, "merged": merged}


def _merged(question: Asked, near: Sequence[Near], weights: Weights) -> list[str]:
    needed = merge.needed(near, question.ltm, question.jobs)
    return _texts(merge.together(question.ltm, needed, TOP, weights))


def show(figures: dict[str, Any]) -> list[tuple[str, bool]]:
    """Print the tables; what was to hold, and whether it did."""
    counts = figures["questions"]
    halves = {"tuned": [name for name in counts if name in TUNED_ON], "held": [n for n in counts if n not in TUNED_ON]}
    halves["all"] = [*halves["tuned"], *halves["held"]]

    def over(half: str, by_talk: dict[str, float]) -> float:
        names = halves[half]
        return sum(by_talk[name] * counts[name] for name in names) / sum(counts[name] for name in names)

    def both(way: dict[str, Any], place: int) -> dict[str, float]:
        return {name: columns[place] for name, columns in way["merged"].items()}

    ltm = figures["ltm"]
    print(f"questions: {counts}; tuned on {', '.join(halves['tuned'])}, held back {', '.join(halves['held'])}\n")
    print("words  beside |" + "".join(f"  {half:^23} |" for half in ("tuned on", "held back")))
    print("              |" + f"  {'STM':>7} {'LTM':>7} {'merged':>7} |" * 2)
    for way in figures["ways"]:
        cells = [
            f"  {over(half, way['stm']):>7.4f} {over(half, ltm):>7.4f} {over(half, both(way, 0)):>7.4f} |"
            for half in ("tuned", "held")
        ]
        print(f"{way['words']:>5} {way['beside']:>7} |{''.join(cells)}")
    best = max(figures["ways"], key=lambda way: over("tuned", both(way, 0)))
    print(f"\nbest where tuned: words {best['words']}, beside {best['beside']}")
    stands = next(way for way in figures["ways"] if {k: way[k] for k in ("words", "beside")} == figures["standing"])
    print(f"\nas it stands ({figures['standing']}), by weights (both, STM alone)")
    print(f"{'':>9} {'STM':>7} {'LTM':>7} " + "".join(f"{f'{b:+.2f}/{n:+.2f}':>13}" for b, n in WEIGHTS))
    for half in halves:
        row = "".join(f"{over(half, both(stands, place)):>13.4f}" for place in range(len(WEIGHTS)))
        print(f"{half:>9} {over(half, stands['stm']):>7.4f} {over(half, ltm):>7.4f} {row}")
    return [
        (
            f"served with both: {over(half, figures['served']):.4f} {title}, at least the better of the two alone",
            over(half, figures["served"]) >= max(over(half, stands["stm"]), over(half, ltm)),
        )
        for half, title in (("held", "where held back"), ("all", "over all"))
    ]


def _texts(results: Iterable[dict[str, Any]]) -> list[str]:
    return [one["memory"] for one in results]


def _mean(shares: Iterable[float]) -> float:
    listed = list(shares)
    return sum(listed) / len(listed)


assert Weights(*WEIGHTS[0]) == Weights(settings.MERGE_BOTH_PERCENT / 100, settings.MERGE_STM_PERCENT / 100)
