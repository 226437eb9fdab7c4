"""memsvc as `make up` starts it, in front of a Mem0 over REST, ranking new questions itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hit import load
from bench.upstream import TOP_K, Mem0
from memsvc import settings as defaults
from tests.live import Live, eventually


@contextmanager
def running(folder: Path, mem0: Mem0, settings: Mapping[str, str]) -> Iterator[Live]:
    """One for as long as it is needed; `settings` are beside where Mem0 is, and LOCAL_SEARCH."""
    upstream: dict[str, Any] = {"MEM0_REST_API_URL": mem0.url, "MEM0_REST_API_KEY": mem0.key}
    live = Live(folder, MEM0_USE_REST_API="true", LOCAL_SEARCH="on", **{**upstream, **settings}).up()
    try:
        yield live
    finally:
        live.remove()


def about(settings: Mapping[str, str]) -> str:
    """What it is, in a line."""
    web = f"granian, {defaults.WEB_PROCESSES} processes of {defaults.WEB_THREADS} threads"
    told = ", ".join(f"{name}={value}" for name, value in settings.items() if "KEY" not in name)
    return f"as `make up` starts it: {web}, workers and beat beside it, LOCAL_SEARCH=on, {told}"


def search(live: Live, user: str, question: str, **more: Any) -> bytes:
    """The request that asks it."""
    body = {"user_id": user, "query": question, "top_k": TOP_K, **more}
    return load.post(live.port, "/api/v1/memory/search", body, f"Authorization: Bearer {live.key}")


def warm(live: Live, users: Sequence[str], key: str | None = None) -> None:
    """Fill every layer of these users, and wait for it."""
    for user in users:
        live.call("POST", f"/api/v1/users/{user}/warm", {}, key=key).raise_for_status()
    settle(live)


def settle(live: Live) -> None:
    """Wait until it has nothing left to do in the background."""
    eventually(lambda: not live.rows("SELECT 1 FROM memory_job WHERE state <> 'completed' LIMIT 1"), 600)
    eventually(lambda: not live.rows("SELECT 1 FROM cachewarm_warmrun WHERE state IN ('due', 'running') LIMIT 1"), 600)
