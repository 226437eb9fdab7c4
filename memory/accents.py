"""Putting back the accents of a Vietnamese question that was typed without them: embedders hardly read it otherwise.

Which word is meant is told by its neighbours: by pairs of words that the texts to search hold, or common ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from memory.text import strip_accents, tokens

LEAST_KNOWN = 0.6
"""Share of a text's words that must be common Vietnamese ones without their accents, to take it for Vietnamese."""
OWN = 2
"""What a word of the texts weighs beside a common one."""
PAIR_WEIGHT, WORD_WEIGHT = 3.0, 0.5
MOST_WORDS = 256
"""Words of a question whose accents are put back, 4 ms of CPU: about as many as embedders read (512 tokens)."""
MOST_FORMS = 36
"""Ways to write one word: `da` with d or đ and each of three vowels in six tones. What has more is no Vietnamese."""


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
            forms = self._forms.setdefault(strip_accents(word), [])
            if len(forms) < MOST_FORMS:
                forms.append(word)

    def restored(self, text: str) -> str:
        """The text with the likeliest accents, in lower case; as it is where it is long."""
        words = tokens(text)
        if len(words) > MOST_WORDS:
            return text
        return " ".join(self._likeliest(words))

    def _likeliest(self, words: Sequence[str]) -> list[str]:
        """The forms of the words in their likeliest writing."""
        best = {"": 0.0}  # by its last form, the score of the likeliest writing so far
        steps: list[dict[str, str]] = []  # from each form of a word back to the one before it
        for word in words:
            step = {form: self._before(form, best) for form in self._forms.get(word, [word])}
            best = {form: score for form, (score, _) in step.items()}
            steps.append({form: last for form, (_, last) in step.items()})
        form = max(best, key=lambda form: (best[form], form))
        found = []
        for back in reversed(steps):
            found.append(form)
            form = back[form]
        return found[::-1]

    def _before(self, form: str, best: Mapping[str, float]) -> tuple[float, str]:
        """The score of a form after the likeliest one before it, and that one."""
        own = WORD_WEIGHT * math.log1p(self._words[form])
        return max(
            (score + own + PAIR_WEIGHT * math.log1p(self._pairs[last, form]), last) for last, score in best.items()
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
