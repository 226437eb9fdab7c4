"""The three tiers: the last turns in full, those before them as one summary, the rest compressed (DESIGN 8).

Made in the background, every EVERY turns, from the messages themselves; doing it again changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from memory import clock, db
from memory.models import Message, Session, Tier
from memory.stm import extractive, llm, tokens, versions
from memory.stm.extractive import Turn
from memory.tenancy.projects import policy
from memory.versions import generation

log = logging.getLogger(__name__)

FULL = 10
"""Turns kept in full at least; as many as EVERY more until the next compression."""
SUMMARY = 40
"""Turns that the summary tells of: the 11th to the 50th from the end."""
EVERY = 10
SUMMARY_SHARE, SUMMARY_LEAST = 0.55, 60
"""Tokens of the summary: this share of its turns' own, and at least so many."""
COMPRESSED_TOKENS = 240
MARGIN_SECONDS = 30
PART_CHARACTERS = 32_000
"""What an LLM reads at a time: some 10,000 tokens, which small ones take as well."""
MOST_PARTS = 8
"""Calls for one tier: a session from before there was an LLM may be long, and a worker has a time limit."""
EXTRACTIVE = "extractive"


def due(session: Session) -> int:
    """The last turn that the tiers should hold and do not; 0 when they hold enough."""
    wanted = max(0, session.turns - FULL) // EVERY * EVERY
    return wanted if wanted > session.summarised else 0


class Superseded(Exception):
    """The session has ended, or another worker has taken over: what is being made is of no use any more."""


@dataclass(slots=True)
class Mark:
    """That a worker makes a session's tiers, until a moment which it puts off as it goes on. The moment is its name:
    another's is always a later one."""

    session: int
    until: datetime | None = None

    def take(self) -> bool:
        """Whether nobody else's stands."""
        return self._set(Q(busy_until__isnull=True) | Q(busy_until__lt=Now()))

    def renew(self) -> None:
        """Put its end off. Superseded."""
        if not self._set(Q(busy_until=self.until)):
            raise Superseded

    def clear(self) -> None:
        """Remove it, if it is still this worker's own."""
        Session.objects.filter(pk=self.session, busy_until=self.until).update(busy_until=None)

    def _set(self, where: Q) -> bool:
        with transaction.atomic():
            rows = Session.objects.filter(where, pk=self.session)
            if not rows.update(busy_until=Now() + timedelta(seconds=_busy_seconds())):
                return False
            self.until = Session.objects.values_list("busy_until", flat=True).get(pk=self.session)
        return True


def compress(session_pk: int) -> str:
    """Bring the tiers up to date; says how it went. The texts are made outside any transaction, by one worker at a
    time, and both tiers commit in one: killed in between, the messages are still there in full, and the sweeper hands
    the session to another worker once the first one's time is over."""
    session = Session.objects.filter(pk=session_pk).first()
    if session is None or not (last := due(session)):
        return "nothing to do"
    mark = Mark(session_pk)
    if not mark.take():
        return "busy"
    try:
        return _keep(session, last, _make(session, last, mark))
    except Superseded:
        return "superseded"
    finally:
        mark.clear()


def _keep(session: Session, last: int, made: Sequence[Tier]) -> str:
    asked = clock.now()
    with transaction.atomic():
        held = Session.objects.select_for_update(no_key=True).filter(pk=session.pk).first()
        if held is None or held.summarised >= last:
            return "superseded"
        _save(made)
        Session.objects.filter(pk=session.pk).update(summarised=last)
        versions.move(held)
    known = policy(held.project_id).generation
    versions.publish(held, generation(held.project_id, known), asked)
    return f"summarised {last}"


def _busy_seconds() -> float:
    """What may pass between two renewals: the LLM's time-outs, to connect and to read, and what is made here."""
    return MARGIN_SECONDS + (2 * settings.STM_LLM_TIMEOUT_SECONDS if llm.configured() else 0)


def _make(session: Session, last: int, mark: Mark) -> list[Tier]:
    first = max(1, last - SUMMARY + 1)
    turns = _turns(session, first, last)
    said = sum(tokens.count(turn.text) for turn in turns)
    made = [_tier(session, "summary", turns, max(SUMMARY_LEAST, int(said * SUMMARY_SHARE)), mark)]
    if first > 1:
        made.append(_compressed(session, first - 1, mark))
    return made


def _compressed(session: Session, last: int, mark: Mark) -> Tier:
    """Everything before the summary. An LLM is told what stands and only the turns that came since."""
    stands = session.tiers.filter(name="compressed").first()
    if llm.configured() and stands is not None and stands.last < last:
        since = _turns(session, stands.last + 1, last)
        return _tier(session, "compressed", since, COMPRESSED_TOKENS, mark, stands)
    return _tier(session, "compressed", _turns(session, 1, last), COMPRESSED_TOKENS, mark)


def _tier(
    session: Session, name: str, turns: Sequence[Turn], budget: int, mark: Mark, before: Tier | None = None
) -> Tier:
    first, last = before.first if before else turns[0].number, turns[-1].number
    text, made_by = "", EXTRACTIVE
    if llm.configured():
        try:
            text, made_by = _by_llm(turns, budget, mark, before.text if before else ""), llm.name()
        except llm.NoSummary as error:
            log.warning("summary by llm failed", extra={"reason": str(error)})
    if not text:
        text = extractive.summarise(_turns(session, first, last) if before else turns, budget)
    return Tier(
        session=session, name=name, first=first, last=last, text=text, tokens=tokens.count(text), made_by=made_by
    )


def _by_llm(turns: Sequence[Turn], budget: int, mark: Mark, before: str) -> str:
    """The turns told part by part, each with what was told so far; of more than MOST_PARTS the first as an extract.
    NoSummary; Superseded."""
    parts = _parts(turns)
    if early := [turn for part in parts[:-MOST_PARTS] for turn in part]:
        before = "\n".join(filter(None, (before, extractive.summarise(early, budget))))
    for part in parts[-MOST_PARTS:]:
        mark.renew()
        db.release()
        before = llm.summarise(part, budget, before)
    return before


def _parts(turns: Sequence[Turn]) -> list[list[Turn]]:
    """The turns in their order, in parts of at most PART_CHARACTERS; of a longer turn its beginning."""
    parts: list[list[Turn]] = []
    room = 0
    for turn in turns:
        cut = replace(turn, text=turn.text[:PART_CHARACTERS])
        if not parts or len(cut.text) > room:
            parts.append([])
            room = PART_CHARACTERS
        parts[-1].append(cut)
        room -= len(cut.text)
    return parts


def _save(made: Sequence[Tier]) -> None:
    Tier.objects.bulk_create(
        made,
        update_conflicts=True,
        unique_fields=["session", "name"],
        update_fields=["first", "last", "text", "tokens", "made_by"],
    )


def _turns(session: Session, first: int, last: int) -> list[Turn]:
    """Superseded where they are gone with their session."""
    rows = Message.objects.filter(session=session, turn__gte=first, turn__lte=last).order_by("turn")
    turns = [Turn(*row) for row in rows.values_list("turn", "role", "content")]
    if not turns:
        raise Superseded
    return turns
