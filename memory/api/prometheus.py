"""`/metrics` in Prometheus's text format: of all processes on all machines, whichever process is asked."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import redis
from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models import Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from rest_framework.exceptions import AuthenticationFailed

from memory import db, metrics, status, upkeep, watchdog
from memory.api import problems
from memory.errors import DatabaseUnavailable
from memory.models import CounterTotal
from memory.redis_client import cache
from memory.tenancy import auth, keys

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "memsvc_"
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """The metrics, for whoever METRICS_ACCESS lets in. While PostgreSQL is away they say that alone."""
    try:
        admitted = _admitted(request)
    except DatabaseUnavailable:
        return problems.answer(request, "database_unavailable")
    if not admitted:
        return problems.answer(request, "forbidden", "A key with the scope admin is needed.")
    try:
        upkeep.flush_counts()
        lines = [*_gauges(), *_counters()]
    except DatabaseError:
        lines = list(_gauge("up", [({"part": "postgresql"}, 0), ({"part": "cache"}, _cache_answers())]))
    finally:
        db.release()
    return HttpResponse("\n".join(lines) + "\n", content_type=CONTENT_TYPE)


def _admitted(request: HttpRequest) -> bool:
    """An admin's key; by METRICS_ACCESS whoever is on this machine, or anybody. A proxy's callers are not."""
    if settings.METRICS_ACCESS == "open":
        return True
    if settings.METRICS_ACCESS == "loopback" and _on_this_machine(request):
        return True
    try:
        secret = auth.secret_of(request.META)
    except AuthenticationFailed:
        return False
    caller = keys.authenticate(secret) if secret is not None else None
    return caller is not None and "admin" in caller.scopes and caller.user_id is None


def _on_this_machine(request: HttpRequest) -> bool:
    if any(name in request.META for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _gauges() -> Iterator[str]:
    watch = watchdog.read()
    open_ = next(one.value for one in watch.findings if one.name == "breaker_open")
    up = {"postgresql": 1.0, "cache": _cache_answers(), "mem0": float(open_ < 1)}
    yield from _gauge("up", [({"part": part}, value) for part, value in up.items()])
    yield from _gauge("level", [({}, watchdog.LEVELS.index(watch.level))])
    yield from _gauge("finding", [({"name": one.name}, one.value) for one in watch.findings])
    levels = [({"name": one.name}, float(watchdog.LEVELS.index(one.level))) for one in watch.findings]
    yield from _gauge("finding_level", levels)
    yield from _gauge("jobs_unfinished", [({"state": state}, n) for state, n in status.backlog().states.items()])
    yield from _gauge("lanes_held", [({}, watch.lanes_held)])
    yield from _gauge("reconciles_waiting", [({}, watch.reconciles_waiting)])
    yield from _gauge("workers", [({"queue": queue}, n) for queue, n in watch.workers.items()])
    yield from _gauge("breaker_open", [({}, open_)])


def _counters() -> Iterator[str]:
    """What all processes have counted, over all projects; a 0 for a metric nobody has counted yet."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    rows = CounterTotal.objects.order_by("name", "labels").values_list("name", "labels")
    for name, labels, total in rows.annotate(n=Sum("total")):
        found[name][labels] = total
    for name, (declared, meaning) in metrics.DECLARED.items():
        samples = [(_labels(labels), total) for labels, total in found[name].items()]
        yield from _metric(f"{name}_total", "counter", meaning, samples or ([] if declared else [({}, 0)]))
    for name, (_, meaning) in metrics.TIMED.items():
        yield from _head(name, "histogram", meaning)
        series: dict[str, dict[str, int]] = defaultdict(dict)
        for labels, total in found[name].items():
            before, _, bound = labels.rpartition("le=")
            series[before.rstrip(",")][bound] = total
        for before, counts in series.items():
            yield from _histogram(name, _labels(before), counts)


def _histogram(name: str, labels: Labels, counts: dict[str, int]) -> Iterator[str]:
    buckets, total = metrics.histogram(counts)
    for bound, n in buckets:
        yield _line(f"{name}_bucket", {**labels, "le": bound}, n)
    yield _line(f"{name}_sum", labels, total)
    yield _line(f"{name}_count", labels, buckets[-1][1])


def _gauge(name: str, samples: Iterable[Sample]) -> Iterator[str]:
    return _metric(name, "gauge", metrics.GAUGES[name][1], samples)


def _metric(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield from _head(name, kind, meaning)
    for labels, value in samples:
        yield _line(name, labels, value)


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{PREFIX}{name}{{{inside}}} {value}" if inside else f"{PREFIX}{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(stored: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in stored.split(",")) if stored else {}


def _cache_answers() -> float:
    try:
        return float(cache().ping())
    except redis.RedisError:
        return 0.0
