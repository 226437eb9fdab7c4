"""An OpenAI-compatible `/embeddings` endpoint: OpenAI, vLLM, TEI, Ollama, LiteLLM, …"""

from __future__ import annotations

import base64
import binascii
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import requests
from django.conf import settings
from requests.adapters import HTTPAdapter

from memory.clock import Deadline
from memory.embedders.base import Action, Vectors, allowed
from memory.errors import EmbedderError

BATCH_TEXTS = 96
_RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504})


def make() -> OpenAIEmbedder:
    """The endpoint that the settings EMBEDDER_* name."""
    return OpenAIEmbedder(
        settings.EMBEDDER_URL or "https://api.openai.com/v1",
        settings.EMBEDDER_API_KEY,
        settings.EMBEDDER_MODEL,
        settings.EMBEDDER_DIMENSIONS,
        settings.EMBEDDER_TIMEOUT_SECONDS,
    )


class OpenAIEmbedder:
    """Symmetric: the action is ignored. Each batch has `timeout` seconds, one retry included, or less where its caller
    has less patience."""

    remote = True

    def __init__(self, url: str, key: str, model: str, dimensions: int, timeout: float) -> None:
        self.name = model
        self.symmetric = True
        self.dimensions = dimensions
        self._url = f"{url.rstrip('/')}/embeddings"
        self._timeout = timeout
        self._session = requests.Session()
        self._session.mount(self._url, HTTPAdapter(pool_connections=1, pool_maxsize=64))
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """An array of shape (len(texts), dimensions)."""
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = list(texts[start : start + BATCH_TEXTS])
            vectors[start : start + len(batch)] = self._batch(batch)
        return vectors

    def _batch(self, texts: list[str]) -> Vectors:
        deadline = allowed(self._timeout)
        if deadline.passed:
            raise EmbedderError("there is no time to wait for the embedder")
        response = self._post(texts, deadline)
        if response is None or response.status_code in _RETRYABLE:
            pause = _pause(response)
            if pause >= deadline.remaining():
                raise EmbedderError(_said(response))
            time.sleep(pause)
            response = self._post(texts, deadline)
        if response is None or response.status_code != requests.codes.ok:
            raise EmbedderError(_said(response))
        return self._read(response, len(texts))

    def _post(self, texts: list[str], deadline: Deadline) -> requests.Response | None:
        """The answer, or None when there was none."""
        body: dict[str, Any] = {"model": self.name, "input": texts, "encoding_format": "base64"}
        # Only this family cuts its vectors on request; others refuse the field.
        if self.name.startswith("text-embedding-3"):
            body["dimensions"] = self.dimensions
        try:
            return self._session.post(self._url, json=body, timeout=max(0.001, deadline.remaining()))
        except requests.RequestException:
            return None

    def _read(self, response: requests.Response, count: int) -> Vectors:
        try:
            items = sorted(response.json()["data"], key=lambda item: item["index"])
            rows = [_vector(item["embedding"]) for item in items]
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise EmbedderError("the embedder's answer cannot be read") from None
        if len(rows) != count:
            raise EmbedderError(f"the embedder answered {len(rows)} vectors for {count} texts")
        if any(row.size != self.dimensions for row in rows):
            raise EmbedderError(
                f"{self.name} makes {rows[0].size} dimensions; EMBEDDER_DIMENSIONS is {self.dimensions}"
            )
        vectors: Vectors = np.stack(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(lengths) & (lengths > 0)):
            raise EmbedderError("the embedder answered a vector without direction")
        vectors /= lengths
        return vectors


def _vector(embedding: str | list[float]) -> Vectors:
    """Servers that do not know base64 answer numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)


def _pause(response: requests.Response | None) -> float:
    """Seconds before the retry: what the server asks for, else a short moment with jitter."""
    asked = "" if response is None else response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        return random.uniform(0.05, 0.25)  # noqa: S311  spreads retries, no secret


def _said(response: requests.Response | None) -> str:
    return "the embedder did not answer" if response is None else f"the embedder answered {response.status_code}"
