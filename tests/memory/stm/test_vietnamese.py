"""Vietnamese with accents, without, and decomposed: a question finds what was said, however it is typed."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from memory import recall
from memory.clock import Deadline
from memory.stm import store
from memory.stm.store import Said
from memory.tenancy.projects import policy
from memory.text import strip_accents
from memory.types import Query, Scope

pytestmark = pytest.mark.django_db(transaction=True)

FIRST = 5
REPLIES = ("Dạ, tôi nhớ rồi.", "Nghe thú vị quá!", "Vâng, bạn kể thêm đi.", "Thế à, chúc bạn mọi việc suôn sẻ.")


@dataclass
class Person:
    """What one person says in three sessions, and questions with the number of the statement that answers each."""

    name: str
    sessions: list[list[str]] = field(default_factory=list)
    questions: list[tuple[str, int]] = field(default_factory=list)

    @property
    def said(self) -> list[str]:
        return [text for session in self.sessions for text in session]


def people() -> list[Person]:
    found: list[Person] = []
    for line in (Path(__file__).parent / "conversations.txt").read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "@":
            found.append(Person(rest))
        elif kind == "=":
            found[-1].sessions.append([])
        elif kind == "-":
            found[-1].sessions[-1].append(rest)
        elif kind == "?":
            text, _, number = rest.rpartition(" ")
            found[-1].questions.append((text, int(number)))
    return found


def found_in_first(scope: Scope, question: str) -> list[str]:
    asked = Query(scope, unicodedata.normalize("NFC", question), top_k=FIRST)
    answer = recall.search(asked, policy(scope.project), Deadline.after(30), session_id=f"s-{scope.user_id}")
    return [one["memory"] for one in orjson.loads(answer.results)]


def test_there_are_twenty_people_with_three_sessions_and_a_hundred_questions():
    everyone = people()
    assert [len(person.sessions) for person in everyone] == [3] * 20
    assert sum(len(person.questions) for person in everyone) == 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("embedder", ["none", "local"])
def test_questions_without_accents_or_decomposed_find_as_much(mem0, project, settings, embedder):
    settings.EMBEDDER = embedder
    settings.STM_BUDGET_MS = 60_000
    hits = {"accents": 0, "bare": 0, "decomposed": 0}
    for number, person in enumerate(people()):
        scope = Scope(project.pk, f"p{number}")
        turns = [
            Said(role, text, {})
            for index, said in enumerate(person.said)
            for role, text in (("user", said), ("assistant", REPLIES[index % 4]))
        ]
        store.add(f"s-{scope.user_id}", scope.user_id, turns, policy(project.pk))
        for question, answer in person.questions:
            evidence = person.said[answer - 1]
            hits["accents"] += evidence in found_in_first(scope, question)
            hits["bare"] += evidence in found_in_first(scope, strip_accents(question))
            hits["decomposed"] += evidence in found_in_first(scope, unicodedata.normalize("NFD", question))
    assert hits["accents"] >= 90
    assert hits["accents"] == hits["decomposed"]
    assert abs(hits["accents"] - hits["bare"]) <= 5
