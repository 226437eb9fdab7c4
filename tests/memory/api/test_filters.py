"""Filters in one canonical form, which Mem0 evaluates as it is meant."""

from __future__ import annotations

import pytest

from memory.api.fields import Wrong
from memory.api.filters import Filters


def canonical(value: object) -> str:
    return Filters().check(value)


def test_no_conditions_are_no_filter():
    assert canonical({}) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"AND": [{"a": 1}, {"b": 2}]}, {"a": 1, "b": 2}),
        ({"AND": [{"AND": [{"a": 1}]}, {"b": 2}]}, {"a": 1, "b": 2}),
        ({"AND": [{"n": {"gt": 1}}, {"n": {"lt": 5}}]}, {"n": {"lt": 5, "gt": 1}}),
        ({"AND": [{"a": 1}, {"a": 1}]}, {"a": 1}),
        ({"a": {"eq": "x"}}, {"a": "x"}),
        ({"a": {"in": ["y", "x", "x"]}}, {"a": {"in": ["x", "y"]}}),
        ({"OR": [{"a": 1}, {"b": 2}]}, {"OR": [{"b": 2}, {"a": 1}, {"a": 1}]}),
        ({"OR": [{"OR": [{"a": 1}, {"b": 2}]}, {"c": 3}]}, {"OR": [{"a": 1}, {"b": 2}, {"c": 3}]}),
        ({"OR": [{"AND": [{"a": 1}, {"b": 2}]}]}, {"OR": [{"a": 1, "b": 2}]}),
        ({"AND": [{"OR": [{"a": 1}, {"b": 2}]}, {"c": 3}]}, {"OR": [{"a": 1}, {"b": 2}], "c": 3}),
        ({"AND": [{"NOT": [{"a": 1}]}, {"NOT": [{"b": 2}]}]}, {"NOT": [{"a": 1}, {"b": 2}]}),
        ({"NOT": [{"OR": [{"a": 1}, {"b": 2}]}]}, {"NOT": [{"b": 2}, {"a": 1}]}),
    ],
)
def test_filters_that_say_the_same_are_the_same(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}),
        ({"a": True}, {"a": 1}),
        ({"OR": [{"a": 1}, {"b": 2}]}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": "*"}),
    ],
)
def test_filters_that_differ_stay_apart(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"user_id": "ben"}, ".user_id"),
        ({"AND": [{"a": 1}, {"OR": [{"run_id": "x"}]}]}, ".AND[1].OR[0].run_id"),
        ({"a": {"gt": "1"}}, ".a.gt"),
        ({"OR": [{"a": 1}, {"NOT": [{"b": 1}]}]}, ".OR[1].NOT"),
    ],
)
def test_what_is_refused_is_named_with_its_place(value, field):
    with pytest.raises(Wrong) as wrong:
        canonical(value)
    assert [path for path, _ in wrong.value.errors] == [field]
