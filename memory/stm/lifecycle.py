"""How a session's words reach Mem0, and how it ends: as the project's `extract_on` says, in one transaction each.

A job made of messages is created while the session's row is held, so that each message is handed over once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from memory import clock, outbox, pending, versions, write
from memory.models import Job, Session
from memory.stm import versions as session_versions
from memory.stm.feedback import Given
from memory.tenancy.projects import Policy, policy
from memory.types import Scope

log = logging.getLogger(__name__)

JOB_MESSAGES = 50
"""Messages of one extraction: what an LLM reads at a time."""
MOST_ENDED = 200
MOST_WOKEN = 500
"""Late sessions that workers were told of and have not come to yet: more messages would make them later."""


def extraction_due(session: Session, rules: Policy) -> bool:
    """Whether enough turns have come since the last extraction for a project that extracts every N of them."""
    return rules.extract_on == "turns" and session.turns - session.extracted >= rules.extract_every_turns


def extract(session_pk: int) -> int:
    """Hand the turns that are due to extraction; how many jobs that made."""
    session = Session.objects.filter(pk=session_pk).first()
    if session is None or not extraction_due(session, rules := policy(session.project_id)):
        return 0
    asked = clock.now()
    with transaction.atomic():
        versions.lock(_scope(session).pins())
        held = Session.objects.select_for_update().filter(pk=session_pk).first()
        if held is None or not extraction_due(held, rules):
            return 0
        jobs = _hand_over(held, rules)
    _tell(held, jobs, rules, asked)
    return len(jobs)


def end(session_pk: int, *, overdue: bool = False) -> bool:
    """End a session: what is not extracted goes to extraction where the project asks for it, and its messages go, in
    one transaction. With `overdue` only if its time is over. False when there was nothing to end."""
    session = Session.objects.filter(pk=session_pk).first()
    if session is None:
        return False
    rules = policy(session.project_id)
    asked = clock.now()
    with transaction.atomic():
        versions.lock(_scope(session).pins())
        rows = Session.objects.filter(_overdue()) if overdue else Session.objects
        held = rows.select_for_update().filter(pk=session_pk).first()
        if held is None:
            return False
        jobs = _hand_over(held, rules) if rules.extract_on != "never" else []
        Session.objects.filter(pk=session_pk).delete()
    _tell(held, jobs, rules, asked, ended=True)
    log.info("session ended", extra={"project": rules.id, "user_id": held.user_id, "jobs": len(jobs)})
    return True


def end_overdue(project_id: int, session_id: str) -> None:
    """End this session if its time is over and the sweeper has not come by yet: its id then begins a new life."""
    found = Session.objects.filter(_overdue(), project_id=project_id, session_id=session_id)
    for pk in found.values_list("pk", flat=True):
        end(pk, overdue=True)


def sweep() -> int:
    """End the sessions whose time is over, and hand over those whose compression or extraction nobody has done."""
    over = Session.objects.filter(_overdue()).values_list("pk", flat=True)[:MOST_ENDED]
    ended = sum(end(pk, overdue=True) for pk in over)
    _wake_late()
    return ended


def _wake_late() -> None:
    """A worker is told of each once in RESEND_SECONDS: of those that work is done for, none is late any more."""
    from memory.tasks import keep_session  # tasks stand above this module

    late = Q(turns__gte=F("summarised") + 20)
    late |= Q(project__extract_on="turns", turns__gte=F("extracted") + F("project__extract_every_turns"))
    idle = Session.objects.filter(late, Q(busy_until__isnull=True) | Q(busy_until__lt=Now()))
    lately = Q(woken_at__gte=Now() - timedelta(seconds=settings.RESEND_SECONDS))
    room = MOST_WOKEN - idle.filter(lately).count()
    if room <= 0:
        return
    with transaction.atomic():
        waiting = idle.exclude(lately).select_for_update(skip_locked=True, no_key=True, of=("self",))
        woken = list(waiting.order_by(F("woken_at").asc(nulls_first=True)).values_list("pk", flat=True)[:room])
        Session.objects.filter(pk__in=woken).update(woken_at=Now())
    for pk in woken:
        outbox.send(keep_session.si(pk))


def _hand_over(session: Session, rules: Policy) -> list[Job]:
    """Jobs for the turns not extracted yet, inside a transaction that holds the pins and the session's row."""
    said = _unextracted(session)
    jobs = []
    for at in range(0, len(said), JOB_MESSAGES):
        part = said[at : at + JOB_MESSAGES]
        if any(message["role"] == "user" for _, message in part):
            payload = {"messages": [message for _, message in part], "session_id": session.session_id}
            jobs.append(write.insert(write.Write("extract", _scope(session), payload), rules))
            session.messages.filter(turn__in=[turn for turn, _ in part]).update(job_id=jobs[-1].job_id)
    Session.objects.filter(pk=session.pk).update(extracted=session.turns)
    session_versions.move(session)
    return jobs


def _unextracted(session: Session) -> list[tuple[int, dict[str, str]]]:
    """Turns with their messages, without what the assistant only repeats."""
    rows = session.messages.filter(turn__gt=session.extracted).order_by("turn").values_list("turn", "role", "content")
    given = Given(_scope(session))
    said = [(turn, role, content if role == "user" else given.left_of(content)) for turn, role, content in rows]
    return [(turn, {"role": role, "content": content}) for turn, role, content in said if content.strip()]


def _tell(session: Session, jobs: Sequence[Job], rules: Policy, asked: float, *, ended: bool = False) -> None:
    """After the commit."""
    generation = versions.generation(rules.id, rules.generation)
    session_versions.publish(session, generation, asked, ended=ended)
    pending.changed(_scope(session).pins(), generation)
    for job in jobs:
        write.wake(job.lane_id)


def _scope(session: Session) -> Scope:
    return Scope(session.project_id, session.user_id)


def standing() -> QuerySet[Session]:
    """The sessions whose time is not over."""
    return Session.objects.exclude(_overdue())


def _overdue() -> Q:
    return Q(last_at__lt=Now() - timedelta(hours=settings.STM_SESSION_HOURS))
