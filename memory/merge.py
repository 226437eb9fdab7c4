"""One answer out of both memories (DESIGN 8, PROTOCOL C1): what Mem0 ranked, and what is nearer than Mem0.

Pure functions. Scores of two rankings are not comparable: each is spread from 0 to 1 within this answer, between the
last and the best that it could show (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory.text import content_words, normalised

RETOLD = 0.7
"""Share of a message's content words that its own job's facts must have, to say what it says."""
STEM = 4
"""Characters by which two words are one here: drink, drinks and drinking."""


@dataclass(frozen=True, slots=True)
class Near:
    """One item of short-term memory, scored against the question (0 to 1). `job` extracts or has extracted it;
    `fleeting` if it only stands in for what Mem0 is about to have."""

    shown: Mapping[str, Any]
    score: float
    job: str | None = None
    fleeting: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """What an item gains by being found in both memories, or in the short-term one alone; never both."""

    both: float
    near: float


def needed(near: Sequence[Near], results: Sequence[Mapping[str, Any]], jobs: Sequence[str | None]) -> dict[str, Near]:
    """The near items that no result stands for already (PROTOCOL C1), each by the text that it says, normalised.

    `jobs` has for each result the job whose mark it carries. What is on its way goes if a result has its job's mark,
    else by its text. A message stays: it says what its job's facts among the results say, if they hold most of its
    words. Of two that say the same the first is kept."""
    said = {normalised(one["memory"]) for one in results}
    facts: dict[str, list[str]] = {}
    for result, job in zip(results, jobs, strict=True):
        if job is not None:
            facts.setdefault(job, []).append(normalised(result["memory"]))
    kept: dict[str, Near] = {}
    for one in near:
        text, own = normalised(one.shown["memory"]), facts.get(one.job or "", [])
        if not (one.fleeting and (own or text in said)):
            kept.setdefault(text if text in said else _retold(text, own) or text, one)
    return kept


def _retold(text: str, facts: Sequence[str]) -> str | None:
    """The fact that says most of what a text says, if the facts together say enough of it."""
    words = _stems(text)
    told = [words & _stems(fact) for fact in facts]
    if not words or len(frozenset().union(*told)) < RETOLD * len(words):
        return None
    return max(zip(told, facts, strict=True), key=lambda one: len(one[0]))[1]


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:STEM] for word in content_words(text))


def together(
    results: Sequence[Mapping[str, Any]],
    near: Mapping[str, Near],
    top_k: int,
    weights: Weights,
    *,
    explain: bool = False,
) -> list[dict[str, Any]]:
    """The best `top_k` of both, best first, each said once. `near` is what `needed` left."""
    far_off = _spread([one.get("score") or 0.0 for one in results], top_k)
    close_by = _spread([one.score for one in near.values()], top_k)
    by_text = dict(near)
    merged = []
    for result in results:
        twin = by_text.pop(normalised(result["memory"]), None)
        parts = {"ltm": far_off(result.get("score") or 0.0), "stm": close_by(twin.score) if twin else None}
        bonus = weights.both if twin else 0.0
        score = max(parts["ltm"] or 0.0, parts["stm"] or 0.0) + bonus
        source = "both" if twin else result.get("source", "ltm")
        merged.append(_scored({**result, "source": source}, score, parts, bonus, explain=explain))
    for one in by_text.values():
        part = close_by(one.score)
        merged.append(
            _scored(one.shown, part + weights.near, {"ltm": None, "stm": part}, weights.near, explain=explain),
        )
    merged.sort(key=lambda item: -item["score"])
    return merged[:top_k]


def _scored(
    shown: Mapping[str, Any],
    score: float,
    parts: Mapping[str, float | None],
    bonus: float,
    *,
    explain: bool,
) -> dict[str, Any]:
    return {**shown, "score": score} | ({"parts": {**parts, "bonus": bonus}} if explain else {})


def _spread(scores: Sequence[float], top_k: int) -> Callable[[float], float]:
    """From a ranking's scores to 0 to 1 between the last and the best of its first `top_k`; 1 where they are equal."""
    shown = sorted(scores, reverse=True)[:top_k] or [0.0]
    best, last = shown[0], shown[-1]
    return lambda score: min(1.0, max(0.0, (score - last) / (best - last))) if best > last else 1.0
