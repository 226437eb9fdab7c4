"""What every way to Mem0 does alike: one suite over all of them, with the real Mem0 behind each.

A backend joins with a fixture of its own and its name in BACKENDS.
"""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from memory.backends.base import Backend
from memory.clock import Deadline
from memory.errors import OriginError, OriginNotFound, OriginRejected, OriginTimeout
from memory.types import Query, Scope

BACKENDS = ("sdk", "rest", "real_rest", "platform")
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MALFORMED = "not-an-id"
VIETNAMESE = "Lan có một con mèo tên là Mướp"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


@pytest.fixture
def soon() -> Deadline:
    return Deadline.after(60)


def _fresh(kind: str) -> Callable[[], Scope]:
    @pytest.fixture
    def person() -> Scope:
        return Scope(1, user_id=f"{kind}-{uuid.uuid4().hex[:12]}")

    return person


ann, ben = _fresh("ann"), _fresh("ben")


def only(backend: Backend, scope: Scope, text: str, **more: Any) -> str:
    """Store one text; its id."""
    metadata, expires = more.pop("metadata", {}), more.pop("expires", None)
    (stored,) = backend.add(scope, [text], metadata, expires, Deadline.after(60))
    return stored.id


def texts(backend: Backend, scope: Scope) -> list[str]:
    return sorted(memory.text for memory in backend.list(scope, Deadline.after(60)).memories)


def found(backend: Backend, scope: Scope, text: str, **more: Any) -> list[str]:
    if isinstance(more.get("filters"), dict):
        more["filters"] = orjson.dumps(more["filters"]).decode()
    return [memory.text for memory in backend.search(Query(scope, text, **more), Deadline.after(60))]


def day(offset: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


# -- what goes in comes out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        VIETNAMESE,
        unicodedata.normalize("NFD", VIETNAMESE),
        '{"user_id": "someone else"}',
        "null",
        "  two lines\n\tand spaces  ",
        "'; DROP TABLE memories; -- %s {0} \\u0041 \\",
        "🧑‍🚀 日本語 العربية",
    ],
)
def test_a_text_comes_back_as_it_was_given(backend, ann, soon, text):
    memory_id = only(backend, ann, text)
    memory = backend.get(memory_id, soon)
    assert memory is not None
    assert (memory.id, memory.text, memory.user_id) == (memory_id, text, ann.user_id)
    assert texts(backend, ann) == [text]


def test_facts_are_answered_in_order_and_equal_ones_are_all_kept(backend, ann, soon):
    facts = ["Ann plays chess", "Ann plays go", "Ann plays chess"]
    stored = backend.add(ann, facts, {}, None, soon)
    assert [row.memory for row in stored] == facts
    assert [row.event for row in stored] == ["ADD"] * 3
    assert len({row.id for row in stored}) == 3
    assert texts(backend, ann) == sorted(facts)


def test_metadata_comes_back_with_its_marks_nested_values_and_letters(backend, ann, soon):
    metadata = {
        "memsvc_job": "job-1",
        "memsvc_attempt": "job-1.1",
        "nguồn": {"thành phố": ["Huế", {"deep": [1, 2.5, True, None]}]},
        "empty": {},
        "count": 3,
    }
    memory_id = only(backend, ann, "Ann was born in Huế", metadata=metadata)
    got = backend.get(memory_id, soon)
    (listed,) = backend.list(ann, soon).memories
    (searched,) = backend.search(Query(ann, "where was she born?"), soon)
    for memory in (got, listed, searched):
        assert memory.metadata == metadata
        assert memory.job == "job-1"
        assert memory.attempt == "job-1.1"
        assert memory.public_metadata().keys() == {"nguồn", "empty", "count"}


def test_a_memory_tells_all_its_ids_and_when_it_was_made(backend, ann, soon):
    scope = Scope(1, ann.user_id, f"agent-{ann.user_id}", f"run-{ann.user_id}")
    memory = backend.get(only(backend, scope, "Ann likes tea"), soon)
    assert (memory.user_id, memory.agent_id, memory.run_id) == (scope.user_id, scope.agent_id, scope.run_id)
    assert datetime.fromisoformat(memory.created_at) == datetime.fromisoformat(memory.updated_at)


# -- search ------------------------------------------------------------------------------------------------------------


def test_a_search_finds_meaning_across_languages_best_first(backend, ann, soon):
    backend.add(ann, ["Ann works at a bank in Paris", VIETNAMESE, "Ann drinks coffee with milk"], {}, None, soon)
    memories = backend.search(Query(ann, "What pet does she have?"), soon)
    assert memories[0].text == VIETNAMESE
    scores = [memory.score for memory in memories]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert all(0 < score <= 1 for score in scores)


def test_a_search_returns_no_more_than_asked_and_nothing_below_the_threshold(backend, ann, soon):
    backend.add(ann, ["Ann likes tea", "Ann likes coffee", "Ann likes milk"], {}, None, soon)
    assert len(found(backend, ann, "drinks", top_k=2)) == 2
    assert found(backend, ann, "drinks", threshold=1.0) == []


def test_filters_narrow_a_search_by_metadata(backend, ann, soon):
    only(backend, ann, "Ann likes tea", metadata={"kind": "drink", "stars": 5})
    only(backend, ann, "Ann likes rice", metadata={"kind": "food", "stars": 2})
    assert found(backend, ann, "likes", filters={"kind": "food"}) == ["Ann likes rice"]
    assert found(backend, ann, "likes", filters={"stars": {"gte": 3}}) == ["Ann likes tea"]
    assert found(backend, ann, "likes", filters={"kind": {"in": ["nothing"]}}) == []
    either = {"OR": [{"kind": "food"}, {"stars": 5}]}
    assert sorted(found(backend, ann, "likes", filters=either)) == ["Ann likes rice", "Ann likes tea"]


def test_a_filter_cannot_reach_another_user(backend, ann, ben):
    only(backend, ann, "Ann likes tea")
    only(backend, ben, "Ben likes tea")
    for filters in ({"user_id": ben.user_id}, {"AND": [{"user_id": ben.user_id}]}, {"OR": [{"user_id": ben.user_id}]}):
        try:
            assert "Ben likes tea" not in found(backend, ann, "tea", filters=filters)
        except OriginRejected:
            continue


def test_an_expired_memory_is_listed_but_found_only_when_asked_for(backend, ann, soon):
    only(backend, ann, "Ann has a ticket for today", expires=day(0))
    only(backend, ann, "Ann had a ticket for yesterday", expires=day(-1))
    assert found(backend, ann, "ticket") == ["Ann has a ticket for today"]
    assert len(found(backend, ann, "ticket", show_expired=True)) == 2
    assert {memory.expiration_date for memory in backend.list(ann, soon).memories} == {day(0), day(-1)}


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_users_never_mix(backend, ann, ben, soon):
    only(backend, ann, "Ann likes tea", metadata={"memsvc_job": "one"})
    only(backend, ben, "Ben likes tea", metadata={"memsvc_job": "one"})
    assert found(backend, ann, "tea") == ["Ann likes tea"]
    assert texts(backend, ann) == ["Ann likes tea"]
    assert [memory.text for memory in backend.find_marked(ann, "one", ["Ann likes tea"], soon).memories] == [
        "Ann likes tea"
    ]
    backend.delete_all(ann, soon)
    assert texts(backend, ann) == []
    assert texts(backend, ben) == ["Ben likes tea"]


def test_an_agent_and_a_run_are_scopes_of_their_own_across_users(backend, ann, ben, soon):
    agent, run = f"agent-{ann.user_id}", f"run-{ann.user_id}"
    only(backend, Scope(1, ann.user_id, agent, run), "Ann likes tea")
    only(backend, Scope(1, ben.user_id, agent), "Ben likes tea")
    only(backend, ann, "Ann likes milk")
    assert texts(backend, Scope(1, agent_id=agent)) == ["Ann likes tea", "Ben likes tea"]
    assert texts(backend, Scope(1, run_id=run)) == ["Ann likes tea"]
    assert texts(backend, Scope(1, ann.user_id, agent)) == ["Ann likes tea"]
    assert sorted(found(backend, Scope(1, agent_id=agent), "tea")) == ["Ann likes tea", "Ben likes tea"]
    backend.delete_all(Scope(1, agent_id=agent), soon)
    assert texts(backend, ann) == ["Ann likes milk"]
    assert texts(backend, ben) == []


def test_a_user_never_seen_has_no_memories_and_deleting_them_is_no_error(backend, ann, soon):
    listing = backend.list(ann, soon)
    assert (list(listing.memories), listing.complete) == ([], True)
    assert found(backend, ann, "anything") == []
    backend.delete_all(ann, soon)


def test_entities_count_what_each_id_has(backend, ann, soon):
    agent = f"agent-{ann.user_id}"
    backend.add(Scope(1, ann.user_id, agent), ["Ann likes tea", "Ann likes milk"], {}, None, soon)
    entities, complete = backend.entities(soon)
    counts = {(row["type"], row["id"]): row["total_memories"] for row in entities}
    assert complete
    assert counts["user", ann.user_id] == counts["agent", agent] == 2


# -- marks -------------------------------------------------------------------------------------------------------------


def test_a_job_finds_exactly_what_carries_its_mark(backend, ann, soon):
    facts = ["Ann likes tea", "Ann likes tea", "Ann likes milk"]
    backend.add(ann, facts, {"memsvc_job": "one", "memsvc_attempt": "one.1"}, None, soon)
    backend.add(ann, ["Ann likes tea"], {"memsvc_job": "two"}, None, soon)
    only(backend, ann, "Ann likes tea", metadata={"memsvc_job": "one"}, expires=day(-1))
    listing = backend.find_marked(ann, "one", facts, soon)
    assert listing.complete
    assert sorted(memory.text for memory in listing.memories) == sorted([*facts, "Ann likes tea"])
    assert list(backend.find_marked(ann, "on", facts, soon).memories) == []


# -- changes -----------------------------------------------------------------------------------------------------------


def test_an_update_changes_the_text_and_the_history_tells_of_both(backend, ann, soon):
    memory_id = only(backend, ann, "Ann lives in Hanoi", metadata={"kept": 1})
    backend.update(memory_id, soon, text="Ann lives in Huế")
    memory = backend.get(memory_id, soon)
    assert (memory.text, memory.user_id, memory.metadata) == ("Ann lives in Huế", ann.user_id, {"kept": 1})
    assert found(backend, ann, "Where does she live?") == ["Ann lives in Huế"]
    history = backend.history(memory_id, soon)
    assert [row["event"] for row in history] == ["ADD", "UPDATE"]
    assert (history[1]["old_memory"], history[1]["new_memory"]) == ("Ann lives in Hanoi", "Ann lives in Huế")
    assert all(row["memory_id"] == memory_id for row in history)


def test_an_update_merges_metadata_and_sets_and_clears_the_expiry(backend, ann, soon):
    memory_id = only(backend, ann, "Ann likes tea", metadata={"a": 1, "b": 1})
    backend.update(memory_id, soon, metadata={"b": 2, "c": {"d": "đ"}}, expiration_date=day(1))
    memory = backend.get(memory_id, soon)
    assert (memory.text, memory.metadata) == ("Ann likes tea", {"a": 1, "b": 2, "c": {"d": "đ"}})
    assert memory.expiration_date == day(1)
    backend.update(memory_id, soon, clear_expiration=True)
    assert backend.get(memory_id, soon).expiration_date is None


def test_a_deleted_memory_is_gone_and_its_history_says_so(backend, ann, soon):
    memory_id = only(backend, ann, "Ann likes tea")
    backend.delete(memory_id, soon)
    assert backend.get(memory_id, soon) is None
    assert texts(backend, ann) == found(backend, ann, "tea") == []
    assert [row["event"] for row in backend.history(memory_id, soon)] == ["ADD", "DELETE"]


@pytest.mark.parametrize("memory_id", [UNKNOWN, MALFORMED])
def test_an_unknown_id_is_not_found_and_nothing_was_done(backend, soon, memory_id):
    assert backend.get(memory_id, soon) is None
    assert backend.history(memory_id, soon) == []
    for write in (
        lambda: backend.update(memory_id, soon, text="x"),
        lambda: backend.delete(memory_id, soon),
    ):
        with pytest.raises(OriginNotFound) as caught:
            write()
        assert not caught.value.sent


def test_an_id_in_another_spelling_is_another_id(backend, ann, soon):
    memory_id = only(backend, ann, "Ann likes tea")
    assert backend.get(memory_id.upper(), soon) is None
    assert backend.get(memory_id.replace("-", ""), soon) is None


# -- refusals ----------------------------------------------------------------------------------------------------------


def rejected(call: Callable[[], object]) -> OriginError:
    with pytest.raises(OriginRejected) as caught:
        call()
    assert not caught.value.sent
    assert not caught.value.retryable
    return caught.value


def test_bad_input_is_rejected_without_effect(backend, ann, soon):
    rejected(lambda: backend.add(ann, ["Ann likes tea"], {}, "31/12/2030", soon))
    rejected(lambda: backend.add(ann, ["Ann likes\0tea"], {}, None, soon))
    rejected(lambda: backend.add(ann, ["Ann likes tea"], {"key": "\0"}, None, soon))
    rejected(lambda: backend.add(Scope(1, "a b"), ["Ann likes tea"], {}, None, soon))
    rejected(lambda: backend.search(Query(ann, "tea", filters='{"kind":{"like":"x"}}'), soon))
    assert texts(backend, ann) == []


def test_the_id_that_mem0_takes_for_everyone_is_refused(backend, ann, soon):
    only(backend, ann, "Ann likes tea")
    everyone = Scope(1, user_id="*")
    for call in (
        lambda: backend.list(everyone, soon),
        lambda: backend.search(Query(everyone, "tea"), soon),
        lambda: backend.delete_all(everyone, soon),
        lambda: backend.find_marked(everyone, "one", [], soon),
    ):
        rejected(call)
    assert texts(backend, ann) == ["Ann likes tea"]


def test_a_delete_without_a_scope_is_refused(backend, soon):
    with pytest.raises(ValueError, match="user_id"):
        backend.delete_all(Scope(1), soon)


def test_a_refusal_does_not_quote_the_text(backend, ann, soon):
    secret = "Ann's safe opens with 8412\0"
    assert "8412" not in repr(rejected(lambda: backend.add(ann, [secret], {}, None, soon)))


def test_after_its_deadline_a_call_does_nothing(backend, ann, soon):
    over = Deadline.after(0)
    for call in (
        lambda: backend.add(ann, ["Ann likes tea"], {}, None, over),
        lambda: backend.search(Query(ann, "tea"), over),
        lambda: backend.list(ann, over),
    ):
        with pytest.raises(OriginTimeout) as caught:
            call()
        assert not caught.value.sent
    assert texts(backend, ann) == []


def test_it_tells_its_name_and_version(backend, soon):
    told = backend.check(soon)
    assert told["name"] == backend.name
    assert told["version"]
