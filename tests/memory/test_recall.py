"""The native search: nothing accepted is missing from it and nothing is in it twice (PROTOCOL C1)."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory import delivery, pending, recall, upkeep, write
from memory.clock import Deadline
from memory.errors import OriginRejected
from memory.models import Job, Lane
from memory.tenancy.projects import policy
from memory.types import Query, Scope
from memory.write import Write
from tests.failing_mem0 import answer_lost, never_arrived, refused

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def upstream_only(redis, settings):
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.MEM0_ADD_SETTLE_SECONDS = 0
    settings.RETRY_SECONDS = settings.RETRY_MAX_SECONDS = 0.01


def accept(scope: Scope, *texts: str, **more) -> Job:
    facts = [{"text": text, **more} for text in texts]
    return write.accept(Write("add", scope, {"memories": facts}), policy(scope.project)).job


def found(scope: Scope, text: str = "drink?", **more) -> list[dict]:
    query = Query(scope, text, **{"top_k": 100, **more})
    return orjson.loads(recall.search(query, policy(scope.project), Deadline.after(5)).results)


def texts(*asked, **more) -> list[str]:
    return [one["memory"] for one in found(*asked, **more)]


def test_a_fact_is_found_as_soon_as_it_is_accepted_and_says_that_it_is_on_its_way(mem0, ann):
    job = accept(ann, "tea", metadata={"room": "hall"})
    (one,) = found(ann)
    assert (one["memory"], one["pending"], one["source"], one["failed"]) == ("tea", True, "stm", False)
    assert (one["id"], one["job_id"]) == (f"pending-{job.job_id}-0", str(job.job_id))
    assert one["metadata"] == {"room": "hall"}
    delivery.deliver(job.lane_id)
    (one,) = found(ann)
    assert (one["memory"], one["pending"], one["source"]) == ("tea", False, "ltm")


def test_nobody_else_finds_it(mem0, ann, ben, cy):
    accept(ann, "tea")
    assert texts(ben) == texts(cy) == texts(Scope(ann.project, "ann", "bot")) == []


def test_filters_threshold_of_expiry_and_ids_hold_for_what_is_on_its_way(mem0, ann):
    accept(ann, "tea", metadata={"room": "hall"})
    accept(ann, "stale cake", expiration_date="2020-01-01")
    assert texts(ann, filters='{"room":"hall"}') == ["tea"]
    assert texts(ann, filters='{"room":"attic"}') == []
    assert sorted(texts(ann, show_expired=True)) == ["stale cake", "tea"]


def test_nothing_on_its_way_enters_a_cache(mem0, ann):
    job = accept(ann, "tea")
    assert texts(ann) == ["tea"]
    Job.objects.filter(pk=job.pk).delete()
    pending.changed(ann.pins(), 1)
    assert texts(ann) == []


def test_with_nothing_on_its_way_the_answer_is_the_stored_bytes(mem0, ann):
    delivery.deliver(accept(ann, "tea").lane_id)
    query = Query(ann, "drink?")
    found = recall.search(query, policy(ann.project), Deadline.after(5))
    assert found.results is found.answer.entry.results


def test_what_was_refused_stays_and_says_so(mem0, ann):
    def reject(work):
        raise OriginRejected("no", status=400)

    mem0.faults = [reject]
    delivery.deliver(accept(ann, "tea").lane_id)
    (one,) = found(ann)
    assert (one["memory"], one["pending"], one["failed"]) == ("tea", True, True)


def test_a_conversation_is_found_until_its_facts_are(mem0, ann):
    messages = [{"role": "user", "content": "Tôi thích trà"}, {"role": "assistant", "content": "Vâng"}]
    job = write.accept(Write("extract", ann, {"messages": messages}), policy(ann.project)).job
    assert texts(ann) == ["Tôi thích trà"]
    delivery.deliver(job.lane_id)
    assert sorted(texts(ann)) == ["Tôi thích trà", "Vâng"]


FAULTS = (answer_lost, never_arrived, refused)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(1, 3)),
        st.tuples(st.just("deliver"), st.sampled_from((None, *FAULTS))),
        st.sampled_from([("flush", None), ("ask", None), ("sweep", None)]),
    ),
    min_size=3,
    max_size=14,
)
people = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_c1_whatever_happens_each_accepted_fact_is_found_exactly_once(mem0, project, redis, steps):
    scope = Scope(project.pk, f"user-{next(people)}")
    accepted: list[str] = []
    for step, value in steps:
        if step == "accept":
            fresh = [f"fact {len(accepted) + n}" for n in range(value)]
            accept(scope, *fresh)
            accepted += fresh
        elif step == "deliver":
            mem0.faults = [value] if value else []
            for lane in Lane.objects.filter(pin_id=scope.user_id):
                delivery.deliver(lane.pk)
            mem0.faults = []
        elif step == "flush":
            redis.flushall()
        elif step == "sweep":
            upkeep.sweep()
        assert sorted(texts(scope)) == sorted(accepted)


def test_c1_each_fact_of_a_write_is_there_once_while_its_parts_arrive(mem0, ann, monkeypatch):
    """Facts of different metadata are sent one after the other: between two of them, the first is in Mem0 already."""
    facts = [{"text": "tea", "metadata": {"n": 1}}, {"text": "cake", "metadata": {"n": 2}}]
    job = write.accept(Write("add", ann, {"memories": facts}), policy(ann.project)).job
    seen: list[list[str]] = []

    def look(work):
        done = work()
        from memory import versions

        versions.publish(versions.move(ann.pins()))
        seen.append(sorted(texts(ann)))
        return done

    mem0.faults = [look, look]
    delivery.deliver(job.lane_id)
    assert seen == [["cake", "tea"], ["cake", "tea"]]
