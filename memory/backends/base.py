"""What memsvc asks of Mem0, however it is reached. Everything behind it raises `OriginError` and nothing else."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from memory.clock import Deadline
from memory.types import Listing, Memory, Query, Scope, Stored

LIST_LIMIT = 1000
"""Rows Mem0 lists at most for one scope over REST; a listing that long is taken as cut."""


class Backend(Protocol):
    """Mem0, the origin. Ids and texts are passed exactly as given; metadata comes back marks included.

    Every call takes a deadline and gives up at it with OriginTimeout. A write that raises says by `sent` whether it may
    have taken effect.
    """

    name: str
    in_process: bool
    """True when an attempt ends with the process that made it (PROTOCOL A5)."""

    @property
    def extracts(self) -> bool:
        """Whether an LLM turns conversations into facts; if not, `extract` stores the user's messages as they are."""
        ...

    def search(self, query: Query, deadline: Deadline) -> builtins.list[Memory]:
        """The best `query.top_k` memories, best first, with scores."""
        ...

    def list(self, scope: Scope, deadline: Deadline) -> Listing:
        """Every memory of the scope, expired ones included, in no order."""
        ...

    def get(self, memory_id: str, deadline: Deadline) -> Memory | None:
        """One memory, or None when there is none of that id."""
        ...

    def add(
        self,
        scope: Scope,
        texts: Sequence[str],
        metadata: Mapping[str, Any],
        expiration_date: str | None,
        deadline: Deadline,
    ) -> builtins.list[Stored]:
        """Store the texts as they are, in order, all with the same metadata. One result for each stored text."""
        ...

    def extract(
        self,
        scope: Scope,
        messages: Sequence[Mapping[str, str]],
        metadata: Mapping[str, Any],
        deadline: Deadline,
    ) -> builtins.list[Stored]:
        """Let Mem0 find facts in a conversation. Without an LLM the user's messages are stored as they are."""
        ...

    def update(
        self,
        memory_id: str,
        deadline: Deadline,
        *,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: str | None = None,
        clear_expiration: bool = False,
    ) -> None:
        """Change one memory; metadata is merged. OriginNotFound when there is none."""
        ...

    def delete(self, memory_id: str, deadline: Deadline) -> None:
        """Remove one memory. OriginNotFound when there is none."""
        ...

    def delete_all(self, scope: Scope, deadline: Deadline) -> None:
        """Remove every memory of the scope; none there is no error. ValueError for a scope without ids."""
        ...

    def history(self, memory_id: str, deadline: Deadline) -> builtins.list[dict[str, Any]]:
        """What happened to one memory, oldest first, in Mem0's own fields."""
        ...

    def forget(self, scope: Scope, deadline: Deadline) -> bool:
        """Remove what the upstream noted of the scope beside its memories (histories, last messages); False where
        nobody can."""
        ...

    def find_marked(self, scope: Scope, job: str, texts: Sequence[str], deadline: Deadline) -> Listing:
        """The memories that carry the mark of `job`; `complete` says whether the look was conclusive (PROTOCOL A6).

        `texts` are those wanted, for upstreams where each must be looked for by itself.
        """
        ...

    def entities(self, deadline: Deadline) -> tuple[builtins.list[dict[str, Any]], bool]:
        """Ids known upstream as [{type, id, total_memories}], and whether the scan was complete."""
        ...

    def check(self, deadline: Deadline) -> dict[str, Any]:
        """Whether the upstream answers: its name and version, for `/readyz`. OriginError if it does not."""
        ...
