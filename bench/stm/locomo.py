"""LoCoMo's conversations as sessions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from memory.models import Session
from memory.stm import store, tiers
from memory.stm.store import Said
from memory.tenancy.projects import policy
from tests import data

_TURN = re.compile(r"D\d+:\d+")
ADVERSARIAL = 5
"""The category of questions that have no answer."""


@dataclass(frozen=True)
class Turn:
    """Something that was said, by the id that evidence names."""

    id: str
    role: str
    text: str


@dataclass(frozen=True)
class Talk:
    """A conversation, the facts observed in it with the turns they cover, and questions with their evidence."""

    id: str
    turns: list[Turn]
    facts: list[tuple[str, frozenset[str]]]
    questions: list[tuple[str, frozenset[str]]]


def talks() -> list[Talk]:
    """LoCoMo dev."""
    return [_talk(raw) for raw in data.load("locomo-dev.json.gz")]


def hold(talk: Talk, turns: list[Turn], project: int) -> Session:
    """The turns as a session of their own user, compressed."""
    said = [Said(one.role, one.text, {}) for one in turns]
    session = store.add(talk.id, talk.id, said, policy(project)).session
    tiers.compress(session.pk)
    session.refresh_from_db()
    return session


def _talk(raw: dict[str, Any]) -> Talk:
    said, number, first = [], 1, raw["conversation"]["speaker_a"]
    while f"session_{number}" in raw["conversation"]:
        said += raw["conversation"][f"session_{number}"]
        number += 1
    observed = [fact for session in raw["observation"].values() for facts in session.values() for fact in facts]
    asked = [(one["question"], _ids(one.get("evidence"))) for one in raw["qa"] if one["category"] != ADVERSARIAL]
    return Talk(
        raw["sample_id"],
        [Turn(one["dia_id"], "user" if one["speaker"] == first else "assistant", one["text"]) for one in said],
        [(text, _ids(told)) for text, told in observed],
        [(question, evidence) for question, evidence in asked if evidence],
    )


def _ids(named: Any) -> frozenset[str]:
    return frozenset(_TURN.findall(json.dumps(named)))
