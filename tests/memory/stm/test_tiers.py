"""Older turns are told in short, made of what was really said, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from memory.models import Message, Session, Tier
from memory.stm import context, extractive, lifecycle, tiers, tokens, versions
from memory.stm.extractive import Turn, summarise
from memory.text import content_words, strip_accents
from tests.chat import chat

pytestmark = pytest.mark.django_db(transaction=True)


def talk(say, turns: int) -> Session:
    return say(*[f"On day {n} I bought {n} kilos of apples in shop number {n}." for n in range(1, turns + 1)]).session


def spans() -> dict[str, tuple[int, int]]:
    return {tier.name: (tier.first, tier.last) for tier in Tier.objects.all()}


def test_the_last_turns_stay_in_full_the_older_ones_are_told_in_two_tiers(say):
    session = talk(say, 75)
    assert tiers.compress(session.pk) == "summarised 60"
    assert spans() == {"summary": (21, 60), "compressed": (1, 20)}
    session.refresh_from_db()
    held = context.build(session, ())
    assert [one.turn for one in held.turns] == list(range(61, 76))


def test_compressing_again_changes_nothing(say):
    session = talk(say, 75)
    tiers.compress(session.pk)
    before = list(Tier.objects.values())
    assert tiers.compress(session.pk) == "nothing to do"
    assert list(Tier.objects.values()) == before


def test_a_short_session_is_not_compressed(say):
    assert tiers.compress(talk(say, 19).pk) == "nothing to do"
    assert spans() == {}


class Killed(BaseException):
    """The worker is gone in the middle of it."""


def test_a_worker_killed_between_its_writes_loses_nothing(say, monkeypatch):
    session = talk(say, 75)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(versions, "move", die)
        with pytest.raises(Killed):
            tiers.compress(session.pk)
    session.refresh_from_db()
    assert (spans(), session.summarised) == ({}, 0)
    assert len(context.build(session, ()).turns) == Message.objects.count() == 75
    assert tiers.compress(session.pk) == "summarised 60"


def test_a_session_that_ends_while_its_tiers_are_made_is_left_alone(say, monkeypatch):
    session = talk(say, 75)
    real = tiers._make

    def make(*given):
        lifecycle.end(session.pk)
        return real(*given)

    monkeypatch.setattr(tiers, "_make", make)
    assert tiers.compress(session.pk) == "superseded"


def test_one_worker_at_a_time_makes_the_tiers_and_clears_no_other_ones_mark(say, monkeypatch):
    session = talk(say, 75)
    said: list[str] = []
    real = tiers._make

    def make(*given):
        monkeypatch.setattr(tiers, "_make", real)
        said.append(tiers.compress(session.pk))
        Session.objects.update(busy_until=timezone.now() + timezone.timedelta(seconds=60))  # another's, after its own
        return real(*given)

    monkeypatch.setattr(tiers, "_make", make)
    assert (tiers.compress(session.pk), said) == ("summarised 60", ["busy"])
    session.refresh_from_db()
    assert session.busy_until is not None


def test_the_context_fits_what_was_asked_for_and_keeps_the_newest(say):
    session = talk(say, 75)
    tiers.compress(session.pk)
    session.refresh_from_db()
    whole, cut = context.build(session, ()), context.build(session, (), 100)
    assert (whole.cut, cut.cut) == (False, True)
    assert sum(cut.tokens.values()) <= 100
    assert cut.turns[-1].turn == 75
    assert [one.turn for one in cut.turns] == list(range(cut.turns[0].turn, 76))


def test_as_chat_messages_the_told_comes_first_and_then_the_turns(say):
    session = talk(say, 30)
    tiers.compress(session.pk)
    session.refresh_from_db()
    chat = context.chat(context.build(session, ()))
    assert [one["role"] for one in chat] == ["system"] + ["user"] * 10
    assert chat[-1]["content"].startswith("On day 30")


@pytest.mark.parametrize(
    ("fact", "chatter"),
    [
        ("My sister Lan works as a nurse in Huế since 2019.", "Oh really, that is so nice! Thanks a lot."),
        ("Chị tôi tên Lan làm y tá ở Huế từ năm 2019.", "Dạ vâng ạ. Thế thì hay quá nhỉ."),
    ],
)
def test_an_extract_keeps_facts_and_leaves_out_chatter_in_either_language(fact, chatter):
    said = [Turn(n, "user" if n % 2 else "assistant", chatter) for n in range(1, 20)]
    said[9] = Turn(10, "user", f"{chatter} {fact}")
    assert fact in summarise(said, 40)
    assert tokens.count(summarise(said, 40)) <= 40


def plainly(turns: list[Turn], budget: int) -> str:
    """The same choice, with every sentence weighed each time."""
    waiting = [one for turn in turns for one in extractive._sentences(turn)]
    weights = extractive._weights(waiting)
    chosen: list[extractive._Sentence] = []
    covered: set[str] = set()
    while waiting := [one for one in waiting if one.cost <= budget]:
        best = max(waiting, key=lambda one: extractive._worth(one, covered, weights))  # of equals the first
        if extractive._worth(best, covered, weights) <= 0:
            break
        chosen.append(best)
        covered |= best.words
        budget -= best.cost
        waiting = [one for one in waiting if one is not best]
    return extractive._lines(sorted(chosen, key=lambda one: one.place))


@given(st.randoms(use_true_random=False), st.integers(1, 400))
def test_an_extract_is_what_weighing_every_sentence_each_time_would_choose(random, budget):
    words = ["tea", "cake", "lan", "hue", "2019", "apples", "nurse", "the", "đà", "nẵng"]
    sentence = lambda: " ".join(random.choices(words, k=random.randint(1, 6)))  # noqa: E731
    turns = [
        Turn(n, random.choice(("user", "assistant")), ". ".join(sentence() for _ in range(random.randint(0, 5))))
        for n in range(random.randint(0, 20))
    ]
    assert summarise(turns, budget) == plainly(turns, budget)


def test_of_long_turns_the_beginning_is_read_and_few_sentences_are_weighed_twice(monkeypatch):
    weighed = [0]
    real = extractive._worth

    def worth(*given):
        weighed[0] += 1
        return real(*given)

    monkeypatch.setattr(extractive, "_worth", worth)
    turns = [
        Turn(n, "user", " ".join(f"Word{n}x{k} meets word{n}x{k + 1} again." for k in range(400))) for n in range(40)
    ]
    told = summarise(turns, 100_000)
    assert "word3x10 again" in told
    assert "word3x390 again" not in told
    assert weighed[0] < 10 * sum(len(extractive._sentences(turn)) for turn in turns)


def test_content_words_are_the_same_with_accents_or_without():
    text = "Chị Lan thích bơi ở hồ Tây"
    assert content_words(text) == content_words(strip_accents(text)) == {"lan", "thich", "boi", "ho", "tay"}


@pytest.fixture
def llm(settings):
    with chat() as served:
        served.answer = lambda body: (200, "They buy apples.")
        settings.STM_LLM_URL = served.url
        yield served


def test_an_llm_writes_the_tiers_where_there_is_one(say, llm, settings):
    tiers.compress(talk(say, 75).pk)
    assert {(tier.text, tier.made_by) for tier in Tier.objects.all()} == {("They buy apples.", settings.STM_LLM_MODEL)}
    assert "user: On day 60" in llm.asked[0]["messages"][1]["content"]


def test_where_the_llm_fails_the_turns_own_sentences_stand_in(say, llm):
    llm.answer = lambda body: (500, "")
    tiers.compress(talk(say, 30).pk)
    (tier,) = Tier.objects.all()
    assert tier.made_by == "extractive"
    assert "apples" in tier.text


@pytest.mark.parametrize(
    ("said", "kept"),
    [("tea\0s", "teas"), ("tea \ud83d", "tea"), ("ca\u0301", "c\u00e1"), ("\0 \ud83d\n", None)],
)
def test_of_what_an_llm_says_only_what_can_be_stored_is_kept(say, llm, said, kept):
    llm.answer = lambda body: (200, said)
    assert tiers.compress(talk(say, 30).pk) == "summarised 20"
    (tier,) = Tier.objects.all()
    assert (tier.text == kept) if kept else (tier.made_by == tiers.EXTRACTIVE)


def test_while_an_llm_is_waited_for_the_mark_stands_and_no_connection_is_held(say, llm, settings, monkeypatch):
    settings.STM_LLM_TIMEOUT_SECONDS = 60
    session = talk(say, 75)
    real = tiers.llm.summarise
    held: list[bool] = []
    left: list[float] = []

    def summarise(*given):
        held.append(connection.connection is not None)
        left.append((Session.objects.get().busy_until - timezone.now()).total_seconds())
        return real(*given)

    monkeypatch.setattr(tiers.llm, "summarise", summarise)
    assert tiers.compress(session.pk) == "summarised 60"
    assert held == [False, False]
    assert all(seconds > 120 for seconds in left)
    session.refresh_from_db()
    assert session.busy_until is None


def test_a_worker_whose_mark_was_taken_over_asks_the_llm_no_more(say, llm):
    session = talk(say, 75)

    def another_takes_over(body):
        Session.objects.update(busy_until=timezone.now() + timezone.timedelta(seconds=60))
        connection.close()
        return 200, "They buy apples."

    llm.answer = another_takes_over
    assert tiers.compress(session.pk) == "superseded"
    assert (len(llm.asked), spans()) == (1, {})


def told(body: dict[str, Any]) -> tuple[str, list[str]]:
    """What an LLM was told before, and the turns it was to tell."""
    before, _, said = body["messages"][1]["content"].rpartition("\n\nTurns:\n")
    return before.removeprefix("Already told:\n"), said.split("\n")


def test_after_a_failure_the_llm_goes_on_from_the_turns_own_sentences(say, llm, settings):
    llm.answer = lambda body: (500, "")
    tiers.compress(talk(say, 75).pk)
    compressed = Tier.objects.get(name="compressed")
    assert compressed.made_by == tiers.EXTRACTIVE
    llm.answer = lambda body: (200, "They buy apples.")
    tiers.compress(talk(say, 10).pk)
    before, said = told(llm.asked[-1])
    assert (before, len(said)) == (compressed.text, 10)
    again = Tier.objects.get(name="compressed")
    assert (again.first, again.last, again.made_by) == (1, 30, settings.STM_LLM_MODEL)


def test_a_long_session_is_told_to_the_llm_in_parts_each_with_what_was_told_so_far(say, llm, monkeypatch):
    monkeypatch.setattr(tiers, "PART_CHARACTERS", 1000)
    monkeypatch.setattr(tiers, "MOST_PARTS", 3)
    llm.answer = lambda body: (200, f"Told {len(llm.asked)}.")
    tiers.compress(talk(say, 150).pk)
    parts = [told(body) for body in llm.asked[-3:]]
    assert [len("".join(said)) < 1500 for _, said in parts] == [True] * 3
    assert [before for before, _ in parts[1:]] == [f"Told {n}." for n in (len(llm.asked) - 2, len(llm.asked) - 1)]
    assert parts[0][0].startswith("user: On day ")
    days = [int(line.split()[3]) for _, said in parts for line in said]
    assert days == list(range(days[0], 101))
    assert Tier.objects.get(name="compressed").text == f"Told {len(llm.asked)}."


def test_of_a_message_longer_than_a_part_the_llm_reads_the_beginning(say, llm):
    say("tea " * 20_000)
    tiers.compress(talk(say, 60).pk)
    assert max(len(body["messages"][1]["content"]) for body in llm.asked) < tiers.PART_CHARACTERS + 1000
