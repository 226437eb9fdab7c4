"""A stand-in for Mem0's Platform: its paths and forms, its adds queued behind events, answered by a Mem0 server.

Written from the official clients' requests and the Platform's public reference, never compared with the service. An add
is carried out when its event has been asked for `polls` times, so whoever takes PENDING for done finds nothing.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import requests

from tests.fake_mem0 import FakeMem0

KEY = "key-of-the-platform"
IDS = ("user_id", "agent_id", "run_id")
MEMORY = re.compile(r"/v1/memories/([^/]+)/")
HISTORY = re.compile(r"/v1/memories/([^/]+)/history/")
EVENT = re.compile(r"/v1/event/([^/]+)/")


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, dict(headers or {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        try:
            if self.headers.get("Authorization") != f"Token {KEY}":
                raise Refused(401, {"detail": "Given token not valid for any token type"})
            asked = json.loads(body) if body else {}
            answer = self.server.answer(self.command, url.path, dict(parse_qsl(url.query)), asked)
            status, headers = 200, {}
        except Refused as refused:
            status, answer, headers = refused.status, refused.body, refused.headers
        except ConnectionAbortedError:
            self.close_connection = True
            return
        told = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(told)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = do_PUT = do_DELETE = respond


class Server(ThreadingHTTPServer):
    """In a thread of the test. `polls`: how often an event is asked for until it ends; None: it never does."""

    daemon_threads = True

    def __init__(self, behind: FakeMem0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.session = behind, requests.Session()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """As if new: adds end at the second poll, nothing fails, counts at zero."""
        self.polls: int | None = 2
        self.failing = False
        self.backwards = False
        self.rows_of_page = 0
        self.uncounted = 0
        self.drops: Counter[str] = Counter()
        self.refusals: dict[str, Refused] = {}
        self.calls: Counter[str] = Counter()
        self.events: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, query: Mapping[str, str], asked: dict[str, Any]) -> Any:
        """What one request is answered. ConnectionAbortedError where the connection is to be closed instead."""
        kind, work = self._routed(method, path, query, asked)
        with self.lock:
            self.calls[kind] += 1
            if self.drops[kind]:
                self.drops[kind] -= 1
                raise ConnectionAbortedError
            if kind in self.refusals:
                raise self.refusals.pop(kind)
            return work()

    def _routed(self, method: str, path: str, query: Mapping[str, str], asked: dict[str, Any]) -> Any:
        whole = {
            ("GET", "/v1/ping/"): (
                "ping",
                lambda: {"status": "ok", "org_id": "o", "project_id": "p"},
            ),
            ("POST", "/v3/memories/add/"): ("add", lambda: self._add(asked)),
            ("POST", "/v3/memories/search/"): ("search", lambda: self._search(asked)),
            ("POST", "/v3/memories/"): ("list", lambda: self._list(query, asked)),
            ("DELETE", "/v1/memories/"): ("delete_all", lambda: self._mem0("DELETE", "/memories", params=dict(query))),
            ("GET", "/v1/entities/"): ("entities", lambda: self._entities(query)),
        }
        if found := whole.get((method, path)):
            return found
        if (match := EVENT.fullmatch(path)) and method == "GET":
            return "event", lambda: self._event(match[1])
        if (match := HISTORY.fullmatch(path)) and method == "GET":
            return "history", lambda: self._mem0("GET", f"/memories/{match[1]}/history")
        if match := MEMORY.fullmatch(path):
            return {"GET": "get", "PUT": "update", "DELETE": "delete"}[method], lambda: self._one(
                method, match[1], asked
            )
        raise Refused(404, {"detail": "Not found."})

    def _mem0(self, method: str, path: str, **given: Any) -> Any:
        headers = {"X-API-Key": self.behind.key}
        reply = self.session.request(method, self.behind.url + path, headers=headers, timeout=60, **given)
        if reply.status_code != 200:
            raise Refused(reply.status_code, reply.json())
        return reply.json()

    # -- events --------------------------------------------------------------------------------------------------------

    def _add(self, asked: dict[str, Any]) -> Any:
        if not any(asked.get(name) for name in IDS):
            raise Refused(400, {"detail": "At least one of user_id, agent_id, app_id, run_id is required."})
        event_id = str(uuid.uuid4())
        self.events[event_id] = {"asked": asked, "polled": 0, "status": "PENDING", "results": []}
        return {"message": "Memory processing has been queued", "status": "PENDING", "event_id": event_id}

    def _event(self, event_id: str) -> Any:
        event = self.events.get(unquote(event_id))
        if event is None:
            raise Refused(404, {"detail": "Event not found."})
        event["polled"] += 1
        if event["status"] in ("PENDING", "RUNNING"):
            event["status"] = "RUNNING"
            if self.polls is not None and event["polled"] >= self.polls:
                self._end(event)
        told = {name: event[name] for name in ("status", "results")}
        return {"id": event_id, "event_type": "ADD", "payload": {}, "metadata": None, **told}

    def _end(self, event: dict[str, Any]) -> None:
        if self.failing:
            event["status"] = "FAILED"
            return
        rows = self._mem0("POST", "/memories", json=event["asked"])["results"]
        results = [{"id": row["id"], "event": row["event"], "data": {"memory": row["memory"]}} for row in rows]
        event["status"], event["results"] = "SUCCEEDED", results[::-1] if self.backwards else results

    # -- everything else -----------------------------------------------------------------------------------------------

    def _search(self, asked: dict[str, Any]) -> Any:
        rows = self._mem0("POST", "/search", json={**asked, "filters": _flat(asked["filters"])})["results"]
        return {"results": [_shown(row) for row in rows]}

    def _list(self, query: Mapping[str, str], asked: dict[str, Any]) -> Any:
        if given := sorted(set(IDS) & asked.keys()):
            raise Refused(400, {"detail": f"{given[0]} goes into filters."})
        shown = str(asked.get("show_expired", False)).lower()
        params = {**_flat(asked["filters"]), "top_k": "1000", "show_expired": shown}
        rows = self._mem0("GET", "/memories", params=params)["results"]
        return self._page(query, [_shown(row) for row in sorted(rows, key=lambda row: row["id"])])

    def _entities(self, query: Mapping[str, str]) -> Any:
        return self._page(query, [{**row, "name": row["id"]} for row in self._mem0("GET", "/entities")])

    def _page(self, query: Mapping[str, str], rows: list[Any]) -> Any:
        page, size = int(query.get("page", 1)), self.rows_of_page or int(query.get("page_size", 100))
        following = f"{self.url}/?page={page + 1}" if page * size < len(rows) else None
        told = rows[(page - 1) * size : page * size]
        return {"count": len(rows) + self.uncounted, "next": following, "previous": None, "results": told}

    def _one(self, method: str, memory_id: str, asked: dict[str, Any]) -> Any:
        found = self._mem0("GET", f"/memories/{memory_id}")
        if found is None:
            raise Refused(404, {"error": "Memory not found!"})
        if method == "GET":
            return _shown(found)
        told = self._mem0(method, f"/memories/{memory_id}", **({"json": asked} if method == "PUT" else {}))
        return told if method == "DELETE" else _shown(self._mem0("GET", f"/memories/{memory_id}"))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "memory", "metadata", "created_at", "updated_at", "expiration_date", "score", *IDS)
    return {"app_id": None, "categories": [], **{name: row.get(name) for name in names}}


def _flat(filters: Mapping[str, Any]) -> dict[str, Any]:
    """The Platform's filters as the server behind takes them. Keys that the Platform does not know are 400 there."""
    found: dict[str, Any] = {}
    for part in filters.get("AND", [filters]):
        for key, condition in part.items():
            if key in IDS:
                found[key] = condition
            elif key in ("OR", "NOT"):
                found[key] = [_flat(group) for group in condition]
            elif key == "metadata":
                for name, one in condition.items():
                    found[name] = {**found[name], **one} if isinstance(found.get(name), dict) else one
            else:
                raise Refused(400, {"detail": f"{key} is no field to filter by."})
    return found
