"""One answer out of both memories: each thing said once, and which comes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory.merge import Near, Weights, needed, together
from memory.text import normalised

WEIGHTS = Weights(both=0.15, near=0.10)
words = st.sampled_from(["tea", "Tea.", "TRÀ", "trà", "cake", "a dog", "A  dog"])
scores = st.floats(0, 1)


def ltm(text: str, score: float = 1.0) -> dict:
    return {"id": text, "memory": text, "score": score, "source": "ltm"}


def near(text: str, score: float = 1.0, **more) -> Near:
    return Near({"id": f"near {text}", "memory": text, "source": "stm"}, score, **more)


def merge(results: list[dict], said: list[Near], top_k: int = 10, *, jobs=None, **more) -> list[dict]:
    return together(results, needed(said, results, jobs or [None] * len(results)), top_k, WEIGHTS, **more)


def shown(results: list[dict]) -> list[tuple[str, str]]:
    return [(one["memory"], one["source"]) for one in results]


@given(st.lists(st.tuples(words, scores), unique_by=lambda one: normalised(one[0])), st.lists(st.tuples(words, scores)))
def test_every_text_of_either_memory_is_said_exactly_once(held, said):
    results = [ltm(*one) for one in held]
    merged = merge(results, [near(*one) for one in said], 100)
    texts = [normalised(one["memory"]) for one in merged]
    assert sorted(texts) == sorted({normalised(text) for text, _ in (*held, *said)})
    assert [one["score"] for one in merged] == sorted((one["score"] for one in merged), reverse=True)


def test_what_both_hold_gains_most_and_what_is_new_a_little():
    merged = merge([ltm("tea", 0.8), ltm("cake", 0.8)], [near("tea"), near("milk")], explain=True)
    assert shown(merged) == [("tea", "both"), ("milk", "stm"), ("cake", "ltm")]
    assert [round(one["score"], 2) for one in merged] == [1.15, 1.1, 1.0]
    assert merged[0]["parts"] == {"ltm": 1.0, "stm": 1.0, "bonus": 0.15}
    assert merged[2]["parts"] == {"ltm": 1.0, "stm": None, "bonus": 0.0}


def test_a_ranking_of_small_scores_weighs_as_much_as_one_of_large_ones():
    merged = merge([ltm("tea", 0.02), ltm("cake", 0.01)], [near("milk", 0.9), near("rum", 0.1)])
    assert [one["memory"] for one in merged] == ["milk", "tea", "rum", "cake"]


def test_no_more_than_asked_for():
    assert len(merge([ltm("tea"), ltm("cake")], [near("milk")], 2)) == 2


def test_c1_a_result_with_its_jobs_mark_stands_for_what_was_extracted():
    on_its_way = near("I drink tea", job="j", fleeting=True)
    assert list(needed([on_its_way], [ltm("Likes hot drinks")], ["j"])) == []
    assert list(needed([on_its_way], [ltm("Likes hot drinks")], ["k"])) == ["i drink tea"]


def test_c1_what_is_only_on_its_way_is_not_said_beside_the_stored():
    assert needed([near("Tea.", fleeting=True)], [ltm("tea")], [None]) == {}


def test_c1_a_message_and_the_fact_extracted_from_it_are_one_item():
    said = [near("My cat is called Mít and I like walking.", job="j"), near("We fly on Monday", job="j")]
    found = merge([ltm("User has a cat called Mít"), ltm("User likes to walk")], said, jobs=["j", "j"])
    assert sorted(shown(found)) == [
        ("User has a cat called Mít", "both"),
        ("User likes to walk", "ltm"),
        ("We fly on Monday", "stm"),
    ]


def test_c1_a_message_stays_beside_another_jobs_fact_or_half_of_what_it_says():
    said = [near("My cat is called Mít", job="k"), near("My cat is called Mít and the locker is 4711", job="j")]
    assert len(merge([ltm("User has a cat called Mít")], said, jobs=["j"])) == 3
