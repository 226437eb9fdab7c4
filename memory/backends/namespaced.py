"""Keeps the projects that share one Mem0 apart, by a prefix on every id.

The first project's ids are Mem0's own, so that what was there before is found as it is; every other project's begin
with `memsvc~NAMESPACE~`. Ids of the first project that begin like that are escaped: none reaches another's.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from memory import clock, metrics
from memory.backends.base import Backend
from memory.clock import Deadline
from memory.errors import OriginError
from memory.types import Listing, Memory, Query, Scope, Stored

RESERVED = "memsvc~"
ESCAPED = f"{RESERVED}0~"


class Namespaced:
    """A Backend for one project over the shared one, calls counted. Another project's memory does not exist here."""

    def __init__(self, backend: Backend, project: int, namespace: str) -> None:
        self._backend = backend
        self._project = project
        self._prefix = f"{RESERVED}{namespace}~" if namespace else ""
        self.name = backend.name
        self.in_process = backend.in_process

    @property
    def extracts(self) -> bool:
        """Whether an LLM turns conversations into facts."""
        return self._backend.extracts

    def search(self, query: Query, deadline: Deadline) -> list[Memory]:
        """See Backend."""
        with self._counted("search"):
            return self._owned(self._backend.search(replace(query, scope=self._out(query.scope)), deadline))

    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """See Backend."""
        with self._counted("list"):
            listing = self._backend.list(self._out(scope), deadline)
        return Listing(self._owned(listing.memories), listing.complete)

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """See Backend; None for a memory of another project."""
        with self._counted("get"):
            memory = self._backend.get(memory_id, deadline)
        owned = self._owned([memory]) if memory else []
        return owned[0] if owned else None

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> builtins.list[Stored]:
        """See Backend."""
        with self._counted("add"):
            return self._backend.add(self._out(scope), texts, metadata, expiration_date, deadline)

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> builtins.list[Stored]:
        """See Backend."""
        with self._counted("extract"):
            return self._backend.extract(self._out(scope), messages, metadata, deadline)

    def update(self, memory_id: str, deadline: Deadline, **changes: Any) -> None:
        """See Backend. The caller has made sure that the memory is this project's."""
        with self._counted("update"):
            self._backend.update(memory_id, deadline, **changes)

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """See Backend. The caller has made sure that the memory is this project's."""
        with self._counted("delete"):
            self._backend.delete(memory_id, deadline)

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """See Backend."""
        with self._counted("delete_all"):
            self._backend.delete_all(self._out(scope), deadline)

    def history(self, memory_id: str, deadline: Deadline) -> builtins.list[dict[str, Any]]:
        """See Backend. The caller has made sure that the memory is this project's."""
        with self._counted("history"):
            return self._backend.history(memory_id, deadline)

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """See Backend."""
        with self._counted("forget"):
            return self._backend.forget(self._out(scope), deadline)

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """See Backend."""
        with self._counted("list"):
            listing = self._backend.find_marked(self._out(scope), job, texts, deadline)
        return Listing(self._owned(listing.memories), listing.complete)

    def entities(self, deadline: Deadline) -> tuple[builtins.list[dict[str, Any]], bool]:
        """See Backend; only this project's ids."""
        with self._counted("entities"):
            rows, complete = self._backend.entities(deadline)
        inside = [(row, self._in(row["id"])) for row in rows]
        return [{**row, "id": name} for row, name in inside if name is not None], complete

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """See Backend."""
        return self._backend.check(deadline)

    @contextmanager
    def _counted(self, kind: str) -> Iterator[None]:
        metrics.count("upstream_calls", project=self._project, kind=kind)
        began = clock.now()
        try:
            yield
        except OriginError as error:
            metrics.count("upstream_errors", project=self._project, kind=kind, code=error.code)
            raise
        finally:
            metrics.observe("upstream_seconds", clock.now() - began, kind=kind)

    def _out(self, scope: Scope) -> Scope:
        return Scope(self._project, *(self._outer(name) for name in (scope.user_id, scope.agent_id, scope.run_id)))

    def _outer(self, name: str | None) -> str | None:
        if name is None:
            return None
        if self._prefix:
            return self._prefix + name
        return ESCAPED + name if name.startswith(RESERVED) else name

    def _in(self, name: str) -> str | None:
        """The project's own form of an id of Mem0's, None for another project's."""
        if self._prefix:
            return name.removeprefix(self._prefix) if name.startswith(self._prefix) else None
        if name.startswith(ESCAPED):
            return name.removeprefix(ESCAPED)
        return None if name.startswith(RESERVED) else name

    def _owned(self, memories: Sequence[Memory]) -> builtins.list[Memory]:
        owned = []
        for memory in memories:
            names = (memory.user_id, memory.agent_id, memory.run_id)
            inside = [name if name is None else self._in(name) for name in names]
            if tuple(inside) == names:
                owned.append(memory)
            elif all(name is None or own is not None for name, own in zip(names, inside, strict=True)):
                owned.append(replace(memory, user_id=inside[0], agent_id=inside[1], run_id=inside[2]))
        return owned
