"""L3 answers from a user's own rows, only where they are known to be what Mem0 has (PROTOCOL C2, C4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from django.db import transaction

from memory import embedders, rank, read, stack, versions
from memory.clock import Deadline
from memory.layers import l3_rows
from memory.layers.l1_vectors import CachedEmbedder
from memory.layers.l3_summaries import Reading, Summary, SummaryLayer, embed, model
from memory.models import MemoryUser, Snapshot
from memory.tenancy.projects import Policy, policy
from memory.types import Entry, Memory, Query, Scope, Version

pytestmark = pytest.mark.django_db(transaction=True)

FACTS = ("I keep two cats", "My sister lives in Huế", "Tôi dị ứng với tôm", "I play badminton on Sundays")


@pytest.fixture
def layer(redis) -> SummaryLayer:
    return SummaryLayer()


@pytest.fixture
def local(project, settings) -> Policy:
    settings.LOCAL_SEARCH = "on"
    return policy(project.pk)


def fact(text: str, **more) -> Memory:
    return Memory(f"id-{text}", text, "ann", created_at="2026-01-01T00:00:00+00:00", **more)


def move(scope: Scope, *, floor: bool = False) -> Version:
    with transaction.atomic():
        return versions.move(scope.pins(), floor=floor)[0]


def save(layer: SummaryLayer, scope: Scope, version: Version, memories, *, complete: bool = True, topics=None) -> bool:
    vectors = embed(scope.project, [memory.text for memory in memories])
    reading = Reading(version.number, complete, memories, vectors, model(), l3_rows.fingerprint(memories))
    with transaction.atomic():
        return bool(layer.save({scope: (reading, Summary(topics or {}, {}, [], {}, ""))}))


def warm(layer: SummaryLayer, scope: Scope, *texts: str, **more) -> Version:
    version = move(scope)
    assert save(layer, scope, version, [fact(text, **more) for text in texts])
    return version


def last_seen(scope: Scope, days: int) -> None:
    seen = datetime.now(UTC) - timedelta(days=days)
    MemoryUser.objects.create(project_id=scope.project, user_id=scope.user_id, active_at=seen)


def texts(entry: Entry | None) -> list[str] | None:
    return None if entry is None else [item["memory"] for item in orjson.loads(entry.results)]


def day(ahead: int) -> str:
    return (datetime.now(UTC) + timedelta(days=ahead)).date().isoformat()


def test_a_question_never_asked_before_is_ranked_here(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    entry = layer.get(Query(ann, "Which pets do I have?"), version, local)
    assert texts(entry)[0] == "I keep two cats"
    assert (entry.ranking, entry.version) == ("hybrid", version.number)


def test_a_vietnamese_fact_answers_an_english_question(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    assert texts(layer.get(Query(ann, "Which food am I allergic to?"), version, local))[0] == "Tôi dị ứng với tôm"


@pytest.mark.parametrize(
    ("question", "best"),
    [("Thu cung cua toi ten gi?", "Tôi nuôi hai con mèo"), ("Toi hay uong nuoc gi?", "Tôi thích trà xanh")],
)
def test_a_question_typed_without_accents_is_ranked_as_it_was_meant(layer, local, ann, question, best):
    told = ("Tôi dị ứng với tôm", "Em gái tôi sống ở Huế", "Tôi nuôi hai con mèo", "Tôi thích trà xanh")
    version = warm(layer, ann, *told)
    (asked,) = CachedEmbedder(embedders.get(), ann.project).embed([question], "search")
    for vector in (None, asked):
        assert texts(layer.get(Query(ann, question), version, local, vector=vector))[0] == best


def test_the_policy_says_how_it_ranks_and_the_answer_which(layer, local, ann):
    version = warm(layer, ann, "I like green tea", "Aunt Mo drinks Assam", "My uncle sells black tea")
    asked = Query(ann, "Assam, is that what uncle sells?")
    found = {
        name: layer.get(asked, version, replace(local, local_ranking=name)) for name in ("hybrid", "like_upstream")
    }
    assert {name: entry.ranking for name, entry in found.items()} == {"hybrid": "hybrid", "like_upstream": "local"}
    assert found["hybrid"].results != found["like_upstream"].results


def test_c3_a_ranking_by_another_policy_is_not_served(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    entry = layer.get(Query(ann, "pets"), version, local)
    assert read.served(entry, local)
    assert not read.served(entry, replace(local, local_ranking="like_upstream"))
    assert not read.served(entry, replace(local, local_search="degraded"))


def test_it_answers_at_exactly_its_version(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    assert layer.get(Query(ann, "pets"), version, local) is not None
    assert layer.get(Query(ann, "pets"), move(ann), local) is None


@pytest.mark.parametrize("local_search", ["off", "degraded"])
def test_it_leaves_ranking_to_mem0_where_the_policy_does(layer, local, ann, local_search):
    version = warm(layer, ann, *FACTS)
    assert layer.get(Query(ann, "pets"), version, replace(local, local_search=local_search)) is None


def test_an_incomplete_list_never_ranks_in_place_of_mem0(layer, local, ann):
    version = move(ann)
    save(layer, ann, version, [fact(text) for text in FACTS], complete=False)
    assert layer.get(Query(ann, "pets"), version, local) is None
    assert layer.listing(ann, version) is None


def test_it_knows_one_user_only(layer, local, ann, ben):
    version = warm(layer, ann, *FACTS)
    assert layer.get(Query(ben, "pets"), version._replace(pin=ben.pin), local) is None
    assert layer.get(Query(Scope(ann.project, agent_id="a"), "pets"), version, local) is None


def test_vectors_of_another_embedder_are_not_compared(layer, local, ann, settings):
    version = warm(layer, ann, *FACTS)
    settings.EMBEDDER = "none"
    assert layer.get(Query(ann, "pets"), version, local) is None


def test_an_agent_in_the_scope_narrows_the_answer(layer, local, ann):
    version = move(ann)
    save(layer, ann, version, [fact("tea", agent_id="waiter"), fact("coffee", agent_id="barista"), fact("milk")])
    asked = Query(replace(ann, agent_id="waiter"), "What do I drink?")
    assert texts(layer.get(asked, version, local)) == ["tea"]


def test_metadata_conditions_narrow_the_answer(layer, local, ann):
    version = move(ann)
    save(layer, ann, version, [fact("tea", metadata={"hot": 1}), fact("juice", metadata={"hot": 0})])
    asked = Query(ann, "What do I drink?", filters='{"hot":1}')
    assert texts(layer.get(asked, version, local)) == ["tea"]


def test_conditions_it_cannot_evaluate_exactly_are_mem0s(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    conditions = {"note": {"regex": "^a"}}
    assert not rank.understands(conditions)
    assert layer.get(Query(ann, "pets", filters=orjson.dumps(conditions).decode()), version, local) is None


def test_what_has_expired_is_left_out_at_each_ranking(layer, local, ann):
    version = move(ann)
    memories = [fact("gone", expiration_date=day(-1)), fact("last day", expiration_date=day(0)), fact("stays")]
    save(layer, ann, version, memories)
    entry = layer.get(Query(ann, "anything"), version, local)
    assert sorted(texts(entry)) == ["last day", "stays"]
    assert entry.valid_until == int(datetime.fromisoformat(day(1)).replace(tzinfo=UTC).timestamp()) * 1_000_000
    assert len(texts(layer.get(Query(ann, "anything", show_expired=True), version, local))) == 3


def test_what_expires_while_the_process_holds_the_rows_is_left_out(layer, local, ann):
    version = move(ann)
    save(layer, ann, version, [fact("gone tomorrow", expiration_date=day(0)), fact("stays")])
    assert len(texts(layer.get(Query(ann, "anything"), version, local))) == 2
    held, read_on = layer.held.get((ann.project, "ann"))
    layer.held.put((ann.project, "ann"), (held, read_on - 86_400), held.bytes)
    assert texts(layer.get(Query(ann, "anything"), version, local)) == ["stays"]


def test_the_second_question_reads_nothing_from_postgresql(layer, local, ann, django_assert_num_queries):
    version = warm(layer, ann, *FACTS)
    layer.get(Query(ann, "pets"), version, local)
    with django_assert_num_queries(0):
        assert texts(layer.get(Query(ann, "sports"), version, local))


def test_a_process_with_no_room_still_answers(redis, local, ann):
    layer = SummaryLayer(max_bytes=10)
    version = warm(layer, ann, *FACTS)
    assert texts(layer.get(Query(ann, "Which pets do I have?"), version, local))[0] == "I keep two cats"
    assert layer.held.bytes == 0


def test_a_user_without_memories_is_answered_empty(layer, local, ann):
    assert texts(layer.get(Query(ann, "pets"), warm(layer, ann), local)) == []


# -- while Mem0 is away -----------------------------------------------------------------------------------------------


def test_while_mem0_is_away_older_rows_serve_down_to_the_floor(layer, local, ann):
    stands = warm(layer, ann, *FACTS)
    newer = move(ann)
    entry, partial = layer.degraded(Query(ann, "Which pets do I have?"), newer, local)
    assert (texts(entry)[0], entry.version, partial) == ("I keep two cats", stands.number, False)
    assert layer.degraded(Query(ann, "pets"), move(ann, floor=True), local) is None


def test_while_mem0_is_away_an_incomplete_list_serves_and_says_so(layer, local, ann):
    version = move(ann)
    save(layer, ann, version, [fact(text) for text in FACTS], complete=False)
    entry, partial = layer.degraded(Query(ann, "pets"), version, replace(local, local_search="degraded"))
    assert partial
    assert texts(entry)


def test_while_mem0_is_away_and_the_embedder_has_changed_words_serve(layer, local, ann, settings):
    version = warm(layer, ann, *FACTS)
    settings.EMBEDDER = "none"
    entry, _ = layer.degraded(Query(ann, "badminton"), version, local)
    assert texts(entry) == ["I play badminton on Sundays"]


def test_a_project_without_local_search_has_none_even_then(layer, local, ann):
    version = warm(layer, ann, *FACTS)
    assert layer.degraded(Query(ann, "pets"), version, replace(local, local_search="off")) is None


# -- rows that move with a job ----------------------------------------------------------------------------------------


def test_an_added_fact_is_found_at_the_jobs_own_version(layer, local, ann):
    before = warm(layer, ann, *FACTS)
    new = fact("I have a parrot called Kiwi")
    vectors = layer.vectors_for(ann.project, [new.text])
    with transaction.atomic():
        after = versions.move(ann.pins())[0]
        assert layer.apply_added(ann, before.number, after.number, [new], vectors)
    assert texts(layer.get(Query(ann, "What is my parrot called?"), after, local))[0] == new.text


def test_rows_that_did_not_stand_at_the_version_before_do_not_move(layer, local, ann):
    warm(layer, ann, *FACTS)
    missed = move(ann)
    new = fact("I have a parrot called Kiwi")
    with transaction.atomic():
        after = versions.move(ann.pins())[0]
        assert not layer.apply_added(
            ann, missed.number, after.number, [new], layer.vectors_for(ann.project, [new.text])
        )
    assert layer.get(Query(ann, "parrot"), after, local) is None


def test_rows_without_vectors_are_left_to_the_warm(layer, ann):
    before = warm(layer, ann, *FACTS)
    with transaction.atomic():
        after = versions.move(ann.pins())[0]
        assert not layer.apply_added(ann, before.number, after.number, [fact("new")], None)


def test_a_removed_fact_leaves_rows_and_summaries(layer, local, ann):
    before = move(ann)
    kept, gone = fact("tea"), fact("coffee")
    shown = {
        "drinks": [{"id": gone.id, "memory": gone.text, "score": 1.0}, {"id": kept.id, "memory": "tea", "score": 0.5}]
    }
    save(layer, ann, before, [kept, gone], topics=shown)
    with transaction.atomic():
        after = versions.move(ann.pins(), floor=True)[0]
        assert layer.apply_removed(ann, before.number, after.number, [gone.id])
    assert texts(layer.get(Query(ann, "What do I drink?"), after, local)) == ["tea"]
    assert [row["memory"] for row in layer.snapshot(ann.project, "ann").topics["drinks"]] == ["tea"]


def test_a_changed_fact_is_shown_as_it_is_now(layer, local, ann):
    before = move(ann)
    save(layer, ann, before, [fact("tea")], topics={"drinks": [{"id": "id-tea", "memory": "tea", "score": 1.0}]})
    changed = replace(fact("tea"), text="green tea")
    with transaction.atomic():
        after = versions.move(ann.pins(), floor=True)[0]
        vectors = layer.vectors_for(ann.project, [changed.text])
        assert layer.apply_added(ann, before.number, after.number, [changed], vectors)
    assert texts(layer.get(Query(ann, "What do I drink?"), after, local)) == ["green tea"]
    assert layer.snapshot(ann.project, "ann").topics["drinks"][0]["memory"] == "green tea"


# -- what a warm saves ------------------------------------------------------------------------------------------------


def test_an_older_reading_never_replaces_a_newer_one(layer, local, ann):
    older, newer = move(ann), move(ann)
    assert save(layer, ann, newer, [fact("new")])
    assert not save(layer, ann, older, [fact("old")])
    assert texts(layer.get(Query(ann, "x"), newer, local)) == ["new"]


def test_a_reading_below_the_floor_is_not_saved(layer, ann):
    read_at = move(ann)
    move(ann, floor=True)
    assert not save(layer, ann, read_at, [fact("deleted since")])
    assert Snapshot.objects.count() == 0


def test_only_rows_that_differ_are_written(layer, ann):
    warm(layer, ann, "a", "b")
    before = dict(rows_with_place())
    warm(layer, ann, "a", "c")
    after = dict(rows_with_place())
    assert after["id-a"] == before["id-a"]
    assert set(after) == {"id-a", "id-c"}


def rows_with_place() -> list[tuple[str, str]]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT memory_id, ctid::text FROM memory_snapshotmemory")
        return cursor.fetchall()


def test_listing_and_owner_tell_what_is_known(layer, ann):
    version = warm(layer, ann, "a", "b", agent_id="waiter")
    assert sorted(memory.text for memory in layer.listing(ann, version)) == ["a", "b"]
    assert layer.listing(replace(ann, agent_id="other"), version) == []
    assert layer.listing(ann, move(ann)) is None
    assert layer.owner(ann.project, "id-a") == Scope(ann.project, "ann", "waiter", None)
    assert layer.owner(ann.project, "unknown") is None


def test_vectors_of_users_nobody_asks_about_are_dropped(layer, local, ann, ben):
    version = warm(layer, ann, *FACTS)
    last_seen(ann, 60)
    assert layer.forget_inactive() == len(FACTS)
    assert layer.get(Query(ann, "pets"), version, local) is None
    assert len(layer.listing(ann, version)) == len(FACTS)


def test_of_users_nobody_asks_about_for_long_nothing_is_kept_until_the_next_warm(layer, local, ann, ben):
    version = warm(layer, ann, *FACTS)
    warm(layer, ben, "I play badminton")
    last_seen(ann, 365)
    layer.forget_inactive()
    assert layer.listing(ann, version) is None
    assert [row.user_id for row in Snapshot.objects.all()] == ["ben"]
    assert len(layer.listing(ann, warm(layer, ann, *FACTS))) == len(FACTS)


def test_it_ranks_as_mem0_does(redis, layer, local, ann):
    """The real Mem0 over the same facts and embedder: the same ten, in the same order but for ties."""
    origin = stack.backend(local)
    facts = [f"{name} {verb} {thing}" for name in ("Lan", "Tom") for verb in ("likes", "ghét") for thing in (
        "swimming", "phở bò", "old films", "the rain", "toán", "strong coffee")]  # fmt: skip
    origin.add(ann, facts, {}, None, Deadline.after(60))
    version = move(ann)
    assert save(layer, ann, version, list(origin.list(ann, Deadline.after(60)).memories))
    for question in ("Who likes coffee?", "Lan ghét môn gì?", "weather", "movies Tom enjoys"):
        theirs = [memory.text for memory in origin.search(Query(ann, question), Deadline.after(60))]
        ours = texts(layer.get(Query(ann, question), version, local))
        assert ours[0] == theirs[0]
        assert len(set(ours) & set(theirs)) >= 9, question


def test_float16_keeps_cosines_to_the_third_decimal(redis, ann):
    embedder = CachedEmbedder(embedders.get(), ann.project)
    exact = embedder.embed(list(FACTS), "passage")
    kept = l3_rows.loosen(l3_rows.keep(exact))
    asked = embedder.embed(["pets", "thể thao"], "search")
    assert abs(exact @ asked.T - kept @ asked.T).max() < 0.001
