"""Vietnamese questions (100, our own) with accents, decomposed and without any: how many find their answer in five.

Alone: each of twenty people has a session. Together: ten people talk in one, 560 turns in all, and each question stands
against what nine others said. Both through the API's own door, where texts are composed. Articles: what nothing here
was written or tuned for, the 612 questions of XQuAD, each against the sentences of its article.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from django.conf import settings
from django.test import Client

from memory import nearness
from memory.models import Project
from memory.rank import Rows
from memory.tenancy import keys
from memory.text import nfc, strip_accents
from tests import data
from tests.memory.stm.conversations import Person, people

FIRST = 5
MOST_APART = 0.05
SPELLINGS = {
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "bare": strip_accents,
}
TOGETHER = 10


class Door:
    """The service's API, asked in this process."""

    def __init__(self, project: int) -> None:
        _, secret = keys.create(Project.objects.get(pk=project), name="bench", scopes=("read", "write"))
        self._client = Client(headers={"Authorization": f"Bearer {secret}"}, SERVER_NAME="localhost")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request."""
        answer = self._client.post(f"/api/v1/{path}", json.dumps(body), content_type="application/json")
        assert answer.status_code == 200, answer.content
        return answer.json()


def measure(project: int) -> dict[str, dict[str, float]]:
    """R@5 by spelling: by words alone and with vectors, alone and together."""
    door, everyone, embedder = Door(project), people(), settings.EMBEDDER
    sizes = {"alone": 1, "together": TOGETHER}
    figures = {}
    for by in ("none", embedder):
        settings.EMBEDDER = by
        for how, size in sizes.items():
            groups = [everyone[at : at + size] for at in range(0, len(everyone), size)]
            figures[f"{how}, {'words' if by == 'none' else 'words and vectors'}"] = recall(door, groups, project)
    return figures | {"articles, words and vectors": articles(project)}


def articles(project: int) -> dict[str, float]:
    """R@5 by spelling over XQuAD."""
    hits, questions = dict.fromkeys(SPELLINGS, 0), 0
    for user in data.load("xquad-vi-en-dev.json.gz")["users"]:
        texts = [one["text"] for one in user["memories"]["vi"]]
        nearness.warm(texts, project)
        rows, ids = Rows(texts), [one["id"] for one in user["memories"]["vi"]]
        for query in user["queries"]:
            questions += 1
            for spelling, write in SPELLINGS.items():
                values = nearness.scores(nfc(write(query["q_vi"])), rows, project).values
                first = sorted(range(len(ids)), key=lambda place: -values[place])[:FIRST]
                hits[spelling] += bool({ids[place] for place in first} & set(query["evidence_vi"]))
    return {spelling: count / questions for spelling, count in hits.items()}


def recall(door: Door, groups: list[list[Person]], project: int) -> dict[str, float]:
    """R@5 by spelling, each group in a session of its own."""
    hits = dict.fromkeys(SPELLINGS, 0)
    for group in groups:
        name = f"{group[0].name.split(',')[0]}-{len(group)}-{settings.EMBEDDER}"
        talk = [{"role": role, "content": text} for one in group for role, text in one.talk]
        for at in range(0, len(talk), 100):
            door.post("stm/add_message", {"session_id": name, "user_id": name, "messages": talk[at : at + 100]})
        nearness.warm([one["content"] for one in talk], project)
        for question, answer in (asked for one in group for asked in one.questions):
            for spelling, write in SPELLINGS.items():
                asked = {"user_id": name, "session_id": name, "query": write(question), "top_k": FIRST}
                hits[spelling] += answer in [one["memory"] for one in door.post("memory/search", asked)["results"]]
    questions = sum(len(one.questions) for group in groups for one in group)
    return {spelling: count / questions for spelling, count in hits.items()}


def show(figures: dict[str, dict[str, float]]) -> list[tuple[str, bool]]:
    """Print the table; what was to hold, and whether it did."""
    print(f"{'':>28} " + "".join(f"{spelling:>7}" for spelling in SPELLINGS))
    for name, shares in figures.items():
        print(f"{name:>28} " + "".join(f"{shares[spelling]:>7.2f}" for spelling in SPELLINGS))
    return [
        ("the same composed and decomposed", all(one["NFC"] == one["NFD"] for one in figures.values())),
        (
            f"with and without accents within {MOST_APART}",
            all(abs(one["NFC"] - one["bare"]) <= MOST_APART for one in figures.values()),
        ),
    ]
