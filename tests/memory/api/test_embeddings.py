"""`/v1/embeddings` as the official OpenAI client uses it, over the real embedder."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import numpy as np
import openai
import pytest
from django.core.wsgi import get_wsgi_application

from memory import bulkhead, embedders
from memory.embedders.base import Action, Vectors
from memory.models import Project
from memory.tenancy import keys

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "multilingual-e5-small-q4"
NFC, NFD = "Tôi thích phở.", unicodedata.normalize("NFD", "Tôi thích phở.")
Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def embedded(monkeypatch, redis, settings) -> list[tuple[str, Action]]:
    """Every text that the embedder was given, with its action: the counter of what was paid for."""
    settings.EMBEDDER = "local"
    given: list[tuple[str, Action]] = []
    real = embedders.get()
    embed = real.embed

    def counted(texts, action: Action) -> Vectors:
        given.extend((text, action) for text in texts)
        return embed(texts, action)

    monkeypatch.setattr(real, "embed", counted)
    return given


@pytest.fixture
def connect(project: Project, embedded) -> Connect:
    def made(secret: str | None = None, **key) -> openai.OpenAI:
        secret = (
            secret or keys.create(key.pop("of", project), name="test", scopes=key.pop("scopes", ["read"]), **key)[1]
        )
        http = httpx.Client(transport=httpx.WSGITransport(app=get_wsgi_application()))
        return openai.OpenAI(api_key=secret, base_url="http://localhost/v1", http_client=http, max_retries=0)

    return made


@pytest.fixture
def client(connect: Connect) -> openai.OpenAI:
    return connect()


def vectors(client: openai.OpenAI, texts: str | list[str], model: str = NAME, **more) -> np.ndarray:
    return np.array([item.embedding for item in client.embeddings.create(model=model, input=texts, **more).data])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_one_text_is_one_vector_of_unit_length(client):
    answer = client.embeddings.create(model=NAME, input="Ann drinks tea.")
    assert (answer.object, answer.model, len(answer.data)) == ("list", NAME, 1)
    assert (answer.data[0].object, answer.data[0].index) == ("embedding", 0)
    assert len(answer.data[0].embedding) == 384
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_a_batch_keeps_its_order_and_its_repeats(client, embedded):
    found = vectors(client, ["tea", "coffee", "tea"])
    assert np.array_equal(found, vectors(client, ["tea", "coffee", "tea"]))
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])
    assert [text for text, _ in embedded] == ["tea", "coffee"]


def test_floats_and_base64_are_the_same_vector(client):
    floats = vectors(client, "tea", encoding_format="float")[0]
    raw = client.embeddings.with_raw_response.create(model=NAME, input="tea", encoding_format="base64")
    stored = raw.http_response.json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(stored), dtype="<f4"), floats.astype("<f4"))


def test_a_repeated_text_is_not_embedded_again(client, embedded):
    for _ in range(3):
        vectors(client, "What does Ann drink?", f"{NAME}-search")
    assert embedded == [("What does Ann drink?", "search")]


def test_composed_and_decomposed_text_are_one_text_embedded_composed(client, embedded):
    """PROTOCOL C6: the key stands for the NFC text, so the embedder must see that text."""
    assert np.array_equal(vectors(client, NFD), vectors(client, NFC))
    assert embedded == [(NFC, "symmetric")]


def test_the_models_name_says_what_the_text_is_for(client, embedded):
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}-search", f"{NAME}-passage"]
    passage = vectors(client, "Ann drinks tea.", f"{NAME}-passage")[0]
    question = vectors(client, "Ann drinks tea.", f"{NAME}-search")[0]
    assert [action for _, action in embedded] == ["passage", "search"]
    assert cosine(passage, question) < 0.9999


def test_a_model_that_treats_texts_alike_has_one_name(client, settings):
    settings.EMBEDDER_SYMMETRIC = True
    assert [model.id for model in client.models.list()] == [NAME]


def test_a_question_lies_nearest_to_its_answer_across_languages(client):
    answers = vectors(client, ["Tôi dị ứng với tôm.", "Cô ấy chơi đàn piano."], f"{NAME}-passage")
    question = vectors(client, "food allergies", f"{NAME}-search")[0]
    assert cosine(question, answers[0]) > cosine(question, answers[1])


def test_dimensions_may_only_be_the_models_own(client):
    assert vectors(client, "tea", dimensions=384).shape == (1, 384)
    with pytest.raises(openai.BadRequestError) as refused:
        vectors(client, "tea", dimensions=256)
    assert (refused.value.param, refused.value.type) == ("dimensions", "invalid_request_error")


def test_another_projects_vectors_are_not_shared(connect, client, embedded):
    """PROTOCOL C6: the time of a hit would tell that the other project has the text."""
    vectors(client, "a secret")
    vectors(connect(of=Project.objects.create(name="Other", slug="other", namespace="other")), "a secret")
    assert len(embedded) == 2


@pytest.mark.parametrize("texts", [[1, 2, 3], [[1, 2], [3]], [], "", ["tea", ""], ["tea", None], "te\0a", ["t"] * 2049])
def test_what_is_no_text_is_refused_before_anything_is_embedded(client, embedded, texts):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=NAME, input=texts)
    assert refused.value.param == "input"
    assert embedded == []


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as missing:
        vectors(client, "tea", "text-embedding-3-small")
    assert missing.value.code == "model_not_found"


def test_without_an_embedder_there_is_no_model(client, settings):
    settings.EMBEDDER = "none"
    assert list(client.models.list()) == []
    with pytest.raises(openai.NotFoundError):
        vectors(client, "tea")


@pytest.mark.parametrize("secret", ["msk_wrong", "msk_" + "0" * 51])
def test_a_wrong_key_is_refused_as_openai_does(connect, secret):
    with pytest.raises(openai.AuthenticationError) as refused:
        vectors(connect(secret), "tea")
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    assert secret not in refused.value.message


def test_a_key_needs_the_scope_read_and_may_not_be_bound_to_one_user(connect):
    for key in ({"scopes": ["write"]}, {"user_id": "ann"}):
        with pytest.raises(openai.PermissionDeniedError):
            vectors(connect(**key), "tea")


def test_an_error_names_no_text(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=NAME, input=["a secret\0"])
    assert "secret" not in str(refused.value)


def test_too_many_at_once_are_asked_to_come_again_and_known_texts_are_still_answered(client, settings):
    settings.WEB_THREADS = 4
    bulkhead._embedding_places.cache_clear()
    known = vectors(client, "tea")
    with ExitStack() as held:
        for _ in range(bulkhead.LEAST_EMBEDDING):
            held.enter_context(bulkhead.embedding())
        assert np.array_equal(vectors(client, "tea"), known)
        with pytest.raises(openai.InternalServerError) as full:
            vectors(client, "coffee")
    assert (full.value.status_code, full.value.code) == (503, "overloaded")
    assert full.value.response.headers["Retry-After"] == "1"
    bulkhead._embedding_places.cache_clear()


def test_vectors_are_made_while_every_place_for_waiting_is_taken(client):
    """A search that waits for Mem0 may be waiting for this vector."""
    with ExitStack() as held:
        for _ in range(bulkhead.places()):
            held.enter_context(bulkhead.waiting())
        assert vectors(client, "tea").shape == (1, 384)


def test_a_very_long_text_is_embedded_by_its_beginning(client):
    """What a text costs is bounded: the engine would go on for minutes."""
    found = vectors(client, "tea and coffee " * 20_000)
    assert np.array_equal(found, vectors(client, "tea and coffee " * 200))
