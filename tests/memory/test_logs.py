"""Lines of the log reach whoever reads them, in order, without a request waiting for it."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator

import orjson
import pytest

from memory import logs


class Reader(io.StringIO):
    """Tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.told.set()
        return count


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def log(reader: Reader) -> Iterator[logging.Logger]:
    handler = logs.Lines()
    handler.setStream(reader)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("test.lines")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_a_line_is_written_by_itself(log, reader):
    log.info("one")
    assert reader.told.wait(10)
    assert reader.getvalue() == "one\n"


def test_a_warning_is_written_at_once_after_what_came_before_it(log, reader, monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 60)
    log.info("one")
    assert reader.getvalue() == ""
    log.warning("two")
    assert reader.getvalue() == "one\ntwo\n"


def test_what_is_told_is_the_line_that_logging_would_write(log, reader):
    """The short way stands where `Lines` alone listens."""
    log.handlers[0].setFormatter(logs.JSONFormatter())
    root = logging.RootLogger(logging.INFO)
    root.addHandler(log.handlers[0])
    alone = logging.getLogger("test.lines.alone")
    alone.parent = root
    token = logs.begin("mine")
    try:
        logs.note(user_id="ann")
        fields = {"status": 200, "ms": 1.5}
        assert logs._alone(alone) is not None
        logs.tell(alone, "request", fields)
        alone.info("request", extra=fields)
        alone.warning("over")
    finally:
        logs.end(token)
    told, logged, _ = map(orjson.loads, reader.getvalue().splitlines())
    assert list(told) == ["at", "level", "logger", "event", "request_id", "user_id", "status", "ms"]
    assert told | {"at": ""} == logged | {"at": ""}


def test_celerys_word_of_an_exception_quotes_none():
    try:
        raise ValueError("my PIN is 4711")
    except ValueError:
        raised = sys.exc_info()
    told = {"name": "memory.deliver", "id": "7", "description": "raised unexpected", "exc": repr(raised[1])}
    celerys = "Task %(name)s[%(id)s] %(description)s: %(exc)s"
    for form, args in ((celerys, (told,)), ("it failed: %s", (raised[1],))):
        record = logging.LogRecord("celery.app.trace", logging.ERROR, "", 1, form, args, raised)
        line = logs.JSONFormatter().format(record)
        assert "4711" not in line
        assert orjson.loads(line)["error"] == "ValueError"


def test_what_is_told_reaches_whoever_else_listens(log, caplog):
    """A handler of somebody else's, here pytest's."""
    with caplog.at_level(logging.INFO, logger="test.lines"):
        logs.tell(log, "request", {"status": 200})
    assert [(one.getMessage(), one.status) for one in caplog.records] == [("request", 200)]


def test_what_is_kept_is_bounded(log, reader, monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 60)
    monkeypatch.setattr(logs, "MOST_LINES", 2)
    for word in ("one", "two", "three"):
        log.info(word)
    assert reader.getvalue() == "one\ntwo\nthree\n"


def test_the_end_of_the_process_loses_no_line(log, reader, monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 60)
    log.info("one")
    logging.shutdown([lambda: log.handlers[0]])
    assert reader.getvalue() == "one\n"


def test_a_reader_that_has_gone_stops_nobody(log, reader):
    reader.close()
    log.warning("one")
    log.info("two")
