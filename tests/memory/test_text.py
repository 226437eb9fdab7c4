"""Unicode forms, accents, words and hashes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory import text

VIETNAMESE = "Tôi ở đường Nguyễn Huệ, Đà Nẵng"


def test_both_unicode_forms_are_one_text():
    decomposed = unicodedata.normalize("NFD", VIETNAMESE)
    assert decomposed != VIETNAMESE
    for same in (text.nfc, text.strip_accents, text.tokens, text.normalised, text.text_hash):
        assert same(decomposed) == same(VIETNAMESE)


def test_accents_and_the_barred_d_are_stripped():
    assert text.strip_accents(VIETNAMESE) == "Toi o duong Nguyen Hue, Da Nang"
    assert text.strip_accents("Ørsted, Łódź, naïve café") == "Orsted, Lodz, naive cafe"


def test_other_scripts_keep_their_marks():
    for word in ("हिन्दी", "ไทยที่", "עִבְרִית"):
        assert text.strip_accents(word) == unicodedata.normalize("NFC", word)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Tôi uống cà phê sữa đá.", ["tôi", "uống", "cà", "phê", "sữa", "đá"]),
        ("Ann's well-known café: 3 cats_and dogs!", ["ann", "s", "well", "known", "café", "3", "cats", "and", "dogs"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京タワー and 12", ["東", "京", "タ", "ワ", "ー", "and", "12"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        (" … ", []),
    ],
)
def test_words_are_found_in_any_script(written, words):
    assert text.tokens(written) == words


def test_what_is_said_in_the_same_words_is_the_same():
    assert text.normalised("  Ann likes\ntea. ") == text.normalised("ann LIKES tea")
    assert text.normalised("Does Ann like tea?") != text.normalised("Does Ann like tea.")
    assert text.normalised("Ann ở Huế") != text.normalised("Ann o Hue")


def test_a_hash_stands_for_the_exact_text():
    assert len(text.text_hash("Ann likes tea")) == 32
    assert len({text.text_hash(each) for each in ("Ann likes tea", "Ann likes tea.", "ann likes tea", " ", "")}) == 5


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_compared(written):
    assert text.normalised(text.normalised(written)) == text.normalised(written)
    bare = text.strip_accents(written)
    assert text.strip_accents(bare) == bare
    assert all(word for word in text.tokens(written))
