"""How near texts are to a question: words, with accents or without, and vectors together.

For texts that no layer has ranked: what was just said, and what is on its way to Mem0. Vectors come through L1; a
process keeps those it used last, so that asking again costs no round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as once

import numpy as np

from memory import embedders, rank
from memory.embedders.base import Action, Embedder, Vectors
from memory.errors import EmbedderError
from memory.layers.l0_process import ByteLRU
from memory.layers.l1_vectors import CachedEmbedder
from memory.rank import Rows
from memory.text import nfc

HELD_BYTES = 8 << 20
WORDS_WEIGHT = 0.3
"""Share of the words in a score: cosines of one model lie close together, a word in common tells them apart."""


def scores(question: str, rows: Rows, project: int) -> tuple[list[float], bool]:
    """For each row 0 to 1, and whether vectors had a part in it; by words alone where none can be made."""
    words = np.zeros(len(rows.texts), dtype=np.float32)
    for index, score in rank.by_words(question, rows, len(rows.texts)):
        words[index] = score
    vectors = rows.vectors if rows.vectors is not None else embed(rows.texts, project)
    asked = embed([question], project, "search")
    if vectors is None or asked is None:
        return words.tolist(), False
    cosines = np.clip(np.asarray(vectors, dtype=np.float32) @ asked[0], 0, 1)
    return ((1 - WORDS_WEIGHT) * cosines + WORDS_WEIGHT * words).tolist(), True


def embed(texts: Sequence[str], project: int, action: Action = "passage") -> Vectors | None:
    """Vectors of the texts, shape (len(texts), dimensions); None where none can be made."""
    try:
        embedder = embedders.get()
        return None if embedder is None else _embed(embedder, texts, project, action)
    except EmbedderError:
        return None


def _embed(embedder: Embedder, texts: Sequence[str], project: int, action: Action) -> Vectors:
    keyed = [(project, embedder.name, action, nfc(text)) for text in texts]
    found = {key: vector for key in set(keyed) if (vector := _held().get(key)) is not None}
    missing = [key for key in dict.fromkeys(keyed) if key not in found]
    if missing:
        made = CachedEmbedder(embedder, project).embed([key[3] for key in missing], action)
        for key, vector in zip(missing, made, strict=True):
            found[key] = vector
            _held().put(key, vector, vector.nbytes + 4 * len(key[3]) + 300)
    return np.stack([found[key] for key in keyed]) if keyed else np.empty((0, embedder.dimensions), dtype=np.float32)


@once
def _held() -> ByteLRU[tuple[int, str, Action, str], Vectors]:
    return ByteLRU(HELD_BYTES)
