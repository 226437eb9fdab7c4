"""The trace: who asks or writes what, and when. The same for the same seed, whatever it is sent to."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, takewhile
from typing import Any, Literal

from bench import traffic
from tests import data

Kind = Literal["new", "paraphrase", "repeat", "write"]
SHARES: dict[Kind, float] = {"new": 0.60, "paraphrase": 0.20, "repeat": 0.20}
"""Of the searches."""
WRITES = 0.05
"""Share of all requests."""
STEP = 3.0
"""Seconds of Mooncake's clock: what came between two of its ticks comes at any moment between them here."""
ZIPF = 1.0
"""Exponent: the second user is half as busy as the first."""


@dataclass(frozen=True)
class Request:
    """A question, or a fact to store; `at` in seconds since the trace began. A write's `about` is the question that its
    fact answers, word for word, so that the fact is the first thing an answer to it must show from then on."""

    at: float
    user: int
    kind: Kind
    text: str
    about: str = ""


@dataclass
class _User:
    """What a user has asked, by intent and in order."""

    intents: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    asked: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)


class Writer:
    """Makes the trace: arrivals and re-visits are Mooncake's, each of its sessions is of one user."""

    def __init__(self, users: int, seed: int) -> None:
        self._draw = random.Random(seed)
        self._pools = traffic.intents(self._draw)
        self._weights = list(accumulate(1 / rank**ZIPF for rank in range(1, users + 1)))
        self._users = [_User() for _ in range(users)]
        self._owners: dict[int, int] = {}
        self._notes = 0

    def write(self, seconds: float) -> list[Request]:
        """What comes in the first so many seconds of Mooncake's hour. ValueError if it has fewer."""
        trace = data.load("mooncake-arrivals.json.gz")
        at, session = (trace["columns"].index(name) for name in ("timestamp_ms", "session"))
        rows = trace["rows"]
        if seconds * 1000 > rows[-1][at]:
            raise ValueError(f"the arrivals end after {rows[-1][at] / 1000:.0f} s")
        steps = groupby(rows, key=lambda row: round(row[at] / 1000 / STEP) * STEP)
        moments = [
            (begin + offset, row[session])
            for begin, step in takewhile(lambda one: one[0] < seconds, steps)
            for row, offset in self._spread(list(step))
        ]
        return [self._request(moment, self._owner(whose)) for moment, whose in moments if moment < seconds]

    def _spread(self, step: list[Any]) -> Iterator[tuple[Any, float]]:
        """What came in one step, in its order, each with the seconds since the step began."""
        return zip(step, sorted(self._draw.uniform(0, STEP) for _ in step), strict=True)

    def _owner(self, session: int) -> int:
        if session not in self._owners:
            (self._owners[session],) = self._draw.choices(range(len(self._users)), cum_weights=self._weights)
        return self._owners[session]

    def _request(self, at: float, number: int) -> Request:
        user = self._users[number]
        open_questions = [question for question in user.asked if question not in user.written]
        if self._draw.random() < WRITES and open_questions:
            about = self._draw.choice(open_questions)
            user.written.add(about)
            self._notes += 1
            return Request(at, number, "write", f"{about} Answered in note {self._notes}.", about)
        (kind,) = self._draw.choices(list(SHARES), list(SHARES.values()))
        if kind == "repeat" and user.asked:
            return Request(at, number, "repeat", self._draw.choice(user.asked))
        intents = [one for one in user.intents if self._pools[one]] if kind == "paraphrase" else []
        intent = self._draw.choice(intents or self._unasked(user))
        text = self._pools[intent].pop()
        user.intents[intent].append(text)
        user.asked.append(text)
        return Request(at, number, "paraphrase" if intents else "new", text)

    def _unasked(self, user: _User) -> list[int]:
        """Intents with wordings left that the user has not asked about, if there are such."""
        left = [intent for intent, pool in enumerate(self._pools) if pool]
        return [intent for intent in left if intent not in user.intents] or left


def shares(made: Sequence[Request]) -> dict[str, float]:
    """What part of the searches each kind of question really is, and of all requests the writes."""
    searches = [request for request in made if request.kind != "write"]
    found = Counter(request.kind for request in searches)
    return {**{kind: found[kind] / len(searches) for kind in SHARES}, "write": 1 - len(searches) / len(made)}
