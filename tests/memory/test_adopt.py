"""`manage.py adopt`: whoever Mem0 knows can be warmed."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from memory.models import MemoryUser
from memory.types import Scope

pytestmark = pytest.mark.django_db


def adopt(*words: str) -> str:
    told = io.StringIO()
    call_command("adopt", "--project", "test", *words, stdout=told, stderr=told)
    return told.getvalue()


def known() -> set[str]:
    return set(MemoryUser.objects.values_list("user_id", flat=True))


def test_users_are_taken_over_once_and_nobody_else(mem0, ann):
    for name in ("ann", "ben", "ann"):
        mem0.store(Scope(ann.project, name, "cook"), "tea", {})
    assert "2 users, 2 of them new" in adopt()
    assert "2 users, 0 of them new" in adopt()
    assert known() == {"ann", "ben"}


def test_a_cut_scan_says_that_some_may_be_missing(mem0, ann, monkeypatch):
    row = {"type": "user", "id": "ann", "total_memories": 10_000}
    monkeypatch.setattr(mem0, "entities", lambda deadline: ([row], False))
    with pytest.raises(SystemExit) as ended:
        adopt()
    assert ended.value.code == 1
    assert known() == {"ann"}


def test_ids_come_from_a_file_and_bad_lines_are_named(mem0, ann, tmp_path):
    file = tmp_path / "ids"
    file.write_text("ann\n\nNguyễn\n", encoding="utf-8")
    adopt("--ids", str(file))
    assert known() == {"ann", "Nguyễn"}
    file.write_text("cy\na b\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        adopt("--ids", str(file))
    assert ended.value.code == 1
    assert "cy" in known()


def test_without_mem0_or_the_project_nothing_happens(mem0, ann):
    mem0.down = True
    with pytest.raises(CommandError):
        adopt()
    with pytest.raises(CommandError):
        call_command("adopt", "--project", "nowhere")
    assert known() == set()
