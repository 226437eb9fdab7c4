"""Every key memsvc uses in CACHE. The project, its generation and the pin are inside each, so no two tenants can meet.

All keys of one pin share a hash tag: one slot of a Redis Cluster, one round trip (PROTOCOL B4).
"""

from __future__ import annotations

from urllib.parse import quote

from memory.types import Pin

PREFIX = "ms"


def tag(pin: Pin, generation: int) -> str:
    """`{project.generation.kind.id}`, the id percent-encoded so that it can hold neither a brace nor a colon."""
    return f"{PREFIX}:{{{pin.project}.{generation}.{pin.kind}.{quote(pin.id, safe='')}}}"


def version(pin: Pin, generation: int) -> str:
    """The leased copy of the pin's version and floor (PROTOCOL B6)."""
    return of_version(tag(pin, generation))


def of_version(tagged: str) -> str:
    """The same, by its pin's tag."""
    return f"{tagged}:v"


def token(pin: Pin, generation: int) -> str:
    """The token that must stand for a copy to be stored (PROTOCOL B6)."""
    return f"{tag(pin, generation)}:t"


def pending(pin: Pin, generation: int) -> str:
    """The leased copy of the pin's pending items (PROTOCOL C1)."""
    return f"{tag(pin, generation)}:p"


def pending_token(pin: Pin, generation: int) -> str:
    """The token that must stand for a copy of the pending set to be stored."""
    return f"{tag(pin, generation)}:pt"


def session(pin: Pin, generation: int, session_id: str) -> str:
    """The leased copy of a session's version, under its user's tag."""
    return f"{tag(pin, generation)}:stm:{quote(session_id, safe='')}:v"


def session_token(pin: Pin, generation: int, session_id: str) -> str:
    """The token that must stand for a copy of a session's version to be stored."""
    return f"{tag(pin, generation)}:stm:{quote(session_id, safe='')}:t"


def session_search(pin: Pin, generation: int, session_id: str, fingerprint: str) -> str:
    """What one question found in a session."""
    return f"{tag(pin, generation)}:stm_search:{quote(session_id, safe='')}:{fingerprint}"


def result(pin: Pin, generation: int, fingerprint: str) -> str:
    """One L2 entry."""
    return of_result(tag(pin, generation), fingerprint)


def of_result(tagged: str, fingerprint: str) -> str:
    """One L2 entry, by its pin's tag."""
    return f"{tagged}:q:{fingerprint}"


def search(pin: Pin, generation: int, fingerprint: str) -> tuple[str, str, str]:
    """What one search reads, in the order it must be read: `pending`, `version`, `result`."""
    common = tag(pin, generation)
    return f"{common}:p", f"{common}:v", f"{common}:q:{fingerprint}"


def flight(pin: Pin, generation: int, fingerprint: str, version: int) -> str:
    """The lease of the process that loads this query at this version."""
    return f"{tag(pin, generation)}:f:{fingerprint}:{version}"


def vector(project: int, model: str, dimensions: int, action: str, digest: str) -> str:
    """One L1 vector; `digest` is the HMAC of the exact text (PROTOCOL C6)."""
    return f"{PREFIX}:e:{project}:{quote(model, safe='')}:{dimensions}:{action}:{digest}"


def of_project(project: int) -> str:
    """A pattern for SCAN that every key of the project's pins matches, of whatever generation."""
    return f"{PREFIX}:{{{project}.*"


def owner(name: bytes) -> tuple[str, str] | None:
    """The kind of the pin a key belongs to, and its id as it stands in keys; None for a key of no pin."""
    parts = name.partition(b"{")[2].partition(b"}")[0].decode().split(".", 3)
    return (parts[2], parts[3]) if len(parts) == 4 else None


def is_lease(name: bytes) -> bool:
    """Whether a key is the copy of some pin's version, or a load's lease: numbers, no text."""
    return name.endswith(b"}:v") or b"}:f:" in name


def named(pin: Pin) -> tuple[str, str]:
    """What `owner` says of the pin's keys."""
    return pin.kind, quote(pin.id, safe="")


def rate(key: int) -> str:
    """The token bucket of an API key."""
    return f"{PREFIX}:{{rate.{key}}}"


def upstream_rate(name: str) -> str:
    """How often an upstream has been asked lately, by all processes."""
    return f"{PREFIX}:{{upstream.{quote(name, safe='')}}}:rate"


def upstream_places(name: str) -> str:
    """The calls to an upstream that are under way."""
    return f"{PREFIX}:{{upstream.{quote(name, safe='')}}}:places"


def breaker(name: str) -> str:
    """The state of a circuit breaker shared by all processes."""
    return f"{PREFIX}:{{breaker.{quote(name, safe='')}}}"
