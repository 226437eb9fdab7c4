"""Sessions to talk in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.utils import timezone

from memory.models import Session
from memory.stm import store
from memory.stm.store import Added, Said
from memory.tenancy import projects
from memory.tenancy.projects import policy


@pytest.fixture(autouse=True)
def quiet(redis, settings):
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    settings.PROACTIVE_CACHE_ENABLED = False


@pytest.fixture
def say(ann) -> Callable[..., Added]:
    """Ann, or her assistant, says something in a session."""

    def say(*texts: str, session: str = "s", role: str = "user", ids: tuple[str, ...] = ()) -> Added:
        named = [*ids, *[None] * (len(texts) - len(ids))]
        said = [Said(role, text, {}, id_) for text, id_ in zip(texts, named, strict=True)]
        return store.add(session, ann.user_id, said, policy(ann.project))

    return say


@pytest.fixture
def extract_on(project) -> Callable[..., None]:
    """What the project asks for."""

    def set_(when: str, every: int = 10) -> None:
        project.extract_on, project.extract_every_turns = when, every
        project.save()
        projects.forget()

    return set_


@pytest.fixture
def long_ago(settings) -> Callable[[], None]:
    """The time of every session so far is over."""

    def pass_() -> None:
        hours = timezone.timedelta(hours=settings.STM_SESSION_HOURS, seconds=1)
        Session.objects.update(last_at=timezone.now() - hours)

    return pass_
