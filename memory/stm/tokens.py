"""How many tokens a text takes. An estimate that needs no model: STM_TOKEN_COUNTER names another function to use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from django.conf import settings
from django.utils.module_loading import import_string

# Fitted on English and Vietnamese text (python -m bench.stm tokens): letters of words, and marks that begin a token.
PER_WORD, PER_ASCII, PER_OTHER = 0.62, 0.13, 0.22


def estimate(text: str) -> int:
    """About the tokens of a multilingual tokeniser: a share for each word, each ASCII character and each other one."""
    ascii_ = sum(char < "\x80" for char in text)
    words = len(text.split())
    return round(PER_WORD * words + PER_ASCII * (ascii_ - words) + PER_OTHER * (len(text) - ascii_)) if text else 0


def count(text: str) -> int:
    """The tokens of a text, by the function that the settings name."""
    return _counter(settings.STM_TOKEN_COUNTER)(text)


@cache
def _counter(path: str) -> Callable[[str], int]:
    found: Callable[[str], int] = import_string(path)
    return found
