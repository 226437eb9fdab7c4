"""Filters of the Mem0 Platform: ids and conditions on metadata in one object, as searches that each pin an id.

An OR over ids, or `in`, becomes one search for each alternative: each then has one version and one cache entry
(PROTOCOL B4). What cannot be brought into this form is refused, never ignored.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import orjson

from memory.api.fields import Ident, Wrong
from memory.api.filters import MAX_CONDITIONS, Filters

PINS = ("user_id", "agent_id", "run_id")
APP = "app_id"
"""Mem0's own server knows no apps: memsvc keeps the id in the metadata, under this name."""
UNKNOWN = frozenset({"categories", "keywords", "memory_ids", "feedback", "feedback_reason"})
"""What the Platform derives or keeps beside a memory, and nobody else does."""
MAX_BRANCHES = 20
MAX_TEXT = 4096
EVERY = "*"

_ID = Ident()


@dataclass(frozen=True)
class Branch:
    """One alternative: ids that must be equal, ids that must be there, and conditions on metadata as canonical JSON."""

    ids: Mapping[str, str]
    present: frozenset[str] = frozenset()
    conditions: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is ids and nothing else."""
        return not self.present and not self.conditions

    def filters(self) -> str:
        """The conditions as a search takes them, `*` for an id that must be there."""
        if not self.present:
            return self.conditions
        found = orjson.loads(self.conditions or "{}") | dict.fromkeys(self.present, EVERY)
        return orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True)
class _Part:
    ids: Mapping[str, str] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    rest: tuple[Mapping[str, Any], ...] = ()
    apps: tuple[Any, ...] = ()


def branches(value: Any) -> list[Branch]:
    """The alternatives of a filter, each with an id at least; none where the filter contradicts itself. Wrong."""
    if not isinstance(value, dict):
        raise Wrong("must be an object")
    found: dict[tuple[Any, ...], Branch] = {}
    for part in _expanded(value, 6):
        if not part.ids:
            raise Wrong("must name a user_id, agent_id or run_id, as one value or with in")
        branch = Branch(part.ids, part.present.difference(part.ids), _conditions(part))
        found[(tuple(sorted(branch.ids.items())), branch.present, branch.conditions)] = branch
    return list(found.values())


def from_text(text: str) -> Any:
    """The filter in a query string: JSON, or Python's own notation, as its client sends it. Wrong for anything else."""
    if len(text) > MAX_TEXT:
        raise Wrong(f"may have at most {MAX_TEXT} characters")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Wrong("must be an object as JSON") from None


def _expanded(value: Mapping[str, Any], depth: int) -> list[_Part]:
    """An object whose conditions must all hold, as alternatives."""
    if depth == 0:
        raise Wrong("is nested too deeply")
    parts = [_Part()]
    for key, condition in value.items():
        parts = _joined(parts, _alternatives(key, condition, depth))
    return parts


def _alternatives(key: str, condition: Any, depth: int) -> list[_Part]:
    if key == "AND" or (key in ("OR", "NOT") and _names_ids(condition, depth)):
        return _logic(key, _objects(key, condition), depth)
    if key in PINS:
        return _pinned(key, condition)
    if key in UNKNOWN:
        raise Wrong(
            errors=[(f".{key}", "is nothing that memsvc keeps; for metadata of that name use {'metadata': {...}}")]
        )
    if key == "metadata" and isinstance(condition, dict):
        return [_Part(rest=tuple({name: inner} for name, inner in condition.items()))]
    if key == APP:
        return [_Part(apps=(condition,))]
    return [_Part(rest=({key: condition},))]


def _logic(key: str, inner: list[Mapping[str, Any]], depth: int) -> list[_Part]:
    if key == "NOT":
        raise Wrong("may not exclude ids: Mem0 would look through everyone's memories")
    if key == "OR":
        return [part for one in inner for part in _expanded(one, depth - 1)]
    parts = [_Part()]
    for each in inner:
        parts = _joined(parts, _expanded(each, depth - 1))
    return parts


def _pinned(key: str, condition: Any) -> list[_Part]:
    if isinstance(condition, dict) and len(condition) == 1:
        operator, operand = next(iter(condition.items()))
        if operator == "in" and isinstance(operand, list) and operand:
            return [part for value in dict.fromkeys(map(str, operand)) for part in _pinned(key, value)]
        condition = operand if operator == "eq" else condition
    if condition == EVERY:
        return [_Part(present=frozenset({key}))]
    if not isinstance(condition, str):
        raise Wrong(errors=[(f".{key}", "takes an id, {'eq': id}, {'in': [ids]} or '*'")])
    try:
        return [_Part(ids={key: _ID.check(condition)})]
    except Wrong as wrong:
        raise Wrong(errors=[(f".{key}", message) for _, message in wrong.errors]) from None


def _joined(parts: list[_Part], others: list[_Part]) -> list[_Part]:
    """What meets one of each, no more than a search may ask for: a list of lists would multiply without end."""
    found = []
    for one, other in product(parts, others):
        if (both := _both(one, other)) is None:
            continue
        if len(both.rest) + len(both.apps) > MAX_CONDITIONS:
            raise Wrong(f"may have at most {MAX_CONDITIONS} conditions")
        found.append(both)
        if len(found) > MAX_BRANCHES:
            raise Wrong(f"may have at most {MAX_BRANCHES} alternatives of ids")
    return found


def _both(one: _Part, other: _Part) -> _Part | None:
    """What meets both; None where they contradict each other on an id."""
    if any(one.ids[name] != other.ids[name] for name in one.ids.keys() & other.ids.keys()):
        return None
    return _Part(
        {**one.ids, **other.ids},
        one.present | other.present,
        (*one.rest, *other.rest),
        (*one.apps, *other.apps),
    )


def _conditions(part: _Part) -> str:
    canonical = Filters().check({"AND": list(part.rest)}) if part.rest else ""
    if not part.apps:
        return canonical
    found = orjson.loads(canonical or "{}")
    for condition in part.apps:
        # The checks are those of any other condition; only the name is one that requests may not use.
        checked = orjson.loads(Filters().check({"app": condition}))["app"]
        if found.setdefault(APP, checked) != checked:
            raise Wrong(errors=[(f".{APP}", "has two conditions")])
    return orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


def _objects(key: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise Wrong(errors=[(f".{key}", "takes a list of objects")])
    return value


def _names_ids(value: Any, depth: int) -> bool:
    if depth == 0:
        raise Wrong("is nested too deeply")
    if isinstance(value, dict):
        return any(key in PINS or _names_ids(inner, depth - 1) for key, inner in value.items())
    return isinstance(value, list) and any(_names_ids(inner, depth - 1) for inner in value)
