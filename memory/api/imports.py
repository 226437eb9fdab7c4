"""Facts by the line: read as they come, accepted in jobs of up to BATCH_FACTS, never all in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import orjson
from django.conf import settings

from memory import db, write
from memory.api.fields import Day, Field, Ident, Metadata, Record, Text, Wrong
from memory.tenancy.projects import Policy
from memory.types import Scope
from memory.write import Write

BATCH_FACTS = 100
BLOCK_BYTES = 1 << 16
MAX_REFUSED = 100
_IDS: dict[str, Field] = {"user_id": Ident(), "agent_id": Ident(), "run_id": Ident()}
FACT = Record(
    {**_IDS, "memory": Text(), "metadata": Metadata(), "expiration_date": Day()}, required=("user_id", "memory")
)
IGNORED = frozenset({"type", "id", "created_at", "updated_at", "hash", "categories", "score", "app_id"})
"""What exports tell of a memory, Mem0's own too, and a new one gets anew."""

Accept = Callable[[Write], object]


@dataclass
class Imported:
    """What came of it. `first_refused` are (line, reason), at most MAX_REFUSED."""

    lines: int = 0
    facts: int = 0
    jobs: int = 0
    skipped: int = 0
    refused: int = 0
    first_refused: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        """The line in hand is none that can be taken."""
        self.refused += 1
        if len(self.first_refused) < MAX_REFUSED:
            self.first_refused.append((self.lines, reason))


def bring_in(
    lines: Iterable[bytes], project: int, accept: Accept, key: str | None, bound: str | None = None
) -> Imported:
    """Accept a job for each run of facts under the same ids. Lines of an export that are no memories are skipped.

    With a `key` the same lines again are the same jobs, as long as an Idempotency-Key is remembered. What `accept`
    raises passes through: the jobs of before are accepted.
    """
    told = Imported()
    seen: Counter[str] = Counter()
    held: list[dict[str, Any]] = []
    ids: tuple[str | None, ...] = ()

    def flush() -> None:
        if held:
            digest = hashlib.sha256(orjson.dumps([ids, held])).hexdigest()
            seen[digest] += 1
            batch = None if key is None else f"{key}#{digest}#{seen[digest]}"
            accept(Write("add", Scope(project, *ids), {"memories": list(held)}, None, batch, digest))
            told.jobs += 1
            told.facts += len(held)
            held.clear()

    for fact in _facts(lines, told, bound):
        its = (fact["user_id"], fact.get("agent_id"), fact.get("run_id"))
        if its != ids or len(held) >= BATCH_FACTS:
            flush()
            ids = its
        held.append(
            {
                "text": fact["memory"],
                "metadata": fact.get("metadata", {}),
                "expiration_date": fact.get("expiration_date"),
            }
        )
    flush()
    return told


def lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """A stream's lines; of one beyond MAX_BODY_BYTES no more than its beginning, which is not JSON.

    By blocks: the web server's `readline` loses what comes after a line in the same chunk. A client that sends slowly
    holds no connection meanwhile (PROTOCOL E).
    """
    held, cut = b"", False
    while block := _read(stream):
        *whole, held = (held + block).split(b"\n")
        for line in whole[1:] if cut else whole:
            yield line[: settings.MAX_BODY_BYTES]
        cut = cut and not whole
        if len(held) > settings.MAX_BODY_BYTES:
            if not cut:
                yield held[: settings.MAX_BODY_BYTES]
            held, cut = b"", True
    if held and not cut:
        yield held[: settings.MAX_BODY_BYTES]


def _read(stream: IO[bytes]) -> bytes:
    db.release()
    return stream.read(BLOCK_BYTES)


def accepting(policy: Policy) -> Accept:
    """Accept for this project."""
    return lambda made: write.accept(made, policy)


def _facts(lines: Iterable[bytes], told: Imported, bound: str | None) -> Iterator[dict[str, Any]]:
    for line in lines:
        told.lines += 1
        if not line.strip():
            told.skipped += 1
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            told.refuse("is not JSON, or too long")
            continue
        if isinstance(value, dict) and value.get("type", "memory") != "memory":
            told.skipped += 1
            continue
        try:
            fact = FACT.check(_plain(value))
        except Wrong as wrong:
            told.refuse("; ".join(f"{path.removeprefix('.')} {message}".strip() for path, message in wrong.errors[:3]))
            continue
        if bound is not None and fact["user_id"] != bound:
            told.refuse("this key serves another user")
            continue
        yield fact


def _plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if isinstance(app := value.get("app_id"), str):
        value = {**value, "metadata": {**(value.get("metadata") or {}), "app_id": app}}
    return {name: part for name, part in value.items() if part is not None and name not in IGNORED}
