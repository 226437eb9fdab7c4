"""The values that travel between the layers. All are frozen; none knows Django, Redis or Mem0.

What every search makes anew is a named tuple: a frozen dataclass of the same fields costs five times as much to make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from memory.pending import Pending

Kind = Literal["user", "agent", "run"]
Ranking = Literal["upstream", "local", "hybrid", "reranked"]
"""Mem0's own; L3's after Mem0's scores; L3's by vectors and words; what Mem0 found, with words."""
Consistency = Literal["fresh", "strict", "bounded", "eventual"]

MARK_JOB = "memsvc_job"
MARK_ATTEMPT = "memsvc_attempt"
MARKS = frozenset({MARK_JOB, MARK_ATTEMPT})
MEM0_KEYS = frozenset(
    {
        "data", "hash", "text_lemmatized", "id", "user_id", "agent_id", "run_id", "actor_id", "role", "attributed_to",
        "created_at", "updated_at", "expiration_date",
    }
)  # fmt: skip
"""Metadata of these names is Mem0's own: it does not come back as it was given."""
KINDS: tuple[Kind, ...] = ("user", "agent", "run")


class Pin(NamedTuple):
    """One id that carries a version: a user, an agent or a run of one project (PROTOCOL B4)."""

    project: int
    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Scope:
    """A project and the ids a memory is filed under; those given must all match."""

    project: int
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None

    def pins(self) -> tuple[Pin, ...]:
        """Every id of this scope, in the order their rows are locked (PROTOCOL B1)."""
        ids = (("user", self.user_id), ("agent", self.agent_id), ("run", self.run_id))
        return tuple(Pin(self.project, kind, value) for kind, value in ids if value is not None)  # type: ignore[arg-type]

    @property
    def pin(self) -> Pin:
        """The id whose version decides: the first of user, agent, run (PROTOCOL B4). ValueError without any."""
        if self.user_id is not None:
            return Pin(self.project, "user", self.user_id)
        for pin in self.pins():
            return pin
        raise ValueError("a scope needs a user_id, agent_id or run_id")

    def ids(self) -> dict[str, str]:
        """The ids as Mem0 names them."""
        return {f"{pin.kind}_id": pin.id for pin in self.pins()}


@dataclass(frozen=True)
class Query:
    """One search of long-term memory. `text` is NFC and trimmed; `filters` is canonical JSON of metadata conditions
    (sorted keys, no ids at the top level) or the empty string."""

    scope: Scope
    text: str
    top_k: int = 10
    threshold: float | None = None
    filters: str = ""
    show_expired: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """32 hex characters that stand for everything but the pin: equal queries, equal fingerprint."""
        parts = (2, self.scope.agent_id, self.scope.run_id, self.text, self.top_k, self.threshold, self.filters)
        return hashlib.blake2b(orjson.dumps((*parts, self.show_expired)), digest_size=16).hexdigest()

    @cached_property
    def slot(self) -> tuple[Pin, str]:
        """The pin and the fingerprint: what its answer is kept under."""
        return self.scope.pin, self.fingerprint

    def conditions(self) -> dict[str, Any]:
        """The metadata conditions as an object; empty without any."""
        return orjson.loads(self.filters) if self.filters else {}


@dataclass(frozen=True, slots=True)
class Memory:
    """One fact as Mem0 has it, marks included. Times are ISO 8601 as Mem0 wrote them, `expiration_date` YYYY-MM-DD."""

    id: str
    text: str
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_at: str | None = None
    updated_at: str | None = None
    expiration_date: str | None = None
    score: float | None = None

    @property
    def job(self) -> str | None:
        """The id of the job that stored it, where memsvc did."""
        return self.metadata.get(MARK_JOB)

    @property
    def attempt(self) -> str | None:
        """The attempt of that job that stored it."""
        return self.metadata.get(MARK_ATTEMPT)

    def public_metadata(self) -> dict[str, Any]:
        """Its metadata without our marks: what answers and exports show (PROTOCOL A4)."""
        return {key: value for key, value in self.metadata.items() if key not in MARKS}


@dataclass(frozen=True, slots=True)
class Listing:
    """Memories of one scope; `complete` is False when the upstream may have left some out (PROTOCOL C2)."""

    memories: Sequence[Memory]
    complete: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """One result of an add or extract, in Mem0's words: event is ADD, UPDATE, DELETE or NONE."""

    id: str
    memory: str
    event: str = "ADD"


class Version(NamedTuple):
    """A pin's version and floor as PostgreSQL has them, confirmed no earlier than `confirmed_at` (`clock.now()`)."""

    pin: Pin
    number: int
    floor: int
    confirmed_at: float

    def __str__(self) -> str:
        return f"{self.pin.kind}:{self.number}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An encoded answer: what L0 and L2 hold.

    `results` is a JSON array in UTF-8, ready to send. `version` is the one it was computed at, read before the load.
    `as_of` and `valid_until` are microseconds since 1970 on the store's clock (PROTOCOL B10); 0 there means no end.
    """

    results: bytes
    version: int
    as_of: int
    valid_until: int
    ranking: Ranking
    count: int
    jobs: bytes = b""
    """16 bytes a result: the id of the job that stored it, zeros where memsvc did not (PROTOCOL C1)."""

    def stored_by(self) -> list[str | None]:
        """For each result the id of the job that stored it; None where memsvc did not."""
        ids = (self.jobs[at : at + 16] for at in range(0, 16 * self.count, 16))
        return [str(UUID(bytes=one)) if any(one) else None for one in ids]


class Answer(NamedTuple):
    """What a search returns: an entry, and how it came about."""

    entry: Entry
    version: Version | None
    layer: str
    stale: bool = False
    degraded: bool = False
    reason: str | None = None
    age_ms: int = 0
    upstream_calls: int = 0
    partial: bool = False
    pending: Pending | None = None
    """What is on its way to Mem0 for this scope; None where no store was asked or none could tell."""
