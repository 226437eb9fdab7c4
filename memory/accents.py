"""Putting back the accents of a Vietnamese question that was typed without them: embedders hardly read it otherwise.

Which word is meant is told by its neighbours: by pairs of words that the texts to search hold, or common ones.
"""

from __future__ import annotations

import math
import re
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
STRANGE = 1 / 3
"""Share of a question's words that the texts do not hold and Vietnamese does not spell so, from which on it is in
another language; fewer are names."""

# Without accents a Vietnamese word is one syllable of few patterns: perhaps a beginning, vowels, perhaps an ending.
_RHYMES = (
    "a(?:ch?|m|n[gh]?|p|t|i|o|u|y)?",
    "e(?:ch?|m|n[gh]?|p|t|o|u)?",
    "i(?:ch|m|nh?|p|t|a|u|e(?:c|m|ng?|p|t|u))?",
    "o(?:c|m|ng?|p|t|i|o(?:c|ng)|a(?:ch?|m|n[gh]?|p|t|i|o|y)?|e(?:m|ng?|o|t)?)?",
    "u(?:c|m|ng?|p|t|i|u|a(?:c|ng?|t|y)?|e(?:nh|ch)?|o(?:c|m|ng?|p|t|i|u)?|y(?:ch|nh?|p|t|a|u|e[nt])?)?",
    "y(?:e(?:m|ng?|t|u))?",
)
_SYLLABLE = re.compile(
    r"(?:(?:[bdhlmnrstvx]|ch|gi|kh|nh|ph?|qu|th|tr|(?:k|n?gh)(?=[iey])|(?:c|n?g)(?=[aou]))?(?:{rhyme})"
    r"|gi[mnpt]?|quy(?:ch|nh?|p|t|e[nt]|u)?)".format(rhyme="|".join(_RHYMES))
)


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
        """The text with the likeliest accents, in lower case; as it is where it is long or in another language."""
        words = tokens(text)
        if len(words) > MOST_WORDS:
            return text
        likeliest = self._likeliest(words)
        return text if self._foreign(words, likeliest) else " ".join(likeliest)

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

    def _foreign(self, words: Sequence[str], likeliest: Sequence[str]) -> bool:
        """Whether they are of another language. Many an English word could be Vietnamese as well (can, my, son); what
        tells is how many could not, beside those in pairs that are known, which hardly ever is chance."""
        strange = {word for word in words if not (word in self._forms or word.isdigit() or _syllable(word))}
        if len(strange) < STRANGE * len(set(words)):
            return False
        changed = {word for word, form in zip(words, likeliest, strict=True) if word != form}
        if sum(map(_syllable, changed)) <= len(changed) / 2:
            return False  # these texts are in another language with accents
        return len(strange) > 2 * sum(pair in self._pairs for pair in pairwise(likeliest))


def _syllable(word: str) -> bool:
    """Whether a word can be a Vietnamese one without its accents, by its spelling."""
    return _SYLLABLE.fullmatch(word) is not None


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
