"""G1 over every route there is: they are found in the URL configuration, and one without a rule here fails.

A project's calls neither see, change nor count what another project holds, and an id of another project's is answered
as one that does not exist, at the same price. What is sent and what is secret is told by no log, error or page.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver, get_resolver
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from memory import delivery, stack
from memory.api import mem0_forms
from memory.clock import Deadline
from memory.logs import JSONFormatter
from memory.models import Job, Project
from memory.tenancy import keys, projects
from memory.types import Scope

pytestmark = pytest.mark.django_db(transaction=True)

USERS = ("ann", "ben")
CANARY = "a-canary-sings"
FORMS = {
    "memory_id": "00000000-0000-4000-8000-00000000000{}",
    "job_id": "00000000-0000-4000-8000-00000000000{}",
    "run_id": "00000000-0000-4000-8000-00000000000{}",
    "erasure_id": "00000000-0000-4000-8000-00000000000{}",
    "session_id": "no-such-session-{}",
}
"""What an id looks like that does not exist."""
READ, WRITE, ADMIN, ANY = "read", "write", "admin", None

Call = tuple[str | None, str, str, Any]
_SAID = [{"role": "user", "content": "hello"}]
_NAMED = {"user_id": "{user_id}"}

RULES: dict[str, list[Call]] = {
    "memory-add": [(WRITE, "POST", "/api/v1/memory/add", {**_NAMED, "memories": ["hello"]})],
    "memory-extract": [(WRITE, "POST", "/api/v1/memory/extract", {**_NAMED, "messages": _SAID})],
    "memory-import": [(WRITE, "POST", "/api/v1/memory/import", {**_NAMED, "memory": "hello"})],
    "memory-search": [
        (READ, "POST", "/api/v1/memory/search", {**_NAMED, "query": "hello"}),
        (READ, "POST", "/api/v1/memory/search", {**_NAMED, "query": "hello", "session_id": "{session_id}"}),
    ],
    "memory": [
        (READ, "GET", "/api/v1/memory/{memory_id}", None),
        (WRITE, "PUT", "/api/v1/memory/{memory_id}", {"text": "changed", "wait": "none"}),
        (WRITE, "DELETE", "/api/v1/memory/{memory_id}?wait=none", None),
    ],
    "memory-history": [(READ, "GET", "/api/v1/memory/{memory_id}/history", None)],
    "user-summary": [(READ, "GET", "/api/v1/users/{user_id}/summary", None)],
    "user-memories": [(READ, "GET", "/api/v1/users/{user_id}/memories", None)],
    "user-invalidate": [(WRITE, "POST", "/api/v1/users/{user_id}/invalidate", None)],
    "user-export": [(READ, "GET", "/api/v1/users/{user_id}/export", None)],
    "user-warm": [(WRITE, "POST", "/api/v1/users/{user_id}/warm", None)],
    "user": [(WRITE, "DELETE", "/api/v1/users/{user_id}?wait=none", None)],
    "erasure": [(READ, "GET", "/api/v1/erasures/{erasure_id}", None)],
    "stm-add-message": [
        (WRITE, "POST", "/api/v1/stm/add_message", {**_NAMED, "session_id": "of-{user_id}", **_SAID[0]}),
    ],
    "stm-context": [(READ, "GET", "/api/v1/stm/{session_id}/context", None)],
    "stm-session": [(WRITE, "DELETE", "/api/v1/stm/{session_id}", None)],
    "jobs": [(READ, "GET", "/api/v1/jobs", None), (READ, "GET", "/api/v1/jobs?user_id={user_id}", None)],
    "job-status": [(READ, "GET", "/api/v1/jobs/{job_id}/status", None)],
    "stats": [(READ, "GET", "/api/v1/stats", None)],
    "warms": [(READ, "GET", "/api/v1/warms", None), (READ, "GET", "/api/v1/warms?user_id={user_id}", None)],
    "warm": [(READ, "GET", "/api/v1/warms/{run_id}", None)],
    "mem0-ping": [(ANY, "GET", "/v1/ping/", None)],
    "mem0-add": [(WRITE, "POST", "/v3/memories/add/", {**_NAMED, "messages": _SAID})],
    "mem0-memories": [
        (WRITE, "POST", "/v1/memories/", {**_NAMED, "messages": _SAID}),
        (WRITE, "DELETE", "/v1/memories/?user_id={user_id}", None),
    ],
    "mem0-search": [(READ, "POST", "/v3/memories/search/", {"query": "hello", "filters": _NAMED})],
    "mem0-list": [(READ, "POST", "/v3/memories/", {"filters": _NAMED})],
    "mem0-memory": [
        (READ, "GET", "/v1/memories/{memory_id}/", None),
        (WRITE, "PUT", "/v1/memories/{memory_id}/", {"text": "changed"}),
        (WRITE, "DELETE", "/v1/memories/{memory_id}/", None),
    ],
    "mem0-history": [(READ, "GET", "/v1/memories/{memory_id}/history/", None)],
    "mem0-batch": [
        (WRITE, "PUT", "/v1/batch/", {"memories": [{"memory_id": "{memory_id}", "text": "changed"}]}),
        (WRITE, "DELETE", "/v1/batch/", {"memories": [{"memory_id": "{memory_id}"}]}),
    ],
    "mem0-entities": [(READ, "GET", "/v1/entities/", None)],
    "mem0-profile": [(READ, "GET", "/v2/entities/user/{user_id}/profile/", None)],
    "mem0-entity": [(WRITE, "DELETE", "/v2/entities/user/{user_id}/", None)],
    "mem0-event": [(READ, "GET", "/v1/event/{job_id}/", None)],
    "mem0-events": [(READ, "GET", "/v1/events/", None)],
    "mem0-feedback": [(WRITE, "POST", "/v1/feedback/", {"memory_id": "{memory_id}", "feedback": "POSITIVE"})],
    "mem0-export": [(READ, "POST", "/v1/exports/", {"schema": "{}", "filters": _NAMED})],
    "mem0-exported": [
        (READ, "POST", "/v1/exports/get/", {"filters": _NAMED}),
        (READ, "POST", "/v1/exports/get/", {"memory_export_id": "{export}"}),
    ],
    "mem0-not-offered": [(READ, "GET", "/v1/summary/", None)],
    "oss-memories": [
        (READ, "GET", "/memories?user_id={user_id}", None),
        (WRITE, "POST", "/memories", {**_NAMED, "messages": _SAID}),
        (WRITE, "DELETE", "/memories?user_id={user_id}", None),
    ],
    "oss-search": [(READ, "POST", "/search", {"query": "hello", "filters": _NAMED})],
    "oss-memory": [
        (READ, "GET", "/memories/{memory_id}", None),
        (WRITE, "PUT", "/memories/{memory_id}", {"text": "changed"}),
        (WRITE, "DELETE", "/memories/{memory_id}", None),
    ],
    "oss-history": [(READ, "GET", "/memories/{memory_id}/history", None)],
    "oss-entities": [(READ, "GET", "/entities", None)],
    "oss-entity": [(WRITE, "DELETE", "/entities/user/{user_id}", None)],
    "oss-not-offered": [(READ, "GET", "/configure", None)],
    "embeddings": [(READ, "POST", "/v1/embeddings", {"model": "m", "input": "hello"})],
    "models": [(READ, "GET", "/v1/models", None)],
}
OPEN = {"schema", "docs", "healthz", "readyz", "unknown", "metrics"}
"""Routes without any user's data, which ask for no key, or as METRICS_ACCESS says."""
CALLS = [call for calls in RULES.values() for call in calls]
VOLATILE = ("as_of", "age_ms", "layer", "request_id", "built_at", "id", "server", "since", "at", "findings")


def test_every_route_has_a_rule():
    assert set(_routes(get_resolver())) == RULES.keys() | OPEN
    assert len(CALLS) > 50


class Tenant:
    """A project with the same users, agents and sessions as every other, and a key of every kind."""

    def __init__(self, slug: str) -> None:
        self.project = Project(name=slug, slug=slug)
        projects.save(self.project)
        self.keys = {
            "all": keys.create(self.project, name="all", scopes=keys.SCOPES)[1],
            "read": keys.create(self.project, name="read", scopes=["read"])[1],
            "write": keys.create(self.project, name="write", scopes=["write"])[1],
            "admin": keys.create(self.project, name="admin", scopes=["admin"])[1],
            "bound": keys.create(self.project, name="bound", scopes=["read", "write"], user_id="ann")[1],
        }
        self.ids: dict[str, dict[str, str]] = {}

    def fill(self) -> None:
        """Give each user a memory, a write on its way, a session, a due warm and an export."""
        backend = stack.backend(projects.policy(self.project.pk))
        for user in USERS:
            secret = f"secret of {self.project.slug} {user}"
            scope = Scope(self.project.pk, user, "cook", "run")
            (stored,) = backend.add(scope, [secret], {"note": secret}, None, Deadline.after(5))
            fact = {"user_id": user, "memories": [f"pending {secret}"]}
            session = f"of-{self.project.slug}-{user}"
            said = {"user_id": user, "session_id": session, "role": "user", "content": f"said {secret}"}
            self.ids[user] = {
                "user_id": user,
                "memory_id": stored.id,
                "job_id": self.send("POST", "/api/v1/memory/add", fact).json()["job_id"],
                "session_id": self.send("POST", "/api/v1/stm/add_message", said).json()["session_id"],
                "run_id": self.send("POST", f"/api/v1/users/{user}/warm").json()["run_id"],
                "erasure_id": self.send("DELETE", f"/api/v1/users/{user}-of-before?wait=none").json()["erasure_id"],
                "export": self.send("POST", "/v1/exports/", {"schema": {}, "filters": {"user_id": user}}).json()["id"],
            }

    def send(self, method: str, path: str, body: Any = None, key: str = "all") -> HttpResponse:
        """One request."""
        return self.raw(method, path, b"" if body is None else json.dumps(body).encode(), key)

    def raw(self, method: str, path: str, content: bytes, key: str = "all") -> HttpResponse:
        """The same, with any bytes for a body."""
        headers = {"X-API-Key": self.keys[key], "X-Request-ID": "same"} if key else {}
        kind = "" if not content else "application/x-ndjson" if path.endswith("/import") else "application/json"
        response = Client(raise_request_exception=False).generic(method, path, content, kind, headers=headers)
        if response.streaming:
            return HttpResponse(b"".join(response), status=response.status_code)
        return response

    def call(self, call: Call, ids: Mapping[str, str], key: str = "all") -> HttpResponse:
        """One request of a rule, about these ids."""
        _, method, path, body = call
        return self.send(method, _filled(path, ids), None if body is None else _filled(body, ids), key)

    def holds(self, mem0: Any) -> list[Any]:
        """Every row of the project's, and what Mem0 has of it."""
        rows: list[Any] = []
        for model in apps.get_models():
            names = {field.name for field in model._meta.get_fields()}
            for path in {"project", "session", "snapshot"} & names:
                whose = {path if path == "project" else f"{path}__project": self.project}
                if model.__name__ != "ApiKey":
                    rows += [
                        (model.__name__, row) for row in model._default_manager.filter(**whose).order_by("pk").values()
                    ]
        mark = f"secret of {self.project.slug} "
        return [*rows, *(row for row in mem0.rows if mark in row.text)]


@pytest.fixture
def tenants(redis: object, mem0: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tenant]:
    """Three projects on one Mem0. Nothing delivers their writes, and nothing waits for that."""
    settings.LOCAL_SEARCH, settings.EMBEDDER, settings.PROACTIVE_CACHE_ENABLED = "off", "none", False
    monkeypatch.setattr(mem0_forms, "WAIT_SECONDS", 0.0)
    return [Tenant(slug) for slug in ("first", "second", "third")]


@pytest.fixture
def filled(tenants: list[Tenant]) -> list[Tenant]:
    for tenant in tenants:
        tenant.fill()
    return tenants


ONE_CALL = st.tuples(
    st.sampled_from(CALLS), st.sampled_from(["all", "read", "write", "admin", "bound"]), st.sampled_from(USERS)
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],  # a failure says which call it was
)
@given(
    whose=st.permutations(range(3)), owned=st.sampled_from([0, 1]), calls=st.lists(ONE_CALL, min_size=30, max_size=40)
)
def _any_calls(filled: list[Tenant], mem0: Any, whose: list[int], owned: int, calls: list[Any]) -> None:
    caller, *others = (filled[index] for index in whose)
    owner = (caller, others[0])[owned]
    foreign = re.compile("|".join(f"secret of {tenant.project.slug} " for tenant in others))
    before = [tenant.holds(mem0) for tenant in others]
    for call, key, user in calls:
        response = caller.call(call, owner.ids[user], key)
        said = response.content.decode()
        assert response.status_code != 500, call
        assert not foreign.search(said), call
        assert key != "bound" or f"secret of {caller.project.slug} ben" not in said
    assert [tenant.holds(mem0) for tenant in others] == before


def test_no_call_sees_or_changes_what_is_anothers(filled, mem0):
    _any_calls(filled, mem0)


def test_what_others_hold_changes_no_answer(tenants, mem0):
    mine = tenants[1]
    mine.fill()
    reads = [call for call in CALLS if call[0] in (READ, ANY) and call not in RULES["stats"]]

    def told() -> list[Any]:
        answers = [mine.call(call, mine.ids[user], key) for call in reads for user in USERS for key in ("all", "bound")]
        return [_steady(response) for response in answers]

    told()  # what is cached is cached
    alone, counted = told(), _steady(mine.call(RULES["stats"][0], {}))
    for other in (tenants[0], tenants[2]):
        other.fill()
    assert _steady(mine.call(RULES["stats"][0], {})) == counted
    assert told() == alone


def test_a_foreign_id_is_answered_as_one_that_does_not_exist_at_the_same_price(filled, mem0, redis):
    caller, owner = filled[1], filled[0]
    asked = 0
    for call in CALLS:
        for name in {*FORMS, "export"} & set(re.findall(r"\{(\w+)\}", json.dumps([call[2], call[3]]))):
            for key in ("all", "bound"):
                foreign = {**owner.ids["ann"], "user_id": "ann"}
                unknown = foreign | {name: FORMS[name].format(9) if name in FORMS else "x" * len(foreign[name])}
                prices = [_price(caller, call, ids, ids[name], key, mem0, redis) for ids in (foreign, unknown)]
                assert prices[0] == prices[1], call
                asked += 1
    assert asked > 40


def test_every_route_asks_for_its_scope(filled):
    ids = filled[0].ids["ann"]
    for call in CALLS:
        assert filled[0].call(call, ids, "").status_code == 401, call
        for scope in keys.SCOPES:
            refused = filled[0].call(call, ids, scope)
            missing = refused.status_code == 403 and b"missing_scope" in refused.content
            assert missing == (call[0] not in (ANY, scope)), (call, scope)


# -- what must not be told --------------------------------------------------------------------------------------------


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Every line of the log, as it is written in production."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setFormatter(JSONFormatter())
    logging.getLogger().addHandler(handler)
    yield told
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def secrets(filled: list[Tenant], settings: Any) -> list[str]:
    """Everything that nobody may read again."""
    named = ("MEM0_REST_API_KEY", "OPENAI_API_KEY", "EMBEDDER_API_KEY", "STM_LLM_API_KEY", "SECRET_KEY")
    for name in named:
        setattr(settings, name, f"canary-of-{name}")
    return [secret for tenant in filled for secret in tenant.keys.values()] + [f"canary-of-{name}" for name in named]


def test_no_log_and_no_error_quotes_what_was_sent(filled, mem0, logged):
    sent = 0
    for mem0.down in (False, True):
        for call in CALLS:
            _, method, path, body = call
            said = json.dumps(_filled(body, filled[1].ids["ann"])).replace("hello", CANARY)
            for content in (said, said[:-1] + CANARY, re.sub(r'"hello"|: "[^"]*"', f': ["{CANARY}"]', said)):
                response = filled[1].raw(method, _filled(path, filled[1].ids["ann"]), content.encode())
                assert response.status_code < 400 or CANARY not in response.content.decode(), call
                sent += 1
        for lane in set(Job.objects.values_list("lane_id", flat=True)):
            delivery.deliver(lane)
    assert sent > 300
    assert logged.getvalue().count("\n") > 300
    assert CANARY not in logged.getvalue()
    assert "secret of" not in logged.getvalue()


def test_no_secret_is_shown_anywhere(filled, secrets, logged):
    operator = Client()
    operator.force_login(User.objects.create_superuser("root", password=None))
    pages = ["/api/docs/", "/api/schema/", "/healthz", "/readyz", "/admin/"]
    for model in admin.site._registry:
        at = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        pages += [at, *(f"{at}{row.pk}/change/" for row in model._default_manager.all()[:2])]
    shown = [operator.get(page, follow=True) for page in pages]
    shown += [filled[0].call(call, filled[0].ids["ann"]) for call in CALLS]
    assert sum(response.status_code == 200 for response in shown) > 40
    told = logged.getvalue() + "".join(response.content.decode() for response in shown)
    assert [secret for secret in secrets if secret in told] == []


def _price(
    caller: Tenant, call: Call, ids: Mapping[str, str], asked: str, key: str, mem0: Any, redis: Any
) -> list[Any]:
    """What an answer is and what it took: queries and calls to Mem0."""
    keys.forget()
    projects.forget()
    stack.L0.held.clear()
    redis.flushall()
    mem0.calls.clear()
    with CaptureQueriesContext(connection) as queries:
        response = caller.call(call, ids, key)
    said = response.content.decode().replace(asked, "ID")
    shapes = [re.sub(r"'[^']*'(::\w+)?|\d+", "?", query["sql"]) for query in queries]
    steady = re.sub(r'"(as_of|age_ms|layer|version|id|event_id)": ?("[^"]*"|\d+)', "", said)
    return [response.status_code, steady, shapes, list(mem0.calls)]


def _filled(value: Any, ids: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda found: ids[found[1]], value)
    if isinstance(value, dict):
        return {name: _filled(part, ids) for name, part in value.items()}
    return [_filled(part, ids) for part in value] if isinstance(value, list) else value


def _steady(response: HttpResponse) -> Any:
    """An answer without what differs from one moment to the next."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(part) for name, part in value.items() if name not in VOLATILE}
        return [without(part) for part in value] if isinstance(value, list) else value

    return response.status_code, [without(json.loads(line)) for line in response.content.splitlines()]


def _routes(resolver: URLResolver) -> Iterator[str]:
    for one in resolver.url_patterns:
        if isinstance(one, URLPattern):
            yield str(one.name)
        elif one.namespace != "admin":
            yield from _routes(one)
