"""Local ranking: against Mem0's own search, and against PostgreSQL where Mem0 leaves the work to it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import numpy as np
import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench import agreement
from memory import rank
from memory.rank import Rows
from memory.types import Memory
from tests import data

# PostgreSQL is asked many things of one test's connection, and keeps nothing of them.
asking = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(*texts: str, **more: Any) -> Rows:
    return Rows(texts, **more)


def unit(*vectors: list[float], dtype: str = "float32") -> np.ndarray:
    made = np.array(vectors, dtype="float64")
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(dtype)


def indices(ranked: rank.Ranked) -> list[int]:
    return [index for index, _ in ranked]


# -- like Mem0 ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sdk")
def test_it_agrees_with_mem0s_own_search():
    """One LoCoMo sample through the real Mem0; `bench/agreement.py` measures all five."""
    sample = min(data.locomo(), key=lambda sample: len(sample.facts))
    figures = agreement.measure(sample)
    assert figures.questions >= 100
    assert figures.overlap >= 0.98
    assert figures.recall[1] >= figures.recall[0]


FACTS = ("Ann likes green tea", "Ben plays chess", "Cy reads books", "tea")
NEAR = unit([1.0, 0.1], [0.6, 0.8], [0.0, 1.0], [0.9, 0.4])
ASKED = unit([1.0, 0.0])[0]


def test_the_nearest_come_first_with_their_cosine():
    ranked = rank.like_upstream("drinks", ASKED, rows(*FACTS, vectors=NEAR), 3)
    assert indices(ranked) == [0, 3, 1]
    np.testing.assert_allclose([score for _, score in ranked], (NEAR @ ASKED)[[0, 3, 1]], rtol=1e-6)


@pytest.mark.parametrize("ranked", [rank.like_upstream, rank.hybrid])
def test_the_threshold_is_a_cosine(ranked):
    kept = rows(*FACTS, vectors=NEAR)
    assert indices(ranked("drinks", ASKED, kept, 10)) == [0, 3, 1], "0.1 where none is named"
    assert indices(ranked("drinks", ASKED, kept, 10, threshold=0.0)) == [0, 3, 1, 2]
    assert indices(ranked("drinks", ASKED, kept, 10, threshold=0.95)) == [0]


def test_every_word_of_the_question_found_halves_the_scores_and_lifts_its_row():
    close = unit([1.0, 0.1], [0.9, 0.4], [0.89, 0.4], [0.0, 1.0])
    kept = rows("Ann likes milk", "Ben likes milk", "green tea", "green", vectors=close)
    without, lifted = (rank.like_upstream(asked, ASKED, kept, 3) for asked in ("drinks", "Green Tea?"))
    assert indices(without) == [0, 1, 2]
    assert indices(lifted) == [0, 2, 1]
    assert lifted[0][1] == pytest.approx(without[0][1] / 2)


def test_only_the_named_rows_are_ranked_and_keep_their_numbers():
    kept = rows(*FACTS, vectors=NEAR)
    for ranked in (rank.like_upstream, rank.hybrid):
        assert indices(ranked("tea", ASKED, kept, 10, among=[1, 3])) == [3, 1]
        assert ranked("tea", ASKED, kept, 10, among=[]) == []
    assert rank.by_words("tea", kept, 10, among=[1, 2]) == []


@pytest.mark.parametrize("ranked", ["like_upstream", "hybrid", "by_words"])
def test_what_has_expired_is_hidden_unless_asked_for(ranked):
    kept = rows(*FACTS, vectors=NEAR, expires=["2030-01-01", None, None, "2030-01-02"])

    def ask(today: str | None) -> list[int]:
        if ranked == "by_words":
            return indices(rank.by_words("tea", kept, 10, today=today))
        return indices(getattr(rank, ranked)("tea", ASKED, kept, 2, today=today))

    assert set(ask(None)) == {0, 3}
    assert set(ask("2030-01-01")) == {0, 3}
    assert 0 not in ask("2030-01-02")
    assert not {0, 3} & set(ask("2030-01-03"))


@pytest.mark.parametrize("kept_as", ["float32", "float16"])
def test_vectors_may_be_kept_in_half_the_bytes(kept_as):
    vectors = unit(*np.random.default_rng(1).normal(size=(200, 32)).tolist(), dtype=kept_as)
    kept = Rows([f"fact {number}" for number in range(200)], vectors)
    asked = unit(np.random.default_rng(2).normal(size=32).tolist())[0]
    expected = np.argsort(-(vectors.astype("float32") @ asked), kind="stable")[:10]
    assert indices(rank.like_upstream("what", asked, kept, 10)) == expected.tolist()


def test_nobodys_memories_are_ranked_as_none():
    for ranked in (rank.like_upstream, rank.hybrid):
        assert ranked("tea", ASKED, rows(vectors=np.empty((0, 2), dtype="float32")), 10) == []
    assert rank.by_words("tea", rows(), 10) == []


def test_rows_without_vectors_cannot_be_ranked_by_them():
    for ranked in (rank.like_upstream, rank.hybrid):
        with pytest.raises(ValueError, match="words"):
            ranked("tea", ASKED, rows("tea"), 10)


# -- PostgreSQL's words ------------------------------------------------------------------------------------------------

sentences = st.lists(
    st.sampled_from(["ann", "ben", "tea", "Tea", "well-known", "3.14", "trà", "and/or", "it's", "2-point", ",", "x"]),
    max_size=12,
).map(" ".join)


@pytest.mark.django_db
@asking
@given(sentences, sentences)
@example("ann tea tea ann tea", "tea ann")
@example("a well-known tea", "well-known")
def test_a_keyword_rank_is_postgresqls(text, question):
    with connection.cursor() as cursor:
        asked = "to_tsvector('simple', %s), plainto_tsquery('simple', %s)"
        cursor.execute(f"SELECT ts_rank_cd({asked})", (text, question))
        (expected,) = cursor.fetchone()
    wanted = set(rank.terms(question))
    found = rank._cover_density(rank.terms(text), wanted) if wanted else 0.0
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.django_db
def test_texts_are_taken_apart_as_postgresql_does():
    texts = [text for sample in data.locomo()[:1] for text in (*sample.facts, *(q.text for q in sample.questions))]
    vietnamese = data.load("xquad-vi-en-dev.json.gz")["users"][:4]
    texts += [memory["text"] for user in vietnamese for memory in user["memories"]["vi"]]
    with connection.cursor() as cursor:
        # Lower case first: which letters PostgreSQL folds depends on the database's locale.
        cursor.execute(
            "SELECT tsvector_to_array(to_tsvector('simple', t)) FROM unnest(%s) t", ([t.lower() for t in texts],)
        )
        theirs = [set(words) for (words,) in cursor.fetchall()]
    same = sum(set(rank.terms(text)) == words for text, words in zip(texts, theirs, strict=True))
    assert same / len(texts) >= 0.99


# -- by words ----------------------------------------------------------------------------------------------------------

VIETNAMESE = rows(
    "Lan thích uống cà phê sữa đá",
    "Lan có một con mèo tên Mướp",
    "Lan làm việc ở Đà Nẵng",
    "Má của Lan sống ở Huế",
    "Lan đi xe máy",
)


@pytest.mark.parametrize(
    ("question", "best"),
    [("uống cà phê", 0), ("uong ca phe", 0), ("lam viec o dau, Da Nang?", 2), ("con meo ten gi", 1), ("CÀ PHÊ", 0)],
)
def test_words_are_found_with_and_without_accents(question, best):
    for form in ("NFC", "NFD"):
        assert indices(rank.by_words(unicodedata.normalize(form, question), VIETNAMESE, 3))[0] == best


def test_the_right_accents_decide_between_words_that_look_alike_without():
    kept = rows("Lan thấy một con ma", "Lan thấy má", "Lan thấy mạ non")
    assert indices(rank.by_words("má", kept, 3))[0] == 1
    assert indices(rank.by_words("ma", kept, 3))[0] == 0


def test_rare_words_weigh_more_and_scores_are_between_0_and_1():
    kept = rows("the cat sat on the mat", "the dog sat on the log", "the zebra ran")
    ranked = rank.by_words("the zebra", kept, 10)
    assert indices(ranked)[0] == 2
    assert all(0 < score <= 1 for _, score in ranked)
    assert rank.by_words("quokka", kept, 10) == []
    assert len(rank.by_words("the", kept, 2)) == 2


# -- by vectors and words ----------------------------------------------------------------------------------------------


def near(*cosines: float) -> np.ndarray:
    """Vectors whose cosines with ALONG are these."""
    return unit(*([cosine, (1 - cosine**2) ** 0.5] for cosine in cosines))


ALONG = unit([1.0, 0.0])[0]


def hybrid(question: str, kept: Rows, top_k: int = 10, **more: Any) -> list[int]:
    return indices(rank.hybrid(question, ALONG, kept, top_k, **more))


def test_a_word_of_the_question_lifts_its_row_above_nearer_ones():
    kept = rows("the aunt knits", "the uncle paints", "the zebra runs", vectors=near(0.83, 0.82, 0.81))
    assert hybrid("animals", kept) == [0, 1, 2]
    assert hybrid("the zebra", kept)[0] == 2


def test_words_weigh_as_much_whether_cosines_lie_close_together_or_far_apart():
    """Each embedder has a band of its own."""
    told = ("Ann likes tea", "Ann sells tea pots", "Ann likes dogs", "Ben likes tea", "Cy swims")
    wide = np.array([0.2, 0.9, 0.5, 0.4, 0.6])
    close, far = (rows(*told, vectors=near(*cosines)) for cosines in (0.8 + wide / 20, wide))
    assert hybrid("does ann like tea", close) == hybrid("does ann like tea", far)


def test_a_question_in_another_language_is_ranked_by_its_vector():
    """“an” is a Vietnamese word without its accents, and chance."""
    kept = rows("Lan thích ăn", "Tôi dị ứng với tôm", "Em tôi ở Huế", vectors=near(0.8099, 0.81, 0.7))
    assert hybrid("Is there an allergy?", kept) == [1, 0, 2]


def test_other_forms_of_a_word_are_found():
    kept = rows("Ann swims", "Ann travels often", "Ann reads", vectors=near(0.82, 0.80, 0.81))
    assert hybrid("travelling", kept)[0] == 1


def test_the_right_accents_decide_between_near_rows():
    kept = rows("Lan thấy con ma", "Lan thấy má", "Lan thấy mạ non", vectors=near(0.8, 0.8001, 0.8002))
    assert hybrid("ma", kept)[0] == 0
    assert hybrid("má", kept)[0] == 1


def test_words_are_found_though_some_of_the_question_is_typed_without_accents():
    kept = rows("Lan đi xe máy", "Lan làm việc ở Đà Nẵng", "Lan thích trà", vectors=near(0.82, 0.8, 0.81))
    assert hybrid("Lan làm viec o Da Nang?", kept)[0] == 1
    assert hybrid("Lán lam viec o Da Nang?", kept)[0] == 1


def test_a_ranking_is_the_same_each_time_and_in_whatever_order_rows_come():
    told = [f"fact {number} of tea and {number % 7} cups" for number in range(200)]
    cosines = np.random.default_rng(3).uniform(0.7, 0.9, 200)
    first = rank.hybrid("7 cups of tea", ALONG, rows(*told, vectors=near(*cosines)), 20)
    again = rank.hybrid("7 cups of tea", ALONG, rows(*told, vectors=near(*cosines)), 20)
    back = rank.hybrid("7 cups of tea", ALONG, rows(*told[::-1], vectors=near(*cosines[::-1])), 20)
    assert first == again
    assert [199 - index for index in indices(back)] == indices(first)


@pytest.mark.parametrize("most", [3, 60])
def test_many_questions_are_ranked_as_each_alone_to_the_last_bit(most):
    draw = np.random.default_rng(7)
    words = ["the", "cat", "sits", "on", "a", "mat", "in", "Huế", "Ann", "drinks", "trà", "xanh"]
    told = [" ".join(draw.choice(words, draw.integers(2, 9))) for _ in range(40)]
    kept = rows(*told, vectors=unit(*draw.standard_normal((40, 16)).tolist()))
    asked = [" ".join(draw.choice(words, draw.integers(1, 7))) + "?" for _ in range(30)]
    vectors = list(unit(*draw.standard_normal((30, 16)).tolist()))
    together = rank.hybrid_each(asked, vectors, kept, [most] * 30, [0.1] * 30)
    assert together == [rank.hybrid(*one, kept, most) for one in zip(asked, vectors, strict=True)]


def test_scores_are_between_0_and_1():
    kept = rows("the cat", "the dog sat on the log", "bird", vectors=near(0.999, 0.2, 0.0))
    ranked = rank.hybrid("the cat", ALONG, kept, 10, threshold=0.0)
    assert all(0 <= score <= 1 for _, score in ranked)
    assert indices(ranked) == [0, 1, 2]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Lan lam viec o dau?", "lan làm việc ở đâu"),
        ("ca phe sua da", "cà phê sữa đá"),
        ("Lan làm viec o dau?", "Lan làm viec o dau?"),
        ("Where does Lan work?", "Where does Lan work?"),
        ("", ""),
    ],
)
def test_accents_are_put_back_where_a_question_was_typed_without(typed, meant):
    assert rank.meant(typed, VIETNAMESE) == meant


def test_words_that_the_rows_write_with_accents_only_are_read_so_in_any_language():
    kept = rows("Der Bär schläft", "Die Möwe fliegt")
    assert rank.meant("schlaft der bar", kept) == "schläft der bär"
    assert rank.meant("wo schlaft der bar heute", kept) == "wo schläft der bär heute"
    assert rank.meant("die fliegt", kept) == "die fliegt"


def test_common_vietnamese_is_known_without_any_rows_in_it():
    assert rank.meant("con meo ten gi", rows("Ann has a cat")) == "con mèo tên gì"


TOLD = rows(
    "Con trai em tên là Tí, năm nay học lớp 2",
    "Anh Sơn là người Mỹ",
    "Mẹ em cần mua đồ mới cho Tết",
    "Nhà em có con chó tên Lu biết bắt tay",
    "Em sống ở Đà Nẵng, thể nào cũng đi biển, nhà số 5",
    "Em hay hát bài Diễm Xưa",
)


@pytest.mark.parametrize(
    "question",
    [
        "What is my son's name?",
        "What can the dog do?",
        "Which song do I sing?",
        "Where does the man live so long?",
        "Was soll der Son essen, was can er do?",
    ],
)
def test_a_question_in_another_language_is_left_as_it_was_asked(question):
    """“my”, “son”, “can”, “song” and “do” are Vietnamese words without their accents."""
    assert rank.meant(question, TOLD) == question


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("macbook cua em mua o dau", "macbook của em mua ở đâu"),
        ("dien thoai Samsung Galaxy cua toi mua o dau", "điện thoại samsung galaxy của tôi mua ở đâu"),
        ("laptop Dell gia bao nhieu", "laptop dell giá bao nhiêu"),
        ("con trai em hoc lop 2 nam 2024 phai khong", "con trai em học lớp 2 năm 2024 phải không"),
        ("me em can mua gi cho Tet", "mẹ em cần mua gì cho tết"),
    ],
)
def test_names_and_numbers_make_no_other_language(typed, meant):
    assert rank.meant(typed, TOLD) == meant


def test_a_message_of_thousands_of_words_is_ranked_as_it_is():
    message = "me can mua do " * 4000
    assert rank.meant(message, TOLD) == message
    assert rank.meant("me can mua do", TOLD) == "mẹ cần mua đồ"


def test_a_process_remembers_the_words_of_short_questions_only():
    rank._remembered.cache_clear()
    for question in ("tea?", "tea? " * 1000):
        rank.meant(question, TOLD)
    assert rank._remembered.cache_info().currsize == 1


def test_what_another_ranking_found_is_ranked_again_by_its_words():
    found = [("the aunt knits", 0.43), ("the uncle paints", 0.42), ("the zebra runs", 0.41)]
    assert indices(rank.again("the zebra", found, 2)) == [2, 0]
    assert indices(rank.again("animals", found, 2)) == [0, 1]
    assert rank.again("animals", [], 2) == []


# -- filters -----------------------------------------------------------------------------------------------------------


def memory(metadata: dict[str, Any]) -> Memory:
    return Memory("1", "text", metadata=metadata)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([0.5, 1.0, 2.5, 1e16, 1e-7, -0.25])
    | st.sampled_from(["", "a", "A", "b_c", "10%", "đỏ", "Đỏ", "2", "true", "None", "*", '["a"]', "\\", '"'])
)
values = (
    scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["bb", "a", "đ"]), scalars, max_size=3)
)
keys = st.sampled_from(["k", "n"])
operators = st.dictionaries(st.sampled_from(["eq", "ne", "contains", "icontains"]), scalars, min_size=1, max_size=2)
lists = st.dictionaries(st.sampled_from(["in", "nin"]), st.lists(scalars, max_size=3), min_size=1)
numbers = st.dictionaries(
    st.sampled_from(["gt", "gte", "lt", "lte"]), st.integers(-3, 12) | st.sampled_from([0.5, 2.5]), min_size=1
)
simple = st.dictionaries(keys, scalars | st.lists(scalars, max_size=2) | operators | lists, min_size=1)
groups = st.lists(simple, min_size=1, max_size=2)
conditions = simple | st.fixed_dictionaries({}, optional={"OR": groups, "NOT": groups, "k": scalars | lists})


def in_postgresql(asked: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """What Mem0's own translation of the filters finds."""
    from mem0 import Memory as Mem0
    from mem0.vector_stores.pgvector import _build_filter_conditions

    processed = Mem0._process_metadata_filters(None, asked) if Mem0._has_advanced_operators(None, asked) else asked
    parts, parameters = _build_filter_conditions(processed)
    with connection.cursor() as cursor:
        where = " AND ".join(parts) or "true"
        cursor.execute(
            f"SELECT count(*) FROM (SELECT %s::jsonb AS payload) x WHERE {where}", [json.dumps(metadata), *parameters]
        )
        return bool(cursor.fetchone()[0])


@pytest.mark.django_db
@asking
@given(conditions, st.dictionaries(keys, values))
@example({"k": {"ne": "a"}}, {})
@example({"k": {"nin": ["a"]}}, {})
@example({"NOT": [{"k": "a"}]}, {})
@example({"k": True}, {"k": True})
@example({"k": {"eq": True}}, {"k": True})
@example({"NOT": [{"k": []}]}, {})
@example({"k": {"nin": []}}, {})
@example({"k": "*"}, {"k": None})
@example({"k": 1e16}, {"k": 1e16})
@example({"k": {"contains": "%"}}, {"k": "10%"})
@example({"k": '{"a": 1, "bb": "đ"}'}, {"k": {"bb": "đ", "a": 1}})
def test_filters_that_are_understood_match_exactly_as_in_mem0(asked, metadata):
    if rank.understands(asked):
        assert rank.matches(asked, memory(metadata)) == in_postgresql(asked, metadata)


@pytest.mark.django_db
@asking
@given(st.dictionaries(keys, numbers, min_size=1), st.dictionaries(keys, st.integers(-3, 12) | st.floats(-3, 12)))
@example({"k": {"gte": 2.5}}, {"k": 2.5})
@example({"k": {"lt": 3}}, {})
def test_numbers_compare_as_in_mem0(asked, metadata):
    assert rank.understands(asked)
    assert rank.matches(asked, memory(metadata)) == in_postgresql(asked, metadata)


@pytest.mark.parametrize(
    "asked",
    [
        {"user_id": "ben"},
        {"created_at": {"gte": "2030"}},
        {"data": "x"},
        {"k": {"like": "x"}},
        {"k": {"gt": "3"}},
        {"k": {"in": "abc"}},
        {"k": {"icontains": "Đ"}},
        {"k": {}},
        {"k": {"eq": {"deep": 1}}},
        {"OR": []},
        {"OR": [{}]},
        {"OR": [{"AND": [{"k": 1}]}]},
        {"OR": {"k": 1}},
        {"NOT": [{"user_id": "ben"}]},
        {"$or": [{"k": 1}]},
        {"AND": [{"k": 1}, {"k": 2}]},
        {"AND": "k"},
        {"AND": ["k"]},
    ],
)
def test_what_only_mem0_can_answer_or_refuse_is_left_to_it(asked):
    assert not rank.understands(asked)


def test_and_joins_conditions_on_different_keys():
    asked = {"AND": [{"k": "a"}, {"AND": [{"n": {"gte": 2}}]}]}
    assert rank.understands(asked)
    assert rank.matches(asked, memory({"k": "a", "n": 2}))
    assert not rank.matches(asked, memory({"k": "a", "n": 1}))
    assert rank.understands({})
    assert rank.matches({}, memory({}))
