"""What turns text into vectors. An embedder is a module here with `make()`, named in the setting EMBEDDER's choices."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module

from django.conf import settings

from memory.embedders.base import Embedder


def get() -> Embedder | None:
    """The embedder of this process, made at first use; None where ranking goes by words. EmbedderError when it cannot
    be made."""
    if settings.EMBEDDER == "none":
        return None
    # Keyed by process: a fork shares neither sockets nor engine threads with its parent.
    return _made(os.getpid(), settings.EMBEDDER)


@cache
def _made(pid: int, name: str) -> Embedder:
    embedder: Embedder = import_module(f"memory.embedders.{name}").make()
    return embedder
