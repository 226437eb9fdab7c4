"""The demo's people, and what it says when there is nobody to ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.variables import ROOT


@pytest.fixture(scope="module")
def people() -> list[dict]:
    return json.loads((ROOT / "demo" / "people.json").read_text())["people"]


def test_there_are_enough_people_of_both_languages_with_something_to_say(people):
    assert len(people) >= 12
    assert {person["language"] for person in people} == {"vi", "en"}
    for person in people:
        assert 20 <= len(person["facts"]) <= 60
        assert {turn["role"] for turn in person["conversation"]} == {"user", "assistant"}
        assert person["questions"]
        assert person["change"].keys() == {"fact", "question"}


def test_nobody_says_the_same_thing_twice(people):
    facts = [fact for person in people for fact in person["facts"]]
    assert len(set(facts)) == len(facts)
    assert len({person["user_id"] for person in people}) == len(people)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MEMSVC_URL": "http://127.0.0.1:1", "MEMSVC_KEY": "k"}, "Nothing answers at http://127.0.0.1:1"),
        ({"MEMSVC_URL": "no url", "MEMSVC_KEY": "k"}, "Nothing answers at no url"),
    ],
)
def test_the_demo_says_what_to_do_when_the_service_is_not_there(variables, said):
    command = [sys.executable, "-m", "demo"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr
