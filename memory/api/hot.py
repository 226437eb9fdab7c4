"""The short way to an answer that is at hand: a WSGI application that stands before Django (docs/decisions/0017).

It knows one request, a plain native search, and one answer, stored bytes that are current. Whatever else comes, and
whatever it is not sure of, goes on to Django as it came: the view says what is right, and only their speeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import orjson
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.security import SecurityMiddleware
from rest_framework.exceptions import APIException

from memory import clock, logs, recall
from memory.api import answers, bodies, native
from memory.api.middleware import log_access, own_headers, request_id
from memory.api.native import Asked
from memory.layers.l0_process import ByteLRU
from memory.recall import Recalled
from memory.tenancy import auth, keys, limits, projects
from memory.tenancy.keys import Caller

ROUTE = "memory-search"
PATHS = frozenset({"/api/v1/memory/search", "/api/v1/memory/search/"})
JSON = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
MAX_BODY_BYTES = 65_536
"""A longer body takes so long to read that the way there does not matter."""
OUTSIDE = ("wsgi.url_scheme", "HTTP_X_FORWARDED_PROTO", "HTTP_HOST")
"""What Django's middlewares look at."""

ASKED_BYTES = 4 << 20
OVERHEAD_BYTES = 2000

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]
Headers = list[tuple[str, str]]


_asked: ByteLRU[tuple[int, str | None, bytes], Asked] = ByteLRU(ASKED_BYTES)
"""What bodies read before were found to ask, of this project and the user that the key is bound to."""


class Hot:
    """Answers what is at hand, and hands on everything else."""

    def __init__(self, django: Application) -> None:
        self._django = django
        self._outer_headers = lru_cache(maxsize=64)(_outer_headers)
        self._most_bytes = min(MAX_BODY_BYTES, settings.MAX_BODY_BYTES)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """See PEP 3333."""
        found = self._answer(environ) if _plain(environ, self._most_bytes) else None
        if found is None:
            return self._django(environ, start_response)
        headers, body = found
        start_response("200 OK", headers)
        return [body]

    def _answer(self, environ: Environ) -> tuple[Headers, bytes] | None:
        began = clock.now()
        outer = self._outer_headers(*[environ.get(name) for name in OUTSIDE])
        if outer is None:
            return None
        name = request_id(environ)
        token = logs.begin(name)
        try:
            caller = _caller(environ)
            found = _found(environ, caller) if caller else None
            if found is None:
                return None
            body, headers = answers.search(found, began)
            headers |= own_headers(name, caller, environ.get(auth.STANDING))
            log_access("POST", ROUTE, 200, began)
            return [*headers.items(), *outer, ("Content-Length", str(len(body)))], body
        except (APIException, ValueError):
            return None
        finally:
            logs.end(token)


def _plain(environ: Environ, most_bytes: int) -> bool:
    """Whether it is a search, sent in the way that leaves nothing to ask."""
    length = environ.get("CONTENT_LENGTH", "")
    return (
        environ.get("PATH_INFO") in PATHS
        and environ["REQUEST_METHOD"] == "POST"
        and environ.get("CONTENT_TYPE") in JSON
        and not environ.get("QUERY_STRING")
        and "HTTP_TRANSFER_ENCODING" not in environ
        and "HTTP_COOKIE" not in environ  # Django may renew one
        and length.isdecimal()
        and 0 < int(length) <= most_bytes
    )


def _caller(environ: Environ) -> Caller | None:
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
    return caller if native.Search.scope in caller.scopes else None


def _found(environ: Environ, caller: Caller) -> Recalled | None:
    """The answer, if it is at hand. ValidationError, KeyBound, ValueError."""
    policy = projects.known(caller.project)
    if policy is None:
        return None
    raw = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    environ["wsgi.input"] = BytesIO(raw)
    key = (caller.project, caller.user_id, raw)
    asked = _asked.get(key)
    if asked is None:
        asked = native.asked(bodies.searched(orjson.loads(raw)), caller)
        _asked.put(key, asked, 2 * len(raw) + OVERHEAD_BYTES)
    logs.note(user_id=asked.query.scope.user_id)
    return recall.at_hand(asked.query, policy, asked.wish, session_id=asked.session_id, explain=asked.explain)


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
