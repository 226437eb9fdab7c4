"""From what is said in a session to a memory: the real Mem0, whose LLM says things in its own words."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest

from memory import delivery, recall, stack, upkeep
from memory.backends import mem0_sdk
from memory.clock import Deadline
from memory.models import Heartbeat, Job, Lane, Session
from memory.stm import lifecycle
from memory.tenancy.projects import policy
from memory.types import Query, Scope
from tests.chat import chat

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

SAID = re.compile(r"My (\w+) is called (\w+)")


def facts(body: dict[str, Any]) -> tuple[int, str]:
    """What an LLM makes of the last message's new messages: names, in the third person."""
    new = json.dumps(body["messages"][-1], ensure_ascii=False).rpartition("New Messages")[2]
    found = [f"User has a {kind} called {name}" for kind, name in dict.fromkeys(SAID.findall(new))]
    return 200, json.dumps({"memory": [{"id": str(n), "text": text} for n, text in enumerate(found)]})


@pytest.fixture
def llm(settings, monkeypatch, ann):
    """Mem0 in process, set to an LLM; it holds nothing of Ann."""
    settings.EMBEDDER = "local"
    with chat() as served:
        served.answer = facts
        settings.OPENAI_BASE_URL = served.url
        mem0_sdk.close()
        monkeypatch.setattr(stack, "_build", mem0_sdk.Mem0SDK)
        stack.backend(policy(ann.project)).delete_all(ann, Deadline.after(60))
        yield served
        mem0_sdk.close()


def found(scope: Scope, session: str | None) -> list[tuple[str, str, bool]]:
    answer = recall.search(
        Query(scope, "what is it called?"), policy(scope.project), Deadline.after(60), session_id=session
    )
    return [(one["memory"], one["source"], one["pending"]) for one in orjson.loads(answer.results)]


def deliver(scope: Scope) -> None:
    for lane in Lane.objects.filter(pin_id=scope.user_id):
        delivery.deliver(lane.pk)


def test_c1_a_fact_is_found_once_before_while_and_after_its_extraction(llm, ann, say, extract_on):
    extract_on("turns", 2)
    session = say("My cat is called Mít", "Nothing else to tell.").session
    said = ("My cat is called Mít", "stm", True)
    assert [[one for one in found(ann, where) if "Mít" in one[0]] for where in (None, "s")] == [[said], [said]]
    seen: list[list[tuple[str, str, bool]]] = []

    def while_it_is_extracted(body: dict[str, Any]) -> tuple[int, str]:
        seen.extend([one for one in found(ann, where) if "Mít" in one[0]] for where in (None, "s"))
        return facts(body)

    llm.answer = while_it_is_extracted
    lifecycle.extract(session.pk)
    deliver(ann)
    assert seen == [[said], [said]]
    fact = "User has a cat called Mít"
    assert [one for one in found(ann, None) if "Mít" in one[0]] == [(fact, "ltm", False)]
    assert [one for one in found(ann, "s") if "Mít" in one[0]] == [(fact, "both", False)]


def test_when_its_day_is_over_what_was_not_extracted_is(llm, ann, say, extract_on, long_ago):
    extract_on("end")
    say("My dog is called Rex")
    long_ago()
    Heartbeat.objects.all().delete()
    upkeep.sweep()
    deliver(ann)
    assert Session.objects.count() == 0
    assert [job.state for job in Job.objects.all()] == ["completed"]
    assert found(ann, "s") == found(ann, None) == [("User has a dog called Rex", "ltm", False)]
