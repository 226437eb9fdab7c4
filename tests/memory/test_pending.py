"""PROTOCOL C1: what was accepted is in the pending set until its version is published, and then no longer."""

from __future__ import annotations

import orjson
import pytest
from django.db import OperationalError, transaction

from memory import delivery, keys, pending, read, redis_wire, versions, write
from memory.clock import Deadline
from memory.errors import OriginRejected
from memory.models import Job, Project
from memory.tenancy.projects import policy
from memory.types import Query, Scope
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def upstream_only(redis, settings):
    settings.LOCAL_SEARCH = "off"
    settings.PROACTIVE_CACHE_ENABLED = False


def accept(scope: Scope, *texts: str) -> Job:
    facts = [{"text": text} for text in texts]
    return write.accept(Write("add", scope, {"memories": facts}), policy(scope.project)).job


def texts(scope: Scope) -> list[str]:
    return [item.text for item in pending.current(scope.pin, 1).of(scope)]


def ask(scope: Scope):
    return read.search(Query(scope, "drink?"), policy(scope.project), Deadline.after(5))


def test_an_accepted_fact_is_pending_until_its_job_is_completed(mem0, ann):
    job = accept(ann, "tea", "cake")
    assert texts(ann) == ["tea", "cake"]
    assert pending.current(ann.pin, 1).jobs == 1
    delivery.deliver(job.lane_id)
    assert texts(ann) == []


def test_a_search_says_how_many_jobs_are_on_their_way(mem0, ann):
    assert ask(ann).pending.jobs == 0
    accept(ann, "tea")
    accept(ann, "cake")
    assert ask(ann).pending.jobs == 2


def test_the_copy_spares_the_next_reader_a_query(mem0, ann, django_assert_num_queries):
    accept(ann, "tea")
    pending.current(ann.pin, 1)
    with django_assert_num_queries(0):
        assert texts(ann) == ["tea"]


def test_b5_a_writer_that_knows_a_former_generation_tells_the_readers_of_the_latest(mem0, ann):
    """It moved twice since the writer's process read it."""
    rules = policy(ann.project)
    Project.objects.update(generation=rules.generation + 2)
    assert pending.current(ann.pin, rules.generation + 2).items == ()
    job = write.accept(Write("add", ann, {"memories": [{"text": "tea"}]}), rules).job
    assert [item.text for item in pending.current(ann.pin, rules.generation + 2).items] == ["tea"]
    Job.objects.filter(pk=job.pk).update(state="failed")
    write.dismiss(Job.objects.get())
    assert pending.current(ann.pin, rules.generation + 2).items == ()


def test_an_accepted_write_stays_accepted_where_the_generation_cannot_be_read_after_it(mem0, ann, monkeypatch):
    def away(project):
        raise OperationalError("away")

    monkeypatch.setattr(versions, "_generation", away)
    assert texts(ann) == []
    accept(ann, "tea")
    assert texts(ann) == ["tea"]


def test_an_old_copy_is_not_stored_over_a_newer_state(mem0, ann, redis):
    """A reader took its token and read PostgreSQL; then a write was accepted; only now the reader stores."""
    names = [keys.pending(ann.pin, 1), keys.pending_token(ann.pin, 1)]
    (taken,) = versions.take(names)
    nothing = pending.stored(ann.pin)
    accept(ann, "tea")
    redis_wire.run_each([pending._keeping(ann.pin, nothing, 1, taken)])
    assert texts(ann) == ["tea"]


def test_c1_a_copy_that_outlived_its_job_goes_with_the_next_version(mem0, ann, redis):
    """Redis never confirmed the end of a fact's job, and the fact is deleted: its copy must not show it again."""
    job = accept(ann, "tea")
    assert texts(ann) == ["tea"]
    names = [keys.pending(ann.pin, 1), keys.pending_token(ann.pin, 1)]
    copy = redis.get(names[0])
    delivery.deliver(job.lane_id)
    redis.mset(dict(zip(names, [copy, b"somebody still reads"], strict=True)))
    with transaction.atomic():
        moved = versions.move(ann.pins(), floor=True)
    assert versions.publish(moved)
    assert redis.mget(names) == [None, None]
    assert texts(ann) == []


def test_a_late_reader_cannot_store_under_anothers_token(mem0, ann, redis):
    names = [keys.pending(ann.pin, 1), keys.pending_token(ann.pin, 1)]
    (taken,) = versions.take(names)
    nothing = pending.stored(ann.pin)
    accept(ann, "tea")
    versions.take(names)
    redis_wire.run_each([pending._keeping(ann.pin, nothing, 1, taken)])
    assert texts(ann) == ["tea"]


def test_a_job_stored_but_not_yet_published_is_still_pending(mem0, ann, dead_redis):
    job = accept(ann, "tea")
    delivery.deliver(job.lane_id)
    assert Job.objects.get().state == "stored"
    assert texts(ann) == ["tea"]


def test_no_fact_is_in_neither_while_a_job_ends(mem0, ann, monkeypatch):
    """C1's order. The job ends, published and all, right after the search has read the version; an answer of that
    version is in the layers. Only a pending set read before it still holds the fact."""
    ask(ann)
    job = accept(ann, "tea")
    answer = ask_while(versions, "current", job, monkeypatch)
    assert answer.entry.count == 0
    assert [item.text for item in answer.pending.items] == ["tea"]


def test_no_fact_is_in_neither_for_whom_redis_had_nothing(mem0, ann, redis, monkeypatch):
    """The same, where pending set and version are taken and kept together."""
    ask(ann)
    job = accept(ann, "tea")
    redis.delete(keys.version(ann.pin, 1))
    answer = ask_while(versions, "stored", job, monkeypatch)
    assert answer.entry.count == 0
    assert [item.text for item in answer.pending.items] == ["tea"]


def test_a_fact_in_both_is_known_to_be_one_by_its_mark(mem0, ann, monkeypatch):
    job = accept(ann, "tea")
    answer = ask_while(pending, "stored", job, monkeypatch)
    assert [item.job for item in answer.pending.items] == [str(job.job_id)]
    assert answer.entry.stored_by() == [str(job.job_id)]


def ask_while(module, reads, job, monkeypatch):
    """A search that sleeps right after such a reading, while the job is delivered to its end."""
    real = getattr(module, reads)

    def ends_right_after(*asked):
        found = real(*asked)
        if Job.objects.get().state == "pending":
            delivery.deliver(job.lane_id)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, reads, ends_right_after)
        answer = ask(Scope(job.project_id, job.user_id))
    assert Job.objects.get().state == "completed"
    return answer


def test_a_first_question_keeps_both_copies(mem0, ann, redis):
    accept(ann, "tea")
    names = [keys.pending(ann.pin, 1), keys.version(ann.pin, 1)]
    ask(ann)
    assert all(redis.mget(names))


def test_no_copy_is_kept_of_what_a_write_changed_while_it_was_read(mem0, ann, redis, monkeypatch):
    """Whoever asks PostgreSQL for both has both tokens before: a write between takes them away."""
    real = versions.stored

    def write_meanwhile(pin):
        found = real(pin)
        monkeypatch.setattr(versions, "stored", real)
        delivery.deliver(accept(ann, "tea").lane_id)
        redis.delete(keys.pending(ann.pin, 1), keys.version(ann.pin, 1))
        return found

    monkeypatch.setattr(versions, "stored", write_meanwhile)
    ask(ann)
    assert redis.mget(keys.pending(ann.pin, 1), keys.version(ann.pin, 1)) == [None, None]
    assert [memory["memory"] for memory in orjson.loads(ask(ann).entry.results)] == ["tea"]


def test_what_a_failed_job_did_not_store_stays_until_dismissed(mem0, ann):
    def reject(work):
        raise OriginRejected("no", status=400)

    mem0.faults = [reject]
    job = accept(ann, "tea")
    delivery.deliver(job.lane_id)
    assert [(item.text, item.failed) for item in pending.current(ann.pin, 1).items] == [("tea", True)]
    assert pending.current(ann.pin, 1).jobs == 0
    write.dismiss(Job.objects.get())
    assert texts(ann) == []


@pytest.mark.parametrize("each", [1, 250])
def test_g2_however_many_failed_before_what_is_accepted_is_found(mem0, ann, monkeypatch, each):
    """In many jobs, and in one."""
    monkeypatch.setattr(pending, "MOST_JOBS", 20)
    for _ in range(0, 250, 10 * each):
        accept(ann, *["old"] * each)
    Job.objects.update(state="failed", reason="rejected")
    accept(ann, "my cat is called Zed")
    found = ask(ann).pending
    assert [item.text for item in found.items if not item.failed] == ["my cat is called Zed"]
    assert found.jobs == 1


def test_of_too_many_items_the_newest_are_shown_oldest_first_and_what_failed_last_chosen(mem0, ann, monkeypatch):
    monkeypatch.setattr(pending, "MOST_ITEMS", 5)
    jobs = [accept(ann, *(f"{name}{n}" for n in range(2))) for name in "abcd"]
    assert texts(ann) == ["b0", "c0", "c1", "d0", "d1"]
    Job.objects.filter(pk__in=[jobs[1].pk, jobs[3].pk]).update(state="failed")
    pending.changed(ann.pins(), 1)
    assert texts(ann) == ["a0", "a1", "c0", "c1", "d0"]


def test_pending_facts_are_found_by_each_id_they_name_and_no_other(mem0, ann, ben):
    scope = Scope(ann.project, "ann", "bot")
    accept(scope, "tea")
    assert texts(ann) == texts(scope) == texts(Scope(ann.project, None, "bot")) == ["tea"]
    assert texts(Scope(ann.project, "ann", "other")) == texts(ben) == []


def test_the_users_words_of_a_conversation_are_pending_too(mem0, ann):
    messages = [{"role": "user", "content": "Tôi thích trà"}, {"role": "assistant", "content": "Vâng"}]
    write.accept(Write("extract", ann, {"messages": messages}), policy(ann.project))
    assert texts(ann) == ["Tôi thích trà"]


def test_without_redis_the_set_comes_from_postgresql(mem0, ann, dead_redis):
    accept(ann, "tea")
    assert texts(ann) == ["tea"]
