"""Errors as RFC 9457 problem+json: every code, its status and its title, in one table."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.encoding import escape_uri_path
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from memory.errors import DatabaseUnavailable, MemsvcError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1

PROBLEMS: dict[str, tuple[int, str]] = {
    "user_needed": (400, "A session's first message needs a user_id"),
    "invalid": (400, "Some fields are not what this request takes"),
    "malformed": (400, "The body cannot be read"),
    "bad_request": (400, "The request cannot be read"),
    "unauthenticated": (401, "An API key is needed"),
    "missing_scope": (403, "The key may not do this"),
    "key_bound": (403, "The key serves another user"),
    "forbidden": (403, "Not allowed"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "not_acceptable": (406, "The answer cannot be given in that format"),
    "pending": (409, "Mem0 has not stored this memory yet"),
    "session_of_another_user": (409, "The session belongs to another user"),
    "version_unknown": (409, "That version is not known yet"),
    "erased": (410, "The user of this request was erased"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body must be application/json"),
    "idempotency_mismatch": (422, "The Idempotency-Key belongs to another request"),
    "backlog_full": (429, "Too many writes wait for Mem0"),
    "throttled": (429, "Too many requests"),
    "internal": (500, "Something went wrong here"),
    "not_offered": (501, "memsvc does not offer this"),
    "job_failed": (502, "The write was accepted and failed"),
    "origin_rejected": (502, "Mem0 refused the request"),
    "origin_error": (502, "Mem0 failed"),
    "origin_unavailable": (503, "Mem0 cannot be reached"),
    "origin_rate_limited": (503, "Mem0 asks for a pause"),
    "origin_busy": (503, "Mem0 is asked as often as it may be"),
    "overloaded": (503, "Too many requests are waiting"),
    "database_unavailable": (503, "PostgreSQL cannot be reached"),
    "owner_unknown": (503, "Nobody can tell now whose memory this is"),
    "embedder_unavailable": (503, "No vector can be made now"),
    "layer_unavailable": (503, "A cache cannot be reached"),
    "origin_timeout": (504, "Mem0 did not answer in time"),
}

_MEM0 = re.compile(
    r"/+(?:v[123]/(?!embeddings|models)|(?:memories|search|entities|configure|reset|generate-instructions)(?:/|\Z))"
)
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.ValidationError, "invalid"),
    (exceptions.ParseError, "malformed"),
    (exceptions.NotAuthenticated, "unauthenticated"),
    (exceptions.AuthenticationFailed, "unauthenticated"),
    (exceptions.NotFound, "not_found"),
    (exceptions.MethodNotAllowed, "method_not_allowed"),
    (exceptions.NotAcceptable, "not_acceptable"),
    (exceptions.UnsupportedMediaType, "unsupported_media_type"),
    (exceptions.Throttled, "throttled"),
    (exceptions.PermissionDenied, "forbidden"),
)


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """A problem for every error that has a meaning; None, so a 500, for the others."""
    request = context["request"]
    set_rollback()
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, DjangoPermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, OperationalError | InterfaceError):
        error = DatabaseUnavailable("PostgreSQL did not answer")
    code = _code(error)
    if code is None:
        return None
    status, _ = PROBLEMS[code]
    if status >= 500:
        log.warning("request failed", extra={"reason": code, "error": type(error).__name__})
    extra: dict[str, Any] = getattr(error, "extra", {})
    if isinstance(error, exceptions.ValidationError):
        extra = {"errors": list(_errors(error.detail))}
    body = describe(request, code, _detail(error), **extra)
    return Response(body, status=status, headers=_headers(error, status), content_type=MEDIA_TYPE)


def describe(request: HttpRequest, code: str, detail: str | None = None, **extra: Any) -> dict[str, Any]:
    """The body of a problem."""
    status, title = PROBLEMS[code]
    found: dict[str, Any] = {
        "type": f"urn:memsvc:problem:{code}",
        "title": title,
        "status": status,
        "instance": escape_uri_path(request.path),
        "code": code,
        "request_id": getattr(request, "request_id", None),
    }
    return found | ({"detail": detail} if detail else {}) | extra


def answer(request: HttpRequest, code: str, detail: str | None = None, **extra: Any) -> HttpResponse:
    """A problem as a whole answer, for where the framework's exception handler does not reach."""
    told = describe(request, code, detail, **extra)
    if of_mem0(request.path):
        return HttpResponse(orjson.dumps(in_mem0s_words(told)), status=told["status"], content_type="application/json")
    return HttpResponse(orjson.dumps(told), status=told["status"], content_type=MEDIA_TYPE)


def in_mem0s_words(told: Mapping[str, Any]) -> dict[str, Any]:
    """A problem as Mem0's clients read it: a sentence in `detail`."""
    fields = [f"{one['field']} {one['message']}" for one in told.get("errors", [])]
    detail = "; ".join(fields) or told.get("detail", told["title"])
    return {"detail": detail, "code": told["code"], "request_id": told["request_id"]}


def of_mem0(path: str) -> bool:
    """Whether a path belongs to one of Mem0's surfaces."""
    return _MEM0.match(path) is not None


@csrf_exempt
def unknown_route(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
    """404 for a path under /api/ that is no route."""
    return answer(request, "not_found", "There is no route with this path.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404."""
    return unknown_route(request) if _ours(request) else defaults.page_not_found(request, exception)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400: a host that is not allowed, a header that cannot be read."""
    return answer(request, "bad_request") if _ours(request) else defaults.bad_request(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500: no trace of the cause but the request's id, which the log names too."""
    return answer(request, "internal") if _ours(request) else defaults.server_error(request)


def _ours(request: HttpRequest) -> bool:
    return request.path.startswith("/api/") or of_mem0(request.path)


def _code(error: Exception) -> str | None:
    if isinstance(error, MemsvcError):
        codes = (vars(kind).get("code") for kind in type(error).__mro__)
        return next((code for code in codes if code in PROBLEMS), None)
    if isinstance(error, DatabaseError) or not isinstance(error, exceptions.APIException):
        return None
    if getattr(error, "default_code", None) in PROBLEMS:
        return str(error.default_code)
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


def _detail(error: Exception) -> str | None:
    if isinstance(error, exceptions.ValidationError):
        return None
    if isinstance(error, exceptions.APIException):
        return str(error.detail)
    return str(error) or None


def _errors(detail: Any) -> Iterator[dict[str, str]]:
    fields = detail if isinstance(detail, Mapping) else {"body": detail}
    for name, messages in fields.items():
        for message in messages if isinstance(messages, list) else [messages]:
            yield {"field": str(name), "message": str(message)}


def _headers(error: Exception, status: int) -> dict[str, str]:
    headers = {}
    if isinstance(error, exceptions.APIException) and getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = error.auth_header  # type: ignore[attr-defined]
    if status in (429, 503):
        wait = getattr(error, "retry_after", None) or getattr(error, "wait", None) or RETRY_SECONDS
        headers["Retry-After"] = str(math.ceil(wait))
    return headers
