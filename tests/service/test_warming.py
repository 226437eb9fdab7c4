"""Warming as it runs: real workers, a real broker, the real Mem0."""

from __future__ import annotations

from typing import Any

from tests.live import Live, eventually

QUESTION = "What pets does the user have, a dog or a cat?"


def add(live: Live, user: str, *texts: str, wait: str = "warm") -> dict[str, Any]:
    response = live.patiently("/api/v1/memory/add", {"user_id": user, "memories": list(texts), "wait": wait})
    assert response.status_code == 200, response.text
    return response.json()


def search(live: Live, user: str, query: str) -> dict[str, Any]:
    response = live.call("POST", "/api/v1/memory/search", {"user_id": user, "query": query})
    assert response.status_code == 200, response.text
    return response.json()


def test_after_a_warm_write_known_and_new_questions_need_no_mem0(live):
    done = add(live, "live-ann", "I keep two cats", "Tôi dị ứng với tôm")
    assert done["warm"] == {"status": "completed"}
    known = search(live, "live-ann", QUESTION)
    new = search(live, "live-ann", "Is there any food that would make me ill?")
    assert known["meta"]["layer"] in ("L0", "L2")
    assert new["meta"]["layer"] == "L3"
    assert [known["meta"]["upstream_calls"], new["meta"]["upstream_calls"]] == [0, 0]
    assert known["results"][0]["memory"] == "I keep two cats"
    assert new["results"][0]["memory"] == "Tôi dị ứng với tôm"
    summary = live.call("GET", "/api/v1/users/live-ann/summary").json()
    assert summary["topics"]["pet"][0]["memory"] == "I keep two cats"
    assert summary["version"] == done["version"]


def test_a_burst_of_writes_is_few_warms(live):
    live.pause("worker-warm")  # so that the burst is one however slow the machine
    for number in range(10):
        add(live, "live-busy", f"fact number {number}", wait="stored")
    live.resume("worker-warm")
    last = add(live, "live-busy", "the last fact")
    assert last["warm"]["status"] in ("completed", "superseded")
    warms = eventually(
        lambda: [warm["status"] for warm in live.call("GET", "/api/v1/warms?user_id=live-busy").json()["results"]],
    )
    assert len(warms) <= 3


def test_a_killed_warm_worker_loses_no_warm(live):
    live.pause("worker-warm")
    job = live.call("POST", "/api/v1/memory/add", {"user_id": "live-killed", "memories": ["I keep a parrot"]}).json()
    eventually(lambda: live.rows("SELECT 1 FROM cachewarm_warmrun WHERE user_id = 'live-killed'"))
    live.kill("worker-warm")
    status = f"/api/v1/jobs/{job['job_id']}/status"
    assert eventually(lambda: live.call("GET", status).json()["warmed_at"])
