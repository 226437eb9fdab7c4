"""A Mem0 that fails on command: it keeps memories in a list and can lose answers, refuse, stall or store by halves.

It stands in for what cannot be had from the real one at will; what Mem0 really does is tested in `backends/`.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from memory.clock import Deadline
from memory.errors import OriginNotFound, OriginTimeout, OriginUnavailable
from memory.types import Listing, Memory, Query, Scope, Stored


class FailingMem0:
    """A Backend. `faults` are called, one a write, with the work to do; without any, writes succeed. `before`
    is called with the kind of every call. Where listings are `cut`, so many texts are looked for in time."""

    name = "failing"
    extracts = True

    def __init__(self, *, in_process: bool = False) -> None:
        self.in_process = in_process
        self.rows: list[Memory] = []
        self.calls: list[str] = []
        self.faults: list[Callable[[Callable[[], list[Stored]]], list[Stored]]] = []
        self.down = False
        self.conclusive = True
        self.cut: int | None = None
        self.stall: threading.Event | None = None
        self.searching = threading.Event()
        self.scores: dict[str, float] = {}
        self._lock = threading.Lock()
        self.before: Callable[[str], None] = lambda kind: None

    def texts(self, user_id: str | None = None) -> list[str]:
        """What it holds of a user, in the order it came."""
        return [row.text for row in self.rows if user_id is None or row.user_id == user_id]

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        with self._call("search"):
            self.searching.set()
            if self.stall is not None and not self.stall.wait(deadline.remaining()):
                raise OriginTimeout("stalled")
            found = [replace(row, score=self.scores.get(row.text, 1.0)) for row in self._of(query.scope)]
        return found[: query.top_k]

    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        with self._call("list"):
            return Listing(self._of(scope), True)

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        with self._call("get"):
            return next((row for row in self.rows if row.id == memory_id), None)

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> list[Stored]:
        return self._write("add", lambda: [self.store(scope, text, metadata, expiration_date) for text in texts])

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> list[Stored]:
        return self._write("extract", lambda: [self.store(scope, each["content"], metadata) for each in messages])

    def update(self, memory_id: str, deadline: Deadline, **changes: Any) -> None:
        def change() -> list[Stored]:
            index = self._index(memory_id)
            row = self.rows[index]
            metadata = {**row.metadata, **(changes.get("metadata") or {})}
            self.rows[index] = replace(row, text=changes.get("text") or row.text, metadata=metadata)
            return []

        self._write("update", change)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        def remove() -> list[Stored]:
            del self.rows[self._index(memory_id)]
            return []

        self._write("delete", remove)

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        def remove() -> list[Stored]:
            gone = {row.id for row in self._of(scope)}
            self.rows = [row for row in self.rows if row.id not in gone]
            return []

        self._write("delete_all", remove)

    def history(self, memory_id: str, deadline: Deadline) -> list[dict[str, Any]]:
        return []

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        with self._call("forget"):
            return True

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        with self._call("find_marked"):
            marked = [row for row in self._of(scope) if row.job == job]
            if self.cut is None:
                return Listing(marked, self.conclusive)
            if len(texts) > self.cut:
                raise OriginTimeout("too many searches for one look")
            return Listing([row for row in marked if row.text in texts], bool(texts))

    def entities(self, deadline: Deadline) -> tuple[list[dict[str, Any]], bool]:
        with self._call("entities"):
            names = [(kind, getattr(row, f"{kind}_id")) for kind in ("user", "agent", "run") for row in self.rows]
            counts = Counter(name for name in names if name[1] is not None)
        return [{"type": kind, "id": name, "total_memories": n} for (kind, name), n in counts.items()], True

    def check(self, deadline: Deadline) -> dict[str, Any]:
        return {"name": self.name}

    def store(
        self,
        scope: Scope,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: str | None = None,
    ) -> Stored:
        """Put a memory in, as its own add or somebody else's."""
        row = Memory(
            str(uuid.uuid4()), text, scope.user_id, scope.agent_id, scope.run_id, dict(metadata or {}),
            created_at=f"2026-01-01T00:00:00.{len(self.rows):06}+00:00", expiration_date=expiration_date,
        )  # fmt: skip
        with self._lock:
            self.rows.append(row)
        return Stored(row.id, text)

    def _write(self, kind: str, work: Callable[[], list[Stored]]) -> list[Stored]:
        with self._call(kind):
            fault = self.faults.pop(0) if self.faults else None
            return fault(work) if fault else work()

    @contextmanager
    def _call(self, kind: str) -> Iterator[None]:
        self.calls.append(kind)
        self.before(kind)
        if self.down:
            raise OriginUnavailable("down", sent=False)
        yield

    def _of(self, scope: Scope) -> list[Memory]:
        wanted = scope.ids().items()
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted)]

    def _index(self, memory_id: str) -> int:
        for index, row in enumerate(self.rows):
            if row.id == memory_id:
                return index
        raise OriginNotFound(memory_id, status=404)


def answer_lost(work: Callable[[], list[Stored]]) -> list[Stored]:
    """The work is done, the answer never arrives."""
    work()
    raise OriginTimeout("answer lost", sent=True)


def never_arrived(work: Callable[[], list[Stored]]) -> list[Stored]:
    """The request is lost on its way, which the sender cannot tell."""
    raise OriginTimeout("nothing heard", sent=True)


def refused(work: Callable[[], list[Stored]]) -> list[Stored]:
    """Mem0 cannot be reached: certainly nothing was done."""
    raise OriginUnavailable("refused", sent=False)
