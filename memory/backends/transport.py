"""HTTP with one deadline for all of a call: connecting, sending, the headers and every byte of the body.

`requests` bounds each wait, not their sum: a server that sends one byte a second is never late. Here each wait is for
what is left of the call's deadline. A connection is used again only after its answer was read to the end.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
from collections.abc import Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from memory import clock
from memory.backends.gate import Gate
from memory.clock import Deadline
from memory.errors import OriginTimeout, OriginUnavailable
from memory.tenancy import upstreams

CONNECT_SECONDS = 3.0
"""Seconds one address may take to accept a connection."""
IDLE_SECONDS = 2.0
"""A connection that has rested longer is not used again: uvicorn closes them after 5 s, and a write sent into that
moment would have an unknown outcome."""
CLOSE_TO = 0.005
"""A wait that ends this many seconds early has still used up the deadline."""


@dataclass(slots=True)
class _Call:
    """The call in hand on this thread, and whether any of it was given to the network."""

    deadline: Deadline
    guarded: bool = False
    sent: bool = False


_call: ContextVar[_Call] = ContextVar("memsvc_http_call")


class _Reader(io.RawIOBase):
    """A socket whose every read ends with the call's deadline."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock, self._raw = sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _call.get().deadline.remaining()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach()))


class _Connection(HTTPConnection):
    response_class = _Response
    resting_since = 0.0

    def _new_conn(self) -> socket.socket:
        # Judged by where it has arrived, before a byte is sent: a name may lead elsewhere each time it is looked up.
        sock = super()._new_conn()
        if _call.get().guarded and not upstreams.permitted(self.host, sock.getpeername()[0]):
            sock.close()
            raise OriginUnavailable("the project's upstream leads to an address that is not public", sent=False)
        return sock

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        call = _call.get()
        self.sock.settimeout(max(call.deadline.remaining(), 0.001))
        call.sent = True
        super().send(data)


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)
        if clock.now() - connection.resting_since > IDLE_SECONDS:
            connection.close()  # urllib3 opens it again
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.resting_since = clock.now()
        super()._put_conn(conn)


class _TLSPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Calls to one server. Every process has connections of its own, also after a fork."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        ca_file: str = "",
        connections: int = 64,
        gate: Gate | None = None,
        guarded: bool = False,
    ) -> None:
        self._gate, self._guarded = gate, guarded
        self._base = base_url.rstrip("/")
        self._headers = dict(headers)
        self._ca_file, self._connections = ca_file, connections
        self._sessions: dict[int, requests.Session] = {}

    def _session(self) -> requests.Session:
        # Keyed by process and without a lock: one held by another thread during a fork would never be released.
        pid = os.getpid()
        return self._sessions.get(pid) or self._sessions.setdefault(pid, self._open())

    def _open(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False  # neither a proxy nor a .netrc entry may see the key
        session.verify = self._ca_file or True
        session.headers.update(self._headers)
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(pool_maxsize=self._connections))
        return session

    def call(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """One request, answered whole before the deadline. OriginTimeout or OriginUnavailable otherwise, where `sent`
        says whether any byte of it was given to the network; OriginBusy. Redirects are not followed."""
        with self._gate.passing(deadline) if self._gate else nullcontext():
            return self._request(method, path, deadline, params, body)

    def _request(
        self, method: str, path: str, deadline: Deadline, params: Mapping[str, str] | None, body: bytes | None
    ) -> Reply:
        call = _Call(deadline, self._guarded)
        token = _call.set(call)
        try:
            left = deadline.remaining()
            if left <= 0:
                raise OriginTimeout("no time was left to ask Mem0")
            reply = self._session().request(
                method,
                self._base + path,
                params=params,
                data=body,
                headers={"Content-Type": "application/json"} if body is not None else None,
                # A name may have two addresses, each tried for this long.
                timeout=(min(CONNECT_SECONDS, left / 2), left),
                allow_redirects=False,
            )
            return Reply(reply.status_code, reply.headers, reply.content)
        except requests.RequestException as error:
            if deadline.remaining() <= CLOSE_TO:
                raise OriginTimeout("Mem0 did not answer within the deadline", sent=call.sent) from error
            # The exception's own text may hold ids (they are in the address): its kind must do.
            raise OriginUnavailable(f"Mem0 cannot be reached: {type(error).__name__}", sent=call.sent) from error
        finally:
            _call.reset(token)
