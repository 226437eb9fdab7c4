"""One JSON line per event, with fixed fields; never the text of a memory or of a query.

Fields come from `extra={...}` and from `note()`, which adds to every later line of the same request. An exception is
told by its type and place; its message only where it cannot quote what somebody stored.
"""

from __future__ import annotations

import logging
import traceback
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from typing import Any

import orjson
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from kombu.exceptions import KombuError
from redis import RedisError

from memory.errors import MemsvcError

_context: ContextVar[dict[str, Any] | None] = ContextVar("memsvc_log_context", default=None)

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "data", "request", "response"}
_FORBIDDEN = frozenset({"text", "texts", "query", "queries", "memory", "memories", "messages", "content", "payload"})
_LEFT_OUT = _OWN | _FORBIDDEN
_TELLABLE = (
    MemsvcError,
    OSError,
    ImportError,
    AttributeError,
    NameError,
    TypeError,
    OperationalError,
    InterfaceError,
    RedisError,
    KombuError,
    ImproperlyConfigured,
)
_FRAMES = 12


def begin(request_id: str) -> Token[dict[str, Any] | None]:
    """Start the context of one request; `end` it with what this returns."""
    return _context.set({"request_id": request_id})


def end(token: Token[dict[str, Any] | None]) -> None:
    """Leave the request's context."""
    _context.reset(token)


def note(**fields: Any) -> None:
    """Add fields to every later line of this request; without a request, do nothing."""
    context = _context.get()
    if context is not None:
        context.update(fields)


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, its extra fields and its request's."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **(_context.get() or {}),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _LEFT_OUT}
        if record.exc_info and record.exc_info[1] is not None:
            line |= describe(record.exc_info[1])
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


def describe(error: BaseException) -> dict[str, Any]:
    """An exception for a log line: its type, its place, and its message where that is safe to tell."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    told: dict[str, Any] = {"error": type(error).__name__, "trace": trace}
    if isinstance(error, _TELLABLE):
        told["detail"] = str(error).splitlines()[0][:300] if str(error) else ""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        told["cause"] = type(cause).__name__
    return told
