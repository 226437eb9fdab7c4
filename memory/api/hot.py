"""The short way to an answer that is at hand: a WSGI application that stands before Django (docs/decisions/0017).

It knows one request, a plain search, native or in Mem0's words, and one answer, stored bytes that are current. Whatever
else comes, and whatever it is not sure of, goes on to Django as it came: the view says what is right, and only their
speeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any, Protocol, cast

import orjson
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.security import SecurityMiddleware
from rest_framework.exceptions import APIException

from memory import clock, logs
from memory.api import mem0_oss, mem0_platform, native
from memory.api.middleware import log_access, own_headers, request_id
from memory.layers.l0_process import ByteLRU
from memory.tenancy import auth, keys, limits, projects
from memory.tenancy.keys import Caller
from memory.tenancy.projects import Policy

ROUTES: dict[str, tuple[str, Searches]] = {
    **dict.fromkeys(("/api/v1/memory/search", "/api/v1/memory/search/"), ("memory-search", native.Search)),
    **{
        f"/v{number}/memories/search{end}": ("mem0-search", mem0_platform.Search)
        for number in (1, 2, 3)
        for end in ("", "/")
    },
    **dict.fromkeys(("/search", "/search/"), ("oss-search", mem0_oss.Search)),
}
"""What is searched by which path, and what the log calls it."""
JSON = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
MAX_BODY_BYTES = 65_536
"""A longer body takes so long to read that the way there does not matter."""
OUTSIDE = ("wsgi.url_scheme", "HTTP_X_FORWARDED_PROTO", "HTTP_HOST")
"""What Django's middlewares look at."""

WANTED_BYTES = 4 << 20
OVERHEAD_BYTES = 2000

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]
Headers = list[tuple[str, str]]


_wanted: ByteLRU[tuple[Searches, int, str | None, bytes], Any] = ByteLRU(WANTED_BYTES)
"""What bodies read before were found to ask, of this project and the user that the key is bound to."""


class Searches(Protocol):
    """A view that searches, as seen from here."""

    scope: str

    def wanted(self, sent: Any, caller: Caller) -> Any: ...

    def at_hand(self, wanted: Any, policy: Policy, began: float) -> tuple[bytes, dict[str, str]] | None: ...


class Hot:
    """Answers what is at hand, and hands on everything else."""

    def __init__(self, django: Application) -> None:
        self._django = django
        self._outer_headers = lru_cache(maxsize=64)(_outer_headers)
        self._most_bytes = min(MAX_BODY_BYTES, settings.MAX_BODY_BYTES)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """See PEP 3333."""
        route = ROUTES.get(environ["PATH_INFO"])
        found = self._answer(environ, *route) if route and _plain(environ, self._most_bytes) else None
        if found is None:
            return self._django(environ, start_response)
        headers, body = found
        start_response("200 OK", headers)
        return [body]

    def _answer(self, environ: Environ, route: str, view: Searches) -> tuple[Headers, bytes] | None:
        began = clock.now()
        outer = self._outer_headers(*[environ.get(name) for name in OUTSIDE])
        if outer is None:
            return None
        name = request_id(environ)
        token = logs.begin(name)
        try:
            caller = _caller(environ, view)
            found = _found(environ, view, caller, began) if caller else None
            if found is None:
                return None
            body, headers = found
            headers |= own_headers(name, caller, environ.get(auth.STANDING))
            log_access("POST", route, 200, began)
            return [*headers.items(), *outer, ("Content-Length", str(len(body)))], body
        except (APIException, ValueError):
            return None
        finally:
            logs.end(token)


def _plain(environ: Environ, most_bytes: int) -> bool:
    """Whether it is a search, sent in the way that leaves nothing to ask."""
    length = environ.get("CONTENT_LENGTH", "")
    return (
        environ["REQUEST_METHOD"] == "POST"
        and environ.get("CONTENT_TYPE") in JSON
        and not environ.get("QUERY_STRING")
        and "HTTP_TRANSFER_ENCODING" not in environ
        and "HTTP_COOKIE" not in environ  # Django may renew one
        and length.isdecimal()
        and 0 < int(length) <= most_bytes
    )


def _caller(environ: Environ, view: Searches) -> Caller | None:
    """Who calls, counted against the key's limit; None where the key may not search now, or this process does not know
    it. AuthenticationFailed."""
    secret = auth.secret_of(environ)
    caller = keys.known(secret) if secret is not None else None
    if caller is None:
        return None
    logs.note(project=caller.project)
    if caller.requests_per_minute is not None:
        standing = environ[auth.STANDING] = limits.take(caller.key, caller.requests_per_minute)
        if standing.wait:
            return None
    return caller if view.scope in caller.scopes else None


def _found(environ: Environ, view: Searches, caller: Caller, began: float) -> tuple[bytes, dict[str, str]] | None:
    """The answer and its headers, if it is at hand. APIException, ValueError."""
    policy = projects.known(caller.project)
    if policy is None:
        return None
    raw = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    environ["wsgi.input"] = BytesIO(raw)
    key = (view, caller.project, caller.user_id, raw)
    wanted = _wanted.get(key)
    if wanted is None:
        sent = orjson.loads(raw)
        if not isinstance(sent, dict):
            return None
        wanted = view.wanted(sent, caller)
        _wanted.put(key, wanted, 2 * len(raw) + OVERHEAD_BYTES)
    if wanted.user_id is not None:
        logs.note(user_id=wanted.user_id)
    return view.at_hand(wanted, policy, began)


def _outer_headers(*outside: str | None) -> Headers | None:
    """What Django's own middlewares and DRF add to an answer; None where they would give one of theirs."""
    looked_at = {name: value for name, value in zip(OUTSIDE, outside, strict=True) if value is not None}
    if "HTTP_HOST" not in looked_at:
        return None
    request = WSGIRequest({"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": BytesIO(), **looked_at})
    try:
        response = SecurityMiddleware(CommonMiddleware(XFrameOptionsMiddleware(_empty)))(request)
    except DisallowedHost:
        return None
    return [one for one in cast(HttpResponse, response).items() if not one[0].startswith("Content-")]


def _empty(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"Allow": "POST, OPTIONS", "Cache-Control": "no-store"})
