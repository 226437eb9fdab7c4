"""A long conversation by other people: what of it stays in the context, and at what price."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from memory.models import Message
from memory.stm import context, store, tiers
from memory.stm.extractive import content_words
from memory.stm.store import Said
from memory.tenancy.projects import policy
from tests import data

pytestmark = pytest.mark.django_db(transaction=True)

TURNS = 500


def turns(sample: dict[str, Any]) -> list[dict[str, str]]:
    talk, found, number = sample["conversation"], [], 1
    while f"session_{number}" in talk:
        found += talk[f"session_{number}"]
        number += 1
    return found


def evidence(sample: dict[str, Any]) -> set[str]:
    asked = [qa.get("evidence") for qa in sample["qa"] if qa["category"] != 5]
    return set(re.findall(r"D\d+:\d+", json.dumps(asked)))


def test_of_500_turns_a_tenth_remains_with_the_newest_verbatim_and_what_was_told_lately(ann):
    told = kept = 0
    for sample in data.load("locomo-dev.json.gz"):
        said, first = turns(sample)[:TURNS], sample["conversation"]["speaker_a"]
        if len(said) < TURNS:
            continue
        messages = [Said("user" if one["speaker"] == first else "assistant", one["text"], {}) for one in said]
        session = store.add(sample["sample_id"], "ann", messages, policy(ann.project)).session
        tiers.compress(session.pk)
        session.refresh_from_db()
        held = context.build(session, ())
        assert sum(held.tokens.values()) <= 0.1 * session.raw_tokens
        assert [one.content for one in held.turns] == [one["text"] for one in said[-10:]]
        assert Message.objects.filter(session=session).count() == TURNS
        words = content_words("\n".join(one["content"] for one in context.chat(held)))
        for one in said[-50:]:
            if one["dia_id"] in evidence(sample):
                wanted = content_words(one["text"])
                told += 1
                kept += len(wanted & words) >= 0.6 * len(wanted)
    assert told >= 30
    assert kept / told >= 0.8
