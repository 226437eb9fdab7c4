"""Putting back the accents of a Vietnamese question that was typed without them: embedders hardly read it otherwise.

Which word is meant is told by its neighbours: by pairs of words that the texts to search hold, or common ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from memory.text import strip_accents, tokens

LEAST_KNOWN = 0.6
"""Share of a text's words that must be common Vietnamese ones without their accents, to take it for Vietnamese."""
OWN = 2
"""What a word of the texts weighs beside a common one."""
PAIR_WEIGHT, WORD_WEIGHT = 3.0, 0.5


def missing(text: str) -> bool:
    """Whether a text is Vietnamese written without any accents."""
    words = tokens(text)
    known = sum(word in _common_bare() for word in words)
    return bool(words) and known >= LEAST_KNOWN * len(words) and all(word == strip_accents(word) for word in words)


class Spelling:
    """How words are written in some texts, given as rows of words, and in common Vietnamese."""

    def __init__(self, rows: Iterable[Sequence[str]]) -> None:
        words, pairs = _common()
        self._words, self._pairs = words.copy(), pairs.copy()
        for row in rows:
            self._words.update(dict.fromkeys(row, OWN))
            self._pairs.update(dict.fromkeys(pairwise(row), OWN))
        self._forms: dict[str, list[str]] = {}
        for word in self._words:
            self._forms.setdefault(strip_accents(word), []).append(word)

    def restored(self, text: str) -> str:
        """The text with the likeliest accents, in lower case."""
        best: dict[str, tuple[float, list[str]]] = {"": (0.0, [])}  # by its last word, the likeliest writing so far
        for word in tokens(text):
            best = {form: self._likeliest(form, best) for form in self._forms.get(word, [word])}
        return " ".join(max(best.values())[1])

    def _likeliest(self, form: str, before: dict[str, tuple[float, list[str]]]) -> tuple[float, list[str]]:
        own = WORD_WEIGHT * math.log1p(self._words[form])
        return max(
            (score + own + PAIR_WEIGHT * math.log1p(self._pairs[last, form]), [*path, form])
            for last, (score, path) in before.items()
        )


@cache
def _common() -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Words and pairs of the list beside this file."""
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for line in (Path(__file__).parent / "vietnamese.txt").read_text(encoding="utf-8").splitlines():
        listed = [] if line.startswith("#") else line.split(",") if "," in line else line.split()
        for row in map(tokens, listed):
            words.update(row)
            pairs.update(pairwise(row))
    return words, pairs


@cache
def _common_bare() -> frozenset[str]:
    return frozenset(bare for word in _common()[0] if (bare := strip_accents(word)) != word)
