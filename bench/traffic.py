"""What is stored and asked: people's own sentences (MSC), and questions that people wrote (Banking77, CLINC150).

The questions are about other things than the sentences: what is measured is speed, and nothing is tuned to what they
say.
"""

from __future__ import annotations

import random

from tests import data


def facts(users: int, each: int) -> list[list[str]]:
    """So many different sentences for each of so many users. ValueError if there are not enough."""
    said = list(dict.fromkeys(sentence for person in data.load("msc-personas.json.gz") for sentence in person))
    if len(said) < users * each:
        raise ValueError(f"there are {len(said)} sentences, fewer than {users} x {each}")
    return [said[start : start + each] for start in range(0, users * each, each)]


def intents(draw: random.Random) -> list[list[str]]:
    """For each intent the ways to ask it, no wording twice; shuffled both ways."""
    sets = data.load("intent-queries.json.gz")
    found, known = [], set[str]()
    for name in ("banking77", "clinc150"):
        for wordings in sets[name].values():
            new = [wording for wording in dict.fromkeys(wordings) if wording not in known]
            known.update(new)
            draw.shuffle(new)
            found.append(new)
    draw.shuffle(found)
    return found


def questions(draw: random.Random) -> list[str]:
    """Every wording, each once, in any order."""
    found = [wording for wordings in intents(draw) for wording in wordings]
    draw.shuffle(found)
    return found
