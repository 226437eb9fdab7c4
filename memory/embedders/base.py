"""What turns text into vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memory.clock import Deadline

Action = Literal["search", "passage", "symmetric"]
Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Raises EmbedderError and nothing else. Vectors are unit length, so a dot product is the cosine."""

    name: str
    """Model name, part of every cached vector's key."""
    dimensions: int
    remote: bool
    """Whether it waits for a network: then until `patience` ends at most."""

    @property
    def symmetric(self) -> bool:
        """Whether it treats all texts alike, whatever the action."""
        ...

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """An array of shape (len(texts), dimensions), float32, rows of length 1. Asymmetric models tell queries
        ("search") from stored texts ("passage"); others ignore the action."""
        ...


_until: ContextVar[float] = ContextVar("memsvc_embedding_until", default=inf)


@contextmanager
def patience(until: float) -> Iterator[None]:
    """Within it no embedder is waited for after `until` (on `clock`). It binds this thread alone."""
    token = _until.set(min(until, _until.get()))
    try:
        yield
    finally:
        _until.reset(token)


def allowed(seconds: float) -> Deadline:
    """`seconds` from now, or the end of the patience if that is earlier."""
    return Deadline(_until.get()).at_most(seconds)
