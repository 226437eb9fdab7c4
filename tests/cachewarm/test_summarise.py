"""L4 → L3: what a warm reads, embeds and saves, and what it does when something moves meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from django.db import transaction

from cachewarm.summarise import summarise
from memory import delivery, metrics, stack, versions, write
from memory.errors import OriginUnavailable
from memory.models import Attempt, Job, Snapshot
from memory.tenancy.projects import policy
from memory.types import Listing, Query, Scope, Version
from memory.write import Write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def local(redis, settings):
    settings.LOCAL_SEARCH = "on"
    settings.PROACTIVE_CACHE_ENABLED = False


def move(scope: Scope, *, floor: bool = False) -> Version:
    with transaction.atomic():
        return versions.move(scope.pins(), floor=floor)[0]


def add(scope: Scope, text: str) -> Job:
    job = write.accept(Write("add", scope, {"memories": [{"text": text}]}), policy(scope.project)).job
    delivery.deliver(job.lane_id)
    return Job.objects.get(pk=job.pk)


def warm(scope: Scope):
    outcome = summarise([scope])[scope]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def listed(mem0, then: Callable[[], object]) -> None:
    """Do something right after the next listing was read."""
    real = mem0.list

    def once(scope, deadline):
        found = real(scope, deadline)
        mem0.list = real
        then()
        return found

    mem0.list = once


def held(scope: Scope) -> list[str]:
    version = versions.stored(scope.pin)
    return [memory.text for memory in stack.L3.listing(scope, version) or []]


def computed() -> int:
    return sum(
        count
        for (_, name, labels), count in metrics.drain().items()
        if (name, labels) == ("embeddings", "outcome=computed")
    )


def test_summaries_show_topics_favourites_recent_and_counts(mem0, ann):
    for text in ("My dog Rex is a golden retriever", "I can speak French and German"):
        mem0.store(ann, text)
    mem0.store(ann, "The parking permit was valid once", expiration_date="2020-01-01")
    warm(ann)
    shown = stack.L3.snapshot(ann.project, "ann")
    assert shown.topics["pet"][0]["memory"] == "My dog Rex is a golden retriever"
    assert shown.user_favorite_summary["pet"] == shown.topics["pet"]
    assert "skills" not in shown.user_favorite_summary
    assert shown.topics["skills"][0]["memory"] == "I can speak French and German"
    assert [row["memory"] for row in shown.recent] == [
        "I can speak French and German",
        "My dog Rex is a golden retriever",
    ]
    assert shown.counts == {"memories": 2, "expired": 1, "agents": 0, "runs": 0}


def test_a_summary_leaves_out_what_has_expired_since(mem0, ann):
    mem0.store(ann, "My dog Rex is at the kennel", expiration_date="2999-01-01")
    warm(ann)
    row = Snapshot.objects.get()
    row.topics["pet"][0]["expiration_date"] = row.recent[0]["expiration_date"] = "2020-01-01"
    row.save()
    shown = stack.L3.snapshot(ann.project, "ann")
    assert (shown.topics["pet"], shown.user_favorite_summary["pet"], shown.recent) == ([], [], [])


def test_only_new_texts_are_embedded(mem0, ann, redis):
    mem0.store(ann, "first")
    warm(ann)
    redis.flushall()
    move(ann)
    mem0.store(ann, "second")
    mem0.store(ann, "first")
    metrics.drain()
    warm(ann)
    assert computed() == 1
    assert sorted(held(ann)) == ["first", "first", "second"]


def test_a_warm_that_finds_nothing_new_only_confirms(mem0, ann):
    mem0.store(ann, "tea")
    warm(ann)
    version = move(ann)
    outcome = warm(ann)
    assert (outcome.changed, outcome.saved, outcome.version) == (False, True, version.number)
    assert held(ann) == ["tea"]


def test_mem0_being_away_keeps_what_stands(mem0, ann):
    mem0.store(ann, "tea")
    warm(ann)
    mem0.down = True
    with pytest.raises(OriginUnavailable):
        warm(ann)
    assert held(ann) == ["tea"]


def test_an_overtaken_reading_is_saved_at_the_version_it_was_read_at(mem0, ann):
    read_at = move(ann)
    mem0.store(ann, "tea")
    listed(mem0, lambda: move(ann))
    outcome = warm(ann)
    assert (outcome.version, outcome.saved) == (read_at.number, True)
    assert Snapshot.objects.get().version == read_at.number


def test_a_reading_from_before_a_delete_is_thrown_away(mem0, ann):
    mem0.store(ann, "deleted in the meantime")
    listed(mem0, lambda: move(ann, floor=True))
    assert not warm(ann).saved
    assert not Snapshot.objects.exists()


def test_a_version_read_after_the_listing_would_hide_a_write(mem0, ann):
    """The write comes between listing and saving: the rows must not pass for those of its version."""
    mem0.store(ann, "tea")
    listed(mem0, lambda: add(ann, "coffee"))
    warm(ann)
    current = versions.stored(ann.pin)
    assert stack.L3.get(Query(ann, "drinks"), current, policy(ann.project)) is None


def test_what_others_changed_in_mem0_moves_version_and_floor_first(mem0, ann):
    add(ann, "tea")
    warm(ann)
    before = versions.stored(ann.pin)
    mem0.rows[0] = replace(mem0.rows[0], text="coffee")
    outcome = warm(ann)
    after = versions.stored(ann.pin)
    assert after.number > before.number
    assert after.floor == after.number == outcome.version
    assert held(ann) == ["coffee"]


def test_a_memory_others_removed_moves_version_and_floor(mem0, ann):
    add(ann, "tea")
    add(ann, "coffee")
    warm(ann)
    before = versions.stored(ann.pin)
    del mem0.rows[0]
    warm(ann)
    assert versions.stored(ann.pin).floor > before.number


def test_a_write_of_ours_that_is_under_way_is_no_change_by_others(mem0, ann):
    job = add(ann, "tea")
    warm(ann)
    before = versions.stored(ann.pin)
    mem0.store(ann, "coffee")  # what an attempt whose answer is still to come has stored
    Job.objects.filter(pk=job.pk).update(state="processing", attempts=1)
    Attempt.objects.create(job=job, number=9, fence=1)
    warm(ann)
    assert versions.stored(ann.pin).number == before.number


def test_a_cut_listing_is_no_change_by_others_and_never_complete(mem0, ann):
    mem0.store(ann, "tea")
    warm(ann)
    before = versions.stored(ann.pin)
    mem0.list = lambda scope, deadline: Listing(mem0.rows[:0], complete=False)
    warm(ann)
    assert versions.stored(ann.pin).number == before.number
    assert not Snapshot.objects.get().complete


def test_a_memory_postgresql_cannot_keep_is_left_out_and_the_rest_is_incomplete(mem0, ann):
    mem0.store(ann, "with a NUL \0 inside")
    mem0.store(ann, "tea")
    assert warm(ann).saved
    row = Snapshot.objects.get()
    assert (row.complete, [memory.text for memory in row.memories.all()]) == (False, ["tea"])


def test_another_embedder_makes_every_vector_again(mem0, ann, settings):
    mem0.store(ann, "tea")
    settings.EMBEDDER = "none"
    warm(ann)
    assert Snapshot.objects.get().memories.get().vector is None
    settings.EMBEDDER = "local"
    warm(ann)
    row = Snapshot.objects.get()
    assert row.memories.get().vector is not None
    assert row.embedder.startswith("multilingual-e5-small")


def test_a_job_leaves_l3_at_its_own_version_and_the_warm_agrees(mem0, ann):
    """PROTOCOL C4: with Mem0 in process the rows move with the job; the listing that follows is no change by others."""
    mem0.in_process = True
    add(ann, "tea")
    warm(ann)
    job = add(ann, "coffee")
    assert Snapshot.objects.get().version == job.version
    assert sorted(held(ann)) == ["coffee", "tea"]
    assert not versions.stored(ann.pin).floor
    warm(ann)
    assert versions.stored(ann.pin).number == job.version
