"""`manage.py setup`: the first key, made once."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from django.utils import timezone

from memory.management.commands.setup import Command
from memory.models import ApiKey
from memory.tenancy import keys

pytestmark = pytest.mark.django_db


@pytest.fixture
def first_key(settings, tmp_path: Path) -> Callable[[], str]:
    """Do as a start does; what it says."""
    settings.MEMSVC_HOME = tmp_path

    def make() -> str:
        said = StringIO()
        keys.forget()
        Command(stdout=said)._first_key()
        return said.getvalue()

    return make


def revoked(file: Path) -> None:
    ApiKey.objects.update(revoked_at=timezone.now())


def lost(file: Path) -> None:
    file.unlink()


def test_the_first_key_is_made_in_an_empty_database_and_stays(first_key, tmp_path):
    file = tmp_path / "first-key"
    assert first_key() == f"The first key is in {file}\n"
    secret = file.read_text().strip()
    assert keys.authenticate(secret)
    assert first_key() == ""
    assert (file.read_text().strip(), ApiKey.objects.count()) == (secret, 1)


@pytest.mark.parametrize("gone", [revoked, lost])
def test_a_first_key_that_was_revoked_or_lost_is_told_of_and_not_made_again(first_key, tmp_path, gone):
    first_key()
    gone(tmp_path / "first-key")
    told = first_key()
    assert "not in" in told
    assert "manage.py create_key --scopes read,write,admin (" in told
    assert told.count("\n") == 1
    assert ApiKey.objects.count() == 1


def test_a_first_key_of_a_database_that_is_gone_is_replaced(first_key, tmp_path):
    first_key()
    ApiKey.objects.all().delete()
    first_key()
    assert keys.authenticate((tmp_path / "first-key").read_text().strip())
