"""Where the microseconds of a hit go: CPU of one thread in this process, step by step, without any server around it.

Each figure is the least of some rounds, which what else the machine does disturbs least.
"""

from __future__ import annotations

import gc
import io
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, cast

import orjson

ROUNDS, TIMES = 15, 300


def measure(key: str, asks: Mapping[str, Any], bounded: Mapping[str, Any]) -> dict[str, float]:
    """CPU µs of each step of a strict hit, of whole hits, and of a Django view that does nothing."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse
    from django.test import override_settings
    from django.urls import path

    from memory import clock, metrics, read, recall, stack
    from memory.api import answers, hot, middleware, native
    from memory.logs import Lines
    from memory.tenancy import keys, projects

    nothing = ModuleType("nothing")
    nothing.urlpatterns = [path("api/v1/memory/search", lambda _: HttpResponse(b"{}"))]  # type: ignore[attr-defined]
    sys.modules["nothing"] = nothing
    raw = orjson.dumps(asks)
    application = hot.Hot(_left)
    caller = keys.authenticate(key)
    assert caller is not None

    def call(app: Any, body: bytes = raw) -> None:
        app(_environ(body, key), lambda status, headers: None)

    def again() -> None:
        keys.authenticate(key)
        projects.policy(caller.project)

    cast(Lines, logging.getLogger().handlers[0]).setStream(io.StringIO())
    with override_settings(MIDDLEWARE=[], ROOT_URLCONF="nothing"):
        view = WSGIHandler()
        told = {"a Django view that does nothing": _least(lambda: call(view))}
    environ = _environ(raw, key)
    again()
    call(application)
    gc.collect()
    gc.freeze()  # as memsvc.wsgi does
    wanted = native.Search.wanted(asks, caller)
    query, policy = wanted.query, projects.policy(caller.project)
    trip = stack.L2.fetch(query, policy.generation)
    found = recall.at_hand(query, policy, wanted.wish)
    assert trip.version is not None
    assert found is not None
    version = trip.version
    steps: dict[str, Callable[[], object]] = {
        "is it plain, and Django's headers": lambda: (
            hot._plain(environ, 10**6),
            application._outer_headers("http", None, "a"),
        ),
        "its key": lambda: hot._caller(environ, native.Search),
        "its project": lambda: projects.known(caller.project),
        "what its body asks": lambda: hot._wanted.get((native.Search, caller.project, caller.user_id, raw)),
        "the round trip, for the version alone": lambda: stack.L2.state(query.slot[0], policy.generation),
        "the round trip, with the entry": lambda: stack.L2.fetch(query, policy.generation),
        "L0": lambda: stack.L0.get(query, version, policy.generation),
        "what is counted": lambda: metrics.add(read._looked(policy.id, "L0 hit") + read._answered(policy.id, "L0")),
        "the answer around its bytes": lambda: answers.search(found, clock.now()),
        "our headers": lambda: middleware.own_headers("x", caller, None),
        "the log line": lambda: middleware.log_access("POST", "x", 200, 0.0),
    }
    for name, step in steps.items():
        told[name] = _least(step, again)
    for name, body in (("a strict hit", asks), ("a bounded hit", {**asks, **bounded})):
        told[name] = _least(partial(call, application, orjson.dumps(body)), again)
    return told


def show(told: Mapping[str, float]) -> None:
    """Print the table."""
    print("\nCPU µs of one thread, step by step\n\n| | µs |\n|---|---|")
    for name, micros in told.items():
        print(f"| {name} | {micros:.1f} |")


def _least(work: Callable[[], object], before: Callable[[], None] = lambda: None) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        before()
        began = time.thread_time()
        try:
            for _ in range(TIMES):
                work()
        except _Left:
            continue  # CACHE was late, on a machine that has other work
        best = min(best, (time.thread_time() - began) / TIMES * 1e6)
    return best


class _Left(Exception):
    """The hot path has left a request to Django."""


def _left(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise _Left


def _environ(raw: bytes, key: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/api/v1/memory/search",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(raw)),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_AUTHORIZATION": f"Bearer {key}",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(raw),
    }
