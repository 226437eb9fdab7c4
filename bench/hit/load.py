"""Many connections that ask and ask: one process, raw sockets, epoll.

It costs 10 to 15 µs of CPU a request, half of that in the kernel; `Load.cpu` says what it was.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    requests: Sequence[bytes]
    turn: int
    asked_at: float = 0.0
    received: bytes = b""

    def ask(self) -> None:
        self.turn = (self.turn + 1) % len(self.requests)
        self.asked_at = time.perf_counter()
        self.socket.sendall(self.requests[self.turn])

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


def run(port: int, requests: Sequence[bytes], connections: int, seconds: float, mark: bytes) -> Load:
    """Ask for so long over so many connections; each sends its next request when it has its answer."""
    poll = select.epoll()
    callers = {}
    for turn in range(connections):
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        callers[one.fileno()] = _Caller(one, requests, turn)
        poll.register(one.fileno(), select.EPOLLIN)
    load = Load()
    began, cpu = time.perf_counter(), time.process_time()
    for caller in callers.values():
        caller.ask()
    while (now := time.perf_counter()) - began < seconds:
        for descriptor, _ in poll.poll(1):
            caller = callers[descriptor]
            answer = caller.heard()
            if answer is None:
                continue
            load.took.append(time.perf_counter() - caller.asked_at)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"not 200: {answer[:1000]!r}")
            load.marked += mark in answer
            caller.ask()
    load.seconds, load.cpu = now - began, time.process_time() - cpu
    for caller in callers.values():
        caller.socket.close()
    return load
