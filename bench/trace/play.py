"""Playing a part of the trace to one contestant, and watching its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from typing import Any, Protocol

import orjson

from bench.trace.made import Request

CLIENTS = 64
TIMEOUT_SECONDS = 60
IDLE_SECONDS = 2.0
"""A connection that has rested longer is not used again: servers close theirs after 5 s."""
START_SECONDS = 0.5
"""Before the first request is due, so that the clients' own start is not measured."""


class Contestant(Protocol):
    """Whom the trace is sent to."""

    @property
    def name(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def header(self) -> tuple[str, str]: ...

    def search(self, user: int, question: str) -> tuple[str, Any]:
        """Path and body that ask."""
        ...

    def write(self, user: int, fact: str) -> tuple[str, Any]:
        """Path and body that store a fact, and are answered once it is stored."""
        ...


@dataclass(frozen=True)
class Heard:
    """An answer: seconds since it was due, who gave it, and whether a write before it was looked for in vain."""

    request: Request
    seconds: float
    status: int
    layer: str = ""
    degraded: bool = False
    checked: bool = False
    stale: bool = False


@dataclass
class Player:
    """Sends requests when they are due, whoever else is still waiting.

    An answer is stale, once a write of its user has been answered before its question was sent, if it says of itself
    that it was true before that write was sent (`as_of`, on the same clock here), or if that write stored a fact about
    this very question, word for word, and it is not among the ten.
    """

    to: Contestant
    wrote_at: dict[int, float] = field(default_factory=dict)
    stored: dict[tuple[int, str], str] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)

    def play(self, part: Sequence[Request], speed: float) -> list[Heard]:
        """The answers to a part of the trace, so many times faster than it was written."""
        began = time.perf_counter() + START_SECONDS
        first = part[0].at
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(lambda request: self._send(request, began + (request.at - first) / speed), part))

    def _send(self, request: Request, due: float) -> Heard:
        time.sleep(max(0.0, due - time.perf_counter()))
        return (self._write if request.kind == "write" else self._search)(request, due)

    def _write(self, request: Request, due: float) -> Heard:
        sent_at = time.time()
        status, _ = self._ask(*self.to.write(request.user, request.text))
        took = time.perf_counter() - due
        if status == 200:
            self.wrote_at[request.user] = max(sent_at, self.wrote_at.get(request.user, 0.0))
            self.stored[request.user, request.about] = request.text
        return Heard(request, took, status)

    def _search(self, request: Request, due: float) -> Heard:
        wrote_at, fact = self.wrote_at.get(request.user), self.stored.get((request.user, request.text))
        status, answer = self._ask(*self.to.search(request.user, request.text))
        took = time.perf_counter() - due
        if status != 200:
            return Heard(request, took, status)
        lacks = fact is not None and fact not in {row["memory"] for row in answer["results"]}
        if "meta" not in answer:  # Mem0's own: computed just now
            return Heard(request, took, status, "L4", False, fact is not None, lacks)
        told = answer["meta"]
        behind = wrote_at is not None and datetime.fromisoformat(told["as_of"]).timestamp() < wrote_at
        degraded = told["degraded"] or told["stale"]
        return Heard(request, took, status, told["layer"], degraded, wrote_at is not None, behind or lacks)

    def _ask(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer; 0 where there was none."""
        kept = self._local.__dict__
        if time.monotonic() - kept.get("used", 0.0) > IDLE_SECONDS:
            kept["connection"] = HTTPConnection("127.0.0.1", self.to.port, timeout=TIMEOUT_SECONDS)
        headers = dict([self.to.header, ("Content-Type", "application/json")])
        try:
            kept["connection"].request("POST", path, orjson.dumps(body), headers)
            reply = kept["connection"].getresponse()
            return reply.status, orjson.loads(reply.read())
        except (OSError, HTTPException):
            kept["connection"].close()  # the next request opens it again
            return 0, None
        finally:
            kept["used"] = time.monotonic()
