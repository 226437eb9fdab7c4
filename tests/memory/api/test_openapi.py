"""The committed description is the one the code makes; `manage.py spectacular --file docs/openapi.yaml` renews it."""

from __future__ import annotations

from pathlib import Path

import yaml
from django.conf import settings
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator


def test_the_committed_schema_is_the_codes():
    committed = yaml.safe_load((Path(settings.BASE_DIR) / "docs" / "openapi.yaml").read_text(encoding="utf-8"))
    made = SchemaGenerator().get_schema(public=True)
    assert yaml.safe_load(yaml.safe_dump(_plain(made))) == committed
    assert not GENERATOR_STATS._warn_cache
    assert not GENERATOR_STATS._error_cache


def test_every_route_of_the_api_is_described():
    described = SchemaGenerator().get_schema(public=True)["paths"]
    routes = {name for name, pattern in _routes(get_resolver()) if pattern.startswith("api/v1/")}
    operations = {path for path in described if path.startswith("/api/v1/")}
    assert len(operations) == len(routes)


def _routes(resolver: URLResolver, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for one in resolver.url_patterns:
        path = prefix + str(one.pattern)
        if isinstance(one, URLPattern):
            found.append((str(one.name), path))
        else:
            found += _routes(one, path)
    return found


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, str) else value
