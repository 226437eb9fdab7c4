"""PROTOCOL A: accepted writes reach Mem0 once, in order, whatever fails on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count

import psycopg2
import pytest
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from memory import db, delivery, identity, keys, logs, metrics, pending, redis_client, stack, versions, write
from memory.backends import mem0_sdk
from memory.clock import Deadline
from memory.delivery import lanes
from memory.errors import OriginRejected
from memory.models import Attempt, Job, Lane, PinVersion
from memory.tenancy.projects import policy
from memory.types import MARK_JOB, Scope
from memory.write import Write
from tests.failing_mem0 import answer_lost, never_arrived, refused

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quiet(redis, settings):
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.MEM0_ADD_SETTLE_SECONDS = 30


def add(scope: Scope, *texts: str, **extra) -> Job:
    payload = {"memories": [{"text": text, **extra} for text in texts]}
    return write.accept(Write("add", scope, payload), policy(scope.project)).job


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def run(job: Job) -> str:
    return delivery.deliver(job.lane_id)


def pass_time(job: Job, seconds: float) -> None:
    """Let the job's past lie further back: what waits for a moment in PostgreSQL's time has it behind."""
    back = timedelta(seconds=seconds)
    Job.objects.filter(pk=job.pk).update(
        next_attempt_at=F("next_attempt_at") - back,
        reconcile_at=F("reconcile_at") - back,
        stored_at=F("stored_at") - back,
    )
    Attempt.objects.filter(job=job).update(started_at=F("started_at") - back)


def version_of(scope: Scope) -> int:
    return PinVersion.objects.get(project_id=scope.project, kind="user", pin_id=scope.user_id).version


def test_facts_reach_mem0_in_order_and_each_result_names_its_fact(mem0, ann):
    job = add(ann, "tea", "cà phê", "tea")
    run(job)
    job = fresh(job)
    assert job.state == "completed"
    assert mem0.texts("ann") == ["tea", "cà phê", "tea"]
    assert [(item["index"], item["memory"]) for item in job.results] == [(0, "tea"), (1, "cà phê"), (2, "tea")]
    assert len({item["id"] for item in job.results}) == 3


def test_every_attempt_carries_the_mark_of_its_job(mem0, ann):
    job = add(ann, "tea", metadata={"mood": "calm"})
    run(job)
    assert mem0.rows[0].metadata == {"mood": "calm", MARK_JOB: str(job.job_id), "memsvc_attempt": "1"}
    assert mem0.rows[0].public_metadata() == {"mood": "calm"}


def test_facts_of_different_metadata_keep_their_own(mem0, ann):
    payload = {"memories": [{"text": "a", "metadata": {"n": 1}}, {"text": "b", "metadata": {"n": 2}}, {"text": "c"}]}
    job = write.accept(Write("add", ann, payload), policy(ann.project)).job
    run(job)
    assert {row.text: row.public_metadata() for row in mem0.rows} == {"a": {"n": 1}, "b": {"n": 2}, "c": {}}


def test_a_completed_job_has_published_its_version(mem0, redis, ann):
    job = add(ann, "tea")
    run(job)
    copy = redis.get(keys.version(ann.pin, 1)).split(b":")
    assert int(copy[0]) == fresh(job).version == version_of(ann)


def test_b7_without_confirmation_the_job_stays_stored_for_a_whole_lease(mem0, ann, settings, dead_redis):
    job = add(ann, "tea")
    run(job)
    assert fresh(job).state == "stored"
    pass_time(job, settings.VERSION_LEASE_SECONDS - 1)
    delivery.complete_overdue()
    assert fresh(job).state == "stored"
    pass_time(job, 1 + versions.MARGIN_SECONDS)
    delivery.complete_overdue()
    assert fresh(job).state == "completed"


def test_b7_what_redis_did_not_confirm_is_published_when_it_answers_again(mem0, redis, ann, settings, monkeypatch):
    monkeypatch.setattr(redis_client, "REST_SECONDS", 0.0)
    there, settings.REDIS_URL = settings.REDIS_URL, "unix:///nonexistent/redis.sock"
    redis_client.cache.cache_clear()
    job = add(ann, "tea")
    run(job)
    pass_time(job, 2)
    assert delivery.complete_unconfirmed() == 0
    settings.REDIS_URL = there
    redis_client.cache.cache_clear()
    assert delivery.complete_unconfirmed() == 1
    assert fresh(job).state == "completed"
    assert int(redis.get(keys.version(ann.pin, 1)).split(b":")[0]) == version_of(ann)


def test_a_stored_job_does_not_hold_its_lane(mem0, ann, dead_redis):
    first, second = add(ann, "one"), add(ann, "two")
    run(first)
    assert [fresh(job).state for job in (first, second)] == ["stored", "stored"]


def test_a2_an_outage_holds_the_lane_in_order_and_uses_up_no_attempt(mem0, ann):
    first, second = add(ann, "one"), add(ann, "two")
    mem0.faults = [refused]
    assert run(first) == "waiting"
    assert run(first) == "done 0"
    assert fresh(first).state == "pending"
    assert fresh(first).reason == "origin_unavailable"
    assert mem0.texts() == []
    pass_time(first, 60)
    run(first)
    assert mem0.texts() == ["one", "two"]
    assert [fresh(job).state for job in (first, second)] == ["completed", "completed"]


def test_a_rejection_ends_the_job_failed_and_the_lane_goes_on(mem0, ann):
    def reject(work):
        raise OriginRejected("expiration_date must be in the future", status=400)

    first, second = add(ann, "one"), add(ann, "two")
    mem0.faults = [reject]
    run(first)
    first = fresh(first)
    assert (first.state, first.reason) == ("failed", "rejected")
    assert first.failed == [{"index": 0, "error": "expiration_date must be in the future"}]
    assert first.payload is not None
    assert fresh(second).state == "completed"


def test_a5_after_a_lost_answer_the_lane_waits_until_the_attempt_has_settled(mem0, ann):
    job = add(ann, "tea")
    mem0.faults = [answer_lost]
    run(job)
    pass_time(job, 29)
    assert run(job) in ("waiting", "done 0")
    assert mem0.calls == ["add"]
    assert fresh(job).reason == "settling"


def test_a5_the_attempt_of_a_killed_worker_may_still_run_inside_a_remote_mem0(mem0, ann):
    """Nothing is known of the attempt, not even that it ended; only its start can be waited from."""
    job = add(ann, "tea")
    Attempt.objects.create(job=job, number=1, indexes=[0], fence=1)
    Job.objects.filter(pk=job.pk).update(state="processing", attempts=1)
    assert run(job) == "waiting"
    assert mem0.calls == []
    assert fresh(job).reason == "settling"
    pass_time(job, 31)
    run(job)
    assert mem0.texts() == ["tea"]


def test_a2_a_long_outage_leaves_every_attempt_for_what_comes_after_it(mem0, ann, settings):
    settings.JOB_ATTEMPTS = 2
    job = add(ann, "tea")
    mem0.faults = [refused] * 5 + [answer_lost]
    for _ in range(6):
        run(job)
        pass_time(job, 61)
    assert fresh(job).state != "failed"
    run(job)
    assert (fresh(job).state, fresh(job).attempts) == ("completed", 1)


def test_no_warm_is_asked_for_while_an_outcome_is_unknown(mem0, ann, settings):
    from memory import signals

    settings.PROACTIVE_CACHE_ENABLED = True
    told: list[int] = []
    signals.memories_changed.connect(listen := lambda version, **_: told.append(version))
    job = add(ann, "tea")
    mem0.faults = [answer_lost]
    run(job)
    assert told == []
    pass_time(job, 31)
    run(job)
    assert told == [fresh(job).version]
    signals.memories_changed.disconnect(listen)


def test_a5_a_lost_answer_is_found_by_its_mark_and_not_sent_again(mem0, ann):
    job = add(ann, "tea", "cake")
    mem0.faults = [answer_lost]
    run(job)
    pass_time(job, 31)
    run(job)
    job = fresh(job)
    assert job.state == "completed"
    assert mem0.texts() == ["tea", "cake"]
    assert [item["id"] for item in job.results] == [row.id for row in mem0.rows]


def test_a5_a_request_lost_on_its_way_is_sent_again(mem0, ann):
    job = add(ann, "tea")
    mem0.faults = [never_arrived]
    run(job)
    pass_time(job, 31)
    run(job)
    assert mem0.texts() == ["tea"]
    assert fresh(job).state == "completed"


def test_a6_a_half_stored_job_sends_only_the_rest_also_of_equal_texts(mem0, ann):
    def half(work):
        work()
        del mem0.rows[1:]
        return answer_lost(list)

    job = add(ann, "same", "same", "other")
    mem0.faults = [half]
    run(job)
    pass_time(job, 31)
    run(job)
    assert sorted(mem0.texts()) == ["other", "same", "same"]
    assert sorted(item["index"] for item in fresh(job).results) == [0, 1, 2]


def test_a6_the_same_words_of_another_job_are_not_taken_for_this_one(mem0, ann):
    run(add(ann, "tea"))
    job = add(ann, "tea")
    mem0.faults = [never_arrived]
    run(job)
    pass_time(job, 31)
    run(job)
    assert mem0.texts() == ["tea", "tea"]


def test_a6_a_look_for_many_texts_ends_and_finds_each(mem0, ann):
    """Each text is a search where Mem0 lists only some of the memories, and one look has time for a few."""

    def half(work):
        work()
        del mem0.rows[13:]
        return answer_lost(list)

    texts = [f"fact {n}" for n in range(25)]
    job = add(ann, *texts)
    mem0.faults, mem0.cut = [half], 10
    run(job)
    pass_time(job, 31)
    run(job)
    assert fresh(job).state == "completed"
    assert mem0.texts() == texts


def test_a6_without_a_conclusive_look_the_job_is_held_with_its_payload(mem0, ann):
    job = add(ann, "tea")
    mem0.faults = [never_arrived]
    mem0.conclusive = False
    run(job)
    pass_time(job, 31)
    run(job)
    job = fresh(job)
    assert (job.state, job.reason) == ("failed", "outcome_unknown")
    assert job.payload["memories"][0]["text"] == "tea"
    assert mem0.texts() == []


def test_a6_a_project_may_choose_to_retry_instead(mem0, ann, project):
    project.on_unknown = "retry"
    project.save()
    job = add(ann, "tea")
    mem0.faults = [never_arrived]
    mem0.conclusive = False
    run(job)
    pass_time(job, 31)
    run(job)
    assert mem0.texts() == ["tea"]


def test_a3_the_last_attempt_that_is_allowed_is_waited_out_too(mem0, ann, settings):
    """It may still be running inside Mem0: the next write of the lane would be overwritten by it."""
    settings.JOB_ATTEMPTS = 1
    add(ann, "tea")
    run(Job.objects.get())
    late = []

    def still_running(work):
        late.append(work)
        never_arrived(work)

    memory_id = mem0.rows[0].id
    first, second = (
        write.accept(Write("update", ann, {"text": text}, memory_id), policy(ann.project)).job
        for text in ("coffee", "milk")
    )
    mem0.faults = [still_running]
    assert run(first) == "waiting"
    late[0]()
    pass_time(first, 31)
    run(first)
    assert [(fresh(job).state, fresh(job).reason) for job in (first, second)] == [
        ("failed", "attempts_exhausted"),
        ("completed", ""),
    ]
    assert mem0.texts() == ["milk"]


def test_a_retried_job_has_all_its_attempts_again_and_one_that_was_stored_has_not_failed(mem0, ann, settings):
    settings.JOB_ATTEMPTS = 2
    job = add(ann, "tea")
    mem0.faults = [never_arrived] * 3 + [answer_lost]
    for _ in range(3):
        run(job)
        pass_time(job, 31)
    assert (fresh(job).state, fresh(job).reason) == ("failed", "attempts_exhausted")
    write.retry(job)
    for _ in range(3):
        run(job)
        pass_time(job, 31)
    assert (fresh(job).state, mem0.texts()) == ("completed", ["tea"])


def test_an_outage_leaves_no_rows_behind(mem0, ann):
    job = add(ann, "tea")
    mem0.faults = [refused] * 20
    for _ in range(21):
        run(job)
        pass_time(job, 61)
    assert fresh(job).state == "completed"
    assert Attempt.objects.count() == 1


def test_g3_of_a_conversation_stored_by_halves_the_rest_is_stored_too(sdk, ann, monkeypatch):
    """Mem0 in process without a model stores each message by itself."""
    monkeypatch.setattr(stack, "_build", lambda: sdk)
    store, calls = mem0_sdk._mem0()._create_memory, count(1)

    def breaks(*args, **kwargs):
        if next(calls) == 2:
            raise psycopg2.OperationalError("server closed the connection")
        return store(*args, **kwargs)

    monkeypatch.setattr(mem0_sdk._mem0(), "_create_memory", breaks)
    said = [{"role": role, "content": text} for role, text in (("user", "tea"), ("assistant", "ok"), ("user", "phở"))]
    job = write.accept(Write("extract", ann, {"messages": [*said, said[0]]}), policy(ann.project)).job
    run(job)
    pass_time(job, 400)
    run(job)
    job = fresh(job)
    assert job.state == "completed"
    assert [(item["index"], item["memory"]) for item in job.results] == [(0, "tea"), (2, "phở"), (3, "tea")]
    marked = sdk.find_marked(ann, str(job.job_id), [], Deadline.after(10)).memories
    assert sorted(row.text for row in marked) == ["phở", "tea", "tea"]


def test_a_fault_of_ours_holds_its_lane_for_a_while_and_tells_no_text(mem0, ann, settings, caplog):
    def fault(work):
        raise RuntimeError("my PIN is 4711")

    first, second = add(ann, "my PIN is 4711"), add(ann, "tea")
    mem0.faults = [fault]
    assert run(first) == "waiting"
    assert (fresh(first).reason, fresh(second).state) == ("internal_error", "pending")
    assert run(first) == "done 0"
    assert [one.exc_info is not None for one in caplog.records if one.getMessage() == "delivery failed"] == [True]
    assert "4711" not in "".join(logs.JSONFormatter().format(one) for one in caplog.records)
    pass_time(first, settings.RETRY_MAX_SECONDS)
    run(first)
    assert mem0.texts() == ["my PIN is 4711", "tea"]


def test_a_look_that_meets_a_fault_of_ours_holds_up_no_write(mem0, ann, monkeypatch):
    job = add(ann, "tea")
    mem0.faults = [answer_lost]
    run(job)
    pass_time(job, 31)
    run(job)
    pass_time(job, 3600)

    def fault(*args):
        raise RuntimeError("of ours")

    later = add(ann, "coffee")
    with monkeypatch.context() as broken:
        broken.setattr(mem0, "find_marked", fault)
        run(job)
    assert fresh(later).state == "completed"
    assert fresh(job).reconcile_at is not None
    pass_time(job, 61)
    run(job)
    assert fresh(job).reconcile_at is None


def test_b2_a_look_whose_worker_dies_after_it_removed_a_copy_is_made_good_by_the_next(mem0, ann, monkeypatch):
    job = add(ann, "tea")
    mem0.faults = [answer_lost]
    run(job)
    pass_time(job, 31)
    run(job)
    mem0.store(ann, "tea", {MARK_JOB: str(job.job_id)})
    before = version_of(ann)
    remove = mem0.delete

    def dies(*args):
        remove(*args)
        raise SystemExit

    monkeypatch.setattr(mem0, "delete", dies)
    pass_time(job, 3600)
    with pytest.raises(SystemExit):
        run(job)
    assert (mem0.texts(), version_of(ann)) == (["tea"], before)
    monkeypatch.setattr(mem0, "delete", remove)
    run(job)
    assert version_of(ann) > before
    assert (fresh(job).reconcile_at, fresh(job).removing) == (None, False)


def test_b2_a_look_that_breaks_off_moves_the_version_for_what_may_have_gone(mem0, ann):
    job = add(ann, "tea")
    mem0.faults = [answer_lost]
    run(job)
    pass_time(job, 31)
    run(job)
    for _ in range(2):
        mem0.store(ann, "tea", {MARK_JOB: str(job.job_id)})
    before = version_of(ann)
    metrics.drain()
    mem0.faults = [lambda work: work(), answer_lost]
    pass_time(job, 3600)
    run(job)
    assert version_of(ann) > before
    assert fresh(job).reconcile_at is not None
    pass_time(job, 3600)
    run(job)
    assert (mem0.texts(), fresh(job).reconcile_at) == (["tea"], None)
    counted = {labels: n for (_, name, labels), n in metrics.drain().items() if name == "reconciles"}
    assert counted == {"outcome=error": 1, "outcome=clean": 1}


def test_a7_a_second_copy_is_removed_and_the_reported_one_kept(mem0, ann):
    late = []

    def still_running(work):
        late.append(work)
        never_arrived(work)

    job = add(ann, "tea")
    mem0.faults = [still_running]
    run(job)
    pass_time(job, 31)
    run(job)
    late[0]()  # the first attempt ends in Mem0 only now, after its settle time
    assert mem0.texts() == ["tea", "tea"]
    before = version_of(ann)
    pass_time(job, 61)
    run(job)
    assert [row.id for row in mem0.rows] == [fresh(job).results[0]["id"]]
    assert version_of(ann) > before
    assert PinVersion.objects.get(pin_id="ann").floor == version_of(ann)
    assert fresh(job).reconcile_at is None


def test_b2_the_version_moves_after_an_unknown_outcome(mem0, ann):
    job = add(ann, "tea")
    before = version_of(ann)
    mem0.faults = [answer_lost]
    run(job)
    assert version_of(ann) > before


def test_b2_the_version_moves_after_the_acknowledgement(mem0, ann):
    """Whoever asks while Mem0 is at work fills what was before: the end of the job makes that unreachable."""
    from memory import read
    from memory.types import Query

    def ask() -> int:
        return read.search(Query(ann, "drink?"), policy(ann.project), Deadline.after(5)).entry.count

    def asked_meanwhile(work):
        assert ask() == 0
        return work()

    mem0.faults = [asked_meanwhile]
    run(add(ann, "tea"))
    assert ask() == 1


def test_b2_the_version_does_not_move_while_mem0_certainly_did_nothing(mem0, ann):
    job = add(ann, "tea")
    before = version_of(ann)
    mem0.faults = [refused]
    run(job)
    assert version_of(ann) == before


def test_a2_a_held_lane_is_not_entered_twice(mem0, ann):
    job = add(ann, "tea")
    Lane.objects.filter(pk=job.lane_id).update(lease_until=Now() + timedelta(seconds=60), holder="elsewhere")
    assert run(job) == "held"
    assert mem0.calls == []


def test_a2_a_holder_that_lost_its_lane_records_nothing(mem0, ann):
    """It was paused past its lease inside Mem0's call; another took the lane: the job is that one's to end."""
    job = add(ann, "tea")

    def overtaken(work):
        stored = work()
        Lane.objects.filter(pk=job.lane_id).update(fence=F("fence") + 1)
        return stored

    mem0.faults = [overtaken]
    assert run(job) == "lost"
    assert (fresh(job).state, fresh(job).results) == ("processing", [])


def test_a2_nothing_is_sent_that_the_lease_might_not_outlast(mem0, ann, settings):
    """As for a holder that stood still after it had looked at its lease."""
    lease, settings.LANE_LEASE_SECONDS = settings.LANE_LEASE_SECONDS, settings.MEM0_REST_API_TIMEOUT
    job = add(ann, "tea")
    assert run(job) == "lost"
    assert mem0.calls == []
    settings.LANE_LEASE_SECONDS = lease
    pass_time(job, lease)
    run(job)
    assert (fresh(job).state, mem0.texts("ann")) == ("completed", ["tea"])


def test_a_write_is_accepted_while_a_delivery_of_its_lane_is_about_to_move_the_version(mem0, ann):
    """The one holds the version's row and needs the lane's, the other the lane's and needs the version's."""
    hold = lanes.claim(add(ann, "tea").lane_id)

    def accepted() -> Job:
        try:
            return add(ann, "coffee")
        finally:
            db.release()

    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        lanes.assert_held(hold)
        assert pool.submit(accepted).result(timeout=10).state == "pending"


@pytest.mark.parametrize(("kind", "left"), [("delete", []), ("delete_all", []), ("update", ["coffee"])])
def test_c1_what_readers_may_still_be_shown_as_pending_stays_until_then(mem0, ann, dead_redis, settings, kind, left):
    """Redis confirmed nothing: what was would be found among the pending after its end had been confirmed."""
    stored = add(ann, "tea")
    run(stored)
    payload, memory_id = {"text": "coffee"} if kind == "update" else {}, mem0.rows[0].id
    again = Write(kind, ann, payload, memory_id=None if kind == "delete_all" else memory_id)
    job = write.accept(again, policy(ann.project)).job
    assert run(job) == "waiting"
    assert mem0.texts("ann") == ["tea"]
    pass_time(stored, settings.VERSION_LEASE_SECONDS + versions.MARGIN_SECONDS)
    delivery.complete_overdue()
    pass_time(job, 1)
    run(job)
    assert fresh(job).state == "stored"
    assert mem0.texts("ann") == left
    assert pending.stored(ann.pin).items == ()


def test_a_lane_lost_in_the_middle_is_finished_by_the_next_holder_without_a_second_copy(mem0, ann):
    job = add(ann, "tea")

    def overtaken(work):
        stored = work()
        Lane.objects.filter(pk=job.lane_id).update(fence=F("fence") + 1, lease_until=None)
        return stored

    mem0.faults = [overtaken]
    run(job)
    pass_time(job, 31)
    run(job)
    assert mem0.texts() == ["tea"]
    assert fresh(job).state == "completed"


def test_a5_an_in_process_attempt_whose_process_is_gone_needs_no_settling(mem0, ann):
    mem0.in_process = True
    job = add(ann, "tea")
    mem0.faults = [never_arrived]
    run(job)
    here = identity.process().split("/")
    Attempt.objects.filter(job=job).update(process="/".join((*here[:3], "999999999", "1")), ended_at=None, outcome="")
    Job.objects.filter(pk=job.pk).update(next_attempt_at=Now())
    run(job)
    assert mem0.texts() == ["tea"]


def test_a_process_on_another_host_is_never_taken_for_gone():
    assert identity.gone(identity.process()) is False
    assert identity.gone("elsewhere/boot/1/999999999/1") is False
    here = identity.process().split("/")
    assert identity.gone("/".join((*here[:3], "999999999", "1"))) is True
    assert identity.gone("/".join((*here[:4], "1"))) is True


def test_an_update_raises_the_floor_and_an_add_does_not(mem0, ann):
    job = add(ann, "tea")
    run(job)
    memory_id = fresh(job).results[0]["id"]
    assert PinVersion.objects.get(pin_id="ann").floor == 0
    change = write.accept(Write("update", ann, {"text": "coffee"}, memory_id=memory_id), policy(ann.project)).job
    run(change)
    assert mem0.texts() == ["coffee"]
    assert PinVersion.objects.get(pin_id="ann").floor == fresh(change).version


def test_a3_a_404_on_a_retried_delete_is_success(mem0, ann):
    job = add(ann, "tea")
    run(job)
    gone = write.accept(Write("delete", ann, memory_id=fresh(job).results[0]["id"]), policy(ann.project)).job
    mem0.faults = [answer_lost]
    run(gone)
    pass_time(gone, 31)
    run(gone)
    assert fresh(gone).state == "completed"
    assert mem0.texts() == []


def test_an_update_of_what_is_not_there_fails(mem0, ann):
    change = write.accept(Write("update", ann, {"text": "x"}, memory_id="nowhere"), policy(ann.project)).job
    run(change)
    assert fresh(change).state == "failed"


def test_a_retried_job_goes_to_the_tail_and_sends_only_what_is_missing(mem0, ann):
    def reject(work):
        raise OriginRejected("no", status=400)

    payload = {"memories": [{"text": "good"}, {"text": "bad", "metadata": {"x": 1}}]}
    job = write.accept(Write("add", ann, payload), policy(ann.project)).job
    mem0.faults = [lambda work: work(), reject]
    run(job)
    assert fresh(job).state == "failed"
    assert [item["index"] for item in fresh(job).results] == [0]
    later = add(ann, "later")
    assert write.retry(fresh(job))
    run(job)
    assert mem0.texts() == ["good", "later", "bad"]
    assert fresh(job).state == fresh(later).state == "completed"


def test_an_extraction_that_finds_nothing_is_completed_with_nothing_stored(mem0, ann):
    write_it = Write("extract", ann, {"messages": [{"role": "user", "content": "hm"}]})
    job = write.accept(write_it, policy(ann.project)).job
    mem0.faults = [lambda work: []]
    run(job)
    assert (fresh(job).state, fresh(job).results) == ("completed", [])
    assert fresh(job).payload is not None


def test_facts_of_a_long_job_travel_in_bounded_calls(mem0, ann):
    job = add(ann, *(f"fact {n}" for n in range(120)))
    run(job)
    assert mem0.calls.count("add") == 3
    assert mem0.texts() == [f"fact {n}" for n in range(120)]
    assert fresh(job).state == "completed"
