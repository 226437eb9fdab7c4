"""Search filters: metadata conditions in one canonical form, so that equal filters share a cache entry.

The form is what Mem0 evaluates as it is meant: conditions that must all hold, at most one list of alternatives (OR) and
one of exclusions (NOT), neither with further logic inside. Mem0 silently misreads anything deeper, so what cannot be
brought into this form is refused.
"""

from __future__ import annotations

from typing import Any

import orjson

from memory.api.fields import RESERVED_METADATA, Schema, Wrong, storable

MAX_DEPTH = 5
MAX_CONDITIONS = 50
MAX_KEY = 255
IDS = frozenset({"user_id", "agent_id", "run_id", "app_id"})
LOGIC = frozenset({"AND", "OR", "NOT"})
COMPARE = frozenset({"gt", "gte", "lt", "lte"})
MEMBER = frozenset({"in", "nin"})
WITHIN = frozenset({"contains", "icontains"})
OPERATORS = COMPARE | MEMBER | WITHIN | {"eq", "ne"}

_TOO_DEEP = "Mem0 does not evaluate {inner} inside {outer}; it reads one list of OR and one of NOT at the top"

Conditions = dict[str, Any]


class Filters:
    """Conditions on metadata, as canonical JSON; the empty string for none."""

    def check(self, value: Any) -> str:
        """See fields.Field."""
        if not isinstance(value, dict):
            raise Wrong("must be an object")
        storable(value, MAX_DEPTH * 2 + 2)
        if _count(value, MAX_DEPTH) > MAX_CONDITIONS:
            raise Wrong(f"may have at most {MAX_CONDITIONS} conditions")
        canonical = _all_of(value, "", "the top")
        return orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS).decode() if canonical else ""

    def schema(self) -> Schema:
        """See fields.Field."""
        return {
            "type": "object",
            "additionalProperties": True,
            "description": "Conditions on metadata: {key: value}, {key: {operator: value}} or {key: '*'}, "
            f"operators {', '.join(sorted(OPERATORS))}; AND, OR and NOT take lists of such objects.",
        }


def _count(value: Any, depth: int) -> int:
    if depth < 0:
        raise Wrong(f"may be nested at most {MAX_DEPTH} deep")
    total = 0
    for key, condition in value.items():
        if key in LOGIC and isinstance(condition, list):
            total += sum(_count(part, depth - 1) if isinstance(part, dict) else 1 for part in condition)
        else:
            total += len(condition) if isinstance(condition, dict) else 1
    return total


def _all_of(value: Conditions, path: str, outer: str) -> Conditions:
    """An object whose conditions must all hold, every AND in it taken apart."""
    found: Conditions = {}
    for key, condition in value.items():
        where = f"{path}.{key}"
        if key == "AND":
            for index, part in enumerate(_parts(condition, where)):
                for name, inner in _all_of(part, f"{where}[{index}]", outer).items():
                    _join(found, name, inner, f"{where}[{index}].{name}")
        elif key in LOGIC:
            if outer != "the top":
                raise Wrong(errors=[(where, _TOO_DEEP.format(inner=key, outer=outer))])
            _join(found, key, _alternatives(key, _parts(condition, where), where), where)
        else:
            _join(found, key, _condition(key, condition, where), where)
    return found


def _alternatives(key: str, parts: list[Conditions], path: str) -> list[Conditions]:
    """The list of an OR or NOT, an OR that stands alone in it taken apart; sorted, each once."""
    found: dict[bytes, Conditions] = {}
    for index, part in enumerate(parts):
        where = f"{path}[{index}]"
        if part.keys() == {"OR"}:
            inner = _alternatives("OR", _parts(part["OR"], f"{where}.OR"), f"{where}.OR")
        else:
            inner = [_all_of(part, where, key)]
        for alternative in inner:
            found[orjson.dumps(alternative, option=orjson.OPT_SORT_KEYS)] = alternative
    return [found[text] for text in sorted(found)]


def _join(found: Conditions, key: str, condition: Any, where: str) -> None:
    before = found.get(key)
    if before is None or before == condition:
        found[key] = condition
    elif key == "NOT":
        # Not a and not b is neither of the two.
        found[key] = sorted([*before, *(part for part in condition if part not in before)], key=_text)
    elif isinstance(before, dict) and isinstance(condition, dict) and not before.keys() & condition.keys():
        found[key] = before | condition
    else:
        raise Wrong(errors=[(where, "Mem0 cannot combine this with the other condition of the same name")])


def _condition(key: str, condition: Any, where: str) -> Any:
    if key in IDS:
        raise Wrong(errors=[(where, f"filters are conditions on metadata; give {key} as a field of the request")])
    if key in RESERVED_METADATA or key.startswith(("memsvc_", "$")) or not 0 < len(key) <= MAX_KEY:
        raise Wrong(errors=[(where, "is no name of a metadata field")])
    if not isinstance(condition, dict):
        return _value(condition, where, "eq")
    if not condition or not condition.keys() <= OPERATORS:
        raise Wrong(errors=[(where, f"takes the operators {', '.join(sorted(OPERATORS))}")])
    checked = {operator: _operand(operator, value, f"{where}.{operator}") for operator, value in condition.items()}
    return checked["eq"] if checked.keys() == {"eq"} and checked["eq"] != "*" else checked


def _operand(operator: str, value: Any, where: str) -> Any:
    if operator in COMPARE:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(errors=[(where, "takes a number")])
        return value
    if operator in WITHIN:
        if not isinstance(value, str) or not value:
            raise Wrong(errors=[(where, "takes a text")])
        return value
    if operator in MEMBER:
        if not isinstance(value, list) or not value:
            raise Wrong(errors=[(where, "takes a list with something in it")])
        members = {_text(_value(member, where, operator)): member for member in value}
        return [members[text] for text in sorted(members)]
    return _value(value, where, operator)


def _value(value: Any, where: str, operator: str) -> Any:
    """A text or number; for plain equality also true or false, which Mem0 compares rightly only there."""
    if isinstance(value, list):
        raise Wrong(errors=[(where, 'takes one value; for several use {"in": [...]}')])
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, bool) and operator == "eq":
        return value
    raise Wrong(errors=[(where, "takes a text or a number" + (", true or false" if operator == "eq" else ""))])


def _parts(value: Any, where: str) -> list[Conditions]:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) and part for part in value):
        raise Wrong(errors=[(where, "takes a list of objects with conditions")])
    return value


def _text(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
