"""L1: text → vector, in Redis. It answers nothing by itself; it makes the vectors that L3 and Mem0 need.

Vectors are kept as float32: what comes out is bit for bit what the embedder made, so a ranking is the same from the
cache or fresh. float16 would halve 1.5 KB that live for an hour, and move cosines by up to 0.0005, enough to swap
neighbours.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

import numpy as np
import redis
from django.conf import settings

from memory import bulkhead, db, keys, metrics, redis_wire
from memory.embedders.base import Action, Embedder, Vectors
from memory.errors import EmbedderError, LayerUnavailable, Overloaded
from memory.text import nfc

LAYER = "L1"
CHUNK = 128
"""Vectors of one round trip: 200 KB, well within Redis's time-out."""


class CachedEmbedder:
    """An embedder with L1 before it, for one project. A failing Redis costs a computation, never an answer.

    A remote one is waited for without a connection to PostgreSQL and, where a search waits (`bounded`), with one of the
    places for waiting: without one EmbedderError.
    """

    def __init__(self, embedder: Embedder, project: int, *, bounded: bool = False) -> None:
        self.name = embedder.name
        self.dimensions = embedder.dimensions
        self.symmetric = embedder.symmetric
        self.project = project
        self.remote = embedder.remote
        self._embedder = embedder
        self._bounded = bounded
        self._secret = hmac.digest(settings.SECRET_KEY.encode(), b"memsvc.l1", "sha256")

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """An array of shape (len(texts), dimensions). Texts are composed (NFC) first; each distinct one is looked up
        and embedded once, and a found one lives L1_TTL_SECONDS from now."""
        action = self._meant(action)
        composed = [nfc(text) for text in texts]
        distinct = list(dict.fromkeys(composed))
        names = {text: self.key(text, action) for text in distinct}
        vectors = self._lookup(names)
        missing = [text for text in distinct if text not in vectors]
        if missing:
            made = self._compute(missing, action)
            vectors.update(zip(missing, made, strict=True))
            self._store({names[text]: vectors[text] for text in missing})
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        return np.stack([vectors[text] for text in composed])

    def held(self, texts: Sequence[str], action: Action) -> dict[str, Vectors]:
        """The vectors that are here already, by composed text; none is made."""
        return self._lookup({text: self.key(text, action) for text in dict.fromkeys(map(nfc, texts))})

    def key(self, text: str, action: Action) -> str:
        """The key of one text's vector (PROTOCOL C6: with the project, and nothing of the text can be read from it)."""
        digest = hmac.digest(self._secret, nfc(text).encode(errors="surrogatepass"), "sha256")[:16].hex()
        return keys.vector(self.project, self.name, self.dimensions, self._meant(action), digest)

    def _meant(self, action: Action) -> Action:
        return "symmetric" if self.symmetric else action

    def _lookup(self, names: Mapping[str, str]) -> dict[str, Vectors]:
        found: dict[str, Vectors] = {}
        texts = list(names)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            try:
                found.update(self._read(chunk, [names[text] for text in chunk]))
            except LayerUnavailable:
                self._count("error", len(texts) - start)
                break
        self._count("hit", len(found))
        metrics.count("embeddings", len(found), project=self.project, outcome="hit")
        return found

    def _read(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, Vectors]:
        try:
            stored = redis_wire.ask(*[("GETEX", name, "EX", settings.L1_TTL_SECONDS) for name in names])
        except redis.RedisError as error:
            raise LayerUnavailable(LAYER, type(error).__name__) from error
        size = self.dimensions * 4
        # An entry of another length is no vector of ours: a miss, and the fill that follows replaces it.
        whole = [(text, raw) for text, raw in zip(texts, stored, strict=True) if raw is not None and len(raw) == size]
        self._count("miss", len(texts) - len(whole))
        return {text: np.frombuffer(raw, dtype="<f4") for text, raw in whole}

    def _compute(self, texts: Sequence[str], action: Action) -> Vectors:
        try:
            vectors = self._waited(texts, action) if self.remote else self._embedder.embed(texts, action)
        except EmbedderError:
            metrics.count("embeddings", len(texts), project=self.project, outcome="error")
            raise
        metrics.count("embeddings", len(texts), project=self.project, outcome="computed")
        return vectors

    def _waited(self, texts: Sequence[str], action: Action) -> Vectors:
        db.release()
        if not self._bounded:
            return self._embedder.embed(texts, action)
        try:
            with bulkhead.waiting():
                return self._embedder.embed(texts, action)
        except Overloaded as error:
            raise EmbedderError("too many wait for the embedder or for Mem0") from error

    def _store(self, vectors: Mapping[str, Vectors]) -> None:
        names = list(vectors)
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            kept = [
                ("SET", name, vectors[name].astype("<f4").tobytes(), "EX", settings.L1_TTL_SECONDS) for name in chunk
            ]
            try:
                redis_wire.ask(*kept)
            except redis.RedisError:
                metrics.count("fills", len(names) - start, project=self.project, layer=LAYER, outcome="error")
                return
        metrics.count("fills", len(names), project=self.project, layer=LAYER, outcome="stored")

    def _count(self, outcome: str, n: int) -> None:
        if n:
            metrics.count("lookups", n, project=self.project, layer=LAYER, outcome=outcome)
