"""What hits are held against: a Django view that does nothing, and a WSGI application that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

BODY = b'{"ok":true}'
HEADERS = {"Content-Type": "application/json", "Content-Length": str(len(BODY))}

settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[], ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="none")
django.setup()


def nothing(request: HttpRequest) -> HttpResponse:
    """Nothing: no middleware before it, no body read."""
    return HttpResponse(BODY, headers=HEADERS)


urlpatterns = [path("api/v1/memory/search", nothing)]
view = get_wsgi_application()


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Nothing, and no Django: what the server itself costs."""
    start_response("200 OK", list(HEADERS.items()))
    return [BODY]
