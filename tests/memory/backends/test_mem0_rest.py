"""Mem0 over REST when things go wrong: what is retried, what an error says, and what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from memory.backends import answers
from memory.backends.mem0_rest import Mem0REST
from memory.backends.transport import Reply
from memory.clock import Deadline
from memory.errors import (
    OriginError,
    OriginRateLimited,
    OriginRejected,
    OriginTimeout,
    OriginUnavailable,
)
from memory.types import MARK_JOB, Query, Scope
from tests.fake_mem0 import FakeMem0, Fault

ANN = Scope(1, "ann")
SECRET = "the safe opens with 8412"
SHORT = 0.4
"""Seconds of a deadline that is meant to pass."""


@pytest.fixture
def server(mem0_server: FakeMem0) -> Iterator[FakeMem0]:
    mem0_server.reset()
    yield mem0_server
    mem0_server.control(faults=[])


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def rest(server: FakeMem0, pauses: list[float]) -> Mem0REST:
    """It knows the server already, and notes its pauses instead of making them."""
    rest = Mem0REST(server.url, key=server.key, pause=pauses.append)
    assert rest.refusal() is None
    server.control(forget_counts=True)
    return rest


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds)


def add(rest: Mem0REST, text: str = "Ann likes tea", deadline: Deadline | None = None, **metadata: Any) -> str:
    (stored,) = rest.add(ANN, [text], metadata, None, deadline or soon())
    return stored.id


def listed(rest: Mem0REST) -> list[str]:
    return [memory.text for memory in rest.list(ANN, soon()).memories]


def failing(error: type[OriginError], call: Callable[[], object]) -> OriginError:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return caught.value


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("stall", when="before"),
        Fault("stall", when="after"),
        Fault("drip", seconds=0.1),
        Fault("drip_headers", seconds=0.1),
    ],
    ids=["stalled", "answer withheld", "dripping body", "dripping headers"],
)
def test_a_call_ends_with_its_deadline_however_the_server_is_slow(rest, server, fault):
    server.fault(fault)
    assert not failing(OriginTimeout, lambda: rest.list(ANN, soon(SHORT))).sent
    assert failing(OriginTimeout, lambda: add(rest, deadline=soon(SHORT))).sent
    assert server.calls() == {"list": 1, "add": 1}


def test_the_answer_of_an_abandoned_call_reaches_nobody(rest, server):
    tea, milk = add(rest, "Ann likes tea"), add(rest, "Ann likes milk")
    server.fault(Fault("stall", ("get",), "after", times=1))
    failing(OriginTimeout, lambda: rest.get(tea, soon(SHORT)))
    server.fault()
    for _ in range(5):
        assert rest.get(milk, soon()).text == "Ann likes milk"


def test_an_extraction_has_a_limit_of_its_own(server):
    rest = Mem0REST(server.url, key=server.key, timeout=30, extract_timeout=SHORT)
    server.fault(Fault("stall", ("extract",)))
    said = [{"role": "user", "content": "I have a dog"}]
    assert failing(OriginTimeout, lambda: rest.extract(ANN, said, {}, soon())).sent


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_cut_off_is_of_unknown_outcome_and_never_repeated(rest, server, when):
    server.fault(Fault("drop", ("add",), when))
    assert failing(OriginUnavailable, lambda: add(rest)).sent
    assert server.calls()["add"] == 1
    assert listed(rest) == ([] if when == "before" else ["Ann likes tea"])


def test_a_write_whose_answer_is_cut_short_is_of_unknown_outcome(rest, server):
    server.fault(Fault("cut", ("add",)))
    assert failing(OriginUnavailable, lambda: add(rest)).sent
    assert (server.calls()["add"], listed(rest)) == (1, ["Ann likes tea"])


@pytest.mark.parametrize("fault", [Fault("drop", times=2), Fault("cut", times=2), Fault("status", status=500, times=2)])
def test_a_read_is_tried_again(rest, server, pauses, fault):
    add(rest)
    server.fault(fault)
    assert listed(rest) == ["Ann likes tea"]
    assert server.calls()["list"] == 3
    assert len(pauses) == 2


def test_a_read_is_not_tried_for_ever(rest, server):
    server.fault(Fault("drop"))
    assert not failing(OriginUnavailable, lambda: rest.list(ANN, soon())).sent
    assert server.calls()["list"] == 3


def test_a_server_that_is_not_there_gets_nothing_and_is_tried_again(rest, server, pauses):
    server.stop()
    try:
        assert not failing(OriginUnavailable, lambda: add(rest)).sent
        assert len(pauses) == 2
    finally:
        server.start()
    add(rest)
    assert listed(rest) == ["Ann likes tea"]


def test_retries_are_few_among_many_failing_calls(rest, server):
    server.fault(Fault("drop"))
    for _ in range(60):
        failing(OriginUnavailable, lambda: rest.list(ANN, soon()))
    assert 60 < server.calls()["list"] <= 60 + 10 + 6


def test_a_forked_process_has_connections_of_its_own(server):
    """Parent and child ask for different memories at the same time, many times, after the parent had a connection."""
    code = f"""
import os, django; django.setup()
from memory.backends.mem0_rest import Mem0REST
from memory.clock import Deadline
from memory.types import Scope
rest = Mem0REST({server.url!r}, key={server.key!r})
stored = rest.add(Scope(1, "ann"), ["the parent's", "the child's"], {{}}, None, Deadline.after(60))
child = os.fork()
mine = stored[child == 0]
right = all(rest.get(mine.id, Deadline.after(60)).text == mine.memory for _ in range(50))
if child == 0: os._exit(0 if right else 1)
print(right, os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]


# -- what the server says ----------------------------------------------------------------------------------------------


def test_the_servers_own_pause_is_kept(rest, server, pauses):
    server.fault(Fault("status", status=503, headers=(("Retry-After", "7"),), times=1))
    assert add(rest)
    assert pauses == [7.0]


def test_a_pause_beyond_the_deadline_is_left_to_the_caller(rest, server, pauses):
    server.fault(Fault("status", status=429, headers=(("Retry-After", "60"),)))
    error = failing(OriginRateLimited, lambda: add(rest))
    assert (error.sent, error.retry_after, pauses) == (False, 60.0, [])
    assert server.calls()["add"] == 1


@pytest.mark.parametrize(
    ("status", "code", "error", "sent"),
    [
        (400, "", OriginRejected, False),
        (401, "", OriginUnavailable, False),
        (403, "", OriginRejected, False),
        (404, "", OriginUnavailable, False),
        (408, "", OriginTimeout, True),
        (413, "", OriginRejected, False),
        (422, "", OriginRejected, False),
        (429, "", OriginRateLimited, False),
        (500, "", OriginUnavailable, True),
        (502, "", OriginUnavailable, True),
        (502, "unknown", OriginUnavailable, True),
        (502, "datastore_unavailable", OriginUnavailable, True),
        (502, "vector_store_unavailable", OriginUnavailable, True),
        (502, "provider_unavailable", OriginUnavailable, False),
        (502, "provider_timeout", OriginUnavailable, False),
        (502, "provider_auth_failed", OriginUnavailable, False),
        (502, "provider_rate_limited", OriginRateLimited, False),
        (502, "provider_bad_request", OriginRejected, False),
        (503, "", OriginUnavailable, True),
        (504, "", OriginTimeout, True),
    ],
)
def test_each_failure_says_what_it_is_and_whether_one_fact_may_be_stored(rest, server, status, code, error, sent):
    server.fault(Fault("status", ("add",), status=status, code=code))
    assert failing(error, lambda: add(rest)).sent is sent


def test_of_several_facts_the_first_may_be_stored_when_the_embedder_fails(rest, server):
    server.fault(Fault("status", ("add",), status=502, code="provider_unavailable"))
    assert failing(OriginUnavailable, lambda: rest.add(ANN, ["one", "two"], {}, None, soon())).sent


def test_a_redirect_is_not_followed(rest, server):
    server.fault(Fault("status", status=307, headers=(("Location", f"{server.url}/memories"),)))
    error = failing(OriginUnavailable, lambda: add(rest))
    assert "MEM0_REST_API_URL" in str(error)
    assert server.calls()["add"] <= 3
    server.fault()
    assert listed(rest) == []


def test_an_address_where_mem0_is_not_loses_no_write(server):
    rest = Mem0REST(f"{server.url}/elsewhere", key=server.key, pause=lambda seconds: None)
    missing = "00000000-0000-4000-8000-000000000000"
    for call in (lambda: add(rest), lambda: rest.delete(missing, soon()), lambda: rest.list(ANN, soon())):
        assert "MEM0_REST_API_URL" in str(failing(OriginUnavailable, call))


def test_a_wrong_key_is_named_by_its_setting_and_never_shown(server, caplog):
    rest = Mem0REST(server.url, key="a-wrong-key-8412", pause=lambda seconds: None)
    with caplog.at_level(logging.DEBUG):
        error = failing(OriginUnavailable, lambda: add(rest))
    assert "MEM0_REST_API_KEY" in str(error)
    assert "8412" not in caplog.text + repr(error) + repr(error.__cause__)


def test_no_error_quotes_a_text(rest, server):
    faults = [Fault("drop"), Fault("cut"), *(Fault("status", status=status) for status in (400, 422, 500, 502))]
    for fault in faults:
        server.fault(fault)
        for call in (lambda: add(rest, SECRET), lambda: rest.search(Query(ANN, SECRET), soon())):
            error = failing_somehow(call)
            assert "8412" not in repr(error) + repr(error.__cause__)


def failing_somehow(call: Callable[[], object]) -> OriginError:
    with pytest.raises(OriginError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"results": [{"id": 1}]}', b'{"results": 3}'])
def test_an_answer_of_another_form_is_no_success(body):
    def read() -> object:
        return answers.stored(answers.body(Reply(200, {}, body)))

    assert failing(OriginUnavailable, read).sent


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "named"), [("1.0.11", "version 1"), ("2.0.4", "older than 2.0.10")])
def test_an_old_server_is_refused_by_name_and_gets_no_write(server, version, named):
    server.control(version=version, forget_counts=True)
    rest = Mem0REST(server.url, key=server.key, pause=lambda seconds: None)
    refusal = rest.refusal() or ""
    assert named in refusal
    assert "upgrade it to 2.0.10 or later" in refusal
    error = failing(OriginUnavailable, lambda: add(rest))
    assert (str(error), error.sent) == (refusal, False)
    assert server.calls().keys() == {"openapi"}


def test_a_server_that_does_not_answer_is_not_refused(server):
    server.fault(Fault("drop"))
    assert Mem0REST(server.url, key=server.key).refusal() is None


def test_a_description_hidden_by_a_proxy_is_not_needed(server):
    server.fault(Fault("status", ("openapi",), status=403))
    rest = Mem0REST(server.url, key=server.key)
    add(rest)
    assert listed(rest) == ["Ann likes tea"]


def test_a_server_that_is_something_else_is_refused():
    other = Reply(200, {}, orjson.dumps({"openapi": "3.1.0", "paths": {}}))
    assert "is not Mem0's" in (answers.refusal(other, "localhost") or "")


# -- limits of the server ----------------------------------------------------------------------------------------------


def test_bad_input_that_mem0_answers_with_502_is_a_rejection(rest, server):
    add(rest, n="many")
    query = Query(ANN, "tea", filters='{"n":{"gte":1}}')
    failing(OriginRejected, lambda: rest.search(query, soon()))
    assert server.calls()["search"] == 1


def test_a_listing_of_a_thousand_is_taken_as_cut(rest, server):
    server.control(seed={"user_id": "ann", "rows": 999})
    assert rest.list(ANN, soon()).complete
    add(rest)
    assert not rest.list(ANN, soon()).complete


def test_beyond_a_thousand_each_fact_is_looked_for_by_its_own_text(rest, server):
    server.control(seed={"user_id": "ann", "rows": 1000})
    rest.add(ANN, ["Ann likes tea", "Ann likes tea", "Ann likes milk"], {MARK_JOB: "one"}, None, soon())
    rest.add(ANN, ["Ann likes tea"], {MARK_JOB: "two"}, None, soon())
    server.control(forget_counts=True)
    found = rest.find_marked(ANN, "one", ["Ann likes tea", "Ann likes tea", "Ann likes milk"], soon())
    assert found.complete
    assert sorted(memory.text for memory in found.memories) == ["Ann likes milk", "Ann likes tea", "Ann likes tea"]
    assert server.calls() == {"list": 1, "search": 2}


def test_beyond_a_thousand_nothing_is_known_of_an_extraction(rest, server):
    server.control(seed={"user_id": "ann", "rows": 1000})
    assert not rest.find_marked(ANN, "one", [], soon()).complete


def test_entities_of_a_collection_beyond_the_servers_scan_are_incomplete(rest, server):
    add(rest)
    assert rest.entities(soon()) == ([{"type": "user", "id": "ann", "total_memories": 1}], True)
    server.control(seed={"user_id": "ben", "rows": 10_000})
    assert not rest.entities(soon())[1]


def test_an_extraction_tells_what_was_found(rest):
    said = [{"role": "user", "content": "I have a dog"}, {"role": "assistant", "content": "How nice!"}]
    (stored,) = rest.extract(ANN, said, {MARK_JOB: "one"}, soon())
    assert (stored.memory, stored.event) == ("I have a dog", "ADD")
    assert rest.extract(ANN, said, {MARK_JOB: "two"}, soon()) == []
    (found,) = rest.find_marked(ANN, "one", [], soon()).memories
    assert found.id == stored.id
