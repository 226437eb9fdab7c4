"""Mem0 in process: what only it has. What it shares with REST is in `test_contract.py`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.db import connection

from memory import metrics
from memory.backends import mem0_sdk
from memory.backends.mem0_sdk import Mem0SDK
from memory.clock import Deadline
from memory.errors import OriginRateLimited, OriginRejected, OriginTimeout, OriginUnavailable
from memory.types import Query, Scope
from tests.chat import Chat, chat

ROOT = Path(__file__).resolve().parents[3]
SECRET = "the safe opens with 8412"


@pytest.fixture
def ann(sdk: Mem0SDK) -> Scope:
    return Scope(1, user_id=f"ann-{uuid.uuid4().hex[:12]}")


def soon(seconds: float = 60) -> Deadline:
    return Deadline.after(seconds)


def other_connection() -> Any:
    """A connection to the test database that is not Mem0's."""
    return psycopg2.connect(**{**connection.get_connection_params(), "application_name": "a test"})


def elsewhere(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """Run code in another process on the same database."""
    start = "import django; django.setup(); import sys, os, json; from django.conf import settings;"
    start += "settings.DATABASES['default']['NAME'] = os.environ['TEST_DATABASE'];"
    start += "from memory.backends.mem0_sdk import Mem0SDK; from memory.clock import Deadline;"
    start += "from memory.types import Query, Scope; sdk = Mem0SDK(); soon = Deadline.after(60);"
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "memsvc.settings", **env}
    env["TEST_DATABASE"] = str(connection.settings_dict["NAME"])
    command = [sys.executable, "-c", start + code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


# -- L1 ----------------------------------------------------------------------------------------------------------------


def embedded() -> dict[str, int]:
    """Texts by how their vector was come by, since the last look."""
    return {
        labels.partition("=")[2]: n for (_, name, labels), n in metrics.drain().items() if name == "embeddings" and n
    }


def test_a_repeated_question_and_a_repeated_fact_cost_no_second_embedding(sdk, ann, redis):
    embedded()
    sdk.add(ann, ["Ann likes tea", "Ann likes milk"], {}, None, soon())
    assert embedded() == {"computed": 2}
    sdk.search(Query(ann, "What does she drink?"), soon())
    assert embedded() == {"computed": 1}
    sdk.search(Query(ann, "What does she drink?"), soon())
    sdk.add(ann, ["Ann likes tea"], {}, None, soon())
    assert embedded() == {"hit": 2}


def test_without_redis_each_text_is_still_embedded_once(sdk, ann, dead_redis):
    metrics.drain()
    sdk.add(ann, ["Ann likes tea", "Ann likes milk"], {}, None, soon())
    assert embedded() == {"computed": 2}


# -- extraction --------------------------------------------------------------------------------------------------------

CONVERSATION = [
    {"role": "system", "content": "You are an assistant."},
    {"role": "user", "content": "Mình tên là Lan"},
    {"role": "assistant", "content": "Hello Lan!"},
    {"role": "user", "content": "I like tea"},
    {"role": "user", "content": "  "},
]


def test_without_an_llm_the_users_messages_are_stored_as_they_are(sdk, ann):
    assert not sdk.extracts
    stored = sdk.extract(ann, CONVERSATION, {"memsvc_job": "one"}, soon())
    assert [row.memory for row in stored] == ["Mình tên là Lan", "I like tea"]
    assert len(sdk.find_marked(ann, "one", [], soon()).memories) == 2


class LLM:
    """A chat endpoint that Mem0 in process is set to; `answers` are what it says next: (status, facts)."""

    def __init__(self, endpoint: Chat) -> None:
        self.answers: list[tuple[int, list[str]]] = []
        self._endpoint = endpoint
        endpoint.answer = self._next

    @property
    def prompts(self) -> list[str]:
        """What it was asked."""
        return [json.dumps(body, ensure_ascii=False) for body in self._endpoint.asked]

    def _next(self, body: object) -> tuple[int, str]:
        status, facts = self.answers.pop(0)
        return status, json.dumps({"memory": [{"id": str(n), "text": fact} for n, fact in enumerate(facts)]})


@pytest.fixture
def llm(sdk: Mem0SDK, settings) -> Iterator[LLM]:
    with chat() as endpoint:
        settings.OPENAI_BASE_URL = endpoint.url
        mem0_sdk.close()
        yield LLM(endpoint)
        mem0_sdk.close()


def test_with_an_llm_its_facts_are_stored_under_the_job(sdk, ann, llm):
    assert sdk.extracts
    llm.answers = [(200, ["User is named Lan", "User likes tea"]), (200, [])]
    stored = sdk.extract(ann, CONVERSATION, {"memsvc_job": "one"}, soon())
    assert [row.memory for row in stored] == ["User is named Lan", "User likes tea"]
    assert len(sdk.find_marked(ann, "one", [], soon()).memories) == 2
    assert [row["event"] for row in sdk.history(stored[0].id, soon())] == ["ADD"]
    assert sdk.extract(ann, [{"role": "user", "content": "And milk"}], {}, soon()) == []
    assert "I like tea" in llm.prompts[1], "the next extraction knows what was said before"


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, OriginRateLimited), (400, OriginRejected), (401, OriginUnavailable), (500, OriginUnavailable)],
)
def test_an_llm_that_fails_leaves_nothing_behind(sdk, ann, llm, status, error):
    llm.answers = [(status, [])]
    with pytest.raises(error) as caught:
        sdk.extract(ann, [{"role": "user", "content": SECRET}], {}, soon())
    assert not caught.value.sent or not sdk.list(ann, soon()).memories
    assert SECRET not in repr(caught.value)
    assert len(llm.prompts) == 1


def test_an_llm_that_is_not_there_is_an_outage(sdk, ann, settings):
    settings.OPENAI_BASE_URL = "http://127.0.0.1:1/v1"
    mem0_sdk.close()
    try:
        with pytest.raises(OriginUnavailable):
            sdk.extract(ann, [{"role": "user", "content": "I like tea"}], {}, soon())
    finally:
        mem0_sdk.close()


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def test_connections_that_postgresql_has_closed_fail_no_later_call(sdk, ann):
    sdk.add(ann, ["Ann likes tea"], {}, None, soon())
    with closing(other_connection()) as other, other.cursor() as cursor:
        ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = %s"
        cursor.execute(ended, ("memsvc-mem0",))
        assert cursor.fetchone()[0] >= 1
    assert len(sdk.list(ann, soon()).memories) == 1
    sdk.add(ann, ["Ann likes milk"], {}, None, soon())


def test_while_postgresql_is_away_nothing_is_sent_and_afterwards_all_is_well(sdk, ann, monkeypatch):
    sdk.add(ann, ["Ann likes tea"], {}, None, soon())
    mem0_sdk.close()
    with monkeypatch.context() as away:
        away.setitem(connection.settings_dict, "HOST", "/nonexistent")
        for call in (
            lambda: sdk.add(ann, ["Ann likes milk"], {}, None, soon()),
            lambda: sdk.search(Query(ann, "tea"), soon()),
            lambda: sdk.check(soon()),
        ):
            with pytest.raises(OriginUnavailable) as caught:
                call()
            assert not caught.value.sent
    assert [memory.text for memory in sdk.list(ann, soon()).memories] == ["Ann likes tea"]


def test_more_callers_than_connections_wait_for_each_other(sdk, ann, settings):
    callers = settings.MEM0_CONNECTIONS * 4
    start = threading.Barrier(callers)

    def add(number: int) -> None:
        start.wait()
        sdk.add(ann, [f"fact {number}"], {}, None, soon())

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(add, range(callers)))
    assert len(sdk.list(ann, soon()).memories) == callers


@pytest.fixture
def locked(sdk: Mem0SDK, ann: Scope, settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The collection, locked by somebody else; no other limit than the call's ends the wait for it."""
    monkeypatch.setitem(connection.settings_dict, "STATEMENT_TIMEOUT_SECONDS", 0)
    mem0_sdk.close()
    sdk.check(soon())
    with closing(other_connection()) as other, other.cursor() as cursor:
        cursor.execute(f'LOCK TABLE "{settings.MEM0_COLLECTION}" IN ACCESS EXCLUSIVE MODE')
        yield


def test_a_statement_ends_with_the_deadline(sdk, ann, locked):
    with pytest.raises(OriginTimeout) as read:
        sdk.search(Query(ann, "tea"), soon(0.5))
    assert not read.value.sent
    with pytest.raises(OriginTimeout) as write:
        sdk.add(ann, ["Ann likes tea"], {}, None, soon(0.5))
    assert write.value.sent


def test_a_failing_keyword_half_fails_the_search(sdk, ann, monkeypatch):
    """Mem0 goes on without it: the order would be another one, and be kept as if it were right."""
    sdk.add(ann, ["Ann likes tea"], {}, None, soon())
    store = mem0_sdk._mem0().vector_store
    search = store.search
    collection = store.collection_name

    def then_lose_the_table(**asked: Any) -> Any:
        found = search(**asked)
        store.collection_name = "no such table"
        return found

    monkeypatch.setattr(store, "search", then_lose_the_table)
    try:
        with pytest.raises(OriginUnavailable):
            sdk.search(Query(ann, "tea"), soon())
    finally:
        store.collection_name = collection


def test_a_users_rows_are_found_by_an_index(sdk, ann, settings):
    sdk.check(soon())
    with closing(other_connection()) as other, other.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        for key in ("user_id", "agent_id", "run_id", "memsvc_job"):
            cursor.execute(f"EXPLAIN SELECT * FROM \"{settings.MEM0_COLLECTION}\" WHERE payload->>'{key}' = 'x'")
            assert f"{settings.MEM0_COLLECTION}_{key}_idx" in str(cursor.fetchall())


# -- processes ---------------------------------------------------------------------------------------------------------


def test_processes_that_start_together_make_one_collection(sdk, settings):
    name = f"mem0_{uuid.uuid4().hex[:8]}"
    code = "print(len(sdk.add(Scope(1, 'ann'), [sys.argv[1]], {}, None, soon)))"
    processes = [elsewhere(code, f"fact {number}", MEM0_COLLECTION=name) for number in range(2)]
    assert [process.communicate()[0] for process in processes] == ["1\n"] * 2
    settings.MEM0_COLLECTION = name
    mem0_sdk.close()
    try:
        listed = sdk.list(Scope(1, "ann"), soon())
        assert {memory.text for memory in listed.memories} == {"fact 0", "fact 1"}
        (first, *_) = listed.memories
        assert [row["event"] for row in sdk.history(first.id, soon())] == ["ADD"], "another process wrote it"
    finally:
        mem0_sdk.close()


def test_a_fork_makes_its_own_and_its_parents_goes_on(sdk, ann):
    sdk.add(ann, ["Ann likes tea"], {}, None, soon())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sdk.add(ann, ["Ann likes milk"], {}, None, soon())
            os.write(write, str(len(sdk.list(ann, soon()).memories)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == "2"
    os.waitpid(child, 0)
    assert len(sdk.list(ann, soon()).memories) == 2


# -- what is kept and told ---------------------------------------------------------------------------------------------


def test_forgetting_removes_the_history_of_memories_deleted_long_ago(sdk, ann):
    kept = Scope(1, user_id=f"{ann.user_id}-kept")
    (hers,), (others,) = (sdk.add(scope, ["likes tea"], {}, None, soon()) for scope in (ann, kept))
    sdk.delete(hers.id, soon())
    assert len(sdk.history(hers.id, soon())) == 2
    sdk.forget(ann, soon())
    assert sdk.history(hers.id, soon()) == []
    assert len(sdk.history(others.id, soon())) == 1


def test_forgetting_removes_what_was_said(sdk, ann, llm):
    llm.answers = [(200, []), (200, [])]
    sdk.extract(ann, [{"role": "user", "content": SECRET}], {}, soon())
    sdk.forget(ann, soon())
    sdk.extract(ann, [{"role": "user", "content": "And milk"}], {}, soon())
    assert SECRET not in llm.prompts[1]


def test_no_log_line_holds_a_text(sdk, ann, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    (stored,) = sdk.add(ann, [SECRET], {"note": SECRET}, None, soon())
    sdk.search(Query(ann, SECRET), soon())
    sdk.update(stored.id, soon(), text=f"{SECRET} now")
    sdk.delete(stored.id, soon())
    printed = capfd.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err


def test_nothing_is_sent_to_mem0s_makers(sdk):
    sdk.check(soon())
    from mem0.memory import telemetry

    assert not telemetry.MEM0_TELEMETRY


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_this_postgresql_will_do(sdk):
    sdk.check(soon())
    assert mem0_sdk.pgvector_problem() is None


@pytest.mark.django_db
def test_a_collection_of_another_embedders_size_is_named(sdk, settings):
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute("CREATE TABLE small (vector vector(3))")
    settings.MEM0_COLLECTION = "small"
    problem = mem0_sdk.pgvector_problem()
    assert "3 dimensions" in problem
    assert "MEM0_COLLECTION" in problem


@pytest.mark.parametrize(
    ("found", "mend"),
    [
        (None, "install"),
        (("0.7.4", None, True), "install"),
        (("0.8.6", "0.7.4", True), "ALTER EXTENSION vector UPDATE"),
        (("0.8.6", None, False), "CREATE EXTENSION vector"),
        (("0.8.6", None, True), None),
        (("0.10.0", "0.10.0", False), None),
    ],
)
def test_an_old_or_missing_pgvector_is_told_with_its_mend(found, mend):
    problem = mem0_sdk._extension_problem(found)
    assert (problem is None) if mend is None else mend in problem
