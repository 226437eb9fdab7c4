"""What a layer is, and how an answer is encoded for those that keep bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

import orjson

from memory.errors import LayerCorrupt
from memory.types import Entry, Memory, Ranking, Version

K = TypeVar("K", contravariant=True)
V = TypeVar("V")

_HEADER = struct.Struct("!4sQQQBI")
_MAGIC = b"ms1\n"
_NOBODY = bytes(16)
RANKINGS: tuple[Ranking, ...] = ("upstream", "local", "hybrid", "reranked")
"""By the byte that stands for each."""
FILL_MARGIN_US = 5_000_000
"""Nothing is filled this close to the moment it would expire (PROTOCOL B10)."""


class Layer(Protocol[K, V]):
    """A cache in front of Mem0. It raises LayerError and nothing else, never asks Mem0, never logs a memory's text.

    `get` answers None for a miss and for a question that is not its kind.
    """

    name: str
    fills: bool

    def get(self, key: K, version: Version) -> V | None: ...

    def put(self, key: K, value: V, version: Version) -> None: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """A memory as answers show it, in JSON but for its score, which goes between `before` and `after`."""

    before: bytes
    after: bytes
    expires: str | None
    job: bytes


def shown(memory: Memory) -> Shown:
    """A memory ready for whatever score it gets."""
    fields = public(memory)
    before = orjson.dumps({name: fields.pop(name) for name in ("id", "memory")})[:-1] + b',"score":'
    del fields["score"]
    return Shown(before, b"," + orjson.dumps(fields)[1:], memory.expiration_date, _stored_by(memory))


def encode(memories: Iterable[Memory], *, version: int, as_of: int, ranking: Ranking) -> Entry:
    """An answer's memories as an entry. `as_of` is in microseconds on the store's clock."""
    found = list(memories)
    ranked = [(place, memory.score) for place, memory in enumerate(found)]
    (entry,) = encode_each(list(map(shown, found)), [ranked], version=version, as_of=as_of, ranking=ranking)
    return entry


def encode_each(
    held: Sequence[Shown],
    answers: Sequence[Sequence[tuple[int, float | None]]],
    *,
    version: int,
    as_of: int,
    ranking: Ranking,
) -> list[Entry]:
    """`encode` for many answers made of the same memories, each as (place in `held`, score), best first: a memory is
    written down once, and all scores together."""
    scores = iter(orjson.dumps([score for ranked in answers for _, score in ranked])[1:-1].split(b","))
    entries = []
    for ranked in answers:
        found = [held[place] for place, _ in ranked]
        results = b",".join([one.before + next(scores) + one.after for one in found])
        ends = [one.expires for one in found if one.expires]
        until = _midnight_after(min(ends)) if ends else 0
        jobs = b"".join([one.job for one in found])
        entries.append(Entry(b"[" + results + b"]", version, as_of, until, ranking, len(found), jobs))
    return entries


def public(memory: Memory) -> dict[str, Any]:
    """A memory as answers show it: marks stripped, source said."""
    return {
        "id": memory.id,
        "memory": memory.text,
        "score": memory.score,
        "source": "ltm",
        "pending": False,
        "metadata": memory.public_metadata(),
        "user_id": memory.user_id,
        "agent_id": memory.agent_id,
        "run_id": memory.run_id,
        "created_at": memory.created_at,
        "updated_at": memory.updated_at,
        "expiration_date": memory.expiration_date,
    }


def expired(entry: Entry, store_now: int) -> bool:
    """Whether something in the entry has expired by the store's clock (microseconds)."""
    return bool(entry.valid_until) and store_now >= entry.valid_until


def fillable(entry: Entry, store_now: int) -> bool:
    """Whether the entry may still be kept: not within 5 s of expiring (PROTOCOL B10)."""
    return not entry.valid_until or store_now + FILL_MARGIN_US < entry.valid_until


def pack(entry: Entry) -> bytes:
    """An entry as stored bytes: a fixed header, 16 bytes of job a result, then the results ready to send."""
    ranking = RANKINGS.index(entry.ranking)
    header = _HEADER.pack(_MAGIC, entry.version, entry.as_of, entry.valid_until, ranking, entry.count)
    return header + entry.jobs + entry.results


def head(version: int) -> bytes:
    """What an entry of this version begins with when stored."""
    return _HEADER.pack(_MAGIC, version, 0, 0, 0, 0)[:12]


def unpack(layer: str, stored: bytes) -> Entry:
    """The entry in stored bytes; LayerCorrupt when they are none."""
    try:
        magic, version, as_of, until, ranking, count = _HEADER.unpack_from(stored)
        if magic != _MAGIC:
            raise LayerCorrupt(layer, "unknown format")
        cut = _HEADER.size + 16 * count
        jobs, results = stored[_HEADER.size : cut], stored[cut:]
        return Entry(results, version, as_of, until, RANKINGS[ranking], count, jobs)
    except (struct.error, IndexError) as error:
        raise LayerCorrupt(layer, "cut entry") from error


def _stored_by(memory: Memory) -> bytes:
    try:
        return UUID(memory.job).bytes if memory.job else _NOBODY
    except ValueError:  # somebody else's metadata of that name
        return _NOBODY


def _midnight_after(day: str) -> int:
    end = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)
    return int(end.timestamp()) * 1_000_000
