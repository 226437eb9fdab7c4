"""Summaries by an LLM behind any OpenAI-compatible endpoint; off without STM_LLM_URL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import requests
from django.conf import settings

from memory.errors import MemsvcError
from memory.stm.extractive import Turn
from memory.text import nfc


class NoSummary(MemsvcError):
    """The LLM gave nothing to use: the extractive summary stands in."""

    code = "no_summary"


def configured() -> bool:
    """Whether there is an LLM to ask."""
    return bool(settings.STM_LLM_URL)


def summarise(turns: Sequence[Turn], budget: int, before: str = "") -> str:
    """The turns, and what was told `before` of earlier ones, in about `budget` tokens. NoSummary."""
    told = [f"Already told:\n{before}\n\nTurns:"] if before else []
    said = "\n".join([*told, *(f"{turn.role}: {turn.text}" for turn in turns)])
    body: dict[str, Any] = {
        "model": settings.STM_LLM_MODEL,
        "messages": [
            {"role": "system", "content": _prompt().format(budget=budget)},
            {"role": "user", "content": said},
        ],
        "max_tokens": budget,
        "temperature": 0,
    }
    headers = {"Authorization": f"Bearer {settings.STM_LLM_API_KEY}"} if settings.STM_LLM_API_KEY else {}
    url = f"{settings.STM_LLM_URL.rstrip('/')}/chat/completions"
    try:
        answer = requests.post(url, json=body, headers=headers, timeout=settings.STM_LLM_TIMEOUT_SECONDS)
        answer.raise_for_status()
        text = answer.json()["choices"][0]["message"]["content"]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise NoSummary(type(error).__name__) from error
    kept = _storable(text).strip() if isinstance(text, str) else ""
    if not kept:
        raise NoSummary("empty")
    return kept


def _storable(text: str) -> str:
    """Without what PostgreSQL stores in no text: NUL and lone surrogates."""
    return nfc(text.replace("\0", "").encode("utf-8", "ignore").decode())


@cache
def _prompt() -> str:
    return (Path(__file__).parent / "prompts" / "summary.txt").read_text(encoding="utf-8")


def name() -> str:
    """What a tier says it was made by."""
    return str(settings.STM_LLM_MODEL)[:100]
