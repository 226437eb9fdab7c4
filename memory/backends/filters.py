"""Search filters in the one form that Mem0's open-source server reads as they are meant.

It wants ids at the top level, where the platform's form nests them in AND. And it merges an AND into the top level, the
last one winning: {"user_id": "ann", "AND": [{"user_id": "ben"}]} finds Ben's memories. So nothing about a pinned id is
passed on, and no key twice; what cannot be said in its terms is refused rather than answered wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memory.errors import OriginRejected
from memory.types import Scope

IDS = ("user_id", "agent_id", "run_id")
NUMERIC = frozenset({"gt", "gte", "lt", "lte"})
LISTS = frozenset({"in", "nin"})
OPERATORS = frozenset({"eq", "ne", "contains", "icontains"}) | NUMERIC | LISTS
EVERY = "*"


def check_id(name: str, value: str) -> str:
    """The id itself. OriginRejected for one that Mem0 would change, refuse, or (`*`) take as "everyone's"."""
    if not value or value == EVERY or any(char.isspace() for char in value) or not storable(value):
        raise OriginRejected(f"{name} must be an id without white space or NUL, and not '*'")
    return value


def storable(value: Any) -> bool:
    """Whether PostgreSQL can keep every text inside: it takes neither NUL nor half a surrogate pair."""
    if isinstance(value, str):
        return "\0" not in value and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))
    if isinstance(value, Mapping):
        return all(storable(key) and storable(inner) for key, inner in value.items())
    return not isinstance(value, list | tuple) or all(map(storable, value))


def for_search(scope: Scope, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to send as `filters`; None when no memory can match. ValueError for a scope without ids."""
    ids = {name: check_id(name, value) for name, value in scope.ids().items()}
    if not ids:
        raise ValueError("a search needs a user_id, agent_id or run_id")
    found: dict[str, Any] = {}
    pinned: list[tuple[str, Any]] = []
    for key, condition in _flat(conditions):
        if key not in IDS:
            _add(found, key, condition)
        elif key in ids:
            pinned.append((key, condition))
        else:
            ids[key] = _equal(key, condition)
    if not all(_holds(ids[key], _checked(key, condition)) for key, condition in pinned):
        return None
    return {**ids, **found}


def compares_numbers(filters: Mapping[str, Any]) -> bool:
    """Whether a condition makes PostgreSQL read metadata as numbers: Mem0 answers 502 where a value is none."""
    for condition in filters.values():
        groups = condition if isinstance(condition, list) else [condition]
        for group in groups:
            if isinstance(group, Mapping) and (NUMERIC & group.keys() or compares_numbers(group)):
                return True
    return False


def _flat(conditions: Any) -> Iterator[tuple[str, Any]]:
    """Conditions with every AND taken apart."""
    if not isinstance(conditions, Mapping):
        raise OriginRejected("filters must be objects")
    for key, condition in conditions.items():
        if key != "AND":
            yield key, condition
            continue
        if not isinstance(condition, list):
            raise OriginRejected("AND takes a list")
        for part in condition:
            yield from _flat(part)


def _add(found: dict[str, Any], key: str, condition: Any) -> None:
    if key.startswith("$"):
        raise OriginRejected("filters have no keys that begin with '$'")
    condition = _groups(key, condition) if key in ("OR", "NOT") else _checked(key, condition)
    before = found.get(key)
    if key not in found or before == condition:
        found[key] = condition
    elif key == "NOT":
        found[key] = before + condition
    elif isinstance(before, dict) and isinstance(condition, dict) and not before.keys() & condition.keys():
        found[key] = before | condition
    else:
        raise OriginRejected("Mem0 cannot combine these conditions on one key")


def _groups(key: str, groups: Any) -> list[Any]:
    """The alternatives of an OR or NOT; Mem0 reads one level of them."""
    if not isinstance(groups, list) or not groups or not all(isinstance(group, Mapping) for group in groups):
        raise OriginRejected(f"{key} takes a list of objects")
    for group in groups:
        for inner, condition in group.items():
            if inner in ("AND", "OR", "NOT") or inner.startswith("$"):
                raise OriginRejected(f"Mem0 reads no {inner} inside {key}")
            _checked(inner, condition)
    return list(groups)


def _checked(key: str, condition: Any) -> Any:
    """A condition whose operators Mem0 knows, with values it can compare."""
    if not isinstance(condition, Mapping):
        return condition
    if not condition or not condition.keys() <= OPERATORS:
        raise OriginRejected(f"filters know the operators {', '.join(sorted(OPERATORS))}")
    for operator, value in condition.items():
        if operator in LISTS and not isinstance(value, list):
            raise OriginRejected(f"{operator} takes a list")
        if operator in NUMERIC and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise OriginRejected(f"{operator} takes a number")
    return dict(condition)


def _equal(key: str, condition: Any) -> str:
    """The id that a condition pins, or `*` for any. Mem0 fails on operators here."""
    if isinstance(condition, Mapping) and condition.keys() == {"eq"}:
        condition = condition["eq"]
    if not isinstance(condition, str):
        raise OriginRejected(f"Mem0 compares {key} for equality only")
    return condition if condition == EVERY else check_id(key, condition)


def _holds(value: str, condition: Any) -> bool:
    """Whether a pinned id meets a condition on it."""
    if condition == EVERY:
        return True
    if isinstance(condition, list):
        return value in map(str, condition)
    if not isinstance(condition, dict):
        return value == str(condition)
    return all(_meets(value, operator, wanted) for operator, wanted in condition.items())


def _meets(value: str, operator: str, wanted: Any) -> bool:
    match operator:
        case "eq" | "ne":
            return (value == str(wanted)) == (operator == "eq")
        case "in" | "nin":
            return (value in map(str, wanted)) == (operator == "in")
        case "contains":
            return str(wanted) in value
        case "icontains":
            return str(wanted).lower() in value.lower()
    raise OriginRejected(f"{operator} does not compare ids")
