"""What turns text into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Action = Literal["search", "passage", "symmetric"]
Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Raises EmbedderError and nothing else. Vectors are unit length, so a dot product is the cosine."""

    name: str
    """Model name, part of every cached vector's key."""
    dimensions: int

    @property
    def symmetric(self) -> bool:
        """Whether it treats all texts alike, whatever the action."""
        ...

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """An array of shape (len(texts), dimensions), float32, rows of length 1. Asymmetric models tell queries
        ("search") from stored texts ("passage"); others ignore the action."""
        ...
