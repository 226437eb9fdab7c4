"""A session's messages in PostgreSQL: durable before the answer, in one order whoever writes, once for each message_id.

The order of locks: the user's pins first where a job is made, then the session's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models.functions import Now

from memory import clock, outbox, pending
from memory.errors import DatabaseUnavailable, MemsvcError
from memory.models import Message, Session
from memory.stm import lifecycle, tokens, versions
from memory.stm.tiers import due
from memory.tenancy.projects import Policy
from memory.types import Scope
from memory.versions import generation
from memory.write import touch_user


class AnotherUser(MemsvcError):
    """The session belongs to another user."""

    code = "session_of_another_user"


class UserNeeded(MemsvcError):
    """A session's first message says whose it is."""

    code = "user_needed"


@dataclass(frozen=True, slots=True)
class Said:
    """One message to add."""

    role: str
    content: str
    metadata: Mapping[str, Any]
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """The session as it stands, and each message's turn."""

    session: Session
    turns: tuple[int, ...]


def add(session_id: str, user_id: str | None, said: Sequence[Said], policy: Policy) -> Added:
    """Append messages in their order. A message_id seen before keeps its first turn.

    UserNeeded for a new session without a user; AnotherUser; DatabaseUnavailable, with nothing half-written.
    """
    try:
        lifecycle.end_overdue(policy.id, session_id)
        asked = clock.now()
        with transaction.atomic():
            session = _locked(policy.id, session_id, user_id)
            before = session.turns
            turns = _append(session, said)
    except DatabaseError as error:
        raise DatabaseUnavailable("the messages were not kept") from error
    if session.turns > before:
        now = generation(policy.id, policy.generation)
        versions.publish(session, now, asked)
        if policy.extract_on != "never":
            pending.changed(Scope(policy.id, session.user_id).pins(), now)
        if due(session) or lifecycle.extraction_due(session, policy):
            _wake(session.pk)
    return Added(session, turns)


def find(project_id: int, session_id: str) -> Session | None:
    """The session, unless it has ended or its time is over. DatabaseUnavailable."""
    try:
        return lifecycle.standing().filter(project_id=project_id, session_id=session_id).first()
    except DatabaseError as error:
        raise DatabaseUnavailable("the session cannot be read") from error


def _locked(project_id: int, session_id: str, user_id: str | None) -> Session:
    rows = Session.objects.select_for_update(no_key=True).filter(project_id=project_id, session_id=session_id)
    session = rows.first()
    while session is None:  # made by us, or by another writer who was quicker and may even have ended it
        if user_id is None:
            raise UserNeeded("the first message of a session needs a user_id")
        Session.objects.bulk_create(
            [Session(project_id=project_id, session_id=session_id, user_id=user_id)],
            ignore_conflicts=True,
        )
        touch_user(project_id, user_id)
        session = rows.first()
    if user_id is not None and session.user_id != user_id:
        raise AnotherUser("this session was begun with another user_id")
    return session


def _append(session: Session, said: Sequence[Said]) -> tuple[int, ...]:
    ids = [one.message_id for one in said if one.message_id is not None]
    known = dict(session.messages.filter(message_id__in=ids).values_list("message_id", "turn")) if ids else {}
    fresh: list[Message] = []
    turns = []
    for one in said:
        turn = known.get(one.message_id) if one.message_id is not None else None
        if turn is None:
            turn = session.turns + len(fresh) + 1
            fresh.append(
                Message(
                    session=session,
                    turn=turn,
                    message_id=one.message_id,
                    role=one.role,
                    content=one.content,
                    metadata=dict(one.metadata),
                    tokens=tokens.count(one.content),
                ),
            )
            if one.message_id is not None:
                known[one.message_id] = turn
        turns.append(turn)
    if fresh:
        Message.objects.bulk_create(fresh)
        session.turns += len(fresh)
        session.raw_tokens += sum(message.tokens for message in fresh)
        Session.objects.filter(pk=session.pk).update(
            turns=session.turns,
            raw_tokens=session.raw_tokens,
            last_at=Now(),
        )
        versions.move(session)
    return tuple(turns)


def _wake(session_pk: int) -> None:
    from memory.tasks import keep_session  # tasks stand above this module

    outbox.send(keep_session.si(session_pk))
