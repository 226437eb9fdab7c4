"""Mem0's forms, the same over REST and in process: ids, dates, and a memory as a JSON object."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import date
from typing import Any

from memory.backends.filters import check_id
from memory.errors import OriginRejected
from memory.types import Memory, Scope


def is_id(memory_id: str) -> bool:
    """Whether it is an id as Mem0 writes them. To others it answers an error, and another spelling of one would be a
    second name of the same memory."""
    try:
        return str(uuid.UUID(memory_id)) == memory_id
    except ValueError:
        return False


def ids(scope: Scope) -> dict[str, str]:
    """The scope's ids. ValueError without any, OriginRejected for one that Mem0 would change or refuse."""
    named = {name: check_id(name, value) for name, value in scope.ids().items()}
    if not named:
        raise ValueError("a scope needs a user_id, agent_id or run_id")
    return named


def is_date(value: object) -> bool:
    """Whether it is YYYY-MM-DD."""
    try:
        return isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def day(value: str) -> str:
    """The date itself; OriginRejected when it is none."""
    if not is_date(value):
        raise OriginRejected("expiration_date must be YYYY-MM-DD")
    return value


def storable(text: str) -> str:
    """Mem0's text as PostgreSQL can keep it: without NUL, which some of its stores let pass."""
    return text.replace("\0", "")


def memory(row: Mapping[str, Any]) -> Memory:
    """A memory as Mem0 tells of it. An expiry that is no date never comes: Mem0 takes metadata of that name for one."""
    expires = row.get("expiration_date")
    return Memory(
        id=row["id"],
        text=storable(row["memory"]),
        user_id=row.get("user_id"),
        agent_id=row.get("agent_id"),
        run_id=row.get("run_id"),
        metadata=row.get("metadata") or {},
        created_at=row.get("created_at"),
        updated_at=row.get("updated_at"),
        expiration_date=expires if is_date(expires) else None,
        score=row.get("score"),
    )
