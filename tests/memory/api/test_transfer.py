"""Facts in by the line, and everything of a user out by the line."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client

from cachewarm.models import LearnedQuery
from memory import exports
from memory.api import imports
from memory.models import Job, MemoryUser
from memory.tenancy.projects import policy
from memory.types import Scope

pytestmark = pytest.mark.django_db(transaction=True)


def send(api: Any, lines: list[Any], **headers: str) -> Any:
    content = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines).encode()
    sent = api.headers | {name.replace("_", "-"): value for name, value in headers.items()}
    return Client().generic("POST", "/api/v1/memory/import", content, "application/x-ndjson", headers=sent)


def export(api: Any, user_id: str = "ann") -> list[dict[str, Any]]:
    response = Client().get(f"/api/v1/users/{user_id}/export", headers=api.headers)
    assert response["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in b"".join(response).splitlines()]


def fact(text: str, user_id: str = "ann", **more: Any) -> dict[str, Any]:
    return {"user_id": user_id, "memory": text, **more}


def test_lines_become_jobs_and_bad_ones_are_named_without_their_text(api):
    lines = [
        fact("tea", metadata={"a": 1}),
        fact("milk"),
        fact("cats", "ben"),
        "{oops",
        fact(""),
        {"memory": "whose?"},
        "",
    ]
    told = send(api, lines).json()
    assert (told["lines"], told["facts"], told["jobs"], told["refused"]) == (7 - 1, 3, 2, 3)
    assert [one["line"] for one in told["first_refused"]] == [4, 5, 6]
    assert "oops" not in json.dumps(told)
    jobs = {job.user_id: [one["text"] for one in job.payload["memories"]] for job in Job.objects.all()}
    assert jobs == {"ann": ["tea", "milk"], "ben": ["cats"]}


def test_the_same_lines_with_the_same_key_are_the_same_jobs(api):
    lines = [fact(f"tea {number}") for number in range(imports.BATCH_FACTS + 1)]
    for _ in range(2):
        assert send(api, lines, Idempotency_Key="move").json()["jobs"] == 2
    assert Job.objects.count() == 2
    send(api, lines)
    assert Job.objects.count() == 4


def test_a_key_bound_to_a_user_imports_for_that_user(api, make_key):
    told = send(make_key(user_id="ann"), [fact("tea"), fact("cats", "ben")]).json()
    assert (told["facts"], told["refused"]) == (1, 1)


def test_a_body_of_any_length_is_taken_a_few_lines_at_a_time(settings, api, monkeypatch):
    settings.MAX_BODY_BYTES = 4096
    assert send(api, [fact("x" * 1000) for _ in range(20)]).json()["facts"] == 20
    assert send(api, [fact("x" * 5000), fact("tea")]).json()["first_refused"][0]["line"] == 1
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        line = json.dumps(fact("x" * 1000)).encode() + b"\n"
        for _ in range(20_000):
            yield line

    tracemalloc.start()
    told = imports.bring_in(endless(), 1, lambda made: taken.append(len(made.payload["memories"])), "k")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.facts == sum(taken) == 20_000
    assert peak < 4 << 20


def test_an_export_holds_everything_of_the_user_and_says_that_it_ended(api, project, worker, mem0):
    api.add("tea", metadata={"a": 1})
    api.add("cats", user_id="ben")
    api.post("/stm/add_message", {"user_id": "ann", "session_id": "s", "role": "user", "content": "hello"})
    LearnedQuery.objects.create(project=project, user_id="ann", fingerprint="f", query={"text": "drink?"}, weight=1)
    mem0.down = True
    api.post("/memory/add", {"user_id": "ann", "memories": ["on its way"]})
    mem0.down = False
    first, *lines, end = export(api)
    assert (first["type"], first["user_id"]) == ("export", "ann")
    assert {"memory", "session", "message", "question"} <= {line["type"] for line in lines}
    assert [line["content"] for line in lines if line["type"] == "message"] == ["hello"]
    assert [line["metadata"] for line in lines if line.get("memory") == "tea"] == [{"a": 1}]
    assert "cats" not in json.dumps(lines)
    assert "on its way" in json.dumps(lines), "stored while the export ran, it is in both parts and never in none"
    assert end["type"] == "end"
    assert end["complete"]
    assert sum(end["counts"].values()) == len(lines)


def test_an_export_is_imported_elsewhere_as_it_was(api, other, worker, project, tmp_path):
    api.add("tea", metadata={"a": 1})
    api.add("milk", agent_id="cook")
    file = tmp_path / "all.jsonl"
    call_command("export_memories", str(file), "--project", "test", "--quiet")
    told = io.StringIO()
    for _ in range(2):  # the second time is the same writes
        call_command("import_memories", str(file), "--project", "other", stdout=told)
    assert "2 facts in 2 jobs" in told.getvalue()
    call_command("import_memories", str(file), "--project", "other", "--quiet")
    while Job.objects.exclude(state="completed").exists():
        pass
    found = other.get("/users/ann/memories").json()["results"]
    assert {(one["memory"], one["agent_id"]) for one in found} == {("tea", None), ("milk", "cook")}
    assert [one["metadata"] for one in found if one["memory"] == "tea"] == [{"a": 1}]


class Slow:
    """A client's body, a line for each read; before each somebody looks whether a connection is held."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self._lines = [json.dumps(line).encode() + b"\n" for line in lines]
        self.held: list[bool] = []

    def read(self, size: int) -> bytes:
        self.held.append(connection.connection is not None)
        return self._lines.pop(0) if self._lines else b""


def test_a_client_that_sends_slowly_holds_no_connection(project, monkeypatch):
    """PROTOCOL E."""
    monkeypatch.setattr(imports, "BATCH_FACTS", 1)
    slow = Slow(fact("tea"), fact("milk"), fact("cats"))
    accept = imports.accepting(policy(project.pk))
    assert imports.bring_in(imports.lines_of(slow), project.pk, accept, "k").jobs == 3
    assert slow.held == [False] * 4


def test_a_client_that_reads_slowly_holds_no_connection_and_misses_nothing(api, project, monkeypatch):
    """PROTOCOL E."""
    monkeypatch.setattr(exports, "CHUNK_BYTES", 1)
    monkeypatch.setattr(exports, "ROWS", 2)
    said = [str(number) for number in range(5)]
    for session in ("s", "t", "u"):
        messages = [{"role": "user", "content": content} for content in said]
        api.post("/stm/add_message", {"user_id": "ann", "session_id": session, "messages": messages})
    LearnedQuery.objects.create(project=project, user_id="ann", fingerprint="f", query={"text": "drink?"}, weight=1)
    blocks, held = [], []
    for block in Client().get("/api/v1/users/ann/export", headers=api.headers):
        held.append(connection.connection is not None)
        blocks.append(block)
    lines = [json.loads(block) for block in blocks if block]
    assert [line["content"] for line in lines if line["type"] == "message"] == said * 3
    assert (lines[-2]["type"], lines[-1]["type"]) == ("question", "end")
    assert not any(held)


def test_an_export_that_mem0_cut_says_so(api, project, mem0, monkeypatch, tmp_path):
    MemoryUser.objects.create(project=project, user_id="ann")
    mem0.store(Scope(project.pk, "ann"), "tea")
    whole = mem0.list
    monkeypatch.setattr(mem0, "list", lambda *words: type(whole(*words))(whole(*words).memories, False))
    assert export(api)[-1]["complete"] is False
    with pytest.raises(SystemExit) as ended:
        call_command("export_memories", str(tmp_path / "f"), "--project", "test", "--quiet")
    assert ended.value.code == 1
