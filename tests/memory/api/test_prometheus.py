"""`/metrics`: read by Prometheus's own parser, over all processes, by whom it may be."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from memory import metrics, upkeep
from memory.models import CounterTotal
from memory.tenancy import keys

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def empty():
    metrics.drain()


def page(**meta: Any) -> Any:
    return Client().get("/metrics", **meta)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def sample(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def test_every_process_is_in_it_and_every_metric_has_its_meaning(api, worker):
    api.add("tea")
    api.search()
    api.search()
    CounterTotal.objects.create(project_id=0, name="searches", labels="layer=L0", total=40)  # another process's
    text = page().content.decode()
    assert sample(text, "memsvc_searches_total", layer="L0") == 41
    assert sample(text, "memsvc_search_seconds_count", layer="L0") == 1
    assert sample(text, "memsvc_search_seconds_bucket", layer="L0", le="+Inf") == 1
    assert sample(text, "memsvc_lookups_total", layer="L0", outcome="hit") == 1
    assert sample(text, "memsvc_upstream_calls_total", kind="add") == 1
    assert sample(text, "memsvc_delivery_seconds_count", kind="add") == 1
    assert sample(text, "memsvc_attempts_total", outcome="stored") == 1
    assert sample(text, "memsvc_up", part="cache") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families.keys() == {f"memsvc_{name}" for name in (*metrics.DECLARED, *metrics.TIMED, *metrics.GAUGES)}
    assert all(family.documentation for family in families.values())


def test_large_counts_are_told_to_the_last_digit(api):
    CounterTotal.objects.create(project_id=0, name="searches", labels="layer=L0", total=123_456_789)
    assert sample(page().content.decode(), "memsvc_searches_total", layer="L0") == 123_456_789


def test_the_projects_are_added_up_and_not_named(api, other):
    api.search(user_id="secret-user", query="secret question")
    other.search(user_id="secret-user")
    text = page().content.decode()
    assert sample(text, "memsvc_searches_total", layer="L4") == 2
    assert "secret" not in text
    assert "project" not in text


@pytest.mark.parametrize(
    ("access", "address", "forwarded", "scopes", "status"),
    [
        ("loopback", "127.0.0.1", None, None, 200),
        ("loopback", "::1", None, None, 200),
        ("loopback", "127.0.0.1", "203.0.113.9", None, 403),
        ("loopback", "203.0.113.9", None, None, 403),
        ("loopback", "", None, None, 403),
        ("loopback", "203.0.113.9", None, ("admin",), 200),
        ("key", "127.0.0.1", None, None, 403),
        ("key", "127.0.0.1", None, ("read", "write"), 403),
        ("key", "203.0.113.9", None, ("admin",), 200),
        ("open", "203.0.113.9", None, None, 200),
    ],
)
def test_who_may_read_it(api, project, settings, access, address, forwarded, scopes, status):
    settings.METRICS_ACCESS = access
    meta: dict[str, Any] = {"REMOTE_ADDR": address}
    if forwarded:
        meta["HTTP_X_FORWARDED_FOR"] = forwarded
    if scopes:
        meta["HTTP_AUTHORIZATION"] = f"Bearer {keys.create(project, name='k', scopes=scopes)[1]}"
    assert page(**meta).status_code == status


def test_a_key_of_one_user_may_not(api, project, settings):
    settings.METRICS_ACCESS = "key"
    secret = keys.create(project, name="k", scopes=keys.SCOPES, user_id="ann")[1]
    assert page(HTTP_AUTHORIZATION=f"Bearer {secret}").status_code == 403
    assert page(HTTP_AUTHORIZATION="Basic x").status_code == 403


def test_without_postgresql_it_says_so(api, monkeypatch):
    from django.db import OperationalError

    def away() -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(upkeep, "flush_counts", away)
    text = page().content.decode()
    assert samples(text) == {
        ("memsvc_up", frozenset({("part", "postgresql")})): 0,
        ("memsvc_up", frozenset({("part", "cache")})): 1,
    }


def test_stats_tell_a_project_whether_anybody_must_look(api):
    watch = api.get("/stats").json()["watchdog"]
    assert watch["findings"]["missing_workers"] == {"value": 3, "level": "call"}
    assert watch["level"] == "call"
    assert watch["lanes_held"] == 0
