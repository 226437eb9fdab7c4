"""L1. The counting embedder's vectors are random by text: here only who computes what matters, not what is near."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest

from memory import embedders, metrics
from memory.embedders.base import Action, Vectors
from memory.errors import EmbedderError
from memory.layers.l1_vectors import CHUNK, CachedEmbedder


class Counting:
    """An embedder that notes what it was asked."""

    name = "counting/v1"
    dimensions = 16
    symmetric = False
    remote = False

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = False

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        if self.away:
            raise EmbedderError("away")
        self.asked.extend(texts)
        rows = [np.random.default_rng(abs(hash((text, action)))).normal(size=self.dimensions) for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), self.dimensions)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def counting() -> Counting:
    return Counting()


def outcomes(name: str) -> dict[str, int]:
    """What was counted of L1 since the last look."""
    counted: dict[str, int] = {}
    for (_, metric, labels), n in metrics.drain().items():
        if metric == name and n:
            outcome = labels.rpartition("outcome=")[2]
            counted[outcome] = counted.get(outcome, 0) + n
    return counted


def test_to_a_symmetric_embedder_a_question_and_a_fact_are_one_text(redis, counting):
    counting.symmetric = True
    cached = CachedEmbedder(counting, 1)
    cached.embed(["Ann likes tea"], "passage")
    cached.embed(["Ann likes tea"], "search")
    assert counting.asked == ["Ann likes tea"]


def test_a_cached_vector_is_the_fresh_one_bit_for_bit(redis):
    """So a ranking cannot tell whether L1 was hit."""
    real = embedders.get()
    texts = ["Ann likes tea", "Ann có một con mèo"]
    cached = CachedEmbedder(real, 1)
    fresh = cached.embed(texts, "passage")
    assert np.array_equal(fresh, real.embed(texts, "passage"))
    metrics.drain()
    assert np.array_equal(cached.embed(texts, "passage"), fresh)
    assert outcomes("embeddings") == {"hit": 2}


def test_each_distinct_text_is_embedded_once(redis, counting):
    cached = CachedEmbedder(counting, 1)
    first = cached.embed(["a", "b", "a"], "passage")
    again = cached.embed(["b", "c", "a"], "passage")
    assert counting.asked == ["a", "b", "c"]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[[1, 0]], again[[0, 2]])


def test_a_batch_of_any_size_keeps_its_order(redis, counting):
    texts = [f"text {place}" for place in range(2 * CHUNK + 3)]
    cached = CachedEmbedder(counting, 1)
    cached.embed(texts[::3], "passage")
    expected = Counting().embed(texts, "passage")
    assert np.array_equal(cached.embed(texts, "passage"), expected)
    assert np.array_equal(cached.embed(texts[::-1], "passage"), expected[::-1])
    assert sorted(counting.asked) == sorted(texts)


def test_no_texts_are_an_empty_array(redis, counting):
    assert CachedEmbedder(counting, 1).embed([], "search").shape == (0, counting.dimensions)


def test_projects_actions_models_and_sizes_are_apart(redis, counting):
    other = Counting()
    other.name = "counting/v2"
    CachedEmbedder(counting, 1).embed(["a"], "search")
    CachedEmbedder(counting, 2).embed(["a"], "search")
    CachedEmbedder(counting, 1).embed(["a"], "passage")
    CachedEmbedder(other, 1).embed(["a"], "search")
    assert counting.asked == ["a"] * 3
    assert other.asked == ["a"]


def test_c6_a_key_tells_nothing_of_the_text_and_needs_the_secret(redis, counting, settings):
    CachedEmbedder(counting, 1).embed(["hunter2"], "search")
    (key,) = redis.keys()
    assert b"hunter2" not in key
    settings.SECRET_KEY = "another"
    assert CachedEmbedder(counting, 1).key("hunter2", "search").encode() != key


def test_c6_both_unicode_forms_are_one_text_and_the_embedder_gets_the_composed_one(redis, counting):
    composed = "Huế"
    cached = CachedEmbedder(counting, 1)
    first = cached.embed([unicodedata.normalize("NFD", composed)], "search")
    assert np.array_equal(first, cached.embed([composed], "search"))
    assert counting.asked == [composed]


def test_a_vector_lives_on_when_it_is_used(redis, counting, settings):
    settings.L1_TTL_SECONDS = 500
    cached = CachedEmbedder(counting, 1)
    cached.embed(["a"], "search")
    key = cached.key("a", "search")
    assert 0 < redis.ttl(key) <= 500
    redis.expire(key, 5)
    cached.embed(["a"], "search")
    assert redis.ttl(key) > 5


def test_a_broken_entry_is_computed_anew_and_replaced(redis, counting):
    cached = CachedEmbedder(counting, 1)
    fresh = cached.embed(["a"], "search")
    redis.set(cached.key("a", "search"), b"short")
    assert np.array_equal(cached.embed(["a"], "search"), fresh)
    assert np.array_equal(cached.embed(["a"], "search"), fresh)
    assert counting.asked == ["a", "a"]


def test_without_redis_vectors_are_computed_and_the_failure_is_counted(dead_redis, counting):
    cached = CachedEmbedder(counting, 1)
    metrics.drain()
    texts = ["a", "b"]
    assert np.array_equal(cached.embed(texts, "search"), Counting().embed(texts, "search"))
    assert outcomes("lookups") == {"error": 2}
    assert counting.asked == texts


def test_an_embedder_that_is_away_is_an_error_and_nothing_is_kept(redis, counting):
    counting.away = True
    with pytest.raises(EmbedderError):
        CachedEmbedder(counting, 1).embed(["a"], "search")
    assert redis.keys() == []


def test_what_is_cached_is_served_while_the_embedder_is_away(redis, counting):
    cached = CachedEmbedder(counting, 1)
    fresh = cached.embed(["a"], "search")
    counting.away = True
    assert np.array_equal(cached.embed(["a"], "search"), fresh)
