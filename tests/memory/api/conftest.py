"""Callers of the API. Every answer is held against the OpenAPI schema: no shape passes that it does not name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import cache as once
from typing import Any

import pytest
from django.db import Error as DatabaseError
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import resolve
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator

from memory import delivery
from memory.errors import DatabaseUnavailable
from memory.models import Job, Project
from memory.models.jobs import UNFINISHED
from memory.tenancy import keys

API = "/api/v1"


@once
def openapi() -> dict[str, Any]:
    return json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))


def conforms(response: HttpResponse, method: str) -> None:
    """Whether an answer is one that the schema names for its route."""
    match = resolve(response.wsgi_request.path_info)
    if match.url_name == "unknown":
        schema: dict[str, Any] = {"$ref": "#/components/schemas/Problem"}
    else:
        path = next(path for path in openapi()["paths"] if _pattern(path) == match.url_name)
        answer = openapi()["paths"][path].get(method)
        if answer is None:
            assert response.status_code in (401, 403, 405)
            return
        media = response["Content-Type"]
        schema = answer["responses"][str(response.status_code)]["content"][media]["schema"]
    Draft202012Validator({**schema, "components": openapi()["components"]}).validate(response.json())


def _pattern(path: str) -> str:
    named = (
        path.replace("{memory_id}", "m").replace("{job_id}", "j").replace("{user_id}", "u").replace("{erasure_id}", "e")
    )
    return str(resolve(named.replace("{session_id}", "s").replace("{run_id}", "r")).url_name)


class Caller:
    """A client with a key."""

    def __init__(self, secret: str | None) -> None:
        self.headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        self._client = Client(raise_request_exception=False)

    def send(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> HttpResponse:
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        kind = "" if raw is None and body is None else sent.pop("Content-Type", "application/json")
        response = self._client.generic(method, API + path, content, kind, headers=sent)
        conforms(response, method.lower())
        return response

    def get(self, path: str, **headers: str) -> HttpResponse:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> HttpResponse:
        return self.send("POST", path, body, **headers)

    def put(self, path: str, body: Any, **headers: str) -> HttpResponse:
        return self.send("PUT", path, body, **headers)

    def delete(self, path: str, body: Any = None, **headers: str) -> HttpResponse:
        return self.send("DELETE", path, body, **headers)

    def add(self, *texts: str, user_id: str = "ann", wait: str = "stored", **more: Any) -> HttpResponse:
        return self.post("/memory/add", {"user_id": user_id, "memories": list(texts), "wait": wait, **more})

    def search(self, query: str = "tea?", user_id: str = "ann", **more: Any) -> HttpResponse:
        return self.post("/memory/search", {"user_id": user_id, "query": query, **more})


@pytest.fixture
def make_key(project: Project) -> Callable[..., Caller]:
    def make(*scopes: str, of: Project = project, user_id: str = "") -> Caller:
        return Caller(keys.create(of, name="test", scopes=scopes or keys.SCOPES, user_id=user_id)[1])

    return make


@pytest.fixture
def api(make_key: Callable[..., Caller], redis: object, mem0: object, settings: Any) -> Caller:
    """A caller with every scope, before a Mem0 that does as told and ranks by itself."""
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    settings.PROACTIVE_CACHE_ENABLED = False
    return make_key()


@pytest.fixture
def other(api: Caller, make_key: Callable[..., Caller]) -> Caller:
    """A caller of another project."""
    project = Project.objects.create(name="Other", slug="other", namespace="other")
    return make_key(of=project)


@pytest.fixture
def worker(api: Caller) -> Iterator[None]:
    """Delivers what is accepted, as a worker process would."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            try:
                for lane in set(Job.objects.filter(state__in=UNFINISHED).values_list("lane_id", flat=True)):
                    delivery.deliver(lane)
            except (DatabaseError, DatabaseUnavailable):  # PostgreSQL is away, as some tests want it
                connection.close()
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()
