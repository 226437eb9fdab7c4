"""A summary made of the turns' own sentences: no LLM, the same for the same turns, in any language.

A sentence counts by the content words it adds to what was chosen before. Words that are rare in these turns, numbers
and names weigh more; what only greets or agrees weighs nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from memory.stm import tokens
from memory.text import content_words

_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
LEAST_WORDS = 2
"""A sentence of fewer content words tells nothing by itself."""
SAID_AGAIN = 0.1
"""What a word weighs that the summary holds already."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message to summarise."""

    number: int
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class _Sentence:
    place: tuple[int, int]
    role: str
    text: str
    words: frozenset[str]
    cost: int


def summarise(turns: Sequence[Turn], budget: int) -> str:
    """Lines `role: sentences`, in the order of the turns, of at most `budget` tokens; empty where nothing was told."""
    sentences = [one for turn in turns for one in _sentences(turn)]
    weights = _weights(sentences)
    chosen: list[_Sentence] = []
    covered: set[str] = set()
    left = budget
    waiting = sentences
    while waiting:
        worth = [_worth(one, covered, weights) for one in waiting]
        best = max(range(len(waiting)), key=worth.__getitem__)
        if worth[best] <= 0:
            break
        one = waiting[best]
        if one.cost <= left:
            chosen.append(one)
            covered |= one.words
            left -= one.cost
        waiting = [other for other in waiting if other is not one and other.cost <= left]
    return _lines(sorted(chosen, key=lambda one: one.place))


def _sentences(turn: Turn) -> list[_Sentence]:
    found = []
    for index, text in enumerate(_SENTENCE.split(turn.text)):
        words = content_words(text)
        if len(words) >= LEAST_WORDS:
            cost = tokens.count(text) + 1
            found.append(_Sentence((turn.number, index), turn.role, text.strip(), words, cost))
    return found


def _weights(sentences: Sequence[_Sentence]) -> dict[str, float]:
    held = Counter(word for one in sentences for word in one.words)
    return {
        word: math.log(1 + len(sentences) / count) * (1.5 if any(char.isdigit() for char in word) else 1.0)
        for word, count in held.items()
    }


def _worth(one: _Sentence, covered: set[str], weights: dict[str, float]) -> float:
    """Content for each token: long sentences are not better for being long."""
    gained = sum(weights[word] * (SAID_AGAIN if word in covered else 1.0) for word in one.words)
    return gained / one.cost


def _lines(chosen: Sequence[_Sentence]) -> str:
    lines: list[str] = []
    role = ""
    for one in chosen:
        if one.role == role:
            lines[-1] += f" {one.text}"
        else:
            lines.append(f"{one.role}: {one.text}")
            role = one.role
    return "\n".join(lines)
