"""Topics: what a user's summaries answer, in the language of the facts or not."""

from __future__ import annotations

import pytest

from cachewarm import topics
from cachewarm.models import Topic
from memory.layers import l3_rows
from memory.layers.l3_summaries import embed
from memory.types import Memory

pytestmark = pytest.mark.django_db(transaction=True)

VIETNAMESE = {
    "movie": "Phim tôi thích nhất là Mắt Biếc",
    "pet": "Tôi nuôi một con mèo tên Mun",
    "music": "Tối nào tôi cũng nghe nhạc Trịnh Công Sơn",
    "travel": "Hè này cả nhà tôi sẽ đi du lịch Phú Quốc",
    "friend": "Bạn thân nhất của tôi tên là Hùng",
    "toy": "Con gái tôi thích chơi lego",
}
ENGLISH = {
    "movie": "I love watching science fiction films",
    "pet": "My dog Rex is a golden retriever",
    "music": "I listen to jazz every evening",
    "travel": "I want to visit Japan next spring",
    "friend": "My best friend Sarah lives in Boston",
    "toy": "My son plays with a wooden train",
}
NOISE = (
    "The kitchen sink was repaired yesterday",
    "Hoá đơn tiền điện tháng này là 800 nghìn",
    "The bus was late again",
)


@pytest.fixture(autouse=True)
def stores(redis, project) -> None:
    """Redis is empty, and a project is there."""


def rows(project, texts) -> l3_rows.Rows:
    vectors = embed(project.pk, texts)
    memories = [Memory(text, text) for text in texts]
    return l3_rows.rankable(memories, [vectors.get(l3_rows.text_key(text)) for text in texts])


def belonging(project, texts, language: int | None = None) -> dict[str, list[str]]:
    """For each topic the texts that belong to it; `language` leaves one question, 0 English, 1 Vietnamese."""
    if language is not None:
        for topic in Topic.objects.all():
            topic.questions = topic.asked()[language]
            topic.save()
    ranked = rows(project, texts)
    asked = topics.of(project.pk)
    found = topics.belonging(asked, project.pk, ranked)
    return {topic.name: [texts[index] for index, _ in best] for topic, best in zip(asked, found, strict=True)}


@pytest.mark.parametrize(("facts", "language"), [(VIETNAMESE, 0), (ENGLISH, 1), (VIETNAMESE, None), (ENGLISH, None)])
def test_facts_come_first_in_their_topic_whatever_language_the_question_has(project, facts, language):
    found = belonging(project, [*facts.values(), *NOISE], language)
    assert {name: found[name][0] for name in facts} == facts


def test_both_languages_stand_beside_each_other(project):
    found = belonging(project, [*VIETNAMESE.values(), *ENGLISH.values(), *NOISE])
    for name in VIETNAMESE:
        assert set(found[name][:2]) == {VIETNAMESE[name], ENGLISH[name]}, name


def test_a_topic_nothing_is_known_of_stays_nearly_empty(project):
    found = belonging(project, list(NOISE))
    assert all(len(texts) <= 1 for texts in found.values()), found


def test_without_an_embedder_words_decide(project, settings):
    settings.EMBEDDER = "none"
    found = belonging(project, ["My favourite movies are westerns", "Phim tôi xem nhiều nhất", *NOISE])
    assert set(found["movie"]) >= {"My favourite movies are westerns", "Phim tôi xem nhiều nhất"}


def test_a_topic_holds_at_most_its_limit(project):
    Topic.objects.filter(name="pet").update(limit=2)
    found = belonging(project, [f"My cat number {number} sleeps all day" for number in range(5)])
    assert len(found["pet"]) == 2


def test_a_projects_own_topic_wins_over_the_common_one(project):
    Topic.objects.create(project=project, name="pet", questions="Which reptiles does the user keep?", limit=3)
    own = next(topic for topic in topics.of(project.pk) if topic.name == "pet")
    assert (own.questions, own.limit) == (("Which reptiles does the user keep?",), 3)


def test_a_project_can_switch_a_common_topic_off(project):
    Topic.objects.create(project=project, name="toy", questions="toys", enabled=False)
    assert "toy" not in {topic.name for topic in topics.of(project.pk)}


def test_changing_a_question_changes_the_digest(project):
    before = topics.digest(topics.of(project.pk))
    Topic.objects.filter(name="pet").update(questions="Which animals live with the user?")
    assert topics.digest(topics.of(project.pk)) != before


def test_a_default_topic_that_was_deleted_stays_deleted(project):
    Topic.objects.filter(name="toy").delete()
    topics.ensure()
    assert not Topic.objects.filter(name="toy").exists()


def test_the_defaults_are_the_favourites_and_the_facts(project):
    favourites = {topic.name for topic in topics.of(project.pk) if topic.group == "favorite"}
    assert favourites == {"movie", "character", "pet", "activity", "friend", "music", "travel", "toy"}
    assert {topic.name for topic in topics.of(project.pk)} - favourites == {"skills", "personal_facts", "events"}
