"""What of a 500-turn session (LoCoMo dev) stays in its context, and at what price; summaries are extractive."""

from __future__ import annotations

from typing import Any

from bench.stm import locomo
from memory.stm import context
from memory.text import content_words

TURNS, LATELY = 500, 50
MOST_SHARE, LEAST_KEPT, LEAST_WORDS = 0.10, 0.80, 0.60
LEAST_EVIDENCE = 30


def measure(project: int) -> list[dict[str, Any]]:
    """For each conversation of 500 turns: tokens, and of the evidence turns lately how many the context still tells."""
    return [_one(talk, project) for talk in locomo.talks() if len(talk.turns) >= TURNS]


def _one(talk: locomo.Talk, project: int) -> dict[str, Any]:
    turns = talk.turns[:TURNS]
    session = locomo.hold(talk, turns, project)
    held = context.build(session, ())
    words = content_words("\n".join(one["content"] for one in context.chat(held)))
    asked = frozenset().union(*(evidence for _, evidence in talk.questions))
    wanted = [content_words(turn.text) for turn in turns[-LATELY:] if turn.id in asked]
    return {
        "talk": talk.id,
        "raw": session.raw_tokens,
        "context": sum(held.tokens.values()),
        "tiers": held.tokens,
        "verbatim": [one.content for one in held.turns] == [turn.text for turn in turns[-10:]],
        "evidence": len(wanted),
        "kept": sum(len(one & words) >= LEAST_WORDS * len(one) for one in wanted),
    }


def show(figures: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Print the table; what was to hold, and whether it did."""
    print(f"{'talk':>8} {'raw':>7} {'context':>8} {'share':>7}  {'kept of evidence':>16}   tiers")
    for one in figures:
        share, kept = one["context"] / one["raw"], f"{one['kept']} of {one['evidence']}"
        print(f"{one['talk']:>8} {one['raw']:>7} {one['context']:>8} {share:>7.3f}  {kept:>16}   {one['tiers']}")
    evidence = sum(one["evidence"] for one in figures)
    kept = sum(one["kept"] for one in figures) / evidence
    return [
        (
            f"context at most {MOST_SHARE:.0%} of the raw tokens",
            all(one["context"] <= MOST_SHARE * one["raw"] for one in figures),
        ),
        ("the last 10 turns verbatim", all(one["verbatim"] for one in figures)),
        (
            f"{kept:.3f} of {evidence} evidence turns keep {LEAST_WORDS:.0%} of their words, at least {LEAST_KEPT}",
            kept >= LEAST_KEPT and evidence >= LEAST_EVIDENCE,
        ),
    ]
