"""Ranking a user's own memories in this process. Pure functions: no store, no clock, no embedder.

`like_upstream` gives Mem0's own order over the same vectors: cosine, and a little more for memories that hold every
word of the question. `hybrid` finds more of what answers it, by vectors and words together. `by_words` ranks where
there are no vectors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from memory import accents
from memory import text as texts
from memory.embedders.base import Vectors
from memory.types import MEM0_KEYS, Memory

Ranked = list[tuple[int, float]]
"""Row indices with their scores, best first."""

THRESHOLD = 0.1
"""The least cosine Mem0 returns where a search names none."""
POOL_FACTOR, POOL_LEAST = 4, 60
"""Mem0 scores this many times the wanted number, and at least so many."""
# (words in the question at most, midpoint, steepness) of the sigmoid that Mem0 puts a keyword rank through.
SIGMOIDS = ((3, 5.0, 0.7), (6, 7.0, 0.6), (9, 9.0, 0.5), (15, 10.0, 0.5), (math.inf, 12.0, 0.5))
COVER_WEIGHT = 0.1
"""What PostgreSQL's ts_rank_cd gives a word of weight D."""
WORD_WEIGHT = 7.0
"""In `hybrid`, what holding every word of the question is worth as it is written, and once more without accents: so
many standard deviations of the cosines. Measured: docs/decisions/0016."""
STEM = 5
"""Letters by which two words are one in `hybrid`: travel, travels and travelling."""
KNOWN = 1 / 3
"""Share of a question's words below which it is in another language than the rows, and words in common are chance; and
from which on words that the rows write with accents only say that it was typed without."""
FEW = 64
"""Rows up to which one call for all questions is faster than one each."""
READ_MOST, READ_CHARACTERS = 2048, 500
"""Questions whose words a process remembers, 20 MB at most: the topics' are asked about every user. Longer ones are
hardly asked twice."""
K1, B = 1.2, 0.75
"""BM25's usual constants."""
BARE_WEIGHT = 0.7
"""Share of accent-stripped words in `by_words`: found without accents, while the right accents still decide."""


@dataclass(frozen=True)
class Rows:
    """A user's memories, ready to be ranked. `vectors` has a row of length 1 for each text, or is None; `expires` has
    YYYY-MM-DD or None for each, or is empty where nothing expires. What is derived is made once, when it is needed."""

    texts: Sequence[str]
    vectors: Vectors | None = None
    expires: Sequence[str | None] = ()

    @cached_property
    def matrix(self) -> Vectors:
        """The vectors as float32, whatever they are kept as. ValueError without vectors."""
        if self.vectors is None:
            raise ValueError("rows without vectors can be ranked by words only")
        return np.ascontiguousarray(self.vectors, dtype=np.float32)

    @cached_property
    def lowered(self) -> list[str]:
        """The texts in lower case."""
        return [text.lower() for text in self.texts]

    @cached_property
    def words(self) -> tuple[Index, Index]:
        """Words as they are written, and without accents."""
        return _indexes(list(map(texts.tokens, self.texts)))

    @cached_property
    def stems(self) -> tuple[Index, Index]:
        """The beginnings of words as they are written, and without accents."""
        return _indexes(list(map(_stems, self.texts)))

    @cached_property
    def spelling(self) -> accents.Spelling:
        """How their words are written."""
        return accents.Spelling(map(texts.tokens, self.texts))

    def hidden(self, today: str | None) -> set[int]:
        """The rows that have expired before `today`; none where that is None."""
        if today is None:
            return set()
        return {index for index, day in enumerate(self.expires) if day is not None and day < today}


# -- as Mem0 does ------------------------------------------------------------------------------------------------------


def like_upstream(
    question: str,
    vector: Vectors,
    rows: Rows,
    top_k: int,
    *,
    threshold: float | None = None,
    today: str | None = None,
    among: Sequence[int] | None = None,
) -> Ranked:
    """The rows Mem0 2.2 with pgvector and without spaCy would return, in its order and with its scores.

    `vector` is the question's, of length 1. `among` are the rows that meet scope and filters (None: all), expired
    or not: Mem0 hides those, as of `today` (YYYY-MM-DD; None shows them), only after it has chosen its pool.
    """
    least = THRESHOLD if threshold is None else threshold
    chosen = None if among is None else np.asarray(among, dtype=np.intp)
    matrix = rows.matrix if chosen is None else rows.matrix[chosen]
    if not len(matrix):
        return []
    cosines = np.maximum(matrix @ np.asarray(vector, dtype=np.float32), 0)
    size = max(top_k * POOL_FACTOR, POOL_LEAST)
    pool = _largest(cosines, size)
    indices = (pool if chosen is None else chosen[pool]).tolist()
    keyword = _keyword_scores(question, rows, among, size)
    divisor = 2.0 if keyword else 1.0
    hidden = rows.hidden(today)
    scored = [
        (index, min((cosine + keyword.get(index, 0.0)) / divisor, 1.0))
        for index, cosine in zip(indices, cosines[pool].tolist(), strict=True)
        if cosine >= least and index not in hidden
    ]
    scored.sort(key=lambda row: -row[1])
    return scored[:top_k]


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The places of the `count` largest values, largest first, equal ones in order."""
    if count < len(values):
        places = np.sort(np.argpartition(values, -count)[-count:])
        return places[np.argsort(-values[places], kind="stable")]
    return np.argsort(-values, kind="stable")


def _keyword_scores(question: str, rows: Rows, among: Sequence[int] | None, most: int) -> dict[int, float]:
    """For the `most` best rows that hold every word of the question, ts_rank_cd through Mem0's sigmoid."""
    wanted = set(terms(question))
    if not wanted:
        return {}
    count = len(question.split())
    midpoint, steepness = next((mid, steep) for words, mid, steep in SIGMOIDS if count <= words)
    lowered = rows.lowered
    # Long words are rare: the longest leaves few rows to look at closely.
    longest = max(wanted, key=len)
    near = [index for index in (range(len(lowered)) if among is None else among) if longest in lowered[index]]
    found = {}
    for index in near:
        if all(word in lowered[index] for word in wanted) and (rank := _cover_density(terms(lowered[index]), wanted)):
            found[int(index)] = 1.0 / (1.0 + math.exp(-steepness * (rank - midpoint)))
    return found if len(found) <= most else dict(sorted(found.items(), key=lambda row: -row[1])[:most])


# What PostgreSQL's parser takes for one word: to it every character beyond ASCII is a letter. `3.14`, `u.s` and
# `and/or` are one; `well-known` is three, itself and its parts; a hyphen before a digit is a sign.
_LETTERS = r"[a-z0-9\x80-\U0010ffff]+"
_COMPOUND = rf"(?!\d+-){_LETTERS}(?:-(?!\d){_LETTERS})+"
_TERM = re.compile(rf"{_LETTERS}(?:[./]{_LETTERS})+|{_COMPOUND}|(?:-(?=\d))?{_LETTERS}")


def terms(text: str) -> list[str]:
    """The words of a text by PostgreSQL's `simple` configuration, in order; near enough to tell which rows its search
    finds (0.2 % of 7,759 English and Vietnamese texts are taken apart differently)."""
    found: list[str] = []
    for term in _TERM.findall(text.lower()):
        found.append(term)
        if "-" in term[1:]:
            found.extend(term.split("-"))
    return found


def _cover_density(held: Sequence[str], wanted: set[str]) -> float:
    """ts_rank_cd: for each shortest stretch that holds all wanted words, less the more other words lie in it; 0 where
    one is missing."""
    places = [place for place, word in enumerate(held) if word in wanted]
    density, start = 0.0, 0
    while (stretch := _cover(held, places, wanted, start)) is not None:
        begin, end = stretch
        noise = (places[end] - places[begin]) - (end - begin)
        density += COVER_WEIGHT / (1 + noise)
        start = begin + 1
    return density


def _cover(held: Sequence[str], places: Sequence[int], wanted: set[str], start: int) -> tuple[int, int] | None:
    """The first stretch from `start` on that holds all wanted words, shortened from its beginning."""
    missing = set(wanted)
    for end in range(start, len(places)):
        missing.discard(held[places[end]])
        if missing:
            continue
        missing = set(wanted)
        for begin in range(end, start - 1, -1):
            missing.discard(held[places[begin]])
            if not missing:
                return begin, end
    return None


# -- by words ----------------------------------------------------------------------------------------------------------


class Index:
    """BM25 over rows of words."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self._size = len(rows)
        self._numbers: dict[str, int] = {}
        lengths = np.array([len(row) for row in rows], dtype=np.intp)
        words = np.array([self._numbers.setdefault(word, len(self._numbers)) for row in rows for word in row], np.intp)
        # Sorted by word, then by row: what one word adds to its rows lies together.
        every = np.sort(words * self._size + np.repeat(np.arange(self._size), lengths))
        firsts = np.flatnonzero(np.concatenate(([True], every[1:] != every[:-1]))[: len(every)])
        pairs, counts = every[firsts], np.diff(np.append(firsts, len(every)))
        held, self._places = np.divmod(pairs, max(1, self._size))
        self._starts = np.searchsorted(held, np.arange(len(self._numbers) + 1)).tolist()
        weights = self._weight(np.diff(self._starts))
        penalty = K1 * (1 - B + B * lengths / max(1.0, len(words) / max(1, len(rows))))
        gains = weights[held] * counts * (K1 + 1) / (counts + penalty[self._places])
        self._gains: NDArray[np.float32] = gains.astype(np.float32)
        self._weights: list[float] = weights.tolist()
        self._unknown = float(self._weight(0))

    @property
    def known(self) -> KeysView[str]:
        """The words that some row holds."""
        return self._numbers.keys()

    def scores(self, *questions: Collection[str]) -> NDArray[np.float32]:
        """For each question, given as its distinct words, and each row 0 to 1: the share of the most it could have;
        array of shape (questions, rows)."""
        scores = np.zeros((len(questions), self._size), dtype=np.float32)
        for row, question in zip(scores, questions, strict=True):
            numbers = [self._numbers[word] for word in question if word in self._numbers]
            if not numbers:
                continue
            for number in numbers:
                found = slice(self._starts[number], self._starts[number + 1])
                row[self._places[found]] += self._gains[found]
            most = self._unknown * (len(question) - len(numbers)) + sum(self._weights[number] for number in numbers)
            row /= np.float32(most * (K1 + 1))
        return scores

    def _weight(self, holding: Any) -> Any:
        """What a word weighs that so many rows hold."""
        return np.log(1 + (self._size - holding + 0.5) / (holding + 0.5))


def _indexes(written: Sequence[Sequence[str]]) -> tuple[Index, Index]:
    bare = {word: texts.strip_accents(word) for word in {word for row in written for word in row}}
    index = Index(written)
    if all(map(str.__eq__, bare, bare.values())):
        return index, index
    return index, Index([[bare[word] for word in row] for row in written])


def by_words(
    question: str,
    rows: Rows,
    top_k: int,
    *,
    today: str | None = None,
    among: Sequence[int] | None = None,
) -> Ranked:
    """The rows that share words with the question, by BM25 over words as written and without accents. Scores are 0
    to 1; `today` and `among` as for `like_upstream`."""
    written, bare = rows.words
    asked = dict.fromkeys(texts.tokens(question))
    scores = (1 - BARE_WEIGHT) * written.scores(asked)[0]
    scores += BARE_WEIGHT * bare.scores(dict.fromkeys(map(texts.strip_accents, asked)))[0]
    return _best(scores, _shown(rows, today, among) & (scores > 0), top_k)


# -- by vectors and words ----------------------------------------------------------------------------------------------


def meant(question: str, rows: Rows) -> str:
    """The question with its accents put back where it was typed without: common Vietnamese, or words that the rows
    hold with accents only. Not where it is in another language, or long. What `hybrid` ranks by, and has the vector
    of."""
    read = _read(question)
    if read.accented:
        return question
    written, bare = rows.stems
    lost = len((read.stems & bare.known) - written.known) / max(1, len(read.stems)) if bare is not written else 0
    return rows.spelling.restored(question) if lost >= KNOWN or read.bare_vietnamese else question


def hybrid(
    question: str,
    vector: Vectors,
    rows: Rows,
    top_k: int,
    *,
    threshold: float | None = None,
    today: str | None = None,
    among: Sequence[int] | None = None,
) -> Ranked:
    """The rows nearest to a question (as `meant` gives it) by vectors and words together. Scores are 0 to 1; the
    threshold is one of cosines, and everything else as for `like_upstream`."""
    near = THRESHOLD if threshold is None else threshold
    return hybrid_each([question], [vector], rows, [top_k], [near], today=today, among=among)[0]


def hybrid_each(
    questions: Sequence[str],
    vectors: Sequence[Vectors],
    rows: Rows,
    top_k: Sequence[int],
    thresholds: Sequence[float],
    *,
    today: str | None = None,
    among: Sequence[int] | None = None,
) -> list[Ranked]:
    """`hybrid` for many questions about the same rows, in a fraction of the time, with the very same scores."""
    if not rows.texts:
        return [[] for _ in questions]
    cosines = np.maximum(products(vectors, rows), 0)
    near = cosines >= np.array(thresholds, dtype=np.float32)[:, None]
    scores = np.where(near & _shown(rows, today, among), _with_words(questions, cosines, rows), np.float32(-1))
    if max(top_k) < len(rows.texts):
        order = [_largest(row, count).tolist() for row, count in zip(scores, top_k, strict=True)]
    else:
        order = np.argsort(-scores, axis=1, kind="stable").tolist()
    return [
        [(index, row[index]) for index in best[:count] if row[index] >= 0]
        for best, row, count in zip(order, scores.tolist(), top_k, strict=True)
    ]


def products(vectors: Sequence[Vectors] | Vectors, rows: Rows) -> NDArray[np.float32]:
    """Of each vector with each row, shape (vectors, rows). Never BLAS for all at once: the last bits would depend on
    how many they are, and it would wake threads for it."""
    found = np.empty((len(vectors), len(rows.texts)), dtype=np.float32)
    if len(rows.texts) <= FEW:
        np.einsum("qd,rd->qr", np.asarray(vectors, dtype=np.float32), rows.matrix, out=found)
        return found
    for place, vector in enumerate(vectors):
        found[place] = rows.matrix @ np.asarray(vector, dtype=np.float32)
    return found


def again(question: str, found: Sequence[tuple[str, float]], top_k: int) -> Ranked:
    """What another ranking found, as (text, score), ranked as `hybrid` does with those scores for cosines."""
    if not found:
        return []
    rows = Rows([text for text, _ in found])
    cosines = np.array([[score for _, score in found]], dtype=np.float32)
    return _best(_with_words([question], cosines, rows)[0], np.ones(len(found), dtype=bool), top_k)


def _stems(text: str) -> list[str]:
    """The beginnings of a text's words, in order."""
    return [word[:STEM] for word in texts.tokens(text)]


@dataclass(frozen=True, slots=True)
class _Read:
    """What `hybrid` needs to know of a question, whoever's rows it is asked about; distinct words, in order."""

    stems: KeysView[str]
    stripped: KeysView[str]
    accented: bool
    bare_vietnamese: bool


def _read(question: str) -> _Read:
    return _remembered(question) if len(question) <= READ_CHARACTERS else _words_of(question)


@lru_cache(maxsize=READ_MOST)
def _remembered(question: str) -> _Read:
    return _words_of(question)


def _words_of(question: str) -> _Read:
    stems = dict.fromkeys(_stems(question))
    stripped = dict.fromkeys(map(texts.strip_accents, stems))
    accented = texts.strip_accents(question) != texts.nfc(question)
    return _Read(stems.keys(), stripped.keys(), accented, accents.missing(question))


def _with_words(questions: Sequence[str], cosines: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]:
    """Cosines and words in one score from 0 to 1, shape (questions, rows). Words weigh by how far the cosines lie
    apart, whatever the model, and by the share of the question's words that the rows hold."""
    written, bare = rows.stems
    asked = [_read(question) for question in questions]
    shares = np.array([_word_weight(one.stripped, bare.known) for one in asked], dtype=np.float32)
    weigh = np.flatnonzero(shares)
    words = np.zeros_like(cosines)
    if len(weigh):
        worded = [asked[place] for place in weigh]
        words[weigh] = written.scores(*(one.stems for one in worded)) + bare.scores(*(one.stripped for one in worded))
    weight = (cosines.std(axis=1) * shares)[:, None]
    scores: NDArray[np.float32] = (cosines + weight * words) / (1 + 2 * weight)
    return scores


def _word_weight(asked: KeysView[str], held: KeysView[str]) -> float:
    """By the share of a question's words that the rows hold."""
    share = sum([word in held for word in asked]) / max(1, len(asked))
    return WORD_WEIGHT * share if share >= KNOWN else 0


# -- what is shown -----------------------------------------------------------------------------------------------------


def _shown(rows: Rows, today: str | None, among: Sequence[int] | None) -> NDArray[np.bool_]:
    """Which rows may be: those among which to choose (None: all), without what has expired."""
    shown = np.zeros(len(rows.texts), dtype=bool)
    shown[slice(None) if among is None else np.asarray(among, dtype=np.intp)] = True
    shown[list(rows.hidden(today))] = False
    return shown


def _best(scores: NDArray[np.float32], shown: NDArray[np.bool_], top_k: int) -> Ranked:
    best = _largest(np.where(shown, scores, np.float32(-1)), top_k)
    return [(int(index), float(scores[index])) for index in best if shown[index]]


# -- filters -----------------------------------------------------------------------------------------------------------

_NUMERIC = frozenset({"gt", "gte", "lt", "lte"})
_OPERATORS = frozenset({"eq", "ne", "in", "nin", "contains", "icontains"}) | _NUMERIC


def understands(conditions: Mapping[str, Any]) -> bool:
    """Whether `matches` tells exactly what Mem0 would find (PROTOCOL C2); the rest is Mem0's to answer or refuse."""
    if not conditions:
        return True
    simple = list(_flat(conditions))
    keys = [key for key, _ in simple]
    if None in keys or len(set(keys)) < len(keys):
        return False
    return all(_clear(key, condition) for key, condition in simple)


def matches(conditions: Mapping[str, Any], memory: Memory) -> bool:
    """Whether a memory's metadata meets conditions that are understood: Mem0 compares its JSON as text, and a missing
    key meets none, `ne` and `nin` included. Where a value that should be a number is none, Mem0 answers an error; here
    it does not match."""
    return _all(_truth(key, condition, memory.metadata) for key, condition in _flat(conditions)) is True


def _flat(conditions: Any) -> Iterator[tuple[Any, Any]]:
    """Conditions with every AND taken apart; a key of None stands for what is not understood."""
    if not isinstance(conditions, Mapping):
        yield None, None
        return
    for key, condition in conditions.items():
        if key != "AND":
            yield key, condition
        elif isinstance(condition, list) and condition:
            for part in condition:
                yield from _flat(part)
        else:
            yield None, None


def _clear(key: str, condition: Any) -> bool:
    if key in ("OR", "NOT"):
        groups = condition if isinstance(condition, list) and condition else [None]
        return all(
            isinstance(group, Mapping)
            and bool(group)
            and all(inner not in ("AND", "OR", "NOT") and _clear(inner, value) for inner, value in group.items())
            for group in groups
        )
    if key in MEM0_KEYS or key.startswith("$"):
        return False
    if isinstance(condition, Mapping):
        return bool(condition) and all(_comparable(name, value) for name, value in condition.items())
    return not isinstance(condition, list) or all(_scalar(value) for value in condition)


def _comparable(operator: str, value: Any) -> bool:
    if operator not in _OPERATORS:
        return False
    if operator in ("in", "nin"):
        return isinstance(value, list) and all(_scalar(each) for each in value)
    if operator in _NUMERIC:
        return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    # How PostgreSQL folds the case of other letters depends on the database's locale.
    return _scalar(value) and (operator != "icontains" or str(value).isascii())


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _truth(key: str, condition: Any, metadata: Mapping[str, Any]) -> bool | None:
    """SQL's three values: None is unknown."""
    if key in ("OR", "NOT"):
        met = _any(_all(_truth(inner, value, metadata) for inner, value in group.items()) for group in condition)
        return met if key == "OR" or met is None else not met
    if isinstance(condition, str) and condition == "*":
        return key in metadata
    held = _as_text(metadata.get(key))
    if isinstance(condition, Mapping):
        return _all(_compare(operator, held, value) for operator, value in condition.items())
    if isinstance(condition, list):
        return _within(held, condition, negated=False)
    if held is None:
        return None
    return held == (_as_text(condition) if isinstance(condition, bool) else str(condition))


def _compare(operator: str, held: str | None, value: Any) -> bool | None:
    if operator in ("in", "nin"):
        return _within(held, value, negated=operator == "nin")
    if held is None:
        return None
    match operator:
        case "eq" | "ne":
            return (held == str(value)) == (operator == "eq")
        case "contains":
            return str(value) in held
        case "icontains":
            return _ascii_lower(str(value)) in _ascii_lower(held)
    return _ordered(operator, held, value)


def _within(held: str | None, values: Sequence[Any], *, negated: bool) -> bool | None:
    """Of no values at all even an unknown one is none."""
    if held is None and values:
        return None
    return any(held == str(value) for value in values) != negated


def _ordered(operator: str, held: str, value: float) -> bool | None:
    number = _number(held)
    if number is None:
        return None
    wanted = Decimal(repr(float(value)))
    if number == wanted:
        return operator in ("gte", "lte")
    return (number > wanted) == (operator in ("gt", "gte"))


def _all(truths: Iterator[bool | None]) -> bool | None:
    met: bool | None = True
    for truth in truths:
        if truth is False:
            return False
        met = met and truth
    return met


def _any(truths: Iterator[bool | None]) -> bool | None:
    met: bool | None = False
    for truth in truths:
        if truth is True:
            return True
        met = None if truth is None else met
    return met


def _as_text(value: Any) -> str | None:
    """A value as PostgreSQL's `->>` gives it."""
    return value if value is None or isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    """JSON as PostgreSQL writes `jsonb`: a space after each separator, keys by length and then by bytes."""
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{_json(key)}: {_json(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else orjson.dumps(value).decode()


def _number(held: str) -> Decimal | None:
    try:
        number = Decimal(held)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _ascii_lower(text: str) -> str:
    return text.encode().lower().decode()
