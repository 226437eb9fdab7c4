"""PROTOCOL B5: what was cached from another Mem0 is not served from this one."""

from __future__ import annotations

import pytest
from django.db import IntegrityError

from memory import versions
from memory.models import PinVersion, Project
from memory.tenancy import projects
from memory.tenancy.projects import policy
from memory.types import Pin

pytestmark = pytest.mark.django_db


def test_another_upstream_makes_everything_of_before_unreachable(redis, project, settings):
    assert projects.follow_settings() == 0
    versions.move([pin := Pin(project.pk, "user", "ann")])
    before, generation = versions.stored(pin), policy(project.pk).generation
    settings.MEM0_COLLECTION = "another"
    assert projects.follow_settings() == 1
    after = versions.stored(pin)
    assert after.number > before.number
    assert after.floor == after.number
    assert policy(project.pk).generation == generation + 1


def test_the_same_upstream_changes_nothing(redis, project):
    projects.follow_settings()
    assert projects.follow_settings() == 0
    assert Project.objects.get().generation == 1
    assert PinVersion.objects.count() == 0


def test_no_two_projects_can_have_mem0s_own_ids(project):
    with pytest.raises(IntegrityError):
        Project.objects.create(name="Second", slug="second")
