"""The stand-in answers as Mem0's real server did, and the backend reads those answers as they were meant.

Two transcripts, each of requests in order with the real server's answers: one of 82 cases that is kept apart from the
project, and `transcript.jsonl` beside this file, of what is dangerous or odd. Differences that stay are in
`docs/compatibility.md`. With MEM0_REAL_URL set, the same requests go to a real server instead, which is emptied first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from memory.backends import answers
from memory.backends.mem0_rest import Mem0REST
from memory.backends.transport import Reply
from memory.clock import Deadline
from memory.errors import OriginError, OriginNotFound, OriginRejected, OriginUnavailable
from memory.types import Memory, Query, Scope
from tests import data
from tests.fake_mem0 import FakeMem0

APART = "mem0-oss-transcript.jsonl"
OURS = Path(__file__).parent / "transcript.jsonl"
CASES = [(APART, number) for number in range(82)]
CASES += [(OURS.name, number) for number in range(len(OURS.read_text("utf-8").splitlines()))]
LONG = "Long text about sailing boats. " * 4000
LONG_BODIES = {
    "add 124 KB text": {"messages": [{"role": "user", "content": LONG}], "user_id": "big", "infer": False},
    "search 124KB query": {"query": LONG, "filters": {"user_id": "big"}},
}
KEYS_SENT = {
    "bad key": {"X-API-Key": "wrong"},
    "no key": {},
    "Authorization Token scheme": {"Authorization": "Token KEY"},
    "Authorization Bearer admin key": {"Authorization": "Bearer KEY"},
}
ANOTHER_EMBEDDER = {"search threshold"}
"""What a threshold lets through is the embedder's to say: the transcript was made with another one."""
NOT_ITS_WORDS = {"configure", "configure set unbundled"}
"""Answers about the server's own configuration, which the stand-in has not."""
OPTIONAL = {"user_id", "agent_id", "run_id", "actor_id", "role", "attributed_to", "expiration_date", "score_details"}


@dataclass
class Exchange:
    """One case: what was recorded, and what the server at hand answered."""

    case: dict[str, Any]
    status: int
    content_type: str
    body: bytes

    @property
    def answer(self) -> Any:
        return json.loads(self.body) if self.body else None


Replay = Callable[[str], list[Exchange]]


def recorded(name: str) -> list[dict[str, Any]]:
    path = OURS if name == OURS.name else data.path(name)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def replay(mem0_server: FakeMem0) -> Replay:
    """A transcript asked again, once."""
    url, key = os.environ.get("MEM0_REAL_URL", mem0_server.url), os.environ.get("MEM0_REAL_KEY", mem0_server.key)
    return cache(lambda name: asked_again(recorded(name), url, key))


def asked_again(transcript: list[dict[str, Any]], url: str, key: str) -> list[Exchange]:
    """All of it, in order; ids of its memories stand for those given out now."""
    requests.post(f"{url}/reset", headers={"X-API-Key": key}, timeout=30).raise_for_status()
    now: dict[str, str] = {}
    exchanges = []
    for case in transcript:
        path = case["path"]
        for then, new in now.items():
            path = path.replace(then, new)
        headers = KEYS_SENT.get(case["case"], {"X-API-Key": key})
        headers = {name: value.replace("KEY", key) for name, value in headers.items()}
        wanted = LONG_BODIES.get(case["case"], case["request"])
        body = wanted.encode() if isinstance(wanted, str) else None if wanted is None else json.dumps(wanted).encode()
        reply = requests.request(
            case["method"],
            url + path,
            data=body,
            headers={"Content-Type": "application/json", **headers},
            timeout=60,
            allow_redirects=False,
        )
        exchanges.append(Exchange(case, reply.status_code, str(reply.headers.get("Content-Type")), reply.content))
        if case["case"].startswith("add") and isinstance(case["response"], dict) and reply.ok:
            pairs = zip(case["response"]["results"], reply.json()["results"], strict=True)
            now |= {then["id"]: new["id"] for then, new in pairs}
    return exchanges


@pytest.mark.parametrize(("name", "number"), CASES)
def test_the_stand_in_answers_as_the_real_server_did(replay: Replay, name: str, number: int) -> None:
    exchange = replay(name)[number]
    case = exchange.case
    assert (exchange.status, exchange.content_type) == (case["status"], case["content_type"]), case["case"]
    if case.get("response_cut"):
        first = _keys(case["response"])
        assert _keys(exchange.body.decode())[: len(first)] == first, case["case"]
    elif case["case"] not in ANOTHER_EMBEDDER | NOT_ITS_WORDS:
        assert _form(exchange.answer) == _form(case["response"]), case["case"]
    if name == OURS.name:
        assert _texts(exchange.answer) == _texts(case["response"]), case["case"]


def _form(answer: Any) -> Any:
    """What must agree: error bodies whole but for the request's id, else key sets and whether there was anything."""
    if isinstance(answer, dict) and "detail" in answer:
        return {**answer, "detail": _without_ids(answer["detail"]), "request_id": "request_id" in answer}
    if isinstance(answer, dict) and set(answer) == {"results"}:
        return {"results": _rows(answer["results"])}
    if isinstance(answer, list):
        return _rows(answer)
    return answer if not isinstance(answer, dict) or "message" in answer else sorted(answer.keys() - OPTIONAL)


def _without_ids(detail: Any) -> Any:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", detail) if isinstance(detail, str) else detail


def _rows(rows: list[Any]) -> Any:
    """Their key sets; which memories are among them, and in what order, is the embedder's to say."""
    return sorted({tuple(sorted(row.keys() - OPTIONAL)) for row in rows})


def _texts(answer: Any) -> list[str]:
    """Which memories were told of."""
    rows = answer.get("results", []) if isinstance(answer, dict) else []
    return sorted(row["memory"] for row in rows)


def _keys(text: str) -> list[str]:
    """The first keys in a body of which only the beginning was recorded."""
    return re.findall(r'"(\w+)":', text)[:4]


MEANT = {200: None, 307: OriginUnavailable, 400: OriginRejected, 401: OriginUnavailable, 404: OriginUnavailable}
MEANT |= {405: OriginUnavailable, 422: OriginRejected, 502: OriginUnavailable}
UNKNOWN_MEMORY = {"update unknown", "delete again", "delete unknown id"}


@pytest.mark.parametrize(("name", "number"), CASES)
def test_the_backend_reads_each_recorded_answer_as_it_was_meant(name: str, number: int) -> None:
    case = recorded(name)[number]
    if case.get("response_cut"):
        pytest.skip("recorded in part")
    error = OriginNotFound if case["case"] in UNKNOWN_MEMORY else MEANT[case["status"]]
    reply = Reply(case["status"], {}, orjson.dumps(case["response"]))
    if error is None:
        assert answers.body(reply) == case["response"]
        return
    with pytest.raises(OriginError) as caught:
        answers.body(reply)
    assert type(caught.value) is error, case["case"]
    assert caught.value.sent == (case["status"] == 502), case["case"]


@pytest.fixture
def rest(mem0_server: FakeMem0) -> Mem0REST:
    mem0_server.reset()
    return Mem0REST(mem0_server.url, key=mem0_server.key, timeout=30)


@pytest.fixture
def deadline() -> Deadline:
    return Deadline.after(30)


BAD = {
    "search empty query": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "   "), deadline),
    "search bad threshold": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "x", threshold=3.0), deadline),
    "search top_k 0": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "x", top_k=0), deadline),
    "search top_k -1": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "x", top_k=-1), deadline),
    "get_all top_k 1001": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "x", top_k=1001), deadline),
    "search user with spaces": lambda rest, deadline: rest.search(Query(Scope(1, "a b"), "x"), deadline),
    "search bad operator": lambda rest, deadline: rest.search(
        Query(Scope(1, "u1"), "x", filters='{"n":{"foo":1}}'), deadline
    ),
    "search NUL char": lambda rest, deadline: rest.search(Query(Scope(1, "u1"), "a\0b"), deadline),
    "get_all user with spaces": lambda rest, deadline: rest.list(Scope(1, "a b"), deadline),
    "update empty": lambda rest, deadline: rest.update("00000000-0000-0000-0000-000000000000", deadline),
    "add bad expiration": lambda rest, deadline: rest.add(Scope(1, "u1"), ["x"], {}, "tomorrow", deadline),
    "add user with space": lambda rest, deadline: rest.add(Scope(1, "a b"), ["x"], {}, None, deadline),
    "add NUL": lambda rest, deadline: rest.add(Scope(1, "u1"), ["a\0b"], {}, None, deadline),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_server_would_refuse_is_refused_without_a_call(
    rest: Mem0REST, mem0_server: FakeMem0, deadline: Deadline, case: str
) -> None:
    with pytest.raises(OriginRejected) as caught:
        BAD[case](rest, deadline)
    assert not caught.value.sent
    assert not mem0_server.calls()


def test_a_malformed_id_is_of_no_memory_and_asks_nothing(
    rest: Mem0REST, mem0_server: FakeMem0, deadline: Deadline
) -> None:
    assert rest.get("not-a-uuid", deadline) is None
    assert rest.history("not-a-uuid", deadline) == []
    for call in (lambda: rest.delete("not-a-uuid", deadline), lambda: rest.update("not-a-uuid", deadline, text="x")):
        with pytest.raises(OriginNotFound):
            call()
    assert not mem0_server.calls()


def test_platform_filters_are_hoisted(rest: Mem0REST, deadline: Deadline) -> None:
    rest.add(Scope(1, "u1"), ["I am allergic to peanuts"], {"n": 3}, None, deadline)
    found = rest.search(
        Query(Scope(1, "u1"), "allergy", filters='{"AND":[{"user_id":"u1"},{"n":{"gte":2}}]}'), deadline
    )
    assert [memory.text for memory in found] == ["I am allergic to peanuts"]


def test_a_memory_is_read_with_its_ids_metadata_and_expiry(rest: Mem0REST, deadline: Deadline) -> None:
    scope = Scope(1, "u1", "bot", "r1")
    (stored,) = rest.add(
        scope, ["Tôi thích cà phê"], {"cat": "drink", "n": 3, "user_id": "evil"}, "2030-01-01", deadline
    )
    memory = rest.get(stored.id, deadline)
    assert isinstance(memory, Memory)
    assert (memory.user_id, memory.agent_id, memory.run_id) == ("u1", "bot", "r1")
    assert (memory.text, memory.metadata) == ("Tôi thích cà phê", {"cat": "drink", "n": 3})
    assert memory.expiration_date == "2030-01-01"
