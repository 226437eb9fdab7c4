"""How near texts are to a question: words, with accents or without, and vectors together.

For texts that no layer has ranked: what was just said, and what is on its way to Mem0. A search makes few vectors
itself, since each costs 40 ms: those that L1 or this process hold come first, and a text without one counts as near as
texts usually are, so that its words decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as once

import numpy as np

from memory import accents, embedders, rank
from memory.embedders.base import Action, Vectors
from memory.errors import EmbedderError
from memory.layers.l0_process import ByteLRU
from memory.layers.l1_vectors import CachedEmbedder
from memory.rank import Rows
from memory.text import nfc

HELD_BYTES = 8 << 20
WORDS_WEIGHT = 0.5
"""Share of the words in a score: cosines of one model lie close together, a word in common tells them apart. Measured:
docs/decisions/0010."""
MOST_MADE = 4
"""Vectors that one search makes, of the last texts without one."""


@dataclass(frozen=True, slots=True)
class Scores:
    """For each text 0 to 1; its cosine where vectors had a part in that; whether every text had a vector."""

    values: list[float]
    cosines: list[float] | None
    whole: bool

    def reach(self, threshold: float | None) -> list[bool]:
        """Which texts a search with this threshold may show: it is one of cosines, as for Mem0."""
        if threshold is None or self.cosines is None:
            return [True] * len(self.values)
        return [cosine >= threshold for cosine in self.cosines]


def scores(question: str, rows: Rows, project: int, *, by_words: bool = False) -> Scores:
    """How near each row is; by words alone where asked, or where no vector can be made."""
    words = np.zeros(len(rows.texts), dtype=np.float32)
    for index, score in rank.by_words(question, rows, len(rows.texts)):
        words[index] = score
    try:
        cosines, whole = None if by_words else _cosines(question, rows, project), not by_words
    except EmbedderError:  # a moment later it may be there
        cosines, whole = None, False
    if cosines is None:
        return Scores(words.tolist(), None, whole)
    unknown = np.isnan(cosines)
    cosines[unknown] = np.median(cosines[~unknown]) if not unknown.all() else 0
    values = (1 - WORDS_WEIGHT) * cosines + WORDS_WEIGHT * words
    return Scores(values.tolist(), cosines.tolist(), not unknown.any())


def warm(texts: Sequence[str], project: int) -> None:
    """Make the vectors of texts, so that searches find them in L1."""
    try:
        if (embedder := embedders.get()) is not None:
            CachedEmbedder(embedder, project).embed(texts, "passage")
    except EmbedderError:
        return  # the next search ranks by words


def _cosines(question: str, rows: Rows, project: int) -> Vectors | None:
    """The cosine of each text with the question, NaN where its vector is not known; None without an embedder.
    EmbedderError."""
    embedder = embedders.get()
    if embedder is None:
        return None
    cached = CachedEmbedder(embedder, project)
    meant = rows.spelling.restored(question) if accents.missing(question) else question
    (asked,) = _vectors(cached, [meant], "search", 1).values()
    known = _vectors(cached, rows.texts, "passage", MOST_MADE)
    cosines = np.full(len(rows.texts), np.nan, dtype=np.float32)
    for index, text in enumerate(rows.texts):
        if (vector := known.get(nfc(text))) is not None:
            cosines[index] = max(0.0, float(vector @ asked))
    return cosines


def _vectors(cached: CachedEmbedder, texts: Sequence[str], action: Action, most: int) -> dict[str, Vectors]:
    """Vectors by composed text, from this process, then L1; of what neither has, the last `most` are made."""
    wanted = dict.fromkeys(nfc(text) for text in texts)
    keyed = {text: (cached.project, cached.name, action, text) for text in wanted}
    found = {text: vector for text, key in keyed.items() if (vector := _held().get(key)) is not None}
    fresh: dict[str, Vectors] = {}
    if missing := [text for text in wanted if text not in found]:
        fresh = cached.held(missing, action)
        making = [text for text in missing if text not in fresh][-most:]
        fresh |= dict(zip(making, cached.embed(making, action), strict=True)) if making else {}
    for text, vector in fresh.items():
        _held().put(keyed[text], vector, vector.nbytes + 4 * len(text) + 300)
    return found | fresh


@once
def _held() -> ByteLRU[tuple[int, str, Action, str], Vectors]:
    return ByteLRU(HELD_BYTES)
