"""Vietnamese with accents, without, and decomposed: a question finds what was said, however it is typed."""

from __future__ import annotations

import pytest

from bench.stm import vietnamese
from memory import accents
from memory.accents import Spelling
from memory.text import nfc, strip_accents, tokens
from tests.memory.stm.conversations import people

pytestmark = pytest.mark.django_db(transaction=True)


def test_there_are_twenty_people_with_three_sessions_and_a_hundred_questions():
    everyone = people()
    assert [len(person.sessions) for person in everyone] == [3] * 20
    assert sum(len(person.questions) for person in everyone) == 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("embedder", "least"), [("none", 0.75), ("local", 0.9)])
def test_questions_without_accents_or_decomposed_find_as_much(mem0, project, settings, embedder, least):
    settings.EMBEDDER = embedder
    shares = vietnamese.recall(vietnamese.Door(project.pk), [[person] for person in people()], project.pk)
    assert shares["NFC"] >= least
    assert shares["NFC"] == shares["NFD"]
    assert abs(shares["NFC"] - shares["bare"]) <= vietnamese.MOST_APART


def test_accents_are_put_back_as_the_texts_write_them():
    spelling = Spelling([tokens("Tôi trực ở khoa hồi sức"), tokens("Con vẹt tên Mít")])
    assert spelling.restored("Toi truc o khoa hoi suc nao") == "tôi trực ở khoa hồi sức nào"
    assert spelling.restored("con vet ten gi") == "con vẹt tên gì"


def test_the_likeliest_of_many_spellings_is_found_step_by_step():
    """Not by copying what was found so far for each pair of spellings: 256 words are read as 8 are."""
    spelling = Spelling([tokens("mẹ cần mua đồ"), tokens("số thể đo cân me")])
    assert spelling.restored("me can mua do " * 64) == " ".join(["mẹ cần mua đồ"] * 64)
    assert spelling.restored("me can mua do " * 65) == "me can mua do " * 65


def test_of_endless_spellings_of_one_word_some_are_tried():
    marks = [chr(code) for code in range(0x300, 0x340)]
    spelling = Spelling([[nfc(f"b{one}{other}")] for one in marks for other in marks])
    assert strip_accents(spelling.restored("b " * 256)) == " ".join("b" * 256)
    assert len(spelling._forms["b"]) <= accents.MOST_FORMS


def test_every_common_word_is_a_syllable_without_its_accents():
    common = {strip_accents(word) for word in accents._common()[0]}
    assert {word for word in common if not accents._syllable(word)} == set()


@pytest.mark.parametrize("word", ["nguyen", "quynh", "gieng", "nghieng", "khuya", "quoc", "gi", "yeu", "xoong", "tuot"])
def test_the_rarer_spellings_of_vietnamese_are_syllables(word):
    assert accents._syllable(word)


@pytest.mark.parametrize(
    "word", ["what", "is", "name", "dog", "which", "sing", "does", "are", "ke5", "kat", "ghan", "w"]
)
def test_what_vietnamese_does_not_spell_so_is_no_syllable(word):
    assert not accents._syllable(word)


@pytest.mark.parametrize("text", ["What is my cat called?", "Tôi uống gì", "", "can you tell me my name"])
def test_accents_are_not_missing_from_other_languages_or_where_there_are_some(text):
    assert not accents.missing(text)
    assert accents.missing(strip_accents("Cuối tuần tôi học làm bánh gì"))
