"""What was said in a session is found beside what Mem0 holds, at once and once."""

from __future__ import annotations

import itertools
import threading
import unicodedata
from unittest import mock

import hiredis
import orjson
import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.stm import trips
from memory import delivery, metrics, nearness, pending, recall, write
from memory.clock import Deadline
from memory.embedders.base import allowed
from memory.errors import EmbedderError, OriginUnavailable
from memory.models import Job, Lane, Project, Session
from memory.recall import Recalled
from memory.redis_wire import Wire, packed
from memory.stm import conversation, lifecycle, search, store, tiers
from memory.stm.store import Said
from memory.tenancy.projects import policy
from memory.types import Query, Scope
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


def ask(scope: Scope, text: str = "drink", session: str | None = "s", **more) -> Recalled:
    query = Query(scope, text, **{"top_k": 50, **more})
    return recall.search(query, policy(scope.project), Deadline.after(5), session_id=session, explain=True)


def shown(*asked, **more) -> list[dict]:
    return orjson.loads(ask(*asked, **more).results)


def texts(*asked, **more) -> list[str]:
    return [one["memory"] for one in shown(*asked, **more)]


def add(scope: Scope, text: str) -> None:
    job = write.accept(Write("add", scope, {"memories": [{"text": text}]}), policy(scope.project)).job
    delivery.deliver(job.lane_id)


def test_what_was_said_is_found_with_where_it_was_said(mem0, ann, say):
    say("I drink oolong", "Noted.")
    (one,) = shown(ann)
    assert (one["memory"], one["source"], one["turn"], one["role"]) == ("I drink oolong", "stm", 1, "user")
    assert one["parts"] == {"ltm": None, "stm": 1.0, "bonus": 0.10}


def test_the_next_message_is_found_by_the_next_search(mem0, ann, say):
    for n in range(12):
        say(f"drink number {n}")
        assert len(texts(ann)) == n + 1


def test_b8_what_is_said_while_a_session_is_read_is_found_by_the_next_search(mem0, ann, say):
    """The version is read before the messages: read after them, it would take what came in between for read."""
    say("I drink tea")
    reading: list[str] = []

    def something_is_said_after_the_messages_are_read(execute, sql, params, many, context):
        done = execute(sql, params, many, context)
        if 'FROM "memory_message"' in sql and not reading:
            reading.append(sql)
            thread = threading.Thread(target=lambda: (say("I drink milk"), connection.close()))
            thread.start()
            thread.join()
        return done

    with connection.execute_wrapper(something_is_said_after_the_messages_are_read):
        search.look("s", Query(ann, "drink", top_k=50), policy(ann.project))
    assert reading
    assert sorted(texts(ann)) == ["I drink milk", "I drink tea"]


def test_b6_a_session_read_before_something_was_said_is_not_kept_as_current(mem0, ann, say, redis):
    """The token for Redis's copy is taken before PostgreSQL is read: what is published or evicted since removes it."""
    say("I drink tea")
    real = conversation.read

    def then_something_is_said(*asked):
        talk = real(*asked)
        say("I drink milk")
        redis.flushall()
        return talk

    with mock.patch.object(conversation, "read", then_something_is_said):
        search.look("s", Query(ann, "drink", top_k=50), policy(ann.project))
    assert sorted(texts(ann)) == ["I drink milk", "I drink tea"]


def test_c1_of_the_one_round_trip_what_is_pending_comes_before_the_version(mem0, ann, say):
    """A job ends between Redis's two answers, and another reader has told Redis so. Were the version read first, it
    would be the one before the job, whose answer is at hand, and the pending set the one after it."""
    ask(ann), ask(ann)
    job = write.accept(Write("add", ann, {"memories": [{"text": "I drink tea"}]}), policy(ann.project)).job
    ask(ann)
    real = Wire.send
    ended: list[None] = []

    def one_by_one(wire, commands):
        answers = []
        reader = hiredis.Reader()
        reader.feed(commands[0])
        while command := reader.gets():
            answers += real(wire, packed(tuple(command)))
            if not ended:
                ended.append(None)
                with mock.patch.object(Wire, "send", real):
                    delivery.deliver(job.lane_id)
                    pending.current(ann.pin, 1)
        return answers

    with mock.patch.object(Wire, "send", one_by_one):
        found = texts(ann)
    assert ended
    assert Job.objects.get().state == "completed"
    assert found == ["I drink tea"]


def test_what_both_memories_hold_is_said_once_and_comes_first(mem0, ann, say):
    add(ann, "I drink tea.")
    add(ann, "I drink beer")
    say("i drink  tea")
    found = shown(ann)
    assert [(one["memory"], one["source"]) for one in found] == [("I drink tea.", "both"), ("I drink beer", "ltm")]


def test_the_layers_answer_in_turn_and_are_named(mem0, ann, say):
    say("I drink tea")
    metrics.drain()
    assert [ask(ann).stm, ask(ann).stm] == ["stm.store", "stm.L0"]
    search.forget()
    assert ask(ann).stm == "stm.L1"
    counted = metrics.drain()
    assert counted[(ann.project, "lookups", "layer=stm.L0,outcome=hit")] == 1
    assert counted[(ann.project, "lookups", "layer=stm.L1,outcome=hit")] == 1


def test_a_cached_search_of_both_takes_no_more_round_trips_than_one_of_mem0s(mem0, ann):
    assert set(trips.measure(ann.project).values()) == {1}


@pytest.mark.parametrize("question", ["ca phe sua", "cà phê sữa", unicodedata.normalize("NFD", "cà phê sữa")])
def test_vietnamese_is_found_with_accents_or_without(mem0, ann, say, question):
    say("Sáng nào tôi cũng uống cà phê sữa", "Tối tôi đọc sách")
    assert texts(ann, question)[0] == "Sáng nào tôi cũng uống cà phê sữa"


def test_vectors_find_what_shares_no_word(mem0, ann, say, settings):
    settings.EMBEDDER = "local"
    nearness.warm(["the model is loaded"], ann.project)
    say("My puppy is called Rex", "The train leaves at nine", "We painted the kitchen green")
    assert texts(ann, "dog's name")[0] == "My puppy is called Rex"


def test_what_was_found_without_the_embedder_is_not_kept_for_when_it_is_back(mem0, ann, say, settings, monkeypatch):
    settings.EMBEDDER = "local"
    nearness.warm(["the model is loaded"], ann.project)
    say("The train leaves at nine", "We painted the kitchen green", "My puppy is called Rex")

    def fails():
        raise EmbedderError("away")

    with monkeypatch.context() as away:
        away.setattr(nearness.embedders, "get", fails)
        assert ask(ann, "dog's name").stm is not None
    assert texts(ann, "dog's name")[0] == "My puppy is called Rex"


def test_a_session_without_vectors_yet_is_searched_by_its_words(mem0, ann, say, settings):
    """No search makes more than a few vectors: with hundreds of new messages it would not answer in time."""
    settings.EMBEDDER = "local"
    nearness.warm(["the model is loaded"], ann.project)
    say("my locker number is 4711", *[f"small talk {n}" for n in range(60)])
    metrics.drain()
    assert texts(ann, "locker number", top_k=3)[0] == "my locker number is 4711"
    counted = metrics.drain()
    assert counted[(ann.project, "embeddings", "outcome=computed")] <= nearness.MOST_MADE + 1


def test_the_question_itself_is_no_answer_to_it(mem0, ann, say):
    say("I drink tea", "What do I drink?")
    assert texts(ann, "What do I drink?") == ["I drink tea"]


def test_g1_a_session_is_found_by_its_own_user_and_project_alone(mem0, ann, ben, say):
    say("I drink tea")
    assert texts(ann) == ["I drink tea"]
    other = Project.objects.create(name="Other", slug="other", namespace="2")
    assert texts(ben) == texts(Scope(other.pk, "ann")) == texts(ann, session="t") == texts(ann, session=None) == []


def test_an_ended_session_is_found_no_more_and_a_new_one_begins_empty(mem0, ann, say):
    session = say("I drink tea").session
    assert texts(ann) == ["I drink tea"]
    lifecycle.end(session.pk)
    assert texts(ann) == []
    say("I drink milk")
    assert texts(ann) == ["I drink milk"]


def test_without_redis_both_memories_answer(mem0, ann, say, dead_redis):
    add(ann, "drink tea")
    say("drink milk")
    assert sorted(texts(ann)) == ["drink milk", "drink tea"]


def test_a_late_mem0_is_not_waited_for_where_the_session_answers_and_the_answer_says_so(mem0, ann, say, settings):
    settings.STM_BUDGET_MS = 300
    say("I drink tea")
    mem0.stall = threading.Event()
    found = ask(ann)
    mem0.stall.set()
    assert [one["memory"] for one in orjson.loads(found.results)] == ["I drink tea"]
    assert (found.answer.degraded, found.answer.reason, found.answer.layer) == (True, "ltm_late", "stm")


class Stalled:
    """A remote embedder that answers no sooner than its caller's patience ends."""

    name, dimensions, symmetric, remote = "stalled", 4, True, True

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.waited: list[float] = []

    def embed(self, texts, action):
        deadline = allowed(600)
        self.waited.append(deadline.remaining())
        self.goes_on.wait(deadline.remaining())
        raise EmbedderError("stalled")


def test_a_stalled_embedder_keeps_no_search_from_a_healthy_mem0(mem0, ann, say, settings, monkeypatch):
    """What waits for it outlives its search: the more of those, the fewer threads would be left for Mem0."""
    settings.WEB_THREADS, settings.STM_BUDGET_MS = 2, 500
    recall._arms.cache_clear()
    embedder = Stalled()
    monkeypatch.setattr(nearness.embedders, "get", lambda: embedder)
    add(ann, "tea is a drink")
    say("I drink oolong")
    try:
        found = [ask(ann, f"drink {n}") for n in range(8)]
    finally:
        embedder.goes_on.set()
        recall._arms.cache_clear()
    assert {(one.answer.degraded, one.answer.reason, one.stm) for one in found} == {(False, None, "late")}
    assert all(b"oolong" in one.results and b"tea is" in one.results for one in found)
    assert all(waited <= 5 for waited in embedder.waited)


def test_g9_mem0_away_and_nothing_said_is_an_error_not_an_empty_answer(mem0, ann, say):
    mem0.down = True
    say("Let us talk")
    with pytest.raises(OriginUnavailable):
        ask(ann)
    say("I drink tea")
    found = ask(ann)
    assert (found.answer.degraded, found.answer.reason) == (True, "origin_unavailable")


def test_filters_hold_for_messages(mem0, ann):
    said = [Said("user", "I drink tea", {"room": "hall"}), Said("user", "I drink milk", {})]
    store.add("s", "ann", said, policy(ann.project))
    assert texts(ann, filters='{"room":"hall"}') == ["I drink tea"]


steps = st.lists(
    st.sampled_from(["say", "extract", "deliver", "flush", "compress", "forget", "end"]), min_size=4, max_size=16
)
people = itertools.count()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), steps)
def test_c1_what_was_said_is_found_once_before_while_and_after_its_extraction(
    mem0, project, redis, extract_on, with_session, steps
):
    """Whatever happens between: every search has all that the user said, and nothing twice."""
    extract_on("turns", 2)
    scope = Scope(project.pk, f"user-{next(people)}")
    rules, name = policy(project.pk), f"talk-{scope.user_id}"
    said: list[str] = []

    def speak() -> None:
        said.append(f"drink number {len(said)}")
        store.add(name, scope.user_id, [Said("user", said[-1], {})], rules)

    def all_is_found_once() -> None:
        assert sorted(texts(scope, session=name if with_session else None)) == sorted(said)

    def watched(work):
        all_is_found_once()
        done = work()
        all_is_found_once()  # Mem0 has it, nobody knows yet
        return done

    def each(model, work) -> None:
        for pk in model.objects.filter(**{"pin_id" if model is Lane else "user_id": scope.user_id}).values_list(
            "pk", flat=True
        ):
            work(pk)

    happens = {
        "say": speak,
        "deliver": lambda: each(Lane, delivery.deliver),
        "extract": lambda: each(Session, lifecycle.extract),
        "compress": lambda: each(Session, tiers.compress),
        "end": lambda: each(Session, lifecycle.end),
        "flush": redis.flushall,
        "forget": search.forget,
    }
    mem0.faults = [watched] * 100
    for step in steps:
        happens[step]()
        all_is_found_once()


def test_c1_a_search_between_the_handing_over_and_its_notice_loses_nothing(mem0, ann, say, extract_on, monkeypatch):
    extract_on("end")
    session = say("I drink tea").session
    seen: list[list[str]] = []
    real = lifecycle.pending.changed

    def changed(*args) -> None:
        seen.append(texts(ann, session=None))
        real(*args)
        seen.append(texts(ann, session=None))

    monkeypatch.setattr(lifecycle.pending, "changed", changed)
    lifecycle.end(session.pk)
    assert seen == [["I drink tea"]] * 2
    assert Job.objects.count() == 1
