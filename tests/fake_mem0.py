"""A stand-in for Mem0's open-source server: its HTTP surface, answered by the real `mem0ai` with a real embedder.

It speaks the server's contract with its oddities (`docs/compatibility.md` tells where it differs). Over `/_control` it
delays and breaks calls on demand and counts them. Its LLM takes every line of the user's for a fact.

    python -m tests.fake_mem0 --port 8888 --database postgresql://localhost/postgres --home /tmp/mem0 --key KEY
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import requests
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

DATABASE = "fake_mem0"
COLLECTION = "memories"
LOCAL_DIMENSIONS, OPENAI_DIMENSIONS = 384, 1536
LISTED, SCANNED = 1000, 10_000
CONNECTIONS = 16
SEEN = 2000
FIELD_OF = {"user": "user_id", "agent": "agent_id", "run": "run_id"}
LLMS, EMBEDDERS = ["openai", "anthropic", "gemini"], ["openai", "gemini"]
HIDDEN = {"data", "user_id", "agent_id", "run_id", "hash", "created_at", "updated_at", "expiration_date"}


# -- what may be asked -------------------------------------------------------------------------------------------------


class Message(BaseModel):
    role: str
    content: str


class MemoryCreate(BaseModel):
    messages: list[Message]
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    metadata: dict[str, Any] | None = None
    expiration_date: str | None = None
    infer: bool | None = None
    memory_type: str | None = None
    prompt: str | None = None


class MemoryUpdate(BaseModel):
    text: str | None = None
    metadata: dict[str, Any] | None = None
    expiration_date: str | None = None


class SearchRequest(BaseModel):
    query: str
    user_id: str | None = None
    run_id: str | None = None
    agent_id: str | None = None
    filters: dict[str, Any] | None = None
    top_k: int | None = None
    threshold: float | None = None
    explain: bool | None = None
    show_expired: bool | None = None


QUERY: dict[str, TypeAdapter[Any]] = {
    "user_id": TypeAdapter(str),
    "run_id": TypeAdapter(str),
    "agent_id": TypeAdapter(str),
    "top_k": TypeAdapter(Annotated[int, Field(ge=0, le=LISTED)]),
    "show_expired": TypeAdapter(bool),
}
KIND: TypeAdapter[Any] = TypeAdapter(Literal["user", "agent", "run"])


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, detail: Any, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, {"detail": detail, **more}, dict(headers or {})


def invalid(error: ValidationError, *where: str) -> Refused:
    """How the server tells of input of a wrong form."""
    found = error.errors(include_url=False)
    return Refused(422, [{**one, "loc": [*where, *one["loc"]]} for one in found])


def upstream(code: str = "unknown") -> Refused:
    """How the server tells of anything that failed behind it, bad input included."""
    return Refused(502, "Upstream provider error.", code=code, request_id=uuid.uuid4().hex[:8])


# -- Mem0 itself -------------------------------------------------------------------------------------------------------


class CountingEmbedder:
    """The real embedder in the form Mem0 calls it. As over HTTP, it is not told what is a question."""

    def __init__(self, made: Any) -> None:
        self._embedder = made
        self.texts = 0

    def embed(self, text: str, memory_action: str = "add") -> list[float]:
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: list[str], memory_action: str = "add") -> list[list[float]]:
        self.texts += len(texts)
        # The model sees 512 tokens; its tokenizer would take a minute over what lies beyond.
        return self._embedder.embed([text[:SEEN] for text in texts], "symmetric").tolist()  # type: ignore[no-any-return]


class CountedEmbedder:
    """Mem0's own client of an OpenAI-compatible endpoint, its texts counted."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.texts = 0

    def embed(self, text: str, memory_action: str = "add") -> list[float]:
        self.texts += 1
        return self._made.embed(text, memory_action)  # type: ignore[no-any-return]

    def embed_batch(self, texts: list[str], memory_action: str = "add") -> list[list[float]]:
        self.texts += len(texts)
        return self._made.embed_batch(texts, memory_action)  # type: ignore[no-any-return]


class WordEmbedder:
    """Texts that share words lie near each other: enough where what is near does not matter, and costs nothing."""

    def embed(self, texts: list[str], action: str) -> Any:
        import numpy as np

        rows = [np.sum([self._of(word) for word in text.lower().split()] or [self._of("")], axis=0) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)

    @staticmethod
    @functools.cache
    def _of(word: str) -> Any:
        import numpy as np

        return np.random.default_rng(zlib.crc32(word.encode())).normal(size=384)


class EchoLLM:
    """Finds one fact in each line the user said."""

    def __init__(self) -> None:
        self.heard = threading.local()

    def generate_response(self, messages: Any, **options: Any) -> str:
        return json.dumps({"memory": [{"text": line} for line in self.heard.lines]})


class Memories:
    """The server's operations over one `mem0ai` instance."""

    def __init__(
        self, database: str, home: Path, *, by_words: bool = False, embeddings: str = "", hnsw: bool = False
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        os.environ |= {"MEM0_TELEMETRY": "false", "MEM0_DIR": str(home)}
        from mem0 import Memory
        from mem0.exceptions import ValidationError as Mem0ValidationError

        from memory.embedders import local

        self.bad_input = (ValueError, Mem0ValidationError)
        key = {"api_key": "unused"}
        endpoint = {"openai_base_url": embeddings} if embeddings else {}
        self.mem0 = Memory.from_config(
            {
                "vector_store": {
                    "provider": "pgvector",
                    "config": {
                        "connection_string": _own_database(database),
                        "collection_name": COLLECTION,
                        "embedding_model_dims": OPENAI_DIMENSIONS if embeddings else LOCAL_DIMENSIONS,
                        "hnsw": hnsw,
                        "maxconn": CONNECTIONS,
                    },
                },
                "llm": {"provider": "openai", "config": key},
                "embedder": {"provider": "openai", "config": key | endpoint},
                "history_db_path": str(home / "history.db"),
            }
        )
        self.embedder: CountedEmbedder | CountingEmbedder
        if embeddings:
            self.embedder = CountedEmbedder(self.mem0.embedding_model)
        else:
            self.embedder = CountingEmbedder(WordEmbedder() if by_words else local.make())
        self.llm = EchoLLM()
        self.mem0.embedding_model, self.mem0.llm = self.embedder, self.llm
        # psycopg2's pool fails when it is empty; the server's own (psycopg 3) waits.
        self.places = threading.BoundedSemaphore(CONNECTIONS)

    @contextlib.contextmanager
    def asked(self, *, client_errors: bool = True) -> Iterator[Any]:
        """Mem0, its errors told as the server tells them."""
        try:
            with self.places:
                yield self.mem0
        except self.bad_input as error:
            if not client_errors:
                raise upstream() from error
            missing = isinstance(error, ValueError) and "not found" in str(error).lower()
            raise Refused(404 if missing else 400, str(error)) from error
        except Exception as error:  # the server's own border: whatever it is becomes a 502
            raise upstream(
                "datastore_unavailable" if type(error).__name__ == "OperationalError" else "unknown"
            ) from error

    def add(self, wanted: MemoryCreate) -> Any:
        if not (wanted.user_id or wanted.agent_id or wanted.run_id):
            raise Refused(400, "At least one identifier (user_id, agent_id, run_id) is required.")
        given = {name: value for name, value in wanted.model_dump(exclude={"messages"}).items() if value is not None}
        self.llm.heard.lines = [message.content for message in wanted.messages if message.role == "user"]
        with self.asked() as mem0:
            return mem0.add([message.model_dump() for message in wanted.messages], **given)

    def search(self, wanted: SearchRequest) -> Any:
        filters = dict(wanted.filters or {})
        filters |= {name: value for name in FIELD_OF.values() if (value := getattr(wanted, name))}
        names = ("top_k", "threshold", "explain", "show_expired")
        given = {name: value for name in names if (value := getattr(wanted, name)) is not None}
        with self.asked() as mem0:
            return mem0.search(wanted.query, filters=filters, **given)

    def list(self, asked: Mapping[str, Any]) -> Any:
        filters = {name: asked[name] for name in FIELD_OF.values() if asked.get(name)}
        with self.asked(client_errors=False) as mem0:
            if filters:
                given = {"top_k": asked["top_k"]} if "top_k" in asked else {}
                return mem0.get_all(filters=filters, show_expired=asked.get("show_expired", False), **given)
            rows = mem0.vector_store.list(top_k=asked.get("top_k", LISTED))[0]
        return {"results": [_raw(row) for row in rows]}

    def get(self, memory_id: str) -> Any:
        with self.asked(client_errors=False) as mem0:
            return mem0.get(memory_id)

    def history(self, memory_id: str) -> Any:
        with self.asked(client_errors=False) as mem0:
            return mem0.history(memory_id=memory_id)

    def update(self, memory_id: str, wanted: MemoryUpdate) -> Any:
        with self.asked() as mem0:
            return mem0.update(memory_id, **{name: getattr(wanted, name) for name in wanted.model_fields_set})

    def delete(self, memory_id: str) -> Any:
        with self.asked() as mem0:
            mem0.delete(memory_id)
        return {"message": "Memory deleted successfully"}

    def delete_all(self, asked: Mapping[str, Any], message: str = "All relevant memories deleted") -> Any:
        filters = {name: asked[name] for name in FIELD_OF.values() if asked.get(name)}
        if not filters:
            raise Refused(400, "At least one identifier is required.")
        with self.asked(client_errors=False) as mem0:
            mem0.delete_all(**filters)
        return {"message": message}

    def delete_entity(self, kind: str, name: str) -> Any:
        try:
            KIND.validate_python(kind)
        except ValidationError as error:
            raise invalid(error, "path", "entity_type") from error
        return self.delete_all({FIELD_OF[kind]: name}, "Entity deleted")

    def entities(self) -> Any:
        with self.asked(client_errors=False) as mem0:
            payloads = [row.payload for row in mem0.vector_store.list(top_k=SCANNED)[0]]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for payload in payloads:
            times = [datetime.fromisoformat(payload[name]) for name in ("created_at", "updated_at")]
            for kind, name in FIELD_OF.items():
                if owner := payload.get(name):
                    seen = found.setdefault((kind, owner), {"n": 0, "created": times[0], "updated": times[1]})
                    seen["n"] += 1
                    seen["created"], seen["updated"] = min(seen["created"], times[0]), max(seen["updated"], times[1])
        return [
            {
                "id": owner,
                "type": kind,
                "total_memories": seen["n"],
                "created_at": seen["created"].isoformat().replace("+00:00", "Z"),
                "updated_at": seen["updated"].isoformat().replace("+00:00", "Z"),
            }
            for (kind, owner), seen in sorted(found.items())
        ]

    def empty(self) -> None:
        """Forget everything, quickly."""
        with self.asked() as mem0:
            for store in (mem0.vector_store, mem0.entity_store):
                store._ensure_collection()
                with store._get_cursor(commit=True) as cursor:
                    cursor.execute(f'TRUNCATE "{store.collection_name}"')
            with mem0.db._lock, mem0.db.connection:
                for table in ("history", "messages"):
                    mem0.db.connection.execute(f"DELETE FROM {table}")

    def reset(self) -> Any:
        self.empty()
        return {"message": "All memories reset"}

    def seed(self, user_id: str, rows: int) -> None:
        """Give a user many memories, all of one vector, without the time that embedding takes."""
        vector = str(self.embedder.embed("filler"))
        now = datetime.now().astimezone().isoformat()
        payload = {"user_id": user_id, "created_at": now, "updated_at": now}
        with self.asked() as mem0:
            mem0.vector_store._ensure_collection()
            with mem0.vector_store._get_cursor(commit=True) as cursor:
                cursor.execute(
                    f"INSERT INTO {COLLECTION} SELECT gen_random_uuid(), %s::vector,"
                    " %s::jsonb || jsonb_build_object('data', 'filler ' || n) FROM generate_series(1, %s) n",
                    (vector, json.dumps(payload), rows),
                )

    def copy(self, user_id: str, others: list[str]) -> None:
        """Give other users what a user has, without the time that embedding takes."""
        with self.asked() as mem0, mem0.vector_store._get_cursor(commit=True) as cursor:
            cursor.execute(
                f"INSERT INTO {COLLECTION} SELECT gen_random_uuid(), vector, payload || jsonb_build_object("
                f"'user_id', other) FROM {COLLECTION}, unnest(%s) other WHERE payload->>'user_id' = %s",
                (others, user_id),
            )


def _own_database(url: str) -> str:
    """A database beside the one named, so that no test empties the other's tables."""
    import psycopg2

    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        return urlsplit(url)._replace(path=f"/{DATABASE}").geturl()


def _raw(row: Any) -> dict[str, Any]:
    """A row of the unscoped listing, whose fields differ from all others'."""
    shown = {name: row.payload.get(name) for name in ("user_id", "agent_id", "run_id", "hash", "expiration_date")}
    times = {name: row.payload.get(name) for name in ("created_at", "updated_at")}
    metadata = {name: value for name, value in row.payload.items() if name not in HIDDEN}
    return {"id": row.id, "memory": row.payload.get("data"), **shown, "metadata": metadata, **times}


# -- faults ------------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """What to do to calls of some kinds.

    `stall` and `delay` hold the call for `seconds` (a stall until the faults are changed, if that is earlier), `drop`
    closes the connection, `status` answers that status; each `before` or `after` the work. `cut` sends half of the
    body, `drip` a byte of it every `seconds`, `drip_headers` a byte of everything.
    """

    how: Literal["stall", "delay", "drop", "status", "cut", "drip", "drip_headers"]
    kinds: tuple[str, ...] = ()
    when: Literal["before", "after"] = "before"
    seconds: float = 3600.0
    status: int = 502
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    times: int = -1


class Switchboard:
    """The faults that are on, and counts of calls."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.faults: list[Fault] = []
        self.calls: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.version = "current"
        self.generation = 0

    @contextlib.contextmanager
    def call(self, kind: str) -> Iterator[Fault | None]:
        """Around one call: counted, and the fault that meets it, if any."""
        with self.lock:
            self.calls[kind] += 1
            self.running[kind] += 1
            found = next((one for one in self.faults if one.times and kind in (one.kinds or (kind,))), None)
            if found and found.times > 0:
                found.times -= 1
        try:
            yield found
        finally:
            with self.lock:
                self.running[kind] -= 1
                self.lock.notify_all()

    def hold(self, seconds: float) -> None:
        """Wait so long, or until faults are changed."""
        with self.lock:
            now = self.generation
            self.lock.wait_for(lambda: self.generation != now, timeout=seconds)

    def settle(self) -> None:
        """Wait until no call is running: one whose caller gave up may still write."""
        with self.lock:
            self.lock.wait_for(lambda: not any(self.running.values()), timeout=60)

    def set(self, faults: list[Fault]) -> None:
        with self.lock:
            self.faults, self.generation = faults, self.generation + 1
            self.lock.notify_all()


# -- HTTP --------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path == "/_control":
            return self.send(200, self.server.control(json.loads(body) if body else {}))
        kind, work = self.routed(unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)), body)
        with self.server.switchboard.call(kind) as fault:
            if fault and self.broken(fault, "before"):
                return None
            status, answer, headers = _worked(work)
            if fault and self.broken(fault, "after"):
                return None
            return self.send(status, answer, headers, fault)

    def routed(self, path: str, query: dict[str, str], body: bytes) -> tuple[str, Callable[[], Any]]:
        """The kind of a call, and what answers it. A body that is no JSON is found before a wrong key, as there."""
        if (self.command, path) == ("GET", "/openapi.json"):
            return "openapi", lambda: description(self.server.switchboard.version)
        try:
            found, names = route(self.command, path)
        except Refused as refused:
            return "other", functools.partial(_raise, refused)

        def work() -> Any:
            parsed = _json(body) if found.model else None
            _authenticate(self)
            checked = _body(found.model, parsed) if found.model else None
            return found.answer(Asked(self.server.memories, names, _query(query), checked))

        return kind_of(found, body), work

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = respond

    def broken(self, fault: Fault, when: str) -> bool:
        """Apply a fault at its moment; True when the call is over with that."""
        if fault.when != when:
            return False
        if fault.how in ("stall", "delay"):
            self.server.switchboard.hold(fault.seconds) if fault.how == "stall" else time.sleep(fault.seconds)
        if fault.how == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return True
        if fault.how == "status":
            error = upstream(fault.code).body if fault.code else {"detail": "made to fail"}
            self.send(fault.status, error, dict(fault.headers))
            return True
        return False

    def send(
        self, status: int, answer: Any, headers: Mapping[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        redirect = "Location" in (headers or {})
        body = b"" if redirect else json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        self.send_response_only(status)
        for name, value in {"X-Request-ID": uuid.uuid4().hex[:8], **(headers or {})}.items():
            self.send_header(name, value)
        if not redirect:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self._headers_buffer.append(b"\r\n")
        head = b"".join(self._headers_buffer)
        self._headers_buffer.clear()
        how = fault.how if fault else ""
        try:
            self.write(head, fault.seconds if how == "drip_headers" and fault else 0)
            if how == "cut":
                body, self.close_connection = body[: len(body) // 2], True
            self.write(body, fault.seconds if how.startswith("drip") and fault else 0)
        except OSError:
            self.close_connection = True  # the caller has gone

    def write(self, data: bytes, pause: float) -> None:
        for chunk in [data[n : n + 1] for n in range(len(data))] if pause else [data]:
            self.wfile.write(chunk)
            if pause:
                self.server.switchboard.hold(pause)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, memories: Memories, key: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.memories, self.key, self.switchboard = memories, key, Switchboard()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def control(self, asked: dict[str, Any]) -> Any:
        """Do any of `faults`, `empty`, `seed`, `copy`, `version`, `forget_counts`, and tell the counts."""
        board = self.switchboard
        if "version" in asked:
            board.version = asked["version"]
        if "faults" in asked:
            board.set([Fault(**one) for one in asked["faults"]])
        if asked.get("empty"):
            board.settle()
            self.memories.empty()
        if seed := asked.get("seed"):
            self.memories.seed(**seed)
        if copy := asked.get("copy"):
            self.memories.copy(**copy)
        if asked.get("forget_counts"):
            board.calls.clear()
            self.memories.embedder.texts = 0
        counts = {"calls": dict(board.calls), "running": dict(board.running)}
        return {**counts, "embedded": self.memories.embedder.texts}


def _raise(refused: Refused) -> Any:
    raise refused


def _worked(work: Callable[[], Any]) -> tuple[int, Any, Mapping[str, str]]:
    """Status, body and headers of the answer."""
    try:
        return 200, work(), {}
    except Refused as refused:
        return refused.status, refused.body, refused.headers


@dataclass
class Asked:
    """A request, checked: what its path names, its query and its body."""

    memories: Memories
    names: tuple[str, ...]
    query: dict[str, Any]
    body: Any


@dataclass(frozen=True)
class Route:
    """One operation. A body is of the form of `model`, or any JSON for `object`."""

    method: str
    path: str
    kind: str
    answer: Callable[[Asked], Any]
    model: Any = None


ROUTES = (
    Route("POST", "/memories", "add", lambda asked: asked.memories.add(asked.body), MemoryCreate),
    Route("GET", "/memories", "list", lambda asked: asked.memories.list(asked.query)),
    Route("DELETE", "/memories", "delete_all", lambda asked: asked.memories.delete_all(asked.query)),
    Route("GET", "/memories/([^/]+)", "get", lambda asked: asked.memories.get(*asked.names)),
    Route(
        "PUT",
        "/memories/([^/]+)",
        "update",
        lambda asked: asked.memories.update(*asked.names, asked.body),
        MemoryUpdate,
    ),
    Route("DELETE", "/memories/([^/]+)", "delete", lambda asked: asked.memories.delete(*asked.names)),
    Route("GET", "/memories/([^/]+)/history", "history", lambda asked: asked.memories.history(*asked.names)),
    Route("POST", "/search", "search", lambda asked: asked.memories.search(asked.body), SearchRequest),
    Route("GET", "/entities", "entities", lambda asked: asked.memories.entities()),
    Route(
        "DELETE",
        "/entities/([^/]+)/([^/]+)",
        "delete_all",
        lambda asked: asked.memories.delete_entity(*asked.names),
    ),
    Route("POST", "/reset", "reset", lambda asked: asked.memories.reset()),
    Route("GET", "/configure", "configure", lambda asked: _configuration()),
    Route("POST", "/configure", "configure", lambda asked: _configure(asked.body), object),
    Route("GET", "/configure/providers", "configure", lambda asked: {"llm": LLMS, "embedder": EMBEDDERS}),
)


def route(method: str, path: str) -> tuple[Route, tuple[str, ...]]:
    """The operation that a request names, and what its path names."""
    matches = [(one, match) for one in ROUTES if (match := re.fullmatch(one.path, path))]
    for one, match in matches:
        if one.method == method:
            return one, match.groups()
    if path == "/":
        raise Refused(307, None, {"Location": "/docs"})
    raise Refused(405, "Method Not Allowed") if matches else Refused(404, "Not Found")


def kind_of(found: Route, body: bytes) -> str:
    """What its calls are counted as."""
    if found.kind != "add":
        return found.kind
    with contextlib.suppress(ValueError, AttributeError):
        return "add" if json.loads(body).get("infer") is False else "extract"
    return "add"


def _authenticate(handler: Handler) -> None:
    key, given = handler.server.key, handler.headers.get("X-API-Key")
    if handler.headers.get("Authorization", "").lower().startswith("bearer "):
        raise Refused(401, "Invalid or expired token.")
    if given is not None and not (key and hmac.compare_digest(given, key)):
        raise Refused(401, "Invalid API key.")
    if key and given is None:
        raise Refused(401, "Authentication required. Provide a Bearer token or X-API-Key header.")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error", "input": {}}
        raise Refused(422, [{**problem, "ctx": {"error": error.msg}}]) from error


def _body(model: Any, parsed: Any) -> Any:
    try:
        return TypeAdapter(model).validate_python(parsed, from_attributes=True)
    except ValidationError as error:
        raise invalid(error, "body") from error


def _query(given: Mapping[str, str]) -> dict[str, Any]:
    asked = {}
    for name, kind in QUERY.items():
        if name in given:
            try:
                asked[name] = kind.validate_python(given[name])
            except ValidationError as error:
                raise invalid(error, "query", name) from error
    return asked


def _configuration() -> Any:
    return {
        "version": "v1.1",
        "vector_store": {"provider": "pgvector", "config": {"collection_name": COLLECTION, "password": "[redacted]"}},
        "llm": {"provider": "openai", "config": {"api_key": "[redacted]"}},
        "embedder": {"provider": "openai", "config": {"api_key": "[redacted]"}},
        "history_db_path": "history.db",
    }


def _configure(wanted: Any) -> Any:
    for part, bundled in (("llm", LLMS), ("embedder", EMBEDDERS)):
        provider = wanted.get(part, {}).get("provider")
        if provider and provider not in bundled:
            raise Refused(400, f"{part} provider '{provider}' is not bundled in this image.")
    return {"message": "Configuration set successfully"}


def description(version: str) -> Any:
    """The server's own description, as far as it tells versions apart; `version` is current, 2.0.4 or 1.0.11."""
    search, create = SearchRequest.model_json_schema(), MemoryCreate.model_json_schema()
    listing = list(QUERY)
    if version != "current":
        create["properties"].pop("expiration_date")
        listing = [name for name in listing if name.endswith("_id")]
    if version == "1.0.11":
        search["properties"]["limit"] = search["properties"].pop("top_k")
    return {
        "info": {"title": "Mem0 REST APIs", "version": "1.0.0"},
        "paths": {"/memories": {"get": {"parameters": [{"name": name, "in": "query"} for name in listing]}}},
        "components": {"schemas": {"SearchRequest": search, "MemoryCreate": create}},
    }


# -- starting it -------------------------------------------------------------------------------------------------------


class FakeMem0:
    """The stand-in as a process of its own."""

    def __init__(self, database: str, home: Path, *options: str, key: str = "key-of-the-stand-in") -> None:
        """`options` are those of `main`."""
        self.key, self._port = key, 0
        self._arguments = ["--database", database, "--home", str(home), "--key", key, *options]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, again on the same port, and wait until it answers."""
        command = [sys.executable, "-m", "tests.fake_mem0", "--port", str(self._port), *self._arguments]
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def stop(self, *, kill: bool = False) -> None:
        """End it; what it stored stays."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def control(self, **asked: Any) -> Any:
        """See Server.control."""
        return requests.post(f"{self.url}/_control", json=asked, timeout=60).json()

    def fault(self, *faults: Fault) -> None:
        """These faults and no others from now on; calls held by earlier ones go on."""
        self.control(faults=[asdict(one) for one in faults])

    def reset(self) -> None:
        """As if new: no faults, no memories, counts at zero."""
        self.control(faults=[], version="current", empty=True, forget_counts=True)

    def calls(self) -> Counter[str]:
        """Calls so far, by kind: search, list, get, add, extract, update, delete, delete_all, history, entities, …"""
        return Counter(self.control()["calls"])

    def running(self, kind: str) -> int:
        """Calls of that kind that have arrived and are not over."""
        return int(self.control()["running"].get(kind, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--database", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--by-words", action="store_true", help="embed by words alone, which costs nothing")
    parser.add_argument("--embeddings", default="", help="embed through the OpenAI-compatible endpoint at this address")
    parser.add_argument("--hnsw", action="store_true", help="index as Mem0 does by default, which finds less of a user")
    given = parser.parse_args()
    how = {name: getattr(given, name) for name in ("by_words", "embeddings", "hnsw")}
    server = Server(given.port, Memories(given.database, given.home, **how), given.key)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
