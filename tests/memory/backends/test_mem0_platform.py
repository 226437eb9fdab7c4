"""Mem0's Platform as the origin: when an add counts as made, what an error means, and how listings are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memory import delivery, stack, write
from memory.backends import mem0_platform
from memory.backends.mem0_platform import Mem0Platform
from memory.clock import Deadline
from memory.errors import OriginError, OriginRateLimited, OriginRejected, OriginTimeout, OriginUnavailable
from memory.models import Job
from memory.tenancy.projects import policy
from memory.types import MARK_JOB, Query, Scope
from memory.write import Write
from tests.fake_mem0 import FakeMem0
from tests.fake_platform import KEY, Refused, Server
from tests.memory.test_delivery import pass_time

ANN = Scope(1, "ann")
SHORT = 0.6
"""Seconds of a deadline that is meant to pass."""


@pytest.fixture
def server(mem0_server: FakeMem0, platform_server: Server) -> Server:
    mem0_server.reset()
    platform_server.reset()
    return platform_server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def platform(server: Server, pauses: list[float]) -> Mem0Platform:
    """It notes its pauses instead of making them."""
    return Mem0Platform(server.url, key=KEY, pause=pauses.append)


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds)


def add(platform: Mem0Platform, *texts: str, deadline: Deadline | None = None, **metadata: Any) -> list[str]:
    stored = platform.add(ANN, texts or ["Ann likes tea"], metadata, None, deadline or soon())
    return [one.memory for one in stored]


def listed(platform: Mem0Platform) -> list[str]:
    return sorted(memory.text for memory in platform.list(ANN, soon()).memories)


def failing(error: type[OriginError], call: Callable[[], object]) -> OriginError:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return caught.value


# -- when an add is made -----------------------------------------------------------------------------------------------


def test_an_add_is_acknowledged_when_its_event_has_succeeded(platform, server, pauses):
    server.polls = 4
    assert add(platform) == ["Ann likes tea"]
    assert listed(platform) == ["Ann likes tea"]
    assert (server.calls["add"], server.calls["event"], len(pauses)) == (1, 4, 3)


def test_an_extraction_tells_what_its_event_found(platform):
    said = [{"role": "user", "content": "I have a dog"}, {"role": "assistant", "content": "How nice!"}]
    (stored,) = platform.extract(ANN, said, {MARK_JOB: "one"}, soon())
    assert (stored.memory, stored.event) == ("I have a dog", "ADD")
    assert platform.extract(ANN, said, {MARK_JOB: "two"}, soon()) == []


def test_a_failed_event_is_a_refusal(platform, server):
    server.failing = True
    error = failing(OriginRejected, lambda: add(platform))
    assert not error.sent
    assert listed(platform) == []


def test_an_event_that_has_not_ended_by_the_deadline_is_of_unknown_outcome(server):
    platform = Mem0Platform(server.url, key=KEY)
    server.polls = None
    assert failing(OriginTimeout, lambda: add(platform, deadline=soon(SHORT), **{MARK_JOB: "one"})).sent
    assert server.calls["add"] == 1
    assert list(platform.find_marked(ANN, "one", [], soon()).memories) == []
    server.polls = 1
    (event,) = server.events
    server.answer("GET", f"/v1/event/{event}/", {}, {})
    assert [memory.text for memory in platform.find_marked(ANN, "one", [], soon()).memories] == ["Ann likes tea"]


def test_an_event_is_asked_for_again_when_connections_are_lost(platform, server):
    server.drops["event"] = 5
    assert add(platform) == ["Ann likes tea"]
    assert (server.calls["add"], server.calls["event"]) == (1, 7)
    assert listed(platform) == ["Ann likes tea"]


def test_an_add_whose_connection_is_lost_is_of_unknown_outcome_and_never_repeated(platform, server):
    server.drops["add"] = 1
    assert failing(OriginUnavailable, lambda: add(platform)).sent
    assert server.calls["add"] == 1


def test_an_add_whose_event_may_not_be_read_is_of_unknown_outcome(platform, server):
    server.refusals["event"] = Refused(403, {"detail": "no"})
    assert failing(OriginUnavailable, lambda: add(platform)).sent


def test_results_are_those_of_the_texts_in_whatever_order_the_event_tells_them(platform, server):
    server.backwards = True
    facts = ["Ann likes tea", "Ann likes milk", "Ann likes tea", "Ann likes rice"]
    stored = platform.add(ANN, facts, {}, None, soon())
    assert [one.memory for one in stored] == facts
    assert len({one.id for one in stored}) == 4


@pytest.mark.django_db(transaction=True)
def test_a_write_whose_event_ends_late_is_found_by_its_mark_and_stored_once(server, redis, ann, settings, monkeypatch):
    settings.PROACTIVE_CACHE_ENABLED, settings.MEM0_ADD_SETTLE_SECONDS = False, 30
    settings.MEM0_REST_API_TIMEOUT = SHORT
    monkeypatch.setattr(stack, "_build", lambda: Mem0Platform(server.url, key=KEY))
    job = write.accept(Write("add", ann, {"memories": [{"text": "tea"}, {"text": "milk"}]}), policy(ann.project)).job
    server.polls = None
    delivery.deliver(job.lane_id)
    assert Job.objects.get(pk=job.pk).reason == "settling"
    server.polls = 1
    server.answer("GET", f"/v1/event/{next(iter(server.events))}/", {}, {})
    settings.MEM0_REST_API_TIMEOUT = 30
    pass_time(job, 31)
    delivery.deliver(job.lane_id)
    assert Job.objects.get(pk=job.pk).state == "completed"
    memories = stack.backend(policy(ann.project)).list(ann, soon()).memories
    assert sorted(memory.text for memory in memories) == ["milk", "tea"]
    assert server.calls["add"] == 1


# -- listings ----------------------------------------------------------------------------------------------------------


def test_a_listing_is_read_page_by_page(platform, server, monkeypatch):
    facts = [f"Ann has {number} cats" for number in range(5)]
    add(platform, *facts)
    server.rows_of_page = 2
    listing = platform.list(ANN, soon())
    assert (sorted(memory.text for memory in listing.memories), listing.complete) == (facts, True)
    assert server.calls["list"] == 3
    monkeypatch.setattr(mem0_platform, "PAGES_MOST", 2)
    assert not platform.list(ANN, soon()).complete


def test_a_listing_that_does_not_hold_what_was_counted_is_incomplete(platform, server):
    add(platform)
    server.uncounted = 1
    assert not platform.list(ANN, soon()).complete
    assert not platform.find_marked(ANN, "one", [], soon()).complete


# -- what an error means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda one: one.list(ANN, soon()), add], ids=["a read", "a write"])
def test_a_wrong_key_is_an_outage_that_names_the_setting(server, call):
    error = failing(OriginUnavailable, lambda: call(Mem0Platform(server.url, key="other", pause=lambda seconds: None)))
    assert "MEM0_REST_API_KEY" in str(error)
    assert not error.sent


def test_a_server_of_another_kind_is_an_outage_and_no_missing_memory(mem0_server, server):
    platform = Mem0Platform(mem0_server.url, key=mem0_server.key, pause=lambda seconds: None)
    unknown = "00000000-0000-4000-8000-000000000000"
    for call in (lambda: platform.get(unknown, soon()), lambda: platform.check(soon())):
        assert "MEM0_REST_API_URL" in str(failing(OriginUnavailable, call))


def test_a_limit_of_calls_is_a_pause_as_long_as_it_says(platform, server, pauses):
    server.refusals["add"] = Refused(429, {"detail": "slow down"}, {"Retry-After": "3"})
    assert add(platform) == ["Ann likes tea"]
    assert pauses[0] == 3
    server.refusals["add"] = Refused(429, {"detail": "slow down"}, {"Retry-After": "99"})
    error = failing(OriginRateLimited, lambda: add(platform))
    assert (error.retry_after, error.sent) == (99, False)


@pytest.mark.parametrize(
    ("status", "error", "sent"),
    [(400, OriginRejected, False), (413, OriginRejected, False), (500, OriginUnavailable, True)],
)
def test_the_status_of_an_add_says_whether_it_may_have_been_made(platform, server, status, error, sent):
    server.refusals["add"] = Refused(status, {"detail": "no"})
    assert failing(error, lambda: add(platform)).sent is sent
    assert server.calls["add"] == 1


def test_what_the_platform_cannot_filter_by_is_refused(platform, server):
    failing(OriginRejected, lambda: platform.search(Query(ANN, "tea", filters='{"kind":{"nin":["x"]}}'), soon()))
    assert server.calls["search"] == 0


# -- choosing it -------------------------------------------------------------------------------------------------------


def test_a_setting_chooses_the_platform(settings, server):
    settings.MEM0_USE_REST_API, settings.MEM0_REST_API_URL = True, server.url
    assert stack._build.__wrapped__().name == "mem0-rest"
    settings.MEM0_REST_API_KIND, settings.MEM0_REST_API_KEY = "platform", KEY
    assert stack._build.__wrapped__().check(soon())["name"] == "mem0-platform"
