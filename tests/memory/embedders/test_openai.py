"""An OpenAI-compatible endpoint, with a small HTTP server in its place. Its vectors tell which text they stand for, and
nothing else is asked of them here."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from memory import clock
from memory.embedders.base import patience
from memory.embedders.openai import BATCH_TEXTS, OpenAIEmbedder
from memory.errors import EmbedderError

DIMENSIONS = 8


def vector(text: str) -> list[float]:
    return [float(len(text)), 3.0] + [0.0] * (DIMENSIONS - 2)


class Endpoint:
    """Answers every text with its vector; `faults` come first, one a request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[tuple[int, dict[str, str], Any]] = []
        self.encode: Callable[[list[float]], Any] = lambda made: made
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, answer = outer.faults.pop(0) if outer.faults else (200, {}, outer.answer(body))
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = [{"index": place, "embedding": self.encode(vector(text))} for place, text in enumerate(body["input"])]
        return {"data": rows[::-1]}

    def embedder(self, model: str = "bge-m3", timeout: float = 5.0) -> OpenAIEmbedder:
        return OpenAIEmbedder(self.url, "secret-key", model, DIMENSIONS, timeout)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


def expected(texts: list[str]) -> np.ndarray:
    made = np.array([vector(text) for text in texts], dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def in_base64(made: list[float]) -> str:
    return base64.b64encode(np.array(made, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize("encode", [lambda made: made, in_base64], ids=["numbers", "base64"])
def test_rows_come_in_the_order_of_the_texts_with_length_one(endpoint, encode):
    endpoint.encode = encode
    texts = ["a", "bbb", "bb"]
    np.testing.assert_allclose(endpoint.embedder().embed(texts, "passage"), expected(texts), rtol=1e-6)
    assert endpoint.headers[0]["authorization"] == "Bearer secret-key"


def test_many_texts_go_in_batches(endpoint):
    texts = ["x" * (1 + place % 7) for place in range(BATCH_TEXTS + 5)]
    np.testing.assert_allclose(endpoint.embedder().embed(texts, "passage"), expected(texts), rtol=1e-6)
    assert [len(body["input"]) for body in endpoint.requests] == [BATCH_TEXTS, 5]


def test_no_texts_cost_no_request(endpoint):
    assert endpoint.embedder().embed([], "search").shape == (0, DIMENSIONS)
    assert endpoint.requests == []


def test_only_models_that_can_shorten_their_vectors_are_asked_to(endpoint):
    endpoint.embedder("bge-m3").embed(["a"], "search")
    endpoint.embedder("text-embedding-3-large").embed(["a"], "search")
    assert [body.get("dimensions") for body in endpoint.requests] == [None, DIMENSIONS]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_once_more(endpoint, status):
    endpoint.faults = [(status, {"Retry-After": "0"}, {})]
    assert endpoint.embedder().embed(["a"], "search").shape == (1, DIMENSIONS)
    assert len(endpoint.requests) == 2


def test_a_lasting_failure_is_an_error(endpoint):
    endpoint.faults = [(503, {"Retry-After": "0"}, {})] * 3
    with pytest.raises(EmbedderError, match="503"):
        endpoint.embedder().embed(["a"], "search")
    assert len(endpoint.requests) == 2


def test_a_pause_longer_than_the_time_left_is_not_waited_for(endpoint):
    endpoint.faults = [(429, {"Retry-After": "60"}, {})]
    with pytest.raises(EmbedderError, match="429"):
        endpoint.embedder().embed(["a"], "search")
    assert len(endpoint.requests) == 1


def test_a_refusal_is_not_tried_again_and_quotes_nothing(endpoint):
    endpoint.faults = [(400, {}, {"error": "input 'the safe opens with 8412' is too long"})]
    with pytest.raises(EmbedderError) as caught:
        endpoint.embedder().embed(["the safe opens with 8412"], "search")
    assert len(endpoint.requests) == 1
    assert "8412" not in repr(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "read"),
        ({"data": []}, "0 vectors"),
        ({"data": [{"index": 0, "embedding": [1.0] * 4}]}, "4 dimensions"),
        ({"data": [{"index": 0, "embedding": [0.0] * DIMENSIONS}]}, "direction"),
        ({"data": [{"index": 0, "embedding": "no base64"}]}, "read"),
        ({"data": None}, "read"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error(endpoint, answer, says):
    endpoint.faults = [(200, {}, answer)]
    with pytest.raises(EmbedderError, match=says):
        endpoint.embedder().embed(["a"], "search")


def test_nobody_is_waited_for_longer_than_the_caller_has_patience(endpoint):
    endpoint.faults = [(503, {"Retry-After": "5"}, {})]
    embedder = endpoint.embedder(timeout=60)
    with patience(clock.now() + 4), pytest.raises(EmbedderError, match="503"):
        embedder.embed(["a"], "search")
    with patience(clock.now()), pytest.raises(EmbedderError, match="no time"):
        embedder.embed(["a"], "search")
    assert len(endpoint.requests) == 1
    assert embedder.embed(["a"], "search").shape == (1, DIMENSIONS)


def test_nobody_there_is_an_error():
    with pytest.raises(EmbedderError, match="did not answer"):
        OpenAIEmbedder("http://127.0.0.1:1/v1", "", "bge-m3", DIMENSIONS, 1.0).embed(["a"], "search")
