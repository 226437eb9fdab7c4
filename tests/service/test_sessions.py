"""Short-term memory from outside: many writers in one session on a bad day."""

from __future__ import annotations

import threading
import uuid

import pytest
import requests

from tests.live import Live, eventually

WRITERS, MESSAGES = 8, 200


def say(live: Live, session: str, writer: int, n: int) -> int:
    """As a client does that tries again until it is told of success."""
    message = {"role": "user", "content": f"{writer}/{n} I like tea", "message_id": f"{writer}-{n}"}
    body = {"session_id": session, "user_id": session, **message}

    def sent() -> int:
        try:
            answer = live.call("POST", "/api/v1/stm/add_message", body)
        except requests.RequestException:
            return 0
        return int(answer.json()["turn"]) if answer.status_code == 200 else 0

    return eventually(sent, 120)


@pytest.mark.timeout(600)
def test_many_writers_lose_nothing_while_workers_and_redis_die(live):
    session = f"session-{uuid.uuid4().hex[:8]}"
    done = [0] * WRITERS

    def write(writer: int) -> None:
        for n in range(MESSAGES):
            assert say(live, session, writer, n)
            if n % 10 == 0:
                assert say(live, session, writer, n)  # and once more, its answer lost
            done[writer] = n + 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(done) > WRITERS * MESSAGES * 0.2, 200)
    live.kill("worker-deliver")
    live.cache.stop()
    eventually(lambda: sum(done) > WRITERS * MESSAGES * 0.4, 200)
    live.cache.start()
    live.broker.stop()
    eventually(lambda: sum(done) > WRITERS * MESSAGES * 0.6, 200)
    live.broker.start()
    live.kill("worker-deliver")
    for thread in threads:
        thread.join()
    assert done == [MESSAGES] * WRITERS
    rows = live.rows(
        "SELECT m.turn, m.content, m.message_id FROM memory_message m JOIN memory_session s ON s.id = m.session_id "
        "WHERE s.session_id = %s ORDER BY m.turn",
        session,
    )
    assert [turn for turn, _, _ in rows] == list(range(1, WRITERS * MESSAGES + 1))
    for writer in range(WRITERS):
        ids = [message_id for _, _, message_id in rows if message_id.startswith(f"{writer}-")]
        assert ids == [f"{writer}-{n}" for n in range(MESSAGES)]
    # What died with the workers is done by those that came after them.
    held = "SELECT summarised FROM memory_session WHERE session_id = %s"
    eventually(lambda: live.rows(held, session)[0][0] >= WRITERS * MESSAGES - 20, 120)
    context = live.call("GET", f"/api/v1/stm/{session}/context").json()
    assert context["turns"] == WRITERS * MESSAGES
    assert context["tiers"]["full"][-1]["turn"] == WRITERS * MESSAGES
