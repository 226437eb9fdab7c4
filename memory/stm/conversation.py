"""A session as a process holds it to be searched: what was said, and what is told of older turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache as once
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseError

from memory.errors import DatabaseUnavailable
from memory.layers.l0_process import ByteLRU
from memory.models import Message, Session, Tier
from memory.pending import message_id
from memory.rank import Rows
from memory.stm import lifecycle
from memory.stm.tiers import EXTRACTIVE
from memory.stm.versions import State
from memory.text import content_words
from memory.types import Pin

MOST_TURNS = 500
"""Of a longer session the newest turns are searched as they were said, the older ones as their tier tells them."""
HELD_BYTES = 16 << 20
ROW_BYTES = 2500
"""What a turn takes in this process beside its text: words and objects."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was said, or is told of older turns: `turn` is then the last of them, `role` the tier's name."""

    id: str
    turn: int
    role: str
    text: str
    metadata: Mapping[str, Any]
    at: str | None
    job: str | None = None
    """The job that handed it to extraction."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session as this process last read it, ready to be ranked."""

    state: State
    turns: int
    extracted: int
    said: tuple[Line, ...]
    told: tuple[Line, ...]
    rows: Rows

    @property
    def lines(self) -> tuple[Line, ...]:
        """Everything there is to find, in the order of `rows`."""
        return (*self.said, *self.told)


def read(user: Pin, session_id: str) -> Conversation | None:
    """The session as PostgreSQL has it; of one that this process has read before only what is new is read.
    DatabaseUnavailable."""
    try:
        standing = lifecycle.standing().filter(project_id=user.project, session_id=session_id, user_id=user.id)
        session = standing.first()
        if session is None:
            return None
        held = _talks().get((user, session_id))
        if held is not None and held.state == State(session.pk, session.version):
            return held
        grown = held is not None and (held.state.row, held.extracted) == (session.pk, session.extracted)
        talk = _read(session, held if grown else None)
    except DatabaseError as error:
        raise DatabaseUnavailable("the session cannot be read") from error
    _talks().put((user, session_id), talk, sum(4 * len(line.text) + ROW_BYTES for line in talk.lines))
    return talk


def _read(session: Session, held: Conversation | None) -> Conversation:
    """Everything up to now; the version was read before, so what came since is at worst read again."""
    seen = held.said[-1].turn if held and held.said else max(0, session.turns - MOST_TURNS)
    rows = Message.objects.filter(session=session, turn__gt=seen).order_by("turn")
    fresh = rows.values_list("turn", "role", "content", "metadata", "created_at", "job_id")
    said = (*(held.said if held else ()), *(_line(session, *row) for row in fresh))[-MOST_TURNS:]
    told = tuple(_told(session, said[0].turn if said else 1))
    return Conversation(
        State(session.pk, session.version),
        session.turns,
        session.extracted,
        said,
        told,
        Rows([line.text for line in (*said, *told)]),
    )


def _line(session: Session, turn: int, role: str, text: str, metadata: Any, at: datetime, job: UUID | None) -> Line:
    name = message_id(session.session_id, turn)
    return Line(name, turn, role, text, metadata, at.isoformat(), str(job) if job else None)


def _told(session: Session, first: int) -> list[Line]:
    """What the tiers tell that no message says as well: of turns before the first read, or in an LLM's own words."""
    lines = []
    for tier in Tier.objects.filter(session=session).order_by("first"):
        if tier.first < first or tier.made_by != EXTRACTIVE:
            for index, text in enumerate(tier.text.split("\n")):
                if content_words(text):
                    name = f"stm-{session.session_id}-{tier.name}-{index}"
                    lines.append(Line(name, tier.last, tier.name, text, {}, None))
    return lines


@once
def _talks() -> ByteLRU[tuple[Pin, str], Conversation]:
    return ByteLRU(HELD_BYTES)


def forget() -> None:
    """Empty this process's memory of what was said."""
    _talks().clear()
