"""The data sets that tests and measurements share: `../shared/data` beside the project, never part of it."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
_TURN = re.compile(r"D\d+:\d+")


def path(name: str) -> Path:
    """The file of that name; skips the test where it is not there."""
    found = FOLDER / name
    if not found.exists():
        pytest.skip(f"{name} is not in {FOLDER.name}: it is not distributed with the code")
    return found


def load(name: str) -> Any:
    """The JSON document in a gzipped file."""
    with gzip.open(path(name), "rt", encoding="utf-8") as file:
        return json.load(file)


@dataclass(frozen=True)
class Question:
    """A question, and which of its sample's facts answer it (indices)."""

    text: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class Sample:
    """One LoCoMo conversation: its facts (observations) and the questions that some of them answer."""

    id: str
    facts: tuple[str, ...]
    questions: tuple[Question, ...]


@cache
def locomo() -> tuple[Sample, ...]:
    """LoCoMo dev: 5 samples, 1,298 facts, 664 questions with a relevant fact (adversarial ones left out)."""
    return tuple(_sample(raw) for raw in load("locomo-dev.json.gz"))


def _sample(raw: dict[str, Any]) -> Sample:
    observed = [
        (fact, frozenset(_TURN.findall(json.dumps(turns))))
        for session in raw["observation"].values()
        for facts in session.values()
        for fact, turns in facts
    ]
    questions = []
    for asked in raw["qa"]:
        evidence = frozenset(_TURN.findall(" ".join(asked.get("evidence") or [])))
        relevant = frozenset(index for index, (_, turns) in enumerate(observed) if turns & evidence)
        if relevant and asked["category"] != 5:
            questions.append(Question(asked["question"], relevant))
    return Sample(raw["sample_id"], tuple(fact for fact, _ in observed), tuple(questions))
