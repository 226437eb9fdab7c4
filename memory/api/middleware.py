"""What every request gets: an id, a limit on its body, one line in the log."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache as once
from io import BytesIO
from random import getrandbits
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from memory import clock, db, identity, logs
from memory.api import problems
from memory.tenancy.keys import Caller
from memory.tenancy.limits import WINDOW_SECONDS, Standing

access = logging.getLogger("memory.access")

_STREAMED = re.compile(r"/api/v1/memory/import/?")
"""Routes that read their body line by line, however long it is."""
_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Names the request, refuses a body over MAX_BODY_BYTES unread, logs what came of it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """The answer, with the request's id and, for keys with the scope admin, the process that made it."""
        began = clock.now()
        request.request_id = request_id(request.META)  # type: ignore[attr-defined]
        token = logs.begin(request.request_id)  # type: ignore[attr-defined]
        try:
            with _patience(request):
                response = _refusal(request) or self._get_response(request)
            _finish(request, response, began)
            return response
        finally:
            logs.end(token)


@once
def _process(pid: int) -> str:
    """This process as `X-Memsvc-Process` names it; a fork asks anew."""
    return identity.process()


def _patience(request: HttpRequest) -> AbstractContextManager[None]:
    """How long PostgreSQL may be silent: the admin's pages may count what nobody else does."""
    return db.patience(settings.DATABASE_TIMEOUT_SECONDS) if _of_the_api(request) else nullcontext()


def _of_the_api(request: HttpRequest) -> bool:
    """Whether it is one of the API's."""
    return request.path_info.startswith("/api/") or problems.of_mem0(request.path_info)


def request_id(environ: Mapping[str, Any]) -> str:
    """What the request is called: by its caller, where the name is a fit one."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    # No secret; the system's own would make this thread wait for Python's lock.
    return given if given and _ID.fullmatch(given) else f"{getrandbits(128):032x}"


def own_headers(name: str, caller: Caller | None, rate: Standing | None) -> dict[str, str]:
    """What every answer says: the request's id, how the key stands and, to admins, which process this is."""
    headers = {"X-Request-ID": name}
    if rate is not None:
        headers |= _rate_headers(rate)
    if caller is not None and "admin" in caller.scopes:
        headers["X-Memsvc-Process"] = _process(os.getpid())
    return headers


def log_access(method: str | None, route: str | None, status: int, began: float) -> None:
    """One line for a request that was answered."""
    ms = round((clock.now() - began) * 1000, 2)
    logs.tell(access, "request", {"method": method, "route": route, "status": status, "ms": ms})


def _refusal(request: HttpRequest) -> HttpResponseBase | None:
    if _too_large(request):
        return problems.answer(request, "body_too_large", f"A body may have at most {settings.MAX_BODY_BYTES} bytes.")
    return None


def _too_large(request: HttpRequest) -> bool:
    length = request.META.get("CONTENT_LENGTH")
    if _STREAMED.fullmatch(request.path_info):
        if not length and request.META.get("HTTP_TRANSFER_ENCODING"):
            request.META["CONTENT_LENGTH"] = str(sys.maxsize)
            request._stream = request.META["wsgi.input"]
        return False
    if length:
        return length.isdigit() and int(length) > settings.MAX_BODY_BYTES
    if not request.META.get("HTTP_TRANSFER_ENCODING"):
        return False
    # A chunked body has no length, and Django takes that for an empty one.
    body = request.META["wsgi.input"].read(settings.MAX_BODY_BYTES + 1)
    request.META["CONTENT_LENGTH"] = str(len(body))
    request._stream = BytesIO(body)
    return len(body) > settings.MAX_BODY_BYTES


def _rate_headers(rate: Standing) -> dict[str, str]:
    """How the key stands: as the IETF's draft says it, and as Mem0's clients read it."""
    return {
        "RateLimit-Policy": f'"key";q={rate.limit};w={WINDOW_SECONDS}',
        "RateLimit": f'"key";r={rate.remaining};t={rate.reset}',
        "X-RateLimit-Limit": str(rate.limit),
        "X-RateLimit-Remaining": str(rate.remaining),
        "X-RateLimit-Reset": str(rate.reset),
    }


def _finish(request: HttpRequest, response: HttpResponseBase, began: float) -> None:
    caller, rate = getattr(request, "caller", None), getattr(request, "rate", None)
    for name, value in own_headers(request.request_id, caller, rate).items():  # type: ignore[attr-defined]
        response[name] = value
    if not _of_the_api(request):
        return
    response.headers.setdefault("Cache-Control", "no-store")
    response._has_been_logged = True  # type: ignore[attr-defined]  # the line below says it
    match = request.resolver_match
    log_access(request.method, match.view_name if match else None, response.status_code, began)
