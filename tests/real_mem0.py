"""Mem0's real server, where MEM0_REAL_URL and MEM0_REAL_KEY name one that tests may fill and empty."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import requests


@dataclass(frozen=True)
class RealMem0:
    """Its address, and its ADMIN_API_KEY."""

    url: str
    key: str

    def embed_through(self, url: str, key: str) -> None:
        """Let it embed through a memsvc, as the guide tells the operator, into a collection of its own."""
        embedder = {
            "model": "multilingual-e5-small-q4",
            "embedding_dims": 384,
            "api_key": key,
            "openai_base_url": f"{url}/v1",
        }
        self._configure(
            {
                "embedder": {"provider": "openai", "config": embedder},
                "vector_store": {"config": {"collection_name": "memories_e5", "embedding_model_dims": 384}},
            }
        )

    def _configure(self, wanted: dict[str, Any]) -> None:
        reply = requests.post(f"{self.url}/configure", json=wanted, headers={"X-API-Key": self.key}, timeout=60)
        reply.raise_for_status()


def named() -> RealMem0:
    """The server that was named; skips the test where none was."""
    if "MEM0_REAL_URL" not in os.environ:
        pytest.skip("MEM0_REAL_URL names no real Mem0 server")
    return RealMem0(os.environ["MEM0_REAL_URL"], os.environ.get("MEM0_REAL_KEY", ""))
