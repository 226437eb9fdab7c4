"""The operator is told what the layers hold and why a search would hit or miss: the same as the search then does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.db import transaction

from memory import inspect, keys, read, stack, versions
from memory.clock import Deadline
from memory.embedders.base import Embedder
from memory.errors import OriginUnavailable
from memory.inspect import Inspection, Question
from memory.invalidate import invalidate
from memory.layers import l3_rows
from memory.layers.base import encode
from memory.layers.l1_vectors import CachedEmbedder
from memory.layers.l3_summaries import Reading, Summary, embed, model
from memory.models import Project
from memory.tenancy import projects
from memory.tenancy.projects import Policy, policy
from memory.types import Memory, Query, Ranking, Scope, Version

pytestmark = pytest.mark.django_db

FACTS = ("Tôi dị ứng với tôm", "I keep two cats", "I play badminton on Sundays")


@pytest.fixture(autouse=True)
def local(redis, settings) -> None:
    settings.LOCAL_SEARCH = "on"
    settings.PROACTIVE_CACHE_ENABLED = False


def move(scope: Scope) -> Version:
    with transaction.atomic():
        moved = versions.move(scope.pins())
    versions.publish(moved)
    return moved[0]


def warm(scope: Scope, version: Version, *, complete: bool = True, made_by: str | None = None) -> None:
    memories = [Memory(f"id-{place}", text, scope.user_id) for place, text in enumerate(FACTS)]
    vectors = embed(scope.project, FACTS)
    made_by = model() if made_by is None else made_by
    reading = Reading(version.number, complete, memories, vectors, made_by, l3_rows.fingerprint(memories))
    with transaction.atomic():
        assert stack.L3.save({scope: (reading, Summary({}, {}, [], {}, ""))})


def fill(query: Query, version: Version, *, ranking: Ranking = "upstream", until: str | None = None) -> None:
    """An L2 entry, as another process would leave it."""
    rules = policy(query.scope.project)
    now = stack.L2.fetch(query, rules.generation).store_now
    found = [Memory("1", "trà sen", query.scope.user_id, expiration_date=until, score=0.5)]
    entry = encode(found, version=version.number, as_of=now, ranking=ranking)
    assert stack.L2.put(query, entry, rules.generation, now)


def look(scope: Scope, *queries: Query, asked: Query | None = None) -> Inspection:
    return inspect.user(scope, policy(scope.project), queries, asked)


def question(scope: Scope, query: Query) -> Question:
    return look(scope, query).questions[0]


def why(found: Question) -> dict[str, tuple[str, str]]:
    return {held.layer: (held.verdict.outcome, held.verdict.why) for held in (*found.answers, found.vector)}


def search(query: Query) -> str:
    return read.search(query, policy(query.scope.project), Deadline.after(5)).layer


@pytest.fixture
def tea(ann) -> Query:
    return Query(ann, "Which food must I avoid?")


def test_of_a_user_never_seen_every_layer_says_no_entry(mem0, ann, tea):
    found = question(ann, tea)
    assert {layer: told[0] for layer, told in why(found).items()} == dict.fromkeys(("L0", "L1", "L2", "L3"), "miss")
    assert found.answered_by == search(tea) == "L4"


def test_the_layer_named_is_the_one_that_answers(mem0, ann, tea):
    version = move(ann)
    warm(ann, version)
    assert (question(ann, tea).answered_by, search(tea)) == ("L3", "L3")
    assert (question(ann, tea).answered_by, search(tea)) == ("L0", "L0")
    stack.L0.held.clear()
    assert (question(ann, tea).answered_by, search(tea)) == ("L2", "L2")
    move(ann)
    assert (question(ann, tea).answered_by, search(tea)) == ("L4", "L4")


def test_a_hit_tells_key_version_age_life_bytes_and_its_first_memories(ann, tea, redis):
    version = move(ann)
    fill(tea, version)
    held = question(ann, tea).answers[1]
    assert (held.verdict.outcome, held.verdict.why) == ("hit", "version equal")
    assert redis.exists(held.key)
    assert redis.strlen(held.key) == held.bytes
    assert held.version == version.number
    assert 0 <= held.age < 60
    assert 0 < held.left <= 86400
    assert [(item["memory"], item["score"]) for item in held.first] == [("trà sen", 0.5)]


def test_a_miss_names_both_versions(ann, tea):
    old = move(ann)
    fill(tea, old)
    warm(ann, old)
    new = move(ann)
    found = why(question(ann, tea))
    assert found["L2"] == ("miss", f"entry is of version {old.number}, the current is {new.number}")
    assert found["L3"] == ("miss", f"rows are of version {old.number}, the current is {new.number}")


def test_what_an_invalidation_made_unreachable_is_below_the_floor_in_every_layer(mem0, ann, tea):
    version = move(ann)
    warm(ann, version)
    search(tea)
    assert why(question(ann, tea))["L0"][0] == "hit"
    invalidate(ann, policy(ann.project))
    found = why(question(ann, tea))
    assert [found[layer][1].split(":")[0] for layer in ("L0", "L2", "L3")] == ["below the floor"] * 3


def test_an_entry_with_an_expired_memory_misses_as_expired(ann, tea, redis):
    version = move(ann)
    fill(tea, version, until=(datetime.now(UTC) + timedelta(days=2)).date().isoformat())
    name = keys.result(ann.pin, policy(ann.project).generation, tea.fingerprint)
    (entry, _), *_ = stack.L2.peek([tea], policy(ann.project).generation)
    from memory.layers.base import pack

    redis.set(name, pack(replace(entry, valid_until=entry.as_of - 1)), ex=60)
    assert why(question(ann, tea))["L2"][1].startswith("expired")


def test_where_the_policy_is_off_what_was_ranked_here_is_not_served(mem0, ann, tea, settings):
    version = move(ann)
    warm(ann, version)
    fill(tea, version, ranking="hybrid")
    settings.LOCAL_SEARCH = "degraded"
    projects.forget()
    found = question(ann, tea)
    assert why(found)["L2"] == (
        "off",
        "policy off: ranking hybrid, where local_search is degraded and local_ranking hybrid",
    )
    assert why(found)["L3"][0] == "off"
    assert found.answered_by == search(tea) == "L4"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"complete": False}, "L3 incomplete: Mem0 listed only some of the memories"),
        ({"made_by": "other/8"}, "vectors are of “other/8”, the embedder is “"),
    ],
)
def test_rows_that_may_not_stand_in_for_mem0_say_why(mem0, ann, tea, state, told):
    warm(ann, move(ann), **state)
    found = question(ann, tea)
    assert found.answers[2].verdict.why.startswith(told)
    assert found.answered_by == search(tea) == "L4"


def test_a_changed_policy_shows_what_this_process_still_holds_of_the_former(mem0, ann, tea):
    move(ann)
    search(tea)
    project = Project.objects.get(pk=ann.project)
    project.local_search = "off"
    projects.save(project)
    projects.forget()
    assert question(ann, tea).answers[0].verdict.why == "entry is of generation 1, the current is 2"


def test_a_cached_vector_is_told_with_what_is_left_of_its_life(ann, tea):
    from memory import embedders

    embedder: Embedder = embedders.get()
    CachedEmbedder(embedder, ann.project).embed([tea.text], "search")
    held = question(ann, tea).vector
    assert held.verdict.outcome == "hit"
    assert 0 < held.left <= 3600
    assert held.bytes == embedder.dimensions * 4


def test_looking_changes_nothing(mem0, ann, tea, redis):
    version = move(ann)
    warm(ann, version)
    search(tea)
    for name in redis.scan_iter():
        redis.expire(name, 1000)
    before = {name: redis.dump(name) for name in redis.scan_iter()}
    held = stack.L0.held.items()
    calls = list(mem0.calls)
    look(ann, tea, Query(ann, "Never asked"))
    assert {name: redis.dump(name) for name in redis.scan_iter()} == before
    assert all(redis.ttl(name) <= 1000 for name in before)
    assert stack.L0.held.items() == held
    assert mem0.calls == calls


def test_a_question_typed_in_is_also_ranked(ann, tea):
    warm(ann, move(ann))
    held = look(ann, asked=Query(ann, "Which pets do I have?")).questions[0].answers[2]
    assert held.first[0]["memory"] == "I keep two cats"


def test_what_this_process_holds_beside_the_warm_set_is_listed_and_nobody_elses(mem0, ann, ben, tea):
    for scope in (ann, ben):
        move(scope)
        search(Query(scope, "rain?"))
    found = look(ann, tea)
    assert [held.key for held in found.others] == [Query(ann, "rain?").fingerprint]
    assert look(replace(ann, project=Project.objects.create(name="B", slug="b", namespace="b").pk), tea).others == []


def test_the_copy_in_redis_is_told_beside_postgresql(ann, tea, redis):
    version = move(ann)
    state = look(ann, tea).version
    assert (state.stored.number, state.copy.number, state.verdict.outcome) == (version.number, version.number, "hit")
    with transaction.atomic():
        later = versions.move(ann.pins())[0]
    state = look(ann, tea).version
    assert (state.stored.number, state.current.number, state.verdict.outcome) == (
        later.number, version.number, "miss",
    )  # fmt: skip
    redis.flushall()
    assert look(ann, tea).version.verdict.why.startswith("no copy")


def test_without_redis_what_is_down_says_so_and_the_rest_is_told(mem0, ann, tea, dead_redis):
    with transaction.atomic():
        version = versions.move(ann.pins())[0]
    warm(ann, version)
    found = question(ann, tea)
    assert {layer: told[0] for layer, told in why(found).items()} == {
        "L0": "miss", "L1": "down", "L2": "down", "L3": "hit",
    }  # fmt: skip
    assert found.answered_by == search(tea) == "L3"
    assert look(ann, tea).version.verdict.outcome == "down"


def test_mem0s_list_beside_l3s_tells_what_differs(mem0, ann):
    policy_of_ann: Policy = policy(ann.project)
    version = move(ann)
    same, edited, gone = (mem0.store(ann, text) for text in ("tea", "coffee", "milk"))
    memories = list(mem0.rows)
    reading = Reading(version.number, True, memories, {}, "", l3_rows.fingerprint(memories))
    with transaction.atomic():
        stack.L3.save({ann: (reading, Summary({}, {}, [], {}, ""))})
    assert inspect.difference(ann, policy_of_ann, Deadline.after(5)).equal
    mem0.rows = [replace(row, text="Cà phê") if row.id == edited.id else row for row in mem0.rows if row.id != gone.id]
    new = mem0.store(ann, "water")
    found = inspect.difference(ann, policy_of_ann, Deadline.after(5))
    assert [memory.id for memory in found.only_upstream] == [new.id]
    assert [memory.id for memory in found.only_here] == [gone.id]
    assert [(here.text, there.text) for here, there in found.changed] == [("coffee", "Cà phê")]
    assert (found.same, found.here_current, found.equal) == (1, True, False)
    assert same.id in {memory.id for memory in memories}


def test_an_absent_mem0_is_an_error_of_the_comparison_alone(mem0, ann, tea):
    mem0.down = True
    with pytest.raises(OriginUnavailable):
        inspect.difference(ann, policy(ann.project), Deadline.after(5))
    assert question(ann, tea).answered_by == "L4"
