"""Many connections that ask and ask: one process, raw sockets, epoll.

It costs 10 to 15 µs of CPU a request, half of that in the kernel; `Load.cpu` says what it was.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

END = b"\r\n\r\n"
LENGTH = b"content-length: "


@dataclass
class Load:
    """What came of a run: seconds of each answer, how many had the mark looked for, and the generator's own CPU."""

    seconds: float = 0.0
    took: list[float] = field(default_factory=list)
    marked: int = 0
    cpu: float = 0.0


@dataclass(slots=True)
class _Caller:
    socket: socket.socket
    requests: Iterator[bytes]
    asked_at: float = 0.0
    received: bytes = b""

    def ask(self) -> bool:
        """Send the next request, if there is one."""
        request = next(self.requests, None)
        if request is None:
            return False
        self.asked_at = time.perf_counter()
        self.socket.sendall(request)
        return True

    def heard(self) -> bytes | None:
        """A whole answer, or None while some of it is missing."""
        self.received += self.socket.recv(65536)
        head = self.received.find(END)
        if head < 0:
            return None
        at = self.received[:head].lower().index(LENGTH) + len(LENGTH)
        length = int(self.received[at : at + 12].partition(b"\r")[0])
        if len(self.received) < head + len(END) + length:
            return None
        answer, self.received = self.received, b""
        return answer


def post(port: int, path: str, body: Any, header: str) -> bytes:
    """A request as it is sent, with one header of the caller's."""
    raw = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{header}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


def run(port: int, requests: Iterator[bytes], connections: int, seconds: float, mark: bytes) -> Load:
    """Ask for so long over so many connections, or until there are no more requests; whoever has an answer sends the
    next one. What was asked is heard to the end."""
    poll = select.epoll()
    callers = {}
    for _ in range(connections):
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        callers[one.fileno()] = _Caller(one, requests)
        poll.register(one.fileno(), select.EPOLLIN)
    load = Load()
    began, cpu = time.perf_counter(), time.process_time()
    waiting = sum(caller.ask() for caller in callers.values())
    while waiting:
        for descriptor, _ in poll.poll(1):
            caller = callers[descriptor]
            answer = caller.heard()
            if answer is None:
                continue
            now = time.perf_counter()
            load.took.append(now - caller.asked_at)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"not 200: {answer[:1000]!r}")
            load.marked += mark in answer
            waiting -= not (now - began < seconds and caller.ask())
    load.seconds, load.cpu = time.perf_counter() - began, time.process_time() - cpu
    for caller in callers.values():
        caller.socket.close()
    return load
