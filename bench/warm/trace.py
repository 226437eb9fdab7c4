"""What the warm set is good for: a trace of questions replayed through the real read path, learning and warming.

Arrivals and re-visits are Mooncake's, each session one of Zipf-distributed users; of what they say 5 % are writes, and
of their questions 60 % were never asked before, 20 % are another wording of an earlier one, 20 % its very words. After
each write its user is warmed, half-way everybody is. An entry that a warm left is *used* if it answers a question
before the user's next warm. Mem0 and the embedder are the stand-ins; time is compressed, so nothing expires.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SEED, USERS, ZIPF = 20_261_122, 1000, 1.1
WRITES, NEW, PARAPHRASED = 0.05, 0.6, 0.2
SAVE_EVERY = 20
"""Requests between two savings of what was asked: about the second that a web process lets pass."""


@dataclass
class Told:
    """What a user has asked, and which entries the last warm left, by kind; `used` are those that answered."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


def measured(requests: int) -> dict[str, Any]:
    """Entries that warms left and that were used, by kind, and what answered the questions."""
    from bench.services import servers
    from bench.warm.scale import SETTINGS

    with servers({**SETTINGS, "L0_MAX_BYTES": "0", "LOG_LEVEL": "WARNING"}):
        from bench.warm.doubles import Personas, Words
        from memory import embedders, stack
        from tests import data

        personas = data.load("msc-personas.json.gz")
        mem0, embedder = Personas(personas, USERS), Words()
        stack._build = lambda: mem0  # type: ignore[assignment,return-value]
        embedders.get = lambda: embedder  # type: ignore[assignment,return-value]
        return Replay(data.load("intent-queries.json.gz")).run(
            data.load("mooncake-arrivals.json.gz")["rows"][:requests]
        )


class Replay:
    """One replay, with its own project."""

    def __init__(self, intents: Any) -> None:
        from memory.models import Project

        self.project = Project.objects.create(name="Trace", slug="trace").pk
        self.draw = random.Random(SEED)
        self.wordings = {
            name: list(texts) for kind in ("banking77", "clinc150") for name, texts in intents[kind].items()
        }
        self.fresh = [(name, text) for name, texts in self.wordings.items() for text in texts]
        self.draw.shuffle(self.fresh)
        self.told = [Told() for _ in range(USERS)]
        self.entries: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.layers: Counter[str] = Counter()
        self.warms = 0

    def run(self, rows: list[Any]) -> dict[str, Any]:
        """Replay the arrivals."""
        from cachewarm import learned

        weights = [1 / (rank + 1) ** ZIPF for rank in range(USERS)]
        users: dict[int, int] = {}
        for number, (_, session, *_) in enumerate(rows):
            user = users.setdefault(session, self.draw.choices(range(USERS), weights)[0])
            self._one(user)
            if number % SAVE_EVERY == 0:
                learned.save()
            if number == len(rows) // 2:
                for seen in sorted(set(users.values())):
                    self._warm(seen)
        for told in self.told:
            self._close(told)
        questions = self.layers.total()
        return {
            "requests": len(rows),
            "users": len(set(users.values())),
            "warms": self.warms,
            "questions": questions,
            "layers": dict(self.layers),
            "entries": dict(self.entries),
            "used": dict(self.used),
        }

    def _one(self, user: int) -> None:
        told = self.told[user]
        if self.draw.random() < WRITES:
            self._write(user)
            return
        from memory import read
        from memory.clock import Deadline
        from memory.tenancy.projects import policy
        from memory.types import Query

        chance = self.draw.random()
        if told.asked and chance >= NEW:
            intent, text = self.draw.choice(told.asked)
            if chance < NEW + PARAPHRASED:
                text = self.draw.choice(self.wordings[intent])
        else:
            intent, text = self.fresh.pop()
        told.asked.append((intent, text))
        query = Query(self._scope(user), text)
        layer = read.search(query, policy(self.project), Deadline.after(10)).layer
        warmed = layer == "L2" and query.fingerprint in told.left
        self.layers["L2, warmed" if warmed else layer] += 1
        if warmed:
            told.used.add(query.fingerprint)

    def _write(self, user: int) -> None:
        from django.db import transaction

        from memory import versions

        with transaction.atomic():
            moved = versions.move(self._scope(user).pins())
        versions.publish(moved)
        self._warm(user)

    def _warm(self, user: int) -> None:
        from cachewarm import chains, learned, runs, steps, warmset
        from memory import write

        scope = self._scope(user)
        learned.save()
        write.touch_user(scope.project, scope.user_id or "")
        run = runs.claim(runs.request(scope.project, scope.user_id or "", "manual").run_id)
        assert run
        assert chains.run_here([run], steps.limits()) == ["completed"]
        told = self.told[user]
        self._close(told)
        general = {query.fingerprint for query in warmset.general(scope)}
        told.left = {
            query.fingerprint: "topics" if query.fingerprint in general else "learned" for query in warmset.of(scope)
        }
        self.warms += 1

    def _close(self, told: Told) -> None:
        self.entries.update(told.left.values())
        self.used.update(told.left[name] for name in told.used)
        told.left, told.used = {}, set()

    def _scope(self, user: int) -> Any:
        from memory.types import Scope

        return Scope(self.project, f"user-{user}")


def show(found: dict[str, Any]) -> None:
    """The table."""
    print(f"\n{found['requests']:,} requests of {found['users']} users, {found['warms']} warms\n")
    print("| warm set | entries left | used before the next warm | waste |\n|---|---|---|---|")
    for kind in ("learned", "topics"):
        left, used = found["entries"].get(kind, 0), found["used"].get(kind, 0)
        print(f"| {kind} | {left:,} | {used:,} ({used / max(1, left):.1%}) | {1 - used / max(1, left):.1%} |")
    print("\nQuestions answered by: ", end="")
    print(", ".join(f"{layer} {count / found['questions']:.1%}" for layer, count in sorted(found["layers"].items())))
