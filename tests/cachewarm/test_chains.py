"""A write's warm: due once for a burst, one step after the other, recorded, retried, never the write's trouble."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from cachewarm import chains, learned, runs, tasks, warmset
from cachewarm.models import LearnedQuery, Topic, WarmRun
from memory import delivery, read, signals, stack, write
from memory.clock import Deadline
from memory.models import Job, MemoryUser, Snapshot
from memory.tenancy.projects import policy
from memory.types import Answer, Listing, Query, Scope
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)
STEPS = (tasks.warm_summaries, tasks.warm_results, tasks.warm_vectors, tasks.warm_record)


@pytest.fixture(autouse=True)
def warming(redis, settings):
    settings.LOCAL_SEARCH = "on"
    settings.PROACTIVE_CACHE_ENABLED = True
    settings.WARM_DEBOUNCE_SECONDS = 0
    learned.forget()


@pytest.fixture
def few_topics(project):
    """Two topics are enough where their number does not matter."""
    Topic.objects.exclude(name__in=["pet", "music"]).delete()


def add(scope: Scope, *texts: str) -> Job:
    payload = {"memories": [{"text": text} for text in texts]}
    job = write.accept(Write("add", scope, payload), policy(scope.project)).job
    delivery.deliver(job.lane_id)
    return Job.objects.get(pk=job.pk)


def ask(scope: Scope, text: str, **more: Any) -> Answer:
    return read.search(Query(scope, text, **more), policy(scope.project), Deadline.after(20))


def texts(answer: Answer) -> list[str]:
    return [item["memory"] for item in orjson.loads(answer.entry.results)]


def the_run(**where: Any) -> WarmRun:
    return WarmRun.objects.get(**where)


def work(run: WarmRun, *, steps: int = 4) -> list[str]:
    """What the workers do with a chain's messages, here and now."""
    return [task(str(run.run_id)) for task in STEPS[:steps]]


def pass_time(**back: float) -> None:
    delta = timedelta(**back)
    WarmRun.objects.update(
        due_at=F("due_at") - delta,
        created_at=F("created_at") - delta,
        lease_until=F("lease_until") - delta,
        sent_at=F("sent_at") - delta,
    )


def in_seconds(run: WarmRun) -> float:
    return runs.seconds_left(run.run_id) or 0.0


# -- what a warm leaves behind ----------------------------------------------------------------------------------------


def test_after_a_warm_topics_and_new_questions_need_no_mem0(mem0, ann):
    job = add(ann, "I keep two cats", "Tôi dị ứng với tôm")
    assert work(the_run()) == ["L3", "L2", "L1", "completed"]
    mem0.calls.clear()
    for query in warmset.of(ann):
        assert ask(ann, query.text).layer == "L2"
    answer = ask(ann, "Which food is bad for me?")
    assert (answer.layer, answer.entry.ranking) == ("L3", "hybrid")
    assert texts(answer)[0] == "Tôi dị ứng với tôm"
    assert mem0.calls == []
    assert answer.version.number == job.version


def test_a_warm_tells_its_user_and_their_jobs(mem0, ann, few_topics):
    job = add(ann, "tea")
    work(the_run())
    user = MemoryUser.objects.get(user_id="ann")
    assert (user.warmed_version, user.warm_failure) == (job.version, "")
    assert Job.objects.get().warmed_at is not None
    run = the_run()
    assert (run.state, run.step, run.version, run.attempts) == ("completed", "record", job.version, 1)
    assert run.milliseconds is not None


def test_its_lines_in_the_log_say_who_and_how_it_ended(mem0, ann, few_topics, caplog):
    caplog.set_level("INFO", "cachewarm")
    add(ann, "tea")
    work(the_run())
    first, last = (record for record in caplog.records if record.name.startswith("cachewarm"))
    assert first.getMessage() == "Updating favorite cache for user_id=ann"
    assert (last.user_id, last.outcome, last.step) == ("ann", "completed", "record")
    assert last.ms >= 0
    assert "tea" not in caplog.text


def come_again(scope, *questions: str) -> None:
    """They are asked, and after a write asked again."""
    for _ in range(2):
        for question in questions:
            learned.note(Query(scope, question))
        learned.save()


def test_without_local_search_what_comes_again_is_searched_within_the_budget(mem0, ann, settings):
    settings.LOCAL_SEARCH = "off"
    settings.WARM_UPSTREAM_BUDGET = 3
    come_again(ann, "one?", "two?", "three?", "four?")
    add(ann, "tea")
    mem0.calls.clear()
    work(the_run())
    assert mem0.calls.count("search") == 3
    layers = [ask(ann, question).layer for question in ("one?", "two?", "three?", "four?")]
    assert sorted(layers) == ["L2", "L2", "L2", "L4"]


@pytest.mark.parametrize("local_search", ["off", "degraded"])
def test_without_local_search_nothing_is_searched_that_nobody_comes_back_to(mem0, ann, settings, local_search):
    """Such a search may cost money, and saves one at most: neither topics' questions nor those asked once."""
    settings.LOCAL_SEARCH = local_search
    learned.note(Query(ann, "once?"))
    learned.save()
    add(ann, "tea")
    mem0.calls.clear()
    assert work(the_run())[-1] == "completed"
    assert "search" not in mem0.calls


def test_without_local_search_what_is_not_asked_any_more_is_not_kept_warm(ann, settings):
    settings.LOCAL_SEARCH = "off"
    come_again(ann, "tea?")
    assert [query.text for query in warmset.of(ann)] == ["tea?"]
    LearnedQuery.objects.update(weight=F("weight") - 1)  # a week
    assert warmset.of(ann) == []


def cut(mem0) -> None:
    """From now on Mem0 lists only some of a user's memories."""
    whole = mem0.list
    mem0.list = lambda *words: Listing(whole(*words).memories, complete=False)


def test_with_local_search_too_a_user_whom_l3_cannot_rank_has_only_what_comes_again_searched(mem0, ann):
    cut(mem0)
    learned.note(Query(ann, "once?"))
    come_again(ann, "one?", "two?")
    add(ann, "tea")
    mem0.calls.clear()
    assert work(the_run())[-1] == "completed"
    assert mem0.calls.count("search") == 2, "neither the topics' nor what was asked once, though four may be"
    assert [ask(ann, question).layer for question in ("one?", "two?", "once?")] == ["L2", "L2", "L4"]


def test_what_l3_did_not_rank_for_once_is_not_searched_but_what_comes_again(mem0, ann, settings, monkeypatch):
    """Its rows may have moved on meanwhile."""
    come_again(ann, "again?")
    learned.note(Query(ann, "once?"))
    learned.save()
    add(ann, "tea")
    monkeypatch.setattr(type(stack.L3), "get_each", lambda self, user, queries, *more: [None] * len(queries))
    mem0.calls.clear()
    work(the_run())
    assert mem0.calls.count("search") == 1


def test_an_answer_that_is_warm_already_is_not_searched_again(mem0, ann, settings, few_topics):
    settings.LOCAL_SEARCH = "off"
    come_again(ann, "tea?")
    add(ann, "tea")
    work(the_run())
    assert "search" in mem0.calls
    mem0.calls.clear()
    again = runs.request(ann.project, "ann", "manual")
    assert work(the_run(run_id=again.run_id))[-1] == "completed"
    assert "search" not in mem0.calls


def test_a_warm_renews_the_vectors_of_its_questions(mem0, ann, redis, few_topics):
    add(ann, "tea")
    run = the_run()
    work(run, steps=2)
    for key in redis.keys("ms:e:*"):
        redis.delete(key)
    tasks.warm_vectors(str(run.run_id))
    assert len(redis.keys("ms:e:*:search:*")) == len(warmset.of(ann))


# -- bursts -----------------------------------------------------------------------------------------------------------


def test_a_burst_of_writes_is_one_warm(mem0, ann, settings, few_topics):
    settings.WARM_DEBOUNCE_SECONDS = 60
    jobs = [add(ann, f"fact {number}") for number in range(4)]
    run = the_run()
    assert run.wanted_version == jobs[-1].version
    assert work(run, steps=1) == ["early"]
    pass_time(seconds=60)
    assert work(run)[-1] == "completed"
    assert all(job.warmed_at for job in Job.objects.all())


def test_a_write_puts_the_warm_off_at_most_by_the_maximum_wait(mem0, ann, settings):
    settings.WARM_DEBOUNCE_SECONDS = 60
    settings.WARM_MAX_WAIT_SECONDS = 100
    add(ann, "first")
    pass_time(seconds=50)
    add(ann, "second")
    assert 45 < in_seconds(the_run()) <= 50
    pass_time(seconds=40)
    add(ann, "third")
    assert in_seconds(the_run()) <= 10


def test_two_users_are_two_warms(mem0, ann, ben):
    add(ann, "tea")
    add(ben, "coffee")
    assert set(WarmRun.objects.values_list("user_id", flat=True)) == {"ann", "ben"}


def test_a_write_that_an_earlier_warm_has_reached_needs_no_other(mem0, ann, few_topics):
    add(ann, "tea")
    run = the_run()
    MemoryUser.objects.update(warmed_version=run.wanted_version)
    assert work(run) == ["unchanged", "skipped", "skipped", "skipped"]


def test_a_message_that_comes_twice_does_nothing_twice(mem0, ann, few_topics):
    add(ann, "tea")
    run = the_run()
    work(run)
    mem0.calls.clear()
    assert work(run) == ["ended", "skipped", "skipped", "skipped"]
    assert mem0.calls == []


# -- overtaken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_overtaken_warm_says_so_and_the_next_starts_at_once(mem0, ann, settings, done, few_topics):
    settings.WARM_DEBOUNCE_SECONDS = 60
    first = add(ann, "tea")
    pass_time(seconds=60)
    run = the_run()
    work(run, steps=done)
    add(ann, "coffee")
    assert STEPS[done](str(run.run_id)) == "superseded"
    user = MemoryUser.objects.get(user_id="ann")
    assert (user.warmed_version, user.warm_superseded_version) == (0, first.version)
    following = the_run(state="due")
    assert in_seconds(following) <= 0
    assert work(following)[-1] == "completed"


def test_an_overtaken_warm_leaves_what_it_read_in_l3(mem0, ann, few_topics):
    """A user who writes all the time still gets an L3 to rank by while Mem0 is away (PROTOCOL C4)."""
    add(ann, "tea")
    run = the_run()
    real = mem0.list

    def written_meanwhile(scope, deadline):
        found = real(scope, deadline)
        mem0.list = real
        add(ann, "coffee")
        return found

    mem0.list = written_meanwhile
    assert work(run) == ["superseded", "skipped", "skipped", "skipped"]
    assert Snapshot.objects.get().version == run.wanted_version


def test_an_overtaken_warm_fills_nothing_a_reader_of_the_new_version_would_hit(mem0, ann, few_topics):
    add(ann, "tea")
    run = the_run()
    work(run, steps=1)
    add(ann, "coffee")
    tasks.warm_results(str(run.run_id))
    asked = warmset.of(ann)[0]
    assert {"tea", "coffee"} == set(texts(ask(ann, asked.text)))


def test_a_warm_by_hand_that_is_overtaken_tries_again_where_nothing_else_will(mem0, ann, settings, few_topics):
    settings.PROACTIVE_CACHE_ENABLED = False
    add(ann, "tea")
    run = the_run(run_id=runs.request(ann.project, "ann", "api").run_id)
    work(run, steps=1)
    add(ann, "coffee")
    assert tasks.warm_results(str(run.run_id)) == "superseded"
    assert work(the_run(state="due"))[-1] == "completed"


def test_one_warm_of_a_user_at_a_time(mem0, ann, few_topics):
    add(ann, "tea")
    first = the_run()
    assert work(first, steps=1) == ["L3"]
    add(ann, "coffee")
    second = the_run(state="due")
    assert work(second, steps=1) == ["busy"]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_warm_is_recorded_and_tried_again_and_the_write_stands(mem0, ann, few_topics):
    job = add(ann, "tea")
    mem0.down = True
    run = the_run()
    assert work(run) == ["failed", "skipped", "skipped", "skipped"]
    run.refresh_from_db()
    assert (run.state, run.error, run.attempts) == ("due", "origin_unavailable", 1)
    assert in_seconds(run) > 0
    user = MemoryUser.objects.get(user_id="ann")
    assert (user.warm_failed_version, user.warm_failure) == (job.version, "origin_unavailable")
    assert Job.objects.get().state == "completed"
    mem0.down = False
    pass_time(seconds=60)
    assert work(run)[-1] == "completed"
    assert MemoryUser.objects.get(user_id="ann").warm_failure == ""


def test_a_warm_fails_for_good_after_its_attempts(mem0, ann, settings):
    settings.WARM_ATTEMPTS = 2
    add(ann, "tea")
    mem0.down = True
    run = the_run()
    for _ in range(2):
        pass_time(seconds=60)
        work(run)
    run.refresh_from_db()
    assert (run.state, run.attempts) == ("failed", 2)
    assert run.ended_at is not None


def test_a_failed_attempt_leaves_the_work_to_a_newer_warm(mem0, ann, few_topics):
    add(ann, "tea")
    run = the_run()
    real = mem0.list

    def written_then_gone(scope, deadline):
        mem0.list = real
        add(ann, "coffee")
        mem0.down = True
        return real(scope, deadline)

    mem0.list = written_then_gone
    work(run)
    run.refresh_from_db()
    assert run.state == "failed"
    mem0.down = False
    assert work(the_run(state="due"))[-1] == "completed"


def test_redis_being_down_fails_the_warm_after_l3_and_not_the_write(mem0, ann, few_topics, dead_redis):
    add(ann, "tea")
    run = the_run()
    assert work(run)[:2] == ["L3", "failed"]
    run.refresh_from_db()
    assert (run.state, run.error) == ("due", "layer_unavailable")
    assert Snapshot.objects.exists()


def test_a_killed_workers_warm_is_taken_up_by_the_sweeper(mem0, ann, few_topics, settings):
    add(ann, "tea")
    run = the_run()
    work(run, steps=2)
    WarmRun.objects.update(holder="elsewhere/b/n/1/1")
    chains.sweep()
    run.refresh_from_db()
    assert run.state == "running"  # another host's process: only its lease tells
    pass_time(seconds=settings.WARM_LEASE_SECONDS + 1)
    chains.sweep()
    run.refresh_from_db()
    assert (run.state, run.error) == ("due", "worker_lost")
    pass_time(seconds=60)
    assert work(run)[-1] == "completed"


def test_a_dead_process_of_this_host_is_noticed_at_once(mem0, ann, few_topics):
    add(ann, "tea")
    run = the_run()
    work(run, steps=1)
    *host, _, _ = WarmRun.objects.get().holder.split("/")
    WarmRun.objects.update(holder="/".join([*host, "999999999", "1"]))
    chains.sweep()
    run.refresh_from_db()
    assert run.state == "due"


def test_what_the_broker_lost_is_handed_over_once_in_a_while(mem0, ann, settings):
    add(ann, "tea")
    assert chains.sweep() == 1
    assert chains.sweep() == 0
    pass_time(seconds=settings.RESEND_SECONDS + 1)
    assert chains.sweep() == 1


def test_while_the_workers_are_behind_no_more_is_handed_over(mem0, ann, monkeypatch):
    monkeypatch.setattr(runs, "MOST_SENT", 2)
    for user in ("Ann", "Bea", "Cem"):
        runs.request(ann.project, user, "manual")
    assert [chains.sweep(), chains.sweep()] == [2, 0]
    WarmRun.objects.filter(pk=WarmRun.objects.exclude(sent_at=None)[0].pk).delete()
    assert chains.sweep() == 1


def test_a_warm_that_cannot_be_noted_does_not_fail_the_write(mem0, ann):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE cachewarm_warmrun RENAME TO away")
    try:
        assert add(ann, "tea").state == "completed"
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO cachewarm_warmrun")
    assert not WarmRun.objects.exists()


def test_a_write_that_is_rolled_back_warms_nobody(ann):
    with transaction.atomic():
        signals.memories_changed.send(None, project_id=ann.project, user_id="ann", version=1)
        transaction.set_rollback(True)
    assert not WarmRun.objects.exists()


def test_switched_off_nothing_warms_by_itself_and_by_hand_it_works(mem0, ann, settings, few_topics):
    settings.PROACTIVE_CACHE_ENABLED = False
    add(ann, "tea")
    assert not WarmRun.objects.exists()
    runs.request(ann.project, "ann", "write")
    assert chains.sweep() == 0
    by_hand = chains.warm(ann.project, "ann", "manual")
    assert work(the_run(run_id=by_hand))[-1] == "completed"


def test_ended_runs_are_forgotten_after_a_while(mem0, ann, few_topics):
    add(ann, "tea")
    work(the_run())
    runs.purge()
    assert WarmRun.objects.exists()
    WarmRun.objects.update(ended_at=Now() - timedelta(days=runs.KEEP_DAYS + 1))
    runs.purge()
    assert not WarmRun.objects.exists()


# -- what users really ask --------------------------------------------------------------------------------------------


def test_a_question_that_was_asked_is_warm_after_the_next_write(mem0, ann, few_topics):
    add(ann, "tea")
    work(the_run())
    ask(ann, "What do I drink in the morning?")
    ask(ann, "What do I drink in the morning?", top_k=3)
    learned.save()
    add(ann, "coffee")
    work(the_run(state="due"))
    assert ask(ann, "What do I drink in the morning?").layer == "L2"
    assert ask(ann, "What do I drink in the morning?", top_k=3).layer == "L2"


def test_a_learned_question_keeps_its_scope_and_conditions(ann, settings):
    asked = Query(
        Scope(ann.project, "ann", "agent", "run"), "tea?", top_k=3, threshold=0.5, filters='{"a":1}', show_expired=True
    )
    learned.note(asked)
    learned.save()
    assert learned.of_each([ann], settings.WARM_SET_QUERIES)[ann] == [asked]


def test_a_long_message_is_not_learned(ann, settings):
    learned.note(Query(ann, "tea? " * 400))
    learned.note(Query(ann, "tea? " * 401))
    learned.save()
    assert [len(query.text) for query in learned.of_each([ann], settings.WARM_SET_QUERIES)[ann]] == [2000]


def test_what_is_asked_often_outweighs_what_was_asked_once(ann, settings):
    settings.WARM_SET_QUERIES = 2
    for question in ("often", "once", "often", "twice", "often", "twice"):
        learned.note(Query(ann, question))
        learned.save()
    assert [query.text for query in learned.of_each([ann], settings.WARM_SET_QUERIES)[ann]] == ["often", "twice"]


def test_what_was_asked_a_month_ago_gives_way_to_what_is_asked_now(ann, settings):
    learned.note(Query(ann, "old"))
    learned.note(Query(ann, "old"))
    learned.save()
    LearnedQuery.objects.update(weight=F("weight") - 30 / 7)
    learned.note(Query(ann, "new"))
    learned.save()
    assert [query.text for query in learned.of_each([ann], settings.WARM_SET_QUERIES)[ann]] == ["new", "old"]


def test_a_user_keeps_few_questions_however_many_are_asked(ann, settings):
    settings.WARM_SET_QUERIES = 3
    for number in range(20):
        learned.note(Query(ann, f"question {number}"))
    learned.save()
    assert LearnedQuery.objects.count() == 6
    assert len(learned.of_each([ann], settings.WARM_SET_QUERIES)[ann]) == 3


def test_warm_sets_are_the_users_own(ann, ben, few_topics):
    learned.note(Query(ann, "tea?"))
    learned.save()
    assert "tea?" not in {query.text for query in warmset.of(ben)}
