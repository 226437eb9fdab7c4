"""Filters as Mem0's server reads them: hoisted, and never able to widen a scope."""

from __future__ import annotations

from typing import Any

import pytest

from memory.backends.filters import for_search
from memory.errors import OriginRejected
from memory.types import Scope

ANN = Scope(1, "ann")


@pytest.mark.parametrize(
    ("conditions", "sent"),
    [
        ({}, {}),
        ({"cat": "a", "n": {"gte": 2}}, {"cat": "a", "n": {"gte": 2}}),
        ({"AND": [{"user_id": "ann"}, {"n": {"gte": 2}}]}, {"n": {"gte": 2}}),
        ({"AND": [{"AND": [{"cat": "a"}]}, {"cat": "a"}]}, {"cat": "a"}),
        ({"AND": [{"n": {"gte": 2}}, {"n": {"lt": 5}}]}, {"n": {"gte": 2, "lt": 5}}),
        ({"agent_id": "bot"}, {"agent_id": "bot"}),
        ({"AND": [{"agent_id": {"eq": "bot"}}]}, {"agent_id": "bot"}),
        ({"run_id": "*"}, {"run_id": "*"}),
        ({"user_id": {"in": ["ann", "ben"]}}, {}),
        ({"user_id": "*"}, {}),
        ({"user_id": {"ne": "ben"}}, {}),
        ({"OR": [{"cat": "a"}, {"n": 1}]}, {"OR": [{"cat": "a"}, {"n": 1}]}),
        ({"NOT": [{"cat": "a"}], "AND": [{"NOT": [{"n": 1}]}]}, {"NOT": [{"cat": "a"}, {"n": 1}]}),
    ],
)
def test_conditions_are_put_as_mem0_reads_them(conditions: dict[str, Any], sent: dict[str, Any]) -> None:
    assert for_search(ANN, conditions) == {"user_id": "ann", **sent}


@pytest.mark.parametrize(
    "conditions",
    [
        {"user_id": "ben"},
        {"AND": [{"user_id": "ben"}]},
        {"AND": [{"user_id": {"ne": "ann"}}]},
        {"AND": [{"AND": [{"user_id": {"in": ["ben"]}}]}]},
        {"user_id": {"nin": ["ann"]}},
        {"user_id": ["ben", "cy"]},
        {"user_id": {"contains": "x"}},
    ],
)
def test_what_contradicts_the_scope_matches_nothing(conditions: dict[str, Any]) -> None:
    assert for_search(ANN, conditions) is None


@pytest.mark.parametrize(
    "conditions",
    [
        {"AND": {"cat": "a"}},
        {"OR": []},
        {"OR": [{"AND": [{"cat": "a"}]}]},
        {"NOT": [{"OR": [{"cat": "a"}]}]},
        {"$or": [{"user_id": "ben"}]},
        {"OR": [{"$or": [{"user_id": "ben"}]}]},
        {"n": {"foo": 1}},
        {"n": {}},
        {"n": {"gte": "2"}},
        {"n": {"in": 2}},
        {"AND": [{"cat": "a"}, {"cat": "b"}]},
        {"AND": [{"OR": [{"cat": "a"}]}, {"OR": [{"cat": "b"}]}]},
        {"agent_id": {"in": ["a", "b"]}},
        {"AND": [{"agent_id": {"ne": "bot"}}]},
        {"agent_id": "a b"},
        {"user_id": {"gt": 1}},
    ],
)
def test_what_mem0_would_misread_is_refused(conditions: dict[str, Any]) -> None:
    with pytest.raises(OriginRejected):
        for_search(ANN, conditions)


@pytest.mark.parametrize("name", ["", "*", "a b", "a\tb", " ann", "ann\n", "a\0b", "a\ud800b", "a\u2003b"])
def test_an_id_that_mem0_would_change_or_take_for_everyone_is_refused(name: str) -> None:
    with pytest.raises(OriginRejected):
        for_search(Scope(1, name), {})


@pytest.mark.parametrize("name", ["auth0|4", "a/b", "Nguyễn", "a*b", "🧑‍🚀", "100%", "a\u200db"])
def test_any_other_id_is_passed_as_it_is(name: str) -> None:
    assert for_search(Scope(1, name), {}) == {"user_id": name}


def test_a_scope_without_ids_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="user_id"):
        for_search(Scope(1), {"agent_id": "bot"})
