"""One JSON line per event, with fixed fields; never the text of a memory or of a query.

Fields come from `extra={...}` and from `note()`, which adds to every later line of the same request. An exception is
told by its type and place; its message only where it cannot quote what somebody stored.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from kombu.exceptions import KombuError
from redis import RedisError

from memory.errors import MemsvcError

# Who looks at threads, processes and source lines does not read these lines.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

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
Told = tuple[float, str, str, str, dict[str, Any]]
"""A line that is not put together yet: when, level, logger, event, fields."""
FLUSH_SECONDS = 0.02
MOST_LINES = 10_000


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


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines a few at a time: each writing makes a busy process change threads. Only what a kill leaves of the
    last FLUSH_SECONDS is lost; warnings, and all before them, are written at once."""

    def __init__(self) -> None:
        super().__init__()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lines: deque[str | Told] = deque()
        self._writing = threading.RLock()  # a signal may come while a line is written, and log another
        self._some = threading.Event()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, or write all that are kept."""
        self.keep(self.format(record))
        if record.levelno >= logging.WARNING:
            self.flush()

    def keep(self, line: str | Told) -> None:
        """Keep one more. Whoever reads them too slowly is waited for."""
        self._lines.append(line)
        if len(self._lines) > MOST_LINES:
            self.flush()
        elif not self._some.is_set():
            self._some.set()
            self._begin()

    def flush(self) -> None:
        """Write what is kept."""
        with self._writing, suppress(OSError, ValueError):  # nobody reads any more
            if lines := [self._lines.popleft() for _ in range(len(self._lines))]:
                # Many at once: the code that puts them together is then in the processor's cache.
                whole = (line if isinstance(line, str) else _line(*line) for line in lines)
                self.stream.write("".join(f"{line}\n" for line in whole))
                self.stream.flush()

    def _begin(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="log", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            self._some.wait()
            time.sleep(FLUSH_SECONDS)
            self._some.clear()
            self.flush()


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, its extra fields and its request's."""
        more = {key: value for key, value in vars(record).items() if key not in _LEFT_OUT}
        if record.exc_info and record.exc_info[1] is not None:
            more |= describe(record.exc_info[1])
        told = {**(_context.get() or {}), **more}
        return _line(record.created, record.levelname, record.name, _event(record), told)


def _event(record: logging.LogRecord) -> str:
    """What a line says. Beside an exception that may quote what somebody stored, the arguments may quote it as well:
    Celery's do, whatever the exception."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or record.name == "django.request":
        return record.getMessage()
    if isinstance(record.args, Mapping) and "exc" in record.args:
        return f"Task {record.args.get('name')}[{record.args.get('id')}] {record.args.get('description')}"
    return record.getMessage() if isinstance(error, _TELLABLE) else str(record.msg)


def tell(logger: logging.Logger, event: str, fields: dict[str, Any]) -> None:
    """One line at INFO with these fields. Where `Lines` alone listens, as settings have it, it comes without a record
    of logging's own, which costs as much as all else that a cached answer needs."""
    if not logger.isEnabledFor(logging.INFO):
        return
    if (alone := _alone(logger)) is None:
        logger.info(event, extra=fields)
    else:
        alone.keep((time.time(), "INFO", logger.name, event, {**(_context.get() or {}), **fields}))


def _alone(logger: logging.Logger) -> Lines | None:
    """The `Lines` at the root, if nothing else listens to the logger."""
    at: logging.Logger = logger
    while not at.handlers and not at.filters and at.propagate and at.parent is not None:
        at = at.parent
    if at.parent is not None or at.filters or len(at.handlers) != 1:
        return None
    only = at.handlers[0]
    if not isinstance(only, Lines) or type(only.formatter) is not JSONFormatter:
        return None
    return None if only.filters or only.level > logging.INFO else only


def _line(at: float, level: str, logger: str, event: str, more: dict[str, Any]) -> str:
    said = {"at": datetime.fromtimestamp(at, UTC), "level": level, "logger": logger, "event": event}
    return orjson.dumps({**said, **more}, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode()


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
