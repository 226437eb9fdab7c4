"""Text as memsvc compares it: the one owner of Unicode forms, accents, words and text hashes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache
from pathlib import Path

_ACCENTS = re.compile("[\u0300-\u036f]+")
# Letters without a decomposition that people type bare when they leave accents out.
_BARE = str.maketrans({"đ": "d", "Đ": "D", "ð": "d", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "ı": "i"})
# `\w` leaves out the marks that many scripts write vowels with; without them their words fall apart.
_MARKS = "".join(re.escape(char) for char in map(chr, range(0x300, 0x10000)) if unicodedata.category(char)[0] == "M")
# Scripts that put no spaces between words: one character is one token.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(f"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\\W_]|[{_MARKS}])+")
_ASCII_TOKEN = re.compile("[a-z0-9]+")
_SPACES = re.compile(r"\s+")


def nfc(text: str) -> str:
    """The composed form, in which memsvc stores, embeds and compares texts."""
    return unicodedata.normalize("NFC", text)


def strip_accents(text: str) -> str:
    """Without the accents of Latin, Greek and Cyrillic letters, and đ as d; other scripts are left alone."""
    if text.isascii():
        return text
    bare = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFC", bare).translate(_BARE)


def tokens(text: str) -> list[str]:
    """The words of a text in order, casefolded and composed: the same for NFC and NFD."""
    if text.isascii():  # the same in a fifth of the time
        return _ASCII_TOKEN.findall(text.lower())
    return _TOKEN.findall(nfc(nfc(text).casefold()))


def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry its content, without accents."""
    return frozenset(map(strip_accents, tokens(text))) - _stopwords()


def normalised(text: str) -> str:
    """What two texts share that say the same in the same words: no regard to case, spacing or a final full stop."""
    return _SPACES.sub(" ", nfc(nfc(text).casefold())).strip().rstrip(".").rstrip()


def text_hash(text: str) -> str:
    """32 hex characters that stand for the exact text after NFC: what wanted and stored facts are matched by."""
    return hashlib.blake2b(nfc(text).encode(), digest_size=16).hexdigest()


@cache
def _stopwords() -> frozenset[str]:
    """Words without content of their own in English and Vietnamese, without accents."""
    listed = (Path(__file__).parent / "stopwords.txt").read_text(encoding="utf-8")
    return frozenset(word for line in listed.splitlines() if not line.startswith("#") for word in line.split())
