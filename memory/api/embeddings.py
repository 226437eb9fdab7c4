"""`POST /v1/embeddings` and `GET /v1/models` as OpenAI has them, over the embedder and L1: whoever embeds the same text
twice, Mem0's own server included, pays once.

A model's name says the mode: NAME treats all texts alike; where the embedder tells them apart, NAME-search embeds
questions and NAME-passage what is stored.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import orjson
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from memory import bulkhead, db, embedders
from memory.api import bodies, problems
from memory.api.fields import Choice, Record, Text, Whole, Wrong, storable
from memory.api.native import Door
from memory.embedders.base import Action, Embedder, Vectors
from memory.errors import MemsvcError
from memory.layers.l1_vectors import CachedEmbedder
from memory.tenancy.auth import admit

MAX_TEXTS = 2048
BYTES_OF_A_TOKEN = 4
"""An estimate for `usage`; the model's own count would cost as much as reading the text twice."""

_MODES: Mapping[str, Action] = {"": "symmetric", "-search": "search", "-passage": "passage"}
_CODES = {"unauthenticated": "invalid_api_key", "body_too_large": "request_too_large"}


class ModelNotFound(MemsvcError):
    """No model of this service has that name."""

    code = "not_found"


class Texts:
    """A text or a list of texts; always a list afterwards."""

    def check(self, value: Any) -> list[str]:
        """See fields.Field."""
        texts = value if isinstance(value, list) else [value]
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise Wrong(f"must have between 1 and {MAX_TEXTS} texts")
        for text in texts:
            if not isinstance(text, str):
                raise Wrong("must be a text or a list of texts; arrays of tokens are not supported")
            if not text:
                raise Wrong("may not hold an empty text")
            storable(text, 0)
        return texts

    def schema(self) -> dict[str, Any]:
        """See fields.Field."""
        text = {"type": "string", "minLength": 1}
        return {"oneOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": MAX_TEXTS}]}


REQUEST = Record(
    {
        "model": Text(),
        "input": Texts(),
        "encoding_format": Choice(("float", "base64")),
        "dimensions": Whole(1, 2**16),
        "user": Text(),
    },
    required=("model", "input"),
    defaults={"encoding_format": "float"},
)
_LIST = OpenApiResponse({"type": "object", "properties": {"object": {"type": "string"}, "data": {"type": "array"}}})
_ERROR = OpenApiResponse({"type": "object", "properties": {"error": {"type": "object"}}}, description="OpenAI's error")


class Compatible(Door):
    """What OpenAI's routes share: its error shape. They are about no user, so a key bound to one is refused: the time
    of a hit would tell it what the project's other users have stored."""

    scope = "read"

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """The same problems as everywhere, told in OpenAI's words."""
        return exception_handler


class Embeddings(Compatible):
    """Texts to vectors."""

    @extend_schema(
        operation_id="embeddings",
        summary="Embed texts (OpenAI-compatible)",
        request={"application/json": REQUEST.schema()},
        responses={200: _LIST, **dict.fromkeys((400, 401, 403, 404, 413, 415, 429, 503), _ERROR)},
    )
    def post(self, request: Request) -> HttpResponse:
        """Embed."""
        admit(self.caller, None)
        sent = bodies.body(request, REQUEST)
        embedder, action = _model(sent["model"])
        if sent.get("dimensions", embedder.dimensions) != embedder.dimensions:
            raise ValidationError({"dimensions": [f"must be {embedder.dimensions}, this model's own"]})
        texts = sent["input"]
        db.release()
        vectors = CachedEmbedder(_Bounded(embedder), self.caller.project).embed(texts, action)
        return HttpResponse(_encoded(sent, texts, vectors), content_type="application/json")


class Models(Compatible):
    """The models that can be asked for."""

    @extend_schema(
        operation_id="models",
        summary="List the embedding models (OpenAI-compatible)",
        responses={200: _LIST, **dict.fromkeys((401, 403, 429, 503), _ERROR)},
    )
    def get(self, request: Request) -> Response:
        """One name for each mode."""
        admit(self.caller, None)
        embedder = embedders.get()
        names = [name for name, _ in _names(embedder)] if embedder else []
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "memsvc"} for name in names]
        return Response({"object": "list", "data": data})


class _Bounded:
    """An embedder that few requests of this process use at a time; those that L1 answers never come here."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.dimensions, self.symmetric = embedder.name, embedder.dimensions, embedder.symmetric
        self.remote = embedder.remote
        self._embedder = embedder

    def embed(self, texts: Sequence[str], action: Action) -> Vectors:
        """As the embedder does; Overloaded when too many are at it."""
        with bulkhead.embedding():
            return self._embedder.embed(texts, action)


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """A problem in OpenAI's shape; None, so a 500, for an error without meaning."""
    found = problems.exception_handler(error, context)
    if found is None:
        return None
    told = cast(dict[str, Any], found.data)
    fields = told.get("errors", [])
    body = {
        "message": "; ".join(f"{one['field']} {one['message']}" for one in fields) or told.get("detail", told["title"]),
        "type": "server_error" if found.status_code >= 500 else "invalid_request_error",
        "param": fields[0]["field"].partition("[")[0] if fields else None,
        "code": _code(error, told["code"]),
    }
    headers = {name: value for name, value in found.items() if name != "Content-Type"}
    return Response({"error": body}, status=found.status_code, headers=headers)


def _code(error: Exception, code: str) -> str:
    return "model_not_found" if isinstance(error, ModelNotFound) else _CODES.get(code, code)


def _model(name: str) -> tuple[Embedder, Action]:
    """The embedder and the mode that a model's name asks for."""
    embedder = embedders.get()
    if embedder is None:
        raise ModelNotFound("This service has no embedder: EMBEDDER is none.")
    if action := dict(_names(embedder)).get(name):
        return embedder, action
    raise ModelNotFound(f"The model '{name}' does not exist; GET /v1/models lists those that do.")


def _names(embedder: Embedder) -> list[tuple[str, Action]]:
    modes = {"": _MODES[""]} if embedder.symmetric else _MODES
    return [(embedder.name + suffix, action) for suffix, action in modes.items()]


def _encoded(sent: Mapping[str, Any], texts: Sequence[str], vectors: Vectors) -> bytes:
    rows: Sequence[Any] = list(vectors.astype("<f4"))
    if sent["encoding_format"] == "base64":
        rows = [base64.b64encode(row.tobytes()).decode() for row in rows]
    tokens = sum(-(-len(text.encode()) // BYTES_OF_A_TOKEN) for text in texts)
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": sent["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
