"""The embedder that ships with memsvc."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from memory import embedders
from memory.embedders import local
from memory.embedders.local import LocalEmbedder
from memory.errors import EmbedderError

TEXTS = ["Ann likes tea", "Ann có một con mèo", "a", "Ben plays chess on Sundays. " * 4]


@pytest.fixture(scope="module")
def embedder() -> LocalEmbedder:
    return LocalEmbedder()


def test_vectors_have_the_named_size_and_length_one(embedder):
    vectors = embedder.embed(TEXTS, "passage")
    assert vectors.shape == (len(TEXTS), embedder.dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.embed([], "search").shape == (0, embedder.dimensions)


def test_a_text_has_the_same_vector_alone_in_a_batch_and_in_many_threads(embedder):
    """L1 hands out vectors made in any of these ways: a ranking must not depend on which."""
    alone = np.concatenate([embedder.embed([text], "passage") for text in TEXTS])
    results: dict[int, np.ndarray] = {}
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        results[number] = embedder.embed(TEXTS, "passage")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(alone, vectors) for vectors in results.values())


def test_questions_and_stored_texts_are_embedded_apart(embedder):
    search, passage, symmetric = (
        embedder.embed(["Ann likes tea"], action) for action in ("search", "passage", "symmetric")
    )
    assert not np.array_equal(search, passage)
    assert np.array_equal(search, symmetric)


def test_a_question_finds_its_answer_in_another_language(embedder):
    facts = ["Ann làm việc ở ngân hàng", "Ann bị dị ứng với tôm", "Ann thích chơi cờ"]
    scores = embedder.embed(facts, "passage") @ embedder.embed(["Does she have a food allergy?"], "search")[0]
    assert scores.argmax() == 1


def test_of_a_very_long_text_the_beginning_counts(embedder, monkeypatch):
    """A text of a megabyte would hold a thread for minutes."""
    monkeypatch.setattr(local, "READ_CHARACTERS", 100)
    vectors = embedder.embed(["Ann likes tea. " * 8 + end for end in ("", "Ben likes milk. " * 50_000)], "search")
    assert np.array_equal(*vectors)


def test_what_is_no_text_is_refused(embedder):
    with pytest.raises(EmbedderError, match="Unicode"):
        embedder.embed(["\ud800"], "search")


def test_a_process_has_one_embedder_or_none(settings):
    settings.EMBEDDER = "local"
    assert embedders.get() is embedders.get()
    settings.EMBEDDER = "none"
    assert embedders.get() is None
