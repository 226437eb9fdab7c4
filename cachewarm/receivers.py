"""What memory tells, and what warming does about it."""

from __future__ import annotations

import logging
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models.signals import post_migrate

from cachewarm import chains, learned, rebuild, runs, schedule, topics
from memory import signals
from memory.types import Query

log = logging.getLogger(__name__)


def connect(app: AppConfig) -> None:
    """Called once, when the apps are ready."""
    signals.memories_changed.connect(warm_after_write, dispatch_uid="cachewarm.write")
    signals.erased.connect(forget_user, dispatch_uid="cachewarm.erased")
    signals.loaded.connect(learn, dispatch_uid="cachewarm.learn")
    signals.ticked.connect(save_learned, dispatch_uid="cachewarm.learned")
    signals.swept.connect(hand_over, dispatch_uid="cachewarm.sweep")
    post_migrate.connect(create_defaults, sender=app, dispatch_uid="cachewarm.defaults")


def warm_after_write(sender: object, project_id: int, user_id: str, version: int, **_: Any) -> None:
    """Note the due warm with the write, start it after the commit. It never fails the write: what can't be noted now is
    mended by the rebuild, what can't be started by the sweeper."""
    if not settings.PROACTIVE_CACHE_ENABLED:
        return
    try:
        with transaction.atomic():
            due = runs.request(project_id, user_id, "write", version, delay=settings.WARM_DEBOUNCE_SECONDS)
    except DatabaseError as error:
        log.warning("warm not noted", extra={"user_id": user_id, "version": version, "reason": type(error).__name__})
        return
    if due.made:
        transaction.on_commit(lambda: chains.start(due.run_id, due.seconds), robust=True)


def learn(sender: object, query: Query, count: int, **_: Any) -> None:
    """Remember what the user asked, if there is such a user: one of whom nothing is known has nothing to warm."""
    if count:
        learned.note(query)


def forget_user(sender: object, project_id: int, user_id: str, **_: Any) -> tuple[int, list[str]]:
    """A user is being erased: their questions and warms go."""
    runs.forget(project_id, user_id)
    return learned.forget_user(project_id, user_id)


def save_learned(sender: object, **_: Any) -> None:
    """What this process has noted since."""
    try:
        learned.save()
    except DatabaseError as error:
        log.warning("learned questions not saved", extra={"reason": type(error).__name__})


def hand_over(sender: object, **_: Any) -> None:
    """Whatever is due and nobody works on."""
    chains.sweep()
    rebuild.resume_abandoned()


def create_defaults(sender: object, **_: Any) -> None:
    """After migrating: topics and beat's schedule, once."""
    topics.ensure()
    schedule.ensure()
