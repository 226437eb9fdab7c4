"""What the answers of Mem0's server mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from memory import clock, retry
from memory.backends import forms
from memory.backends.transport import Reply
from memory.errors import (
    OriginError,
    OriginNotFound,
    OriginRateLimited,
    OriginRejected,
    OriginTimeout,
    OriginUnavailable,
)
from memory.types import Memory, Stored

NEEDED = "2.0.10"

BEFORE_STORING = frozenset(
    f"provider_{what}" for what in ("auth_failed", "rate_limited", "timeout", "unavailable", "bad_request")
)
"""Codes of a 502 that tell of the embedder, which Mem0 asks before it stores a fact."""
CODES = BEFORE_STORING | {"unknown", "datastore_unavailable", "vector_store_unavailable"}

MISTAKEN = {401: "MEM0_REST_API_KEY"} | dict.fromkeys((301, 302, 303, 307, 308, 404, 405), "MEM0_REST_API_URL")
"""Statuses that tell of our configuration: no fault of the request, which will do when that is mended."""


def refusal(reply: Reply, host: str) -> str | None:
    """Why a server that describes itself so will not do; None also where a proxy hides the description."""
    if reply.status != 200:
        return None
    try:
        schema = orjson.loads(reply.body)
        search = schema["components"]["schemas"]["SearchRequest"]["properties"]
        create = schema["components"]["schemas"]["MemoryCreate"]["properties"]
        listing = {parameter["name"] for parameter in schema["paths"]["/memories"]["get"]["parameters"]}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"the server at {host} is not Mem0's: see MEM0_REST_API_URL"
    if "top_k" not in search:
        return f"the Mem0 server at {host} is of version 1: upgrade it to {NEEDED} or later"
    if "expiration_date" not in create or not {"top_k", "show_expired"} <= listing:
        return f"the Mem0 server at {host} is older than {NEEDED}: upgrade it to {NEEDED} or later"
    return None


@contextmanager
def without_effect() -> Iterator[None]:
    """Around a call without effect: `sent` is about effects."""
    try:
        yield
    except OriginError as error:
        error.sent = False
        raise


def body(reply: Reply, *, embeds_first: bool = False, compares_numbers: bool = False) -> Any:
    """The JSON of a success, else the error."""
    if not 200 <= reply.status < 300:
        raise failure(reply, embeds_first=embeds_first, compares_numbers=compares_numbers)
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        raise OriginUnavailable("Mem0's answer is no JSON", sent=True) from error


def failure(reply: Reply, *, embeds_first: bool = False, compares_numbers: bool = False) -> OriginError:
    """What an answer other than success means. Mem0's own words stay out of it: they can quote the request."""
    detail, code = _problem(reply.body)
    pause = retry.retry_after(reply.headers.get("Retry-After"), clock.wall())
    said = f"Mem0 answered {reply.status} {code}".rstrip()
    # "Not Found" alone is the server's word for a path, and others' for anything.
    if reply.status == 404 and isinstance(detail, str) and detail.startswith("Memory with id"):
        return OriginNotFound("Mem0 knows no such memory", status=404)
    if reply.status in MISTAKEN:
        return OriginUnavailable(f"{said}: see {MISTAKEN[reply.status]}")
    if reply.status == 429:
        return OriginRateLimited(said, retry_after=pause)
    if reply.status in (408, 504):
        return OriginTimeout(said, sent=True, retry_after=pause)
    if reply.status < 500:
        return OriginRejected(said, status=reply.status)
    return _broken(reply.status, code, said, pause, embeds_first, compares_numbers)


def _broken(
    status: int, code: str, said: str, pause: float | None, embeds_first: bool, compares_numbers: bool
) -> OriginError:
    """An error of the server's own, after which something may have been done."""
    done = not (embeds_first and code in BEFORE_STORING) and not (status == 503 and pause is not None)
    if code == "provider_rate_limited":
        return OriginRateLimited(said, sent=done, retry_after=pause)
    if code == "provider_bad_request" or (code == "unknown" and compares_numbers):
        return OriginRejected(said, status=status, sent=done)
    return OriginUnavailable(said, sent=done, retry_after=pause)


def _problem(body: bytes) -> tuple[Any, str]:
    """`detail` and `code` of an error's body; empty where it has none."""
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    if not isinstance(problem, dict):
        return "", ""
    code = problem.get("code")
    return problem.get("detail", ""), code if code in CODES else ""


@contextmanager
def expected(*, sent: bool = False) -> Iterator[None]:
    """Around reading an answer: one of another form is none."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise OriginUnavailable("Mem0's answer has an unexpected form", sent=sent) from error


def memories(answer: Any) -> list[Memory]:
    """The memories of a search or a listing."""
    with expected():
        return [forms.memory(row) for row in answer["results"]]


def stored(answer: Any) -> list[Stored]:
    """The results of an add."""
    with expected(sent=True):
        return [Stored(row["id"], forms.storable(row["memory"]), row.get("event", "ADD")) for row in answer["results"]]
