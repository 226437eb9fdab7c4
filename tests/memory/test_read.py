"""The read path: what a search answers from, and that no answer is older than it says."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from django.db import connection, transaction

from bench.stm import trips
from memory import bulkhead, delivery, embedders, keys, read, recall, refreshing, stack, versions, write
from memory.clock import Deadline
from memory.embedders import base
from memory.errors import EmbedderError, OriginTimeout, OriginUnavailable, Overloaded
from memory.layers.base import pack
from memory.layers.l0_process import ProcessLayer
from memory.layers.l3_summaries import model
from memory.models import Project, Snapshot
from memory.read import VersionBehind, Wish
from memory.tenancy import projects
from memory.tenancy.projects import policy
from memory.types import Answer, Query, Scope
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def upstream_only(redis, settings):
    """Mem0 ranks; L3 is told apart in its own tests."""
    settings.LOCAL_SEARCH = "off"
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.EMBEDDER = "none"


def ask(scope: Scope, text: str = "drink?", wish: Wish | None = None, **more) -> Answer:
    query = Query(scope, text, **more)
    return read.search(query, policy(scope.project), Deadline.after(5), wish or Wish())


def texts(answer: Answer) -> list[str]:
    return [item["memory"] for item in orjson.loads(answer.entry.results)]


def add(scope: Scope, text: str) -> None:
    job = write.accept(Write("add", scope, {"memories": [{"text": text}]}), policy(scope.project)).job
    delivery.deliver(job.lane_id)


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on L0 is that of a process that has answered nothing yet."""
    monkeypatch.setattr(stack, "L0", ProcessLayer())


def test_the_first_question_is_asked_of_mem0_and_the_second_answered_from_memory(mem0, ann):
    add(ann, "tea")
    assert [ask(ann).layer, ask(ann).layer] == ["L4", "L0"]
    assert mem0.calls.count("search") == 1


def test_another_process_answers_from_redis(mem0, ann, monkeypatch):
    add(ann, "tea")
    ask(ann)
    another_process(monkeypatch)
    answer = ask(ann)
    assert (answer.layer, texts(answer)) == ("L2", ["tea"])
    assert mem0.calls.count("search") == 1


def test_g2_the_search_after_a_completed_write_sees_it_on_every_process(mem0, ann, monkeypatch):
    add(ann, "tea")
    ask(ann)
    mine = stack.L0
    another_process(monkeypatch)
    add(ann, "coffee")
    assert texts(ask(ann)) == ["tea", "coffee"]
    monkeypatch.setattr(stack, "L0", mine)
    assert texts(ask(ann)) == ["tea", "coffee"]


@pytest.fixture
def animals(mem0, ann, settings):
    """Three memories as Mem0 ranks them; the policy is `hybrid`, and L3 has nothing yet."""
    settings.LOCAL_SEARCH, settings.LOCAL_RANKING = "on", "hybrid"
    mem0.scores = {"the aunt knits": 0.43, "the uncle paints": 0.42, "the zebra runs": 0.41}
    for text in mem0.scores:
        add(ann, text)
    return mem0


def test_what_mem0_finds_is_ranked_again_under_hybrid_and_cached_so(animals, ann, monkeypatch):
    fresh = ask(ann, "the zebra", top_k=2)
    assert (fresh.layer, fresh.entry.ranking, fresh.upstream_calls) == ("L4", "reranked", 1)
    assert texts(fresh) == ["the zebra runs", "the aunt knits"]
    for layer in ("L0", "L2"):
        cached = ask(ann, "the zebra", top_k=2)
        assert (cached.layer, cached.entry) == (layer, fresh.entry)
        another_process(monkeypatch)
    assert animals.calls.count("search") == 1
    assert ask(ann, "the zebra", Wish("fresh"), top_k=2).entry.results == fresh.entry.results


def test_mem0s_own_order_stays_where_ranking_here_is_only_for_when_it_is_away(animals, ann, settings):
    settings.LOCAL_SEARCH = "degraded"
    projects.forget()
    answer = ask(ann, "the zebra", top_k=2)
    assert (answer.entry.ranking, texts(answer)) == ("upstream", ["the aunt knits", "the uncle paints"])


def test_c3_an_answer_of_another_ranking_is_not_served_once_the_setting_has_changed(animals, ann, settings):
    ask(ann, "the zebra")
    settings.LOCAL_RANKING = "like_upstream"
    projects.forget()
    answer = ask(ann, "the zebra")
    assert (answer.layer, answer.entry.ranking) == ("L4", "upstream")


def test_b8_an_answer_loaded_across_a_write_is_never_served_after_it(mem0, ann):
    """The reader has read its version and asked Mem0; the write commits and completes; the reader fills."""
    add(ann, "tea")
    mem0.stall = threading.Event()
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(ask(ann)))
    slow.start()
    mem0.searching.wait(5)
    held = mem0.rows[:]
    add(ann, "coffee")
    mem0.rows, now = held, mem0.rows
    mem0.stall.set()
    slow.join(5)
    mem0.rows, mem0.stall = now, None
    assert texts(answers[0]) == ["tea"]
    assert texts(ask(ann)) == ["tea", "coffee"]


def test_b8_a_late_fill_does_not_take_a_newer_answers_place(mem0, ann, redis):
    add(ann, "tea")
    ask(ann)
    query = Query(ann, "drink?")
    old = stack.L2.fetch(query, 1).entry
    add(ann, "coffee")
    ask(ann)
    assert stack.L2.put(query, old, 1, old.as_of) is False
    assert stack.L2.fetch(query, 1).entry.version > old.version


def test_b8_a_late_fill_costs_no_search_of_what_was_computed_after_it(mem0, ann, monkeypatch):
    """A slow reader of the version before fills after the next reader: every other process still has the newer one."""
    add(ann, "tea")
    ask(ann)
    query = Query(ann, "drink?")
    old = stack.L2.fetch(query, 1).entry
    add(ann, "coffee")
    ask(ann)
    searches = mem0.calls.count("search")
    stack.L2.put(query, old, 1, old.as_of)
    another_process(monkeypatch)
    assert ask(ann).layer == "L2"
    assert mem0.calls.count("search") == searches


def test_other_words_filters_and_sizes_are_other_questions(mem0, ann):
    add(ann, "tea")
    for more in ({}, {"top_k": 5}, {"threshold": 0.5}, {"filters": '{"a":1}'}, {"show_expired": True}):
        assert ask(ann, **more).layer == "L4"
    assert ask(replace(ann, agent_id="bot")).layer == "L4"
    assert ask(ann, "drink!").layer == "L4"


def test_no_answer_is_cached_as_an_answer_and_ends_with_the_first_memory(mem0, ann):
    assert texts(ask(ann)) == []
    assert ask(ann).layer == "L0"
    add(ann, "tea")
    assert texts(ask(ann)) == ["tea"]


def test_g9_an_error_is_not_cached_as_empty(mem0, ann):
    add(ann, "tea")
    mem0.down = True
    with pytest.raises(OriginUnavailable):
        ask(ann)
    mem0.down = False
    assert texts(ask(ann)) == ["tea"]


def test_g1_the_same_question_of_another_user_or_project_is_another_question(mem0, ann, ben):
    add(ann, "tea")
    ask(ann)
    other = Project.objects.create(name="Other", slug="other", namespace="2")
    assert texts(ask(ben)) == []
    assert texts(ask(Scope(other.pk, user_id="ann"))) == []


def test_fresh_asks_mem0_although_the_layers_know(mem0, ann):
    add(ann, "tea")
    ask(ann)
    mem0.store(ann, "written behind our back")
    assert len(texts(ask(ann))) == 1
    answer = ask(ann, wish=Wish("fresh"))
    assert (answer.layer, len(texts(answer))) == ("L4", 2)


def test_g5_bounded_answers_without_any_store_until_its_age(mem0, ann, dead_redis, monkeypatch):
    add(ann, "tea")
    ask(ann)
    held = stack.L0.any(Query(ann, "drink?"), 1)
    monkeypatch.setattr(stack.L2, "fetch", lambda *a, **k: pytest.fail("a round trip"))
    answer = read.bounded(Query(ann, "drink?"), policy(ann.project), Wish("bounded", max_age_ms=60_000))
    assert answer is not None
    assert answer.layer == "L0"
    stack.L0._keep(Query(ann, "drink?"), replace(held, confirmed_at=held.confirmed_at - 61))
    assert read.bounded(Query(ann, "drink?"), policy(ann.project), Wish("bounded", max_age_ms=60_000)) is None


def test_eventual_serves_a_copy_a_little_behind_and_says_so(mem0, ann):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    answer = ask(ann, wish=Wish("eventual"))
    assert (answer.stale, answer.reason, texts(answer)) == (True, "eventual", ["tea"])
    assert answer.age_ms > 0


def test_eventual_waits_for_nothing_while_one_search_behind_it_refreshes(mem0, ann):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    searches = mem0.calls.count("search")
    mem0.stall = threading.Event()
    for _ in range(20):
        answer = ask(ann, wish=Wish("eventual"))
        assert (answer.upstream_calls, texts(answer)) == (0, ["tea"])
    mem0.stall.set()
    refreshing.settle()
    assert mem0.calls.count("search") == searches + 1
    answer = ask(ann, wish=Wish("eventual"))
    assert (answer.layer, answer.stale, texts(answer)) == ("L0", False, ["tea", "coffee"])


def test_a_refresh_that_fails_leaves_the_copy(mem0, ann):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    mem0.down = True
    for _ in range(2):
        assert texts(ask(ann, wish=Wish("eventual"))) == ["tea"]
        refreshing.settle()
    mem0.down = False
    assert texts(ask(ann)) == ["tea", "coffee"]


def test_refreshes_are_few_and_what_is_one_too_many_is_left_out(redis):
    held = threading.Event()
    begun = [refreshing.begin(n, held.wait) for n in range(refreshing.MOST + 5)]
    assert begun == [True] * refreshing.MOST + [False] * 5
    assert refreshing.begin(0, held.wait) is False
    held.set()
    refreshing.settle()
    assert refreshing.begin(0, held.wait)


def test_b9_eventual_serves_nothing_below_the_floor(mem0, ann):
    add(ann, "secret")
    ask(ann)
    gone = write.accept(Write("delete", ann, memory_id=mem0.rows[0].id), policy(ann.project)).job
    delivery.deliver(gone.lane_id)
    assert texts(ask(ann, wish=Wish("eventual"))) == []


def test_eventual_is_at_most_so_old(mem0, ann, settings):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    settings.EVENTUAL_MAX_STALE_SECONDS = 0
    assert texts(ask(ann, wish=Wish("eventual"))) == ["tea", "coffee"]


def test_b11_a_version_that_redis_does_not_know_yet_is_asked_of_postgresql(mem0, ann, redis):
    add(ann, "tea")
    ask(ann)
    with transaction.atomic():
        moved = versions.move([ann.pin])  # committed, its publication lost
    assert ask(ann, wish=Wish(min_version=moved[0].number)).version.number == moved[0].number
    with pytest.raises(VersionBehind):
        ask(ann, wish=Wish(min_version=moved[0].number + 10**9))


def test_b10_an_answer_dies_with_the_memory_that_expires_in_it(mem0, ann, monkeypatch):
    today = datetime.now(UTC).date()
    mem0.store(ann, "visa", expiration_date=(today + timedelta(days=1)).isoformat())
    ask(ann)
    entry = stack.L2.fetch(Query(ann, "drink?"), 1).entry
    end = datetime.combine(today + timedelta(days=2), datetime.min.time(), UTC)
    assert entry.valid_until == int(end.timestamp()) * 1_000_000
    past = replace(entry, valid_until=entry.as_of - 1)
    stack.L2.put(Query(ann, "drink?"), replace(past, valid_until=entry.as_of + 10_000_000), 1, entry.as_of)
    soon = replace(entry, valid_until=entry.as_of + 4_000_000)
    assert stack.L2.put(Query(ann, "drink?"), soon, 1, entry.as_of) is False
    another_process(monkeypatch)
    stack.L0.put(Query(ann, "drink?"), past, versions.current(ann.pin, 1), 1, entry.as_of)
    assert stack.L0.any(Query(ann, "drink?"), 1) is None


def test_b10_an_entry_in_redis_is_not_served_after_something_in_it_has_expired(mem0, ann, redis, monkeypatch):
    """It was filled in time and lives on past midnight: the look-up goes by the store's clock."""
    add(ann, "visa")
    ask(ann)
    query = Query(ann, "drink?")
    entry = stack.L2.fetch(query, 1).entry
    redis.set(keys.result(ann.pin, 1, query.fingerprint), pack(replace(entry, valid_until=entry.as_of)))
    another_process(monkeypatch)
    assert (ask(ann).layer, mem0.calls.count("search")) == ("L4", 2)


def test_an_outage_of_mem0_serves_the_copy_labelled(mem0, ann):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    mem0.down = True
    answer = ask(ann)
    assert texts(answer) == ["tea"]
    assert (answer.degraded, answer.stale, answer.reason) == (True, True, "origin_unavailable")


def test_a_degraded_answer_is_not_kept(mem0, ann):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    mem0.down = True
    ask(ann)
    mem0.down = False
    assert texts(ask(ann)) == ["tea", "coffee"]


def test_b9_an_outage_serves_nothing_below_the_floor(mem0, ann):
    add(ann, "secret")
    ask(ann)
    gone = write.accept(Write("delete", ann, memory_id=mem0.rows[0].id), policy(ann.project)).job
    delivery.deliver(gone.lane_id)
    mem0.down = True
    with pytest.raises(OriginUnavailable):
        ask(ann)


def test_without_redis_the_version_comes_from_postgresql(mem0, ann, dead_redis):
    add(ann, "tea")
    assert [ask(ann).layer, ask(ann).layer] == ["L4", "L0"]
    mem0.store(ann, "coffee")
    with transaction.atomic():
        versions.move([ann.pin])
    assert texts(ask(ann)) == ["tea", "coffee"]


def test_flushall_revives_nothing_old(mem0, ann, redis, monkeypatch):
    add(ann, "tea")
    ask(ann)
    add(ann, "coffee")
    redis.flushall()
    assert texts(ask(ann)) == ["tea", "coffee"]


def test_a_corrupt_entry_costs_time_and_is_dropped(mem0, ann, redis, monkeypatch):
    add(ann, "tea")
    ask(ann)
    redis.set(keys.result(ann.pin, 1, Query(ann, "drink?").fingerprint), b"\x00rubbish")
    another_process(monkeypatch)
    answer = ask(ann)
    assert (answer.layer, texts(answer)) == ("L4", ["tea"])


def test_a_hit_costs_one_round_trip_to_redis_and_none_to_postgresql(mem0, ann, monkeypatch, django_assert_num_queries):
    add(ann, "tea")
    ask(ann)
    for hit in ("L0", "L2"):
        answers: list[Answer] = []
        with django_assert_num_queries(0):
            assert trips.made(lambda answers=answers: answers.append(ask(ann))) == 1
        assert answers[0].layer == hit
        another_process(monkeypatch)


def test_g7_identical_questions_in_flight_are_one_search(mem0, ann):
    add(ann, "tea")
    mem0.stall = threading.Event()
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(ann))) for _ in range(8)]
    for thread in threads:
        thread.start()
    mem0.searching.wait(5)
    from memory import flights

    while len(flights._flying) == 1 and sum(thread.is_alive() for thread in threads) < 8:
        pass
    mem0.stall.set()
    for thread in threads:
        thread.join(5)
    assert len(answers) == 8
    assert mem0.calls.count("search") == 1
    assert sum(answer.upstream_calls for answer in answers) == 1


def test_a_search_ends_at_its_deadline(mem0, ann):
    mem0.stall = threading.Event()
    with pytest.raises(OriginTimeout):
        read.search(Query(ann, "drink?"), policy(ann.project), Deadline.after(0.05), Wish())


def test_a_new_generation_makes_every_cached_answer_unreachable(mem0, ann, project):
    add(ann, "tea")
    ask(ann)
    Project.objects.update(generation=2)
    projects.forget()
    assert ask(ann).layer == "L4"


def test_marks_are_in_no_answer(mem0, ann):
    add(ann, "tea")
    assert b"memsvc_" not in ask(ann).entry.results


class Remote:
    """An embedder behind a network that does not answer; what is held meanwhile, and how long it may be waited for."""

    name, dimensions, symmetric, remote = "remote", 3, True, True

    def __init__(self) -> None:
        self.seen: list[tuple[bool, int, float]] = []

    def embed(self, texts, action):
        free = bulkhead._places()._value  # type: ignore[attr-defined]
        self.seen.append((connection.connection is not None, bulkhead.places() - free, base.allowed(60).remaining()))
        raise EmbedderError("no answer")


@pytest.fixture
def remote(ann, settings, monkeypatch) -> Remote:
    """The embedder, and L3 with what Ann has: nothing, at her first version."""
    settings.LOCAL_SEARCH = "on"
    embedder = Remote()
    monkeypatch.setattr(embedders, "get", lambda: embedder)
    Snapshot.objects.create(
        project_id=ann.project, user_id="ann", version=0, summary_version=0, complete=True, embedder=model()
    )
    return embedder


def test_e_a_remote_embedder_is_waited_for_in_a_place_without_a_connection_and_half_the_time(mem0, ann, remote):
    assert ask(ann).layer == "L4"
    ((connected, places, seconds),) = remote.seen
    assert (connected, places) == (False, 1)
    assert 0 < seconds <= 2.5


def test_e_while_every_place_is_taken_a_remote_embedder_is_not_waited_for(mem0, ann, remote, monkeypatch):
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(bulkhead, "_places", lambda: full)
    with pytest.raises(Overloaded):
        ask(ann)
    assert not remote.seen


def test_while_mem0_is_away_too_words_rank_in_time(mem0, ann, remote):
    mem0.down = True
    assert ask(ann).layer == "L3"
    assert [connected for connected, _, _ in remote.seen] == [False, False]
    assert max(seconds for _, _, seconds in remote.seen) <= 2.5


def test_what_is_on_its_way_waits_for_an_embedder_no_longer_than_its_search(mem0, ann, remote):
    write.accept(Write("add", ann, {"memories": [{"text": "tea"}]}), policy(ann.project))
    found = recall.search(Query(ann, "drink?"), policy(ann.project), Deadline.after(5))
    assert [one["memory"] for one in orjson.loads(found.results)] == ["tea"]
    connected, _, seconds = remote.seen[-1]
    assert not connected
    assert seconds <= 5
