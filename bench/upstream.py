"""Mem0 itself over REST, to be measured beside memsvc.

A server around the real `mem0ai` with its defaults, on a PostgreSQL of its own: the tests' stand-in, as Mem0's own
server is in no package. Its embedder is the local one, in its process, or an endpoint elsewhere. With --url and --key
it is Mem0's own server at that address, which is told to embed through an endpoint of this run: it must be one that may
be changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from bench import embedding_server
from bench.hit import load
from bench.measure import cpu
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from tests.fake_mem0 import CONNECTIONS, FakeMem0
from tests.real_mem0 import RealMem0

DELAY = 0.12
"""Seconds that the slow embedder takes: about what a hosted one does."""
EMBEDDERS = {"local": "the local embedder", "slow": f"an embedder elsewhere that takes {DELAY * 1000:.0f} ms"}
TOP_K, GIVERS = 10, 8


@dataclass
class Mem0:
    """A server that answers Mem0's REST API. `pids`: its processes and its database's, as far as they are known."""

    url: str
    key: str
    pids: tuple[int, ...]
    texts: Callable[[], int]
    """How many texts it has had embedded."""
    about: str
    """What it is, in a line."""
    stand_in: FakeMem0 | None = None
    users: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 80

    def cpu(self) -> float:
        """Seconds of CPU it has used, its database included; 0 where its processes are not known."""
        return cpu(*self.pids)

    def search(self, user: str, question: str) -> bytes:
        """The request that asks it."""
        body = {"query": question, "filters": {"user_id": user}, "top_k": TOP_K}
        return load.post(self.port, "/search", body, f"X-API-Key: {self.key}")

    def give(self, facts: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[str]]) -> None:
        """Store facts by user; `others` have the same as the user they are named with."""
        given = [(user, said, others.get(user, ())) for user, said in facts.items()]
        # The first alone: Mem0 makes its tables with it, and two at a time would fail.
        self._give(*given[0])
        with ThreadPoolExecutor(GIVERS) as pool:
            list(pool.map(lambda one: self._give(*one), given[1:]))

    def _give(self, user: str, facts: Sequence[str], others: Sequence[str]) -> None:
        named = [user, *others]
        messages = [{"role": "user", "content": fact} for fact in facts]
        for each in named[:1] if self.stand_in else named:
            self._call("POST", "/memories", json={"messages": messages, "user_id": each, "infer": False})
        if self.stand_in and others:
            self.stand_in.control(copy={"user_id": user, "others": list(others)})
        self.users += named

    def forget(self) -> None:
        """Delete what was given."""
        for user in self.users:
            self._call("DELETE", "/memories", params={"user_id": user})

    def _call(self, method: str, path: str, **given: Any) -> None:
        sent = requests.request(method, self.url + path, headers={"X-API-Key": self.key}, timeout=300, **given)
        sent.raise_for_status()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which Mem0."""
    parser.add_argument("--url", help="Mem0's own server, instead of the stand-in")
    parser.add_argument("--key", default="", help="its ADMIN_API_KEY")
    parser.add_argument("--pids", type=int, nargs="*", default=[], help="its processes, where their CPU shall be told")


@contextmanager
def started(folder: Path, given: argparse.Namespace, embedder: str) -> Iterator[tuple[Mem0, str]]:
    """Mem0 with the `local` or the `slow` embedder, and the address of the endpoint it embeds through, if there is
    one."""
    with ExitStack() as stack:
        options = {"local": ["--local"], "slow": ["--delay", str(DELAY)]}[embedder]
        endpoint = None
        if given.url or embedder == "slow":
            endpoint = stack.enter_context(embedding_server.running(*options))
        address = f"{endpoint.url}/v1" if endpoint else ""
        if given.url and endpoint:
            RealMem0(given.url, given.key).embed_through(endpoint.url, "unused")
            about = f"its own server at --url, which embeds through an endpoint of this run ({EMBEDDERS[embedder]})"
            found = Mem0(given.url, given.key, (*given.pids, endpoint.pid), endpoint.texts, about)
            stack.callback(found.forget)
        else:
            found = stack.enter_context(_stand_in(folder, address, EMBEDDERS[embedder]))
        yield found, address


@contextmanager
def _stand_in(folder: Path, address: str, embedder: str) -> Iterator[Mem0]:
    home = Home(folder / "postgres")
    postgres = Postgres(home)
    postgres.start()
    try:
        server = FakeMem0(postgres.url, folder / "mem0", "--hnsw", *(["--embeddings", address] if address else []))
        server.start()
        try:
            assert postgres.process
            assert postgres.process.record
            pids = (server.pid, postgres.process.record.pid)
            about = (
                f"REST around mem0ai {version('mem0ai')}, one process, {CONNECTIONS} connections to its PostgreSQL, "
                f"pgvector with HNSW, {embedder}, else its defaults"
            )
            yield Mem0(server.url, server.key, pids, lambda: int(server.control()["embedded"]), about, server)
        finally:
            server.stop()
    finally:
        postgres.stop()
        home.remove()
