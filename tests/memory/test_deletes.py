"""PROTOCOL A3 and B5: a delete by user, agent or run takes all that came before it, nothing after, and no stale answer
outlives it."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F

from memory import delivery, read, stack, versions, write
from memory.backends.base import LIST_LIMIT
from memory.clock import Deadline
from memory.models import Attempt, Job, Project, Snapshot
from memory.tenancy.projects import policy
from memory.types import Listing, Memory, Pin, Query, Scope
from memory.write import Write
from tests.failing_mem0 import answer_lost

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quiet(redis, settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"


def add(scope: Scope, *texts: str) -> Job:
    return write.accept(
        Write("add", scope, {"memories": [{"text": text} for text in texts]}), policy(scope.project)
    ).job


def delete_all(scope: Scope) -> Job:
    return write.accept(Write("delete_all", scope), policy(scope.project)).job


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def run(*jobs: Job) -> None:
    for job in jobs:
        delivery.deliver(job.lane_id)


def due(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(next_attempt_at=F("next_attempt_at") - timedelta(hours=1))


def test_a_users_memories_go_and_the_job_names_them(mem0, ann, ben):
    kept, gone = add(ben, "tea"), add(ann, "tea", "milk")
    run(kept, gone)
    job = delete_all(ann)
    run(job)
    assert mem0.texts("ann") == []
    assert mem0.texts("ben") == ["tea"]
    job = fresh(job)
    assert job.state == "completed"
    assert {item["id"] for item in job.results} == {item["id"] for item in fresh(gone).results}
    assert {item["event"] for item in job.results} == {"DELETE"}


def test_only_what_is_filed_under_every_id_goes(mem0, ann):
    both = Scope(ann.project, "ann", "cook")
    first, second = add(ann, "tea"), add(both, "soup")
    run(first, second)
    job = delete_all(both)
    run(job)
    assert mem0.texts("ann") == ["tea"]


def test_a_delete_of_nothing_is_done(mem0, ann):
    job = delete_all(ann)
    run(job)
    assert fresh(job).state == "completed"


def test_a_delete_by_agent_waits_for_what_other_lanes_accepted_before(mem0, ann):
    before = add(Scope(ann.project, "ann", "cook"), "soup")
    job = delete_all(Scope(ann.project, agent_id="cook"))
    run(job)
    assert (fresh(job).state, fresh(job).reason) == ("pending", "ordered")
    run(before)
    due(job)
    run(job)
    assert mem0.texts() == []
    assert fresh(job).state == "completed"


def test_what_other_lanes_accepted_after_waits_for_a_delete_by_agent(mem0, ann):
    job = delete_all(Scope(ann.project, agent_id="cook"))
    after = add(Scope(ann.project, "ann", "cook", "r1"), "soup")
    beside = add(Scope(ann.project, "ben", "gardener"), "roses")
    run(after, beside)
    assert mem0.texts() == ["roses"]
    run(job)
    due(after)
    run(after)
    assert mem0.texts() == ["roses", "soup"]


def test_a_delete_by_run_and_agent_lets_writes_of_other_runs_pass(mem0, ann):
    delete_all(Scope(ann.project, None, "cook", "r1"))
    other = add(Scope(ann.project, "ann", "cook", "r2"), "soup")
    run(other)
    assert mem0.texts() == ["soup"]


def test_two_deletes_that_cross_never_wait_for_each_other(mem0, ann):
    first = delete_all(Scope(ann.project, agent_id="cook"))
    second = delete_all(Scope(ann.project, run_id="r1"))
    both = add(Scope(ann.project, "ann", "cook", "r1"), "soup")
    for _ in range(3):
        for job in (both, second, first):
            due(job)
            run(job)
    assert [fresh(job).state for job in (first, second, both)] == ["completed"] * 3
    assert mem0.texts() == ["soup"]


def test_its_number_follows_every_write_being_accepted_under_its_ids(mem0, ann):
    """A write whose transaction is still open has its number already: the delete is accepted after it, not between."""
    cook = Scope(ann.project, "ann", "cook")
    holding, accepted = threading.Event(), threading.Event()

    def hold() -> None:
        from django.db import transaction

        with transaction.atomic():
            write.insert(Write("add", cook, {"memories": [{"text": "soup"}]}), policy(ann.project))
            holding.set()
            accepted.wait(0.3)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(5)
    job = delete_all(Scope(ann.project, agent_id="cook"))
    accepted.set()
    thread.join()
    assert job.number > Job.objects.get(kind="add").number


def test_every_owner_of_what_goes_gets_a_new_version_and_floor(mem0, ann):
    run(add(Scope(ann.project, "ann", "cook"), "soup"), add(Scope(ann.project, "ben", "cook", "r1"), "salt"))
    pins = [Pin(ann.project, "user", "ann"), Pin(ann.project, "user", "ben"), Pin(ann.project, "run", "r1")]
    before = [versions.stored(pin) for pin in pins]
    run(delete_all(Scope(ann.project, agent_id="cook")))
    after = [versions.stored(pin) for pin in pins]
    assert all(now.number > then.number and now.floor == now.number for then, now in zip(before, after, strict=True))


def test_another_users_cached_answer_does_not_outlive_a_delete_by_agent(mem0, ann):
    rules = policy(ann.project)
    run(add(Scope(ann.project, "ann", "cook"), "soup"))
    asked = Query(ann, "food?")
    assert read.search(asked, rules, Deadline.after(5)).entry.count == 1
    assert read.search(asked, rules, Deadline.after(5)).layer == "L0"
    run(delete_all(Scope(ann.project, agent_id="cook")))
    assert read.search(asked, rules, Deadline.after(5)).entry.count == 0


def test_whom_it_touches_is_kept_over_a_delete_of_which_only_half_is_known(mem0, ann, settings):
    """The second attempt lists less than the first: what only the first saw moves all the same."""
    settings.MEM0_EXTRACT_SETTLE_SECONDS = 0
    run(add(Scope(ann.project, "ann", "cook"), "soup"))
    pin = Pin(ann.project, "user", "ann")
    before = versions.stored(pin).number
    mem0.faults.append(answer_lost)
    job = delete_all(Scope(ann.project, agent_id="cook"))
    run(job)
    assert versions.stored(pin).number > before
    assert mem0.texts() == []
    between = versions.stored(pin).number
    due(job)
    Attempt.objects.filter(job=job).update(started_at=F("started_at") - timedelta(hours=1))
    run(job)
    assert fresh(job).state == "completed"
    assert versions.stored(pin).number > between
    assert len(fresh(job).results) == 1


def test_what_mem0_has_not_deleted_is_deleted_again(mem0, ann, settings, monkeypatch):
    settings.MEM0_EXTRACT_SETTLE_SECONDS = 0
    run(add(ann, "tea"))
    whole = mem0.delete_all
    monkeypatch.setattr(mem0, "delete_all", lambda scope, deadline: None)
    job = delete_all(ann)
    run(job)
    assert fresh(job).state == "processing"
    monkeypatch.setattr(mem0, "delete_all", whole)
    due(job)
    Attempt.objects.filter(job=job).update(started_at=F("started_at") - timedelta(hours=1))
    run(job)
    assert fresh(job).state == "completed"
    assert mem0.texts() == []


def test_a_cut_listing_moves_the_whole_project_and_ends_after_a_lease(mem0, ann, monkeypatch, settings):
    rules = policy(ann.project)
    run(add(ann, "tea"), add(Scope(ann.project, "ben", "cook"), "salt"))
    Snapshot.objects.create(project_id=ann.project, user_id="ann", version=0, complete=True, summary_version=0)
    before = versions.stored(ann.pin)
    whole = mem0.list
    monkeypatch.setattr(mem0, "list", lambda scope, deadline: Listing(whole(scope, deadline).memories, False))
    job = delete_all(Scope(ann.project, agent_id="cook"))
    run(job)
    assert Project.objects.get().generation == rules.generation + 1
    assert versions.stored(ann.pin).floor > before.number
    assert fresh(job).state == "stored"
    delivery.complete_overdue()
    assert fresh(job).state == "stored"
    Job.objects.filter(pk=job.pk).update(
        stored_at=F("stored_at") - timedelta(seconds=settings.VERSION_LEASE_SECONDS + versions.MARGIN_SECONDS),
    )
    delivery.complete_overdue()
    assert fresh(job).state == "completed"


def test_many_owners_move_as_one(mem0, ann, monkeypatch):
    from memory.delivery import deletes

    monkeypatch.setattr(deletes, "MOST_PINS", 3)
    for name in "abcd":
        mem0.store(Scope(ann.project, f"user-{name}", "cook"), "soup", {})
    job = delete_all(Scope(ann.project, agent_id="cook"))
    run(job)
    assert Project.objects.get().generation == 2
    assert (
        stack.backend(policy(ann.project)).list(Scope(ann.project, agent_id="cook"), Deadline.after(1)).memories == []
    )


def test_nothing_is_deleted_while_mem0_cannot_tell_what_there_is(mem0, ann):
    run(add(ann, "tea"))
    mem0.down = True
    job = delete_all(ann)
    run(job)
    assert fresh(job).state == "pending"
    mem0.down = False
    due(job)
    run(job)
    assert mem0.texts() == []


def test_a_listing_of_a_thousand_counts_as_cut():
    from memory.delivery import deletes

    rows = [Memory(id=str(number), text="tea", user_id="ann") for number in range(LIST_LIMIT)]
    job = Job(project_id=1, user_id="ann", kind="delete_all", payload={})
    deletes.note(job, Listing(rows, complete=False))
    assert job.payload["everyone"] is True
