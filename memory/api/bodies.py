"""What each route takes: its fields, their limits and defaults."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from memory.api.fields import (
    REQUIRED,
    Choice,
    Day,
    Field,
    Flag,
    Ident,
    Many,
    Metadata,
    MinVersion,
    Number,
    Record,
    Text,
    TextOr,
    Whole,
    Wrong,
    from_query,
    named,
)
from memory.api.filters import Filters
from memory.models.jobs import UNFINISHED

MAX_ITEMS = 1000
PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000
MAX_TIMEOUT_MS = 55_000
WRITE_TIMEOUT_MS = 30_000
SEARCH_TIMEOUT_MS = 10_000

ID = Ident()
_TIMEOUT = Whole(1, MAX_TIMEOUT_MS)
_WAIT = Choice(("none", "stored", "warm"))
_IDS: dict[str, Field] = {"user_id": ID, "agent_id": ID, "run_id": ID}
_ANSWER: dict[str, Field] = {"wait": _WAIT, "timeout_ms": _TIMEOUT}
_MEMORY = Record({"text": Text(), "metadata": Metadata(), "expiration_date": Day()}, required=("text",))
_MESSAGE = Record(
    {"role": Choice(("system", "user", "assistant", "tool")), "content": Text()},
    required=("role", "content"),
)

ADD = Record(
    {
        **_IDS,
        "memories": Many(TextOr(_MEMORY), 1, MAX_ITEMS),
        "metadata": Metadata(),
        "expiration_date": Day(),
        **_ANSWER,
    },
    required=("user_id", "memories"),
    defaults={"wait": "none", "timeout_ms": WRITE_TIMEOUT_MS},
)
EXTRACT = Record(
    {**_IDS, "messages": Many(_MESSAGE, 1, MAX_ITEMS), "session_id": ID, "metadata": Metadata(), **_ANSWER},
    required=("user_id", "messages"),
    defaults={"wait": "none", "timeout_ms": WRITE_TIMEOUT_MS},
)
UPDATE = Record(
    {"text": Text(), "metadata": Metadata(), "expiration_date": Day(clears=True), **_ANSWER},
    defaults={"wait": "stored", "timeout_ms": WRITE_TIMEOUT_MS},
)
DELETE = Record(_ANSWER, defaults={"wait": "stored", "timeout_ms": WRITE_TIMEOUT_MS})
ERASE = Record(
    {"wait": Choice(("none", "stored")), "timeout_ms": _TIMEOUT},
    defaults={"wait": "stored", "timeout_ms": WRITE_TIMEOUT_MS},
)
SEARCH = Record(
    {
        **_IDS,
        "query": Text(trim=True),
        "session_id": ID,
        "top_k": Whole(1, MAX_ITEMS),
        "threshold": Number(0, 1),
        "filters": Filters(),
        "consistency": Choice(("fresh", "strict", "bounded", "eventual")),
        "max_age_ms": Whole(0, settings.BOUNDED_MAX_AGE_MS),
        "min_version": MinVersion("user"),
        "timeout_ms": _TIMEOUT,
        "explain": Flag(),
    },
    required=("user_id", "query"),
    defaults={"top_k": 10, "consistency": "strict", "timeout_ms": SEARCH_TIMEOUT_MS},
)
_SAID = {**_MESSAGE.fields, "metadata": Metadata(), "message_id": ID}
ADD_MESSAGE = Record(
    {
        "session_id": ID,
        "user_id": ID,
        **_SAID,
        "messages": Many(Record(_SAID, required=("role", "content")), 1, MAX_ITEMS),
    },
    required=("session_id",),
)
CONTEXT = Record(
    {"max_tokens": Whole(1, 1_000_000), "format": Choice(("tiers", "openai"))},
    defaults={"format": "tiers"},
)
NOTHING = Record({})
PAGE = Record(
    {"page": Whole(1, 1_000_000), "page_size": Whole(1, PAGE_SIZE_MAX)},
    defaults={"page": 1, "page_size": PAGE_SIZE},
)
JOBS = Record(
    {"user_id": ID, "status": Choice((*UNFINISHED, "completed", "failed")), **PAGE.fields},
    defaults=PAGE.defaults,
)


def body(request: Request, shape: Record) -> dict[str, Any]:
    """The request's body as the shape wants it; no body is an empty one. ValidationError names each bad field."""
    query(request, NOTHING)
    return _checked(shape, request.data)


def query(request: Request, shape: Record) -> dict[str, Any]:
    """The request's query string as the shape wants it. ValidationError names each bad field."""
    return _checked(shape, _given(request, shape))


def either(request: Request, shape: Record) -> dict[str, Any]:
    """Fields from the query string or the body: a DELETE's body does not survive every proxy."""
    sent = request.data
    return _checked(shape, {**_given(request, shape), **sent} if isinstance(sent, dict) else sent)


def ident(name: str, value: str) -> str:
    """An id out of the path."""
    return str(_checked(Record({name: ID}, required=(name,)), {name: value})[name])


def update(request: Request) -> dict[str, Any]:
    """The body of an update, which changes something."""
    sent = body(request, UPDATE)
    if not sent.keys() & {"text", "metadata", "expiration_date"}:
        raise ValidationError({"body": ["must have at least one of text, metadata and expiration_date"]})
    return sent


def searched(value: Any) -> dict[str, Any]:
    """What a search asks for; `max_age_ms` belongs to `bounded`, which is nothing without it. ValidationError."""
    sent = _checked(SEARCH, value)
    bounded = sent["consistency"] == "bounded"
    if bounded and "max_age_ms" not in sent:
        raise ValidationError({"max_age_ms": ["is required with consistency bounded"]})
    if not bounded and "max_age_ms" in sent:
        raise ValidationError({"max_age_ms": ["goes with consistency bounded only"]})
    return sent


def said(request: Request) -> dict[str, Any]:
    """The body of add_message, its message or messages under `messages`."""
    sent = body(request, ADD_MESSAGE)
    alone = {name: sent.pop(name) for name in _SAID if name in sent}
    if "messages" in sent and alone:
        raise ValidationError({"messages": ["takes the place of role, content, metadata and message_id"]})
    if "messages" not in sent:
        if missing := {name: [REQUIRED] for name in ("role", "content") if name not in alone}:
            raise ValidationError(missing)
        sent["messages"] = [alone]
    return sent


def memories(sent: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of an add, each with what the request says of all of them; its own metadata and date come first."""
    shared = sent.get("metadata", {})
    day = sent.get("expiration_date")
    return [
        {
            "text": one["text"],
            "metadata": {**shared, **one.get("metadata", {})},
            "expiration_date": one.get("expiration_date", day),
        }
        for one in sent["memories"]
    ]


def _given(request: Request, shape: Record) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, values in request.query_params.lists():
        if len(values) > 1:
            raise ValidationError({name: ["may be given once"]})
        kind = shape.fields.get(name)
        given[name] = from_query(kind, values[0]) if kind is not None else values[0]
    return given


def _checked(shape: Record, value: Any) -> dict[str, Any]:
    try:
        return shape.check(value)
    except Wrong as wrong:
        raise ValidationError({named(path): [message] for path, message in wrong.errors}) from None
