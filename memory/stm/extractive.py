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
from heapq import heapify, heappop, heappush

from memory.stm import tokens
from memory.text import content_words

_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
LEAST_WORDS = 2
"""A sentence of fewer content words tells nothing by itself."""
MOST_READ = 4000
"""Characters of a turn that are read: what was pasted is no conversation, and its sentences cost time."""
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
    # What a sentence is worth only falls as others are chosen: one that still leads, weighed anew, is the best of all.
    waiting = [(-_worth(one, covered, weights), index) for index, one in enumerate(sentences)]
    heapify(waiting)
    while waiting:
        _, index = heappop(waiting)
        one = sentences[index]
        if one.cost > left:
            continue
        worth = _worth(one, covered, weights)
        if waiting and waiting[0] < (-worth, index):
            heappush(waiting, (-worth, index))
            continue
        if worth <= 0:
            break
        chosen.append(one)
        covered |= one.words
        left -= one.cost
    return _lines(sorted(chosen, key=lambda one: one.place))


def _sentences(turn: Turn) -> list[_Sentence]:
    found = []
    for index, text in enumerate(_SENTENCE.split(turn.text[:MOST_READ])):
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
