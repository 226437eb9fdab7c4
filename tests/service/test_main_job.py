"""The main job from outside: real processes, real Mem0, and what goes wrong on a bad day.

All of it three times: with Mem0 in process, over REST to the stand-in, and over REST to Mem0's real server where
MEM0_REAL_URL names one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services
from tests import data, real_mem0
from tests.conftest import SMALL
from tests.fake_mem0 import FakeMem0
from tests.live import ROOT, Live, eventually
from tests.real_mem0 import RealMem0

OVER_REST = {"MEM0_USE_REST_API": "true", "EMBEDDER": "local", "LOCAL_SEARCH": "on"}


@pytest.fixture(scope="module", params=["in_process", "stand_in", "real_server"])
def upstream(request: pytest.FixtureRequest) -> FakeMem0 | RealMem0 | None:
    """The server behind memsvc; None where Mem0 is in its own processes."""
    match request.param:
        case "stand_in":
            server: FakeMem0 = request.getfixturevalue("mem0_server")
            server.reset()
            return server
        case "real_server":
            return real_mem0.named()
    return None


@pytest.fixture(scope="module")
def environment(upstream: FakeMem0 | RealMem0 | None) -> dict[str, object]:
    """What makes a service use it."""
    if upstream is None:
        return SMALL
    return {**SMALL, **OVER_REST, "MEM0_REST_API_URL": upstream.url, "MEM0_REST_API_KEY": upstream.key}


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, upstream: FakeMem0 | RealMem0 | None, environment: dict[str, object], home: Path
) -> Iterator[Live]:
    """One service for the tests of one upstream."""
    if upstream is None:
        yield request.getfixturevalue("_live")
        return
    folder = home / f"main-job-{uuid.uuid4().hex[:4]}"
    servers = Services(Home(folder / "servers"), cache_mb=64, durable=False)
    live = Live(folder, servers=servers, **environment).up()
    if isinstance(upstream, RealMem0):
        upstream.embed_through(live.url, live.key)
    yield live
    live.remove()
    for server in servers.every.values():
        server.stop()


@pytest.fixture
def live(service: Live) -> Live:
    service.mend()
    return service


def fresh_user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def add(live: Live, user: str, texts: list[str], wait: str = "none") -> dict[str, Any]:
    body = {"user_id": user, "memories": texts, "wait": wait}
    ask = partial(live.call, "POST") if wait == "none" else live.patiently
    answer = ask("/api/v1/memory/add", body)
    assert answer.status_code == (202 if wait == "none" else 200), answer.text
    return answer.json()


def search(live: Live, user: str, query: str, **more: Any) -> dict[str, Any]:
    answer = live.call("POST", "/api/v1/memory/search", {"user_id": user, "query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def memories(live: Live, user: str) -> list[str]:
    found, path = [], f"/api/v1/users/{user}/memories?page_size=1000"
    while path:
        page = live.call("GET", path).json()
        found += [row["memory"] for row in page["results"]]
        path = page["next"].removeprefix(live.url) if page["next"] else ""
    return found


@pytest.fixture
def in_mem0(live: Live, upstream: FakeMem0 | RealMem0 | None) -> Callable[[str], list[str]]:
    """What Mem0 itself holds of a user, whatever memsvc believes."""

    def listed(user: str) -> list[str]:
        if upstream is None:
            rows = live.rows("SELECT payload->>'data' FROM mem0_memories WHERE payload->>'user_id' = %s", user)
            return [row[0] for row in rows]
        asked = {"user_id": user, "top_k": "1000", "show_expired": "true"}
        reply = requests.get(f"{upstream.url}/memories", asked, headers={"X-API-Key": upstream.key}, timeout=60)
        return [row["memory"] for row in reply.json()["results"]]

    return listed


def completed(live: Live, job_id: str) -> bool:
    status = live.call("GET", f"/api/v1/jobs/{job_id}/status").json()
    assert status["status"] != "failed", status
    return status["status"] == "completed"


def calls(live: Live) -> int:
    """Searches of Mem0 so far; what workers list to warm others is not the question here."""
    return live.call("GET", "/api/v1/stats").json()["upstream_calls"].get("search", 0)


def observations(sample: dict[str, Any]) -> list[str]:
    facts = []
    for name in sorted(sample["observation"]):
        for said in sample["observation"][name].values():
            facts += [fact for fact, _ in said]
    return facts


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return min(data.load("locomo-dev.json.gz"), key=lambda one: len(observations(one)))


@pytest.mark.timeout(300)
def test_a_whole_conversations_facts_are_stored_once_and_answer_without_mem0(live, sample, in_mem0):
    user, facts = fresh_user(), observations(sample)
    first, rest = facts[: len(facts) // 2], facts[len(facts) // 2 :]
    job = add(live, user, first)["job_id"]
    done = add(live, user, rest, wait="warm")
    assert done["warm"]["status"] == "completed"
    assert completed(live, job)
    assert Counter(in_mem0(user)) == Counter(memories(live, user)) == Counter(facts)
    topics = live.rows("SELECT questions FROM cachewarm_topic WHERE enabled")
    before = calls(live)
    for (questions,) in topics:
        for question in questions.splitlines():
            assert search(live, user, question)["meta"]["upstream_calls"] == 0
    summary = live.call("GET", f"/api/v1/users/{user}/summary").json()
    assert summary["counts"]["memories"] == len(facts)
    assert summary["stale"] is False
    for qa in sample["qa"][:40]:
        answer = search(live, user, qa["question"])
        assert (answer["meta"]["layer"], answer["meta"]["upstream_calls"]) == ("L3", 0)
    assert calls(live) == before


@pytest.mark.timeout(120)
def test_after_an_extraction_is_warm_its_words_answer_without_mem0(live):
    user = fresh_user()
    messages = [
        {"role": "user", "content": "Con chó của tôi tên là Mực, tôi nuôi nó ba năm rồi."},
        {"role": "assistant", "content": "Dễ thương quá!"},
        {"role": "user", "content": "I play the cello in a small orchestra."},
    ]
    done = live.patiently("/api/v1/memory/extract", {"user_id": user, "messages": messages, "wait": "warm"}).json()
    assert (done["status"], done["warm"]["status"]) == ("completed", "completed")
    before = calls(live)
    answer = search(live, user, "What is the name of the dog?")
    assert answer["results"][0]["memory"] == messages[0]["content"]
    assert answer["meta"]["upstream_calls"] == 0
    assert calls(live) == before


@pytest.mark.timeout(120)
def test_a_server_that_embeds_through_memsvc_pays_once_for_one_text(live, upstream):
    if not isinstance(upstream, RealMem0):
        pytest.skip("only the real server embeds over HTTP")
    user, question = fresh_user(), f"Which instrument has the number {uuid.uuid4().hex}?"
    add(live, user, ["Dan plays the oboe."], wait="stored")

    def embeddings() -> Counter[str]:
        return Counter(live.call("GET", "/api/v1/stats").json()["embeddings"])

    before = embeddings()
    for _ in range(5):
        body = {"query": question, "filters": {"user_id": user}}
        reply = requests.post(f"{upstream.url}/search", json=body, headers={"X-API-Key": upstream.key}, timeout=60)
        assert [row["memory"] for row in reply.json()["results"]] == ["Dan plays the oboe."]
    eventually(lambda: (embeddings() - before)["hit"] >= 4)
    assert (embeddings() - before)["computed"] == 1


def sessions_by_process(live: Live) -> dict[str, requests.Session]:
    """A kept connection to each web process."""
    found: dict[str, requests.Session] = {}

    def look() -> bool:
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {live.key}"
        process = session.get(f"{live.url}/api/v1/stats", timeout=10).headers["X-Memsvc-Process"]
        found.setdefault(process, session)
        return len(found) >= 2

    eventually(look)
    return found


@pytest.mark.timeout(120)
def test_the_next_search_on_the_other_web_process_sees_a_stored_write(live):
    user = fresh_user()
    one, other = list(sessions_by_process(live).values())[:2]
    for n in range(10):
        writer, reader = (one, other) if n % 2 else (other, one)
        reader.post(f"{live.url}/api/v1/memory/search", json={"user_id": user, "query": "numbers", "top_k": 50})
        body = {"user_id": user, "memories": [f"number {n}"], "wait": "stored"}
        assert writer.post(f"{live.url}/api/v1/memory/add", json=body, timeout=60).status_code == 200
        question = {"user_id": user, "query": "numbers", "top_k": 50}
        found = reader.post(f"{live.url}/api/v1/memory/search", json=question, timeout=60).json()["results"]
        assert f"number {n}" in {row["memory"] for row in found}


@pytest.mark.timeout(300)
def test_accepted_writes_survive_the_death_of_everything(live, in_mem0):
    users = [fresh_user() for _ in range(20)]
    jobs = [add(live, users[n % 20], [f"fact {n}"])["job_id"] for n in range(200)]
    eventually(lambda: any(completed(live, job) for job in jobs[:20]))
    live.kill_tree()
    live.mend()
    eventually(lambda: all(completed(live, job) for job in jobs), 120)
    for number, user in enumerate(users):
        assert sorted(in_mem0(user)) == sorted(f"fact {n}" for n in range(number, 200, 20))


@pytest.mark.timeout(300)
def test_with_redis_stopped_writes_are_accepted_and_searches_answered(live, in_mem0):
    user = fresh_user()
    add(live, user, ["An drinks green tea."], wait="warm")
    live.cache.stop()
    live.broker.stop()
    job = add(live, user, ["An also drinks coffee."])["job_id"]
    answer = search(live, user, "What does An drink?")
    assert "An drinks green tea." in [row["memory"] for row in answer["results"]]
    live.cache.start()
    live.broker.start()
    eventually(lambda: completed(live, job), 90)
    assert sorted(in_mem0(user)) == ["An also drinks coffee.", "An drinks green tea."]
    found = [row["memory"] for row in search(live, user, "What does An drink?")["results"]]
    assert sorted(found) == sorted(in_mem0(user))


@pytest.mark.timeout(300)
def test_after_flushall_the_next_rebuild_makes_the_warm_questions_hits_again(live):
    user = fresh_user()
    add(live, user, ["Bình thích phim Mắt Biếc.", "Bình has a cat called Tom."], wait="warm")
    question = live.rows("SELECT questions FROM cachewarm_topic WHERE name = 'pet'")[0][0].splitlines()[0]
    assert search(live, user, question)["meta"]["layer"] in ("L0", "L2")
    redis.Redis.from_url(live.cache.url).flushall()
    rebuild(live)
    for process, session in sessions_by_process(live).items():
        body = {"user_id": user, "query": question}
        answer = session.post(f"{live.url}/api/v1/memory/search", json=body, timeout=30)
        assert answer.json()["meta"]["layer"] in ("L0", "L2"), process


def rebuild(live: Live) -> None:
    """What beat would do now."""
    servers = {name: server.url for name, server in live.servers.every.items()}
    variables = {**os.environ, **servers, **live._env, "MEMSVC_HOME": str(live.home)}
    variables["SECRET_KEY"] = (live.home / "secret-key").read_text().strip()
    done = subprocess.run(
        [sys.executable, "manage.py", "rebuild", "--quiet"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_unwarmed_everything_works_too(environment, home):
    cold = Live(home / f"cold-{uuid.uuid4().hex[:4]}", PROACTIVE_CACHE_ENABLED="false", **environment).up()
    try:
        user = fresh_user()
        done = add(cold, user, ["Chi plays chess."], wait="warm")
        assert (done["status"], done["warm"]["status"]) == ("completed", "off")
        first, second = search(cold, user, "Which game?"), search(cold, user, "Which game?")
        assert first["results"][0]["memory"] == "Chi plays chess."
        assert first["meta"]["layer"] in ("L3", "L4")
        assert second["meta"]["layer"] in ("L0", "L2")
        assert cold.rows("SELECT count(*) FROM cachewarm_warmrun") == [(0,)]
        run = cold.call("POST", f"/api/v1/users/{user}/warm").json()["run_id"]
        eventually(lambda: cold.call("GET", f"/api/v1/warms/{run}").json()["status"] == "completed")
    finally:
        cold.remove()
